# Two commands do everything: `make train` runs the main job, `make test` the tests. Both first set up the environment.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
comma := ,

.PHONY: setup train real test test-all test-slurm test-minimum mutants check format docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $(STAMP)

# Train SLIP on the built-in dataset and write its report: about two minutes on two cores.
train: setup
	$(BIN)/python train.py

# Train LiT on real drawings with three seeds and with shuffled captions, from downloads to a table of results.
REAL := $(BIN)/python train.py experiment=laptop_lit
REAL_STAMP := .venv/.installed-real

$(REAL_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --editable ".[dev,real]"
	touch $(REAL_STAMP)

real: $(REAL_STAMP)
	$(BIN)/openslip data get openclipart
	$(BIN)/openslip data get efficientnet_lite0
	$(BIN)/openslip data get glove_6b_50d
	$(BIN)/openslip data check $${EVALUATION_DATA:-data/evaluation}/openclipart/train
	for seed in 0 1 2; do $(REAL) seed=$$seed name=laptop_lit_seed$$seed || exit; done
	$(REAL) data.source.shuffle_captions=true name=laptop_lit_shuffled
	$(BIN)/openslip eval checkpoint=runs/laptop_lit_seed0 evaluation=openclipart_mean
	$(BIN)/python benchmarks/laptop_lit.py runs

# Run three test files at a time on two cores: half of the time tests wait for processes that they start.
test: setup
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow and not slurm"

test-all: setup
	$(BIN)/python -m pytest -m "not slurm"

# Run real jobs in a SLURM that the tests start on this machine; skipped if its packages are missing.
test-slurm: setup
	$(BIN)/python -m pytest -m slurm -rs tests/slurm

# Install the oldest versions that pyproject.toml allows, and run the tests with them.
test-minimum:
	$(PYTHON) -m venv .venv-minimum
	.venv-minimum/bin/pip install --quiet --upgrade pip
	.venv-minimum/bin/pip install --quiet --constraint constraints-minimum.txt --editable ".[dev]"
	.venv-minimum/bin/python -m pytest -m "not slow" tests/unit tests/parity

# Plant faults, one at a time: how many do the fast tests detect? ONLY=optim,clip.py runs those that contain a word.
mutants: setup
	$(BIN)/python tests/mutants/run.py $(subst $(comma), ,$(ONLY))

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Build the documentation, with the reference from the docstrings, as a site in site/.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf site .venv .venv-minimum data/builtin dist build .pytest_cache .ruff_cache .import_linter_cache
