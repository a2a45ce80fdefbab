"""Evaluate a checkpoint: openslip eval checkpoint=runs/NAME evaluation=imagenet."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from openslip.config.build import build_evaluations
from openslip.config.compose import compose_config
from openslip.durable import needed, refuse_unwritable, write_text
from openslip.errors import UserError
from openslip.evaluation.evaluation import with_unit
from openslip.inference.config_choices import choices_in
from openslip.inference.load import load
from openslip.progress import progress
from openslip.run.identity import without_secrets
from openslip.terminal import be_quiet, notice, printable, say

ELSEWHERE = "output=FILE names another place"


def main(arguments: list[str]) -> None:
    """Run evaluations on a checkpoint, with its own tokenizer and transform, as in training."""
    with progress("composing the config"):
        config, _ = compose_config("eval", arguments)
    be_quiet(config["quiet"])
    with progress("loading the checkpoint"):
        allow, format_name = tuple(config["allow"]), config["format"]
        with choices_in(config) as choices:
            bundle = load(config["checkpoint"], device=config["device"], allow=allow, format=format_name, **choices)
    bundle = bundle.reading(transparency=config["transparency"], exif=config["exif"])
    output = Path(config["output"] or default_output(config["checkpoint"], list(config["evaluation"])))
    writable = can_write(output, is_asked_for=config["output"] is not None)
    results, notes, lines = {}, {}, []
    with progress("opening the evaluations"):
        evaluations = build_evaluations(config["evaluation"])
    for name, evaluation in evaluations.items():
        problems = evaluation.problems()
        say(*(f"{name}: {line}" for line in problems))
        with progress(f"evaluating {name}"):
            results[name] = evaluation.run(bundle)
        notes[name] = evaluation.notes
        lines.append(evaluation.headline(results[name]))
        if problems:
            lines.append(f"{name}: these metrics are of an incomplete or repaired dataset, as the first lines say")

    show(results, notes)
    say(*lines)
    if writable:
        settings = {key: value for key, value in config.items() if key != "output"}
        content = {
            "checkpoint": str(config["checkpoint"]),
            "metrics": results,
            "notes": notes,
            "config": without_secrets(settings),
        }
        is_replaced = output.exists()
        with needed(output, refusal=UserError, advice=ELSEWHERE):
            write_text(output, json.dumps(content, indent=1) + "\n")
        say(f"metrics: {output}{' (replaced)' if is_replaced else ''}")


def can_write(output: Path, *, is_asked_for: bool) -> bool:
    """Check, before metrics are computed, whether their file can be written; if not, they are only printed.

    Args:
        output: the file for the metrics.
        is_asked_for: whether the user has named the file.

    Raises:
        UserError: the file cannot be written, and the user has named it.
    """
    try:
        refuse_unwritable(output, advice=ELSEWHERE)
    except UserError as error:
        if is_asked_for:
            raise
        notice(f"{error}; the metrics are only printed")
        return False
    return True


def default_output(checkpoint: str, evaluations: list[str]) -> Path:
    """Return the default file for metrics: in the run's folder, or beside a checkpoint file and named after it.

    The checkpoint's name is included because several checkpoints of a folder may be evaluated at the same time.
    """
    path, name = Path(checkpoint), f"evaluation-{'-'.join(evaluations)}.json"
    return path / name if path.is_dir() else path.with_name(f"{path.stem}-{name}")


def show(results: dict[str, dict[str, float]], notes: dict[str, dict[str, str]]) -> None:
    """Print one row per metric and note."""
    table = Table("evaluation", "metric", "value")
    for name, metrics in results.items():
        for metric, value in metrics.items():
            table.add_row(*map(printable, (name, metric, with_unit(metric, value))))
        for note, text in notes[name].items():
            table.add_row(*map(printable, (name, note, text)))
    Console(markup=False).print(table)
