"""List the models to train, the published checkpoints that have a name, and the runs in a folder: openslip models."""

import argparse
import csv
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from openslip.config.catalogue import models
from openslip.config.folder import config_dirs, config_folder
from openslip.config.help import columns
from openslip.inference.published import TABLE, Published, published
from openslip.terminal import say, say_wrapped

TAIL = 1 << 16  # bytes at the end of metrics.csv that are read: hundreds of rows


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("openslip models", description=__doc__)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of the runs, runs/ by default"
    )
    parser.add_argument("--config-dir", metavar="DIR", help="also list the models of your own folder of configs")
    return parser


def main(arguments: list[str]) -> int:
    """Print one line per model, one per published checkpoint and one per run."""
    folders, _ = config_dirs(arguments)
    options = parser().parse_args(arguments)
    known = models([config_folder(), *folders])
    width = max(len(model.parameters) for model in known)
    longest = max(len(model.name) for model in known)
    rows = {f"{model.name:{longest}} {model.parameters:{width}}": model.meaning for model in known}
    say_wrapped("models: openslip train model=NAME; parameters of the image tower + the text tower")
    say(*columns(rows, longest + 1 + width), "")

    files = {file.name: description(file) for file in published(TABLE).values()}
    say_wrapped(
        "published checkpoints: openslip predict IMG --checkpoint NAME, or openslip.load(NAME); downloaded once",
        "accuracies on ImageNet-1k: zero-shot, linear classifier, fine-tuned; ~ marks an estimated file size",
    )
    say(*columns(files, 21), "")

    runs = {folder.name: state(folder) for folder in run_folders(options.runs)}
    say(f"runs in {options.runs}:" if runs else f"runs in {options.runs}: none", *columns(runs, 50))
    return 0


def description(file: Published) -> str:
    """Describe a published checkpoint in one line."""
    accuracies = "/".join("-" if value is None else f"{value:.1f}" for value in file.accuracies())
    return (
        f"{file.model}, {file.image_size} px, {file.dataset} {file.epochs} epochs, {accuracies} %, {file.size()}, "
        f"{file.source} ({file.licence})"
    )


def run_folders(runs: Path) -> Iterator[Path]:
    """Yield the folders of runs that have begun, sorted by name."""
    yield from sorted(path.parent for path in runs.glob("*/config.yaml"))


def state(run: Path) -> str:
    """Describe a run in one line: whether it is finished, its step, and the headline of its evaluation or a metric."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        result = json.loads((run / "result.json").read_bytes())
        headlines = [line for line in result["lines"] if not line.startswith(("report: ", "data: ", "profile: "))]
        return ": ".join([f"finished at step {result['step']}", *headlines[:1]])
    metrics = last_metrics(run / "metrics.csv")
    if "step" not in metrics:
        return "unfinished, no metrics yet"
    shown = [name for name in metrics if name.startswith("eval/")][:1] or [n for n in metrics if n == "train/loss"]
    return ", ".join([f"unfinished, step {metrics['step']}", *(f"{name} {metrics[name]:.4}" for name in shown)])


def last_metrics(file: Path) -> dict[str, float]:
    """Return the last number of each column near the end of a `metrics.csv`; empty if there is none."""
    values: dict[str, float] = {}
    with suppress(OSError, csv.Error), file.open("rb") as content:
        head = content.readline()
        content.seek(max(len(head), file.stat().st_size - TAIL))
        if content.tell() > len(head):
            content.readline()  # the rest of a row whose beginning was not read
        lines = (head + content.read()).decode("utf-8-sig", "replace").splitlines()
        for row in csv.DictReader(lines):
            for name, cell in row.items():
                with suppress(ValueError, TypeError):  # an empty cell, or a row that a crash has truncated
                    values[name] = int(cell) if name == "step" else float(cell)
    return values
