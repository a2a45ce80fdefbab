"""Made-up folders of finished runs, with curves that are drawn at random."""

import csv
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import yaml

STEPS = 1100
# The part of a run's config that is its identity, shortened.
CONFIG: dict[str, Any] = {
    "seed": 0,
    "global_batch_size": 64,
    "micro_batch_size": None,
    "tokenizer": None,
    "model": {"width": 8},
    "objective": {"_target_": "openslip.objectives.slip.SLIP", "views": {}},
    "optim": {"lr": 8e-4},
    "data": {"source": {"root": "data/builtin", "shuffle_captions": False}},
    "towers": {"text": {"weights": "data/evaluation/vectors.txt"}},
    "trainer": {"precision": "bf16-mixed", "max_steps": STEPS, "max_epochs": None},
}
START = {
    "precision": "bf16-mixed",
    "ranks": 1,
    "openslip": "0.1.0",
    "dates": ["2026-01-02T03:04:05+00:00"],
    "data": {"samples": 10240, "fingerprint": "a"},
    "versions": {"torch": "2.14.1"},
    "hardware": {"cpu": "CPU", "cores": 2, "cpu_threads": 1, "gpus": []},
}


def draw_columns(seed: int, *, loss: float, noise: float, steps: int, every: int) -> dict[str, dict[int, float]]:
    """Draw a loss that falls from 7 to `loss`, with noise of each batch."""
    generator = np.random.default_rng(seed)
    logged = [1, *range(every, steps + 1, every)]
    values = {step: float(loss + 6 * np.exp(-step / 200) + noise * generator.standard_normal()) for step in logged}
    halves = {step: value / 2 for step, value in values.items()}
    return {
        "train/loss": values,
        "train/clip_loss": halves,
        "train/lr": {step: 8e-4 * (1 - step / 1200) for step in values},
    }


def write_run(
    folder: Path,
    seed: int,
    changes: dict[str, Any] | None = None,
    *,
    loss: float = 1.0,
    top1: float | None = 80.0,
    noise: float = 0.1,
    steps: int = STEPS,
    every: int = 10,
    rate: float = 1.0,
    start: dict[str, Any] | None = None,
) -> Path:
    """Write the folder of a run, unfinished if `steps` is less than `STEPS`.

    Args:
        folder: folder of the run.
        seed: its seed, which also draws the noise.
        changes: settings that differ from `CONFIG`, by dotted key.
        loss: the loss at the end.
        top1: accuracy at the end; None writes none.
        noise: standard deviation of a logged loss.
        steps: last step.
        every: steps between two logged ones.
        rate: factor of the learning rate.
        start: what differs from `START` in `env.json`.
    """
    config = deepcopy(CONFIG) | {"seed": seed}
    for key, value in (changes or {}).items():
        *groups, last = key.split(".")
        part: Any = config
        for group in groups:
            part = part[group]
        part[last] = value
    folder.mkdir(parents=True)
    columns = draw_columns(seed, loss=loss, noise=noise, steps=steps, every=every)
    columns["train/lr"] = {step: rate * value for step, value in columns["train/lr"].items()}
    if top1 is not None and steps == STEPS:
        columns["eval/builtin/top1"] = {steps: top1}
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *columns, "train/clip_acc"])
        for step in columns["train/loss"]:
            writer.writerow([step, *(values.get(step, "") for values in columns.values()), 50.0])
    (folder / "config.yaml").write_text(yaml.safe_dump({"format": 3, **config}))
    (folder / "env.json").write_text(json.dumps({"starts": [START | (start or {})], "training_seconds": 90}))
    if steps == STEPS:
        (folder / "result.json").write_text("{}")
    return folder
