"""Evaluate a checkpoint: openslip eval checkpoint=runs/NAME evaluation=imagenet."""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from openslip.config.build import build_evaluations
from openslip.config.compose import compose_config
from openslip.evaluation.evaluation import with_unit
from openslip.inference.load import load


def main(arguments: list[str]) -> None:
    """Run the evaluations that training uses; tokenizer and transform come with the checkpoint."""
    config, _ = compose_config("eval", arguments)
    bundle = load(config["checkpoint"], device=config["device"], allow=tuple(config["allow"]), format=config["format"])
    results, notes, lines = {}, {}, []
    for name, evaluation in build_evaluations(config["evaluation"]).items():
        results[name] = evaluation.run(bundle)
        notes[name] = evaluation.notes
        lines.append(evaluation.headline(results[name]))

    show(results, notes)
    content = {"checkpoint": str(config["checkpoint"]), "metrics": results, "notes": notes}
    output = Path(config["output"] or default_output(config["checkpoint"], list(results)))
    output.write_text(json.dumps(content, indent=1) + "\n")
    sys.stdout.write("".join(f"{line}\n" for line in [*lines, f"metrics: {output}"]))


def default_output(checkpoint: str, evaluations: list[str]) -> Path:
    """In the run's folder, or beside the file and with its name: several of a folder may be evaluated at a time."""
    path, name = Path(checkpoint), f"evaluation-{'-'.join(evaluations)}.json"
    return path / name if path.is_dir() else path.with_name(f"{path.stem}-{name}")


def show(results: dict[str, dict[str, float]], notes: dict[str, dict[str, str]]) -> None:
    """Print one row per metric and note."""
    table = Table("evaluation", "metric", "value")
    for name, metrics in results.items():
        for metric, value in metrics.items():
            table.add_row(name, metric, with_unit(metric, value))
        for note, text in notes[name].items():
            table.add_row(name, note, text)
    Console().print(table)
