"""`openslip reproduce` as a user runs it: real first steps of the lowest rung, whole and with planted faults."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"
STEPS = 330  # of 1100: three of the ten parts that are compared
PLANT = "import shifted_captions; shifted_captions.plant()\n"
MAIN = "import sys; from openslip.__main__ import run; sys.exit(run(sys.argv[1:]))"


def openslip(cwd: Path, *arguments: str, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", before + MAIN, *arguments]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workplace")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "before", "deviating"),
    [
        ("as_it_is", [], "", None),
        ("half_rate", ["optim.lr=4.0e-4"], "", "train/logit_scale"),
        ("shifted", [], PLANT, "train/clip_loss"),
    ],
)
def test_the_first_steps_of_a_run_deviate_only_with_a_planted_fault(
    name: str, settings: list[str], before: str, deviating: str | None, workplace: Path
):
    words = ["seed=7", f"name={name}", "trainer=cpu", "data.num_workers=0", *settings]
    stop = "+callbacks.disturb._target_=disturbances.Disturb"
    trained = openslip(workplace, "train", *words, stop, before=before, DISTURB=f"signal {STEPS + 1} 0")
    assert trained.returncode == 143, trained.stderr
    compared = openslip(workplace, "reproduce", "shapes", "--run", f"runs/{name}")
    assert compared.returncode == int(deviating is not None), compared.stdout + compared.stderr
    found = set(re.findall(r"^  (train/\w+) .* DEVIATES$", compared.stdout, re.MULTILINE))
    assert found >= {deviating} if deviating else not found, compared.stdout
    assert ("another setting: optim.lr: 0.0004, expected 0.0008" in compared.stdout) == bool(settings)
