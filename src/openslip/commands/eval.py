"""`python eval_zeroshot.py` and `openslip eval`: a checkpoint and evaluations -> a table and JSON."""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from openslip.config.build import build
from openslip.config.compose import compose_config
from openslip.inference.predict import load


def main(arguments: list[str]) -> None:
    """Evaluates a checkpoint with the same objects that training uses; its tokenizer and transform come with it."""
    config, _ = compose_config("eval", arguments)
    loaded = load(config["checkpoint"], device=config["device"], allow=tuple(config["allow"]))
    transform = loaded.transform.settings()
    tokenizer = loaded.tokenizer and {"_target_": "openslip.text.clip_bpe.Tokenizer", **loaded.tokenizer.settings()}
    values = {
        "image_size": transform["size"],
        "mean": transform["mean"],
        "std": transform["std"],
        "tokenizer": tokenizer,
    }
    config, _ = compose_config("eval", arguments, values)

    results, lines = {}, []
    for name, evaluation_config in config["evaluation"].items():
        evaluation = build(evaluation_config, f"evaluation.{name}")
        results[name] = evaluation.run(loaded.model, loaded.device)
        lines.append(evaluation.headline(results[name]))

    show(results)
    output = Path(config["output"] or default_output(config["checkpoint"], list(results)))
    output.write_text(json.dumps({"checkpoint": str(config["checkpoint"]), "metrics": results}, indent=1) + "\n")
    sys.stdout.write("".join(f"{line}\n" for line in [*lines, f"figures: {output}"]))


def default_output(checkpoint: str, evaluations: list[str]) -> Path:
    """In the run's folder, or beside the file and with its name: several of a folder may be evaluated at a time."""
    path, name = Path(checkpoint), f"evaluation-{'-'.join(evaluations)}.json"
    return path / name if path.is_dir() else path.with_name(f"{path.stem}-{name}")


def show(results: dict[str, dict[str, float]]) -> None:
    """One row per figure."""
    table = Table("evaluation", "metric", "value")
    for name, metrics in results.items():
        for metric, value in metrics.items():
            table.add_row(name, metric, f"{value:.2f}")
    Console().print(table)
