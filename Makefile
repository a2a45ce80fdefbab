# Two commands do everything: `make train` runs the main job, `make test` the tests. Both set the environment up first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
comma := ,

.PHONY: setup train test test-all test-slurm test-minimum mutants check format clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $(STAMP)

# SLIP on the built-in set, with its report: about two minutes on two cores.
train: setup
	$(BIN)/python train.py

# Three files of tests at a time on two cores: half of the time they wait for processes that they start.
test: setup
	$(BIN)/python -m pytest -n 3 --dist loadfile -m "not slow and not slurm"

test-all: setup
	$(BIN)/python -m pytest -m "not slurm"

# Real jobs in a SLURM that the tests start on this machine; skipped where its packages are missing.
test-slurm: setup
	$(BIN)/python -m pytest -m slurm -rs tests/slurm

# The oldest versions that pyproject.toml admits, really installed, and the tests run with them.
test-minimum:
	$(PYTHON) -m venv .venv-minimum
	.venv-minimum/bin/pip install --quiet --upgrade pip
	.venv-minimum/bin/pip install --quiet --constraint constraints-minimum.txt --editable ".[dev]"
	.venv-minimum/bin/python -m pytest -m "not slow" tests/unit tests/parity

# Planted faults, one at a time: how many do the fast tests see? ONLY=optim,clip.py takes those that name one of these.
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

clean:
	rm -rf .venv .venv-minimum data/builtin dist build .pytest_cache .ruff_cache .import_linter_cache
