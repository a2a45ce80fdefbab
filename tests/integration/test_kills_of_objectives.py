"""A run of any objective that is killed five times ends, bit by bit, as one that nobody killed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from trainings import STEPS, Training, assert_ended_as, steps_saved

ROOT = Path(__file__).parents[2]
METHODS = sorted(file.stem for file in (ROOT / "configs" / "method").glob("*.yaml"))
MORE = {"devise": ["tokenizer.vectors=vectors.txt"]}
KILLS = 5
RUN = [
    *("trainer=cpu", "trainer.precision=32-true", f"trainer.max_steps={STEPS}", "global_batch_size=16"),
    *("data.num_workers=0", "evaluation=none", "callbacks.metrics.every_n_steps=1", "callbacks.snapshot.num_samples=4"),
    *("callbacks.save.every_n_steps=1", "+callbacks.disturb._target_=disturbances.Disturb"),
]


@pytest.fixture(scope="module", autouse=True)
def vectors(place: Path) -> None:
    """The word vectors of the built-in dataset, as `docs/DATA.md` makes them."""
    command = [
        sys.executable,
        "-m",
        "openslip",
        "data",
        "vectors",
        "builtin",
        "--output",
        "vectors.txt",
        "--width",
        "64",
    ]
    subprocess.run(command, cwd=place, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_five_kills_change_nothing(place: Path, method: str):
    run, name = [*RUN, f"model={method}_tiny", *MORE.get(method, [])], f"{method}_killed"
    whole = Training(place, *run, f"name={method}", log=method)
    assert whole.wait() == 0, whole.said()
    steps = np.random.default_rng(METHODS.index(method)).choice(np.arange(2, STEPS + 1), KILLS, replace=False)
    kept = []
    for step in sorted(steps):
        training = Training(place, *run, f"name={name}", log=f"{name}{step}", DISTURB=f"kill {step} 0")
        assert training.wait() == -9, training.said()
        kept.append(next(iter(steps_saved(place / "runs" / name)), 0))
    assert kept == sorted(kept)
    assert 0 < kept[-1] < STEPS
    last = Training(place, *run, f"name={name}", log=f"{name}_last")
    assert last.wait() == 0, last.said()
    assert f"Resumed at step {kept[-1]} of {STEPS}." in last.said()
    assert_ended_as(place / "runs" / name, place / "runs" / method)
