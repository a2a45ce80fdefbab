"""Evaluations of merged checkpoints: a JSON file that grows with each alpha, a table, and the best alpha."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from openslip.commands.eval import all_records, as_user_error, feature_folder, open_all, show_errors
from openslip.config.compose import compose_config
from openslip.durable import needed, write_text
from openslip.errors import MissingData, UserError
from openslip.evaluation import stored
from openslip.evaluation.evaluation import with_unit
from openslip.evaluation.feature_cache import FeatureCache
from openslip.evaluation.image_features import sharing
from openslip.evaluation.suite import Suite
from openslip.inference.bundle import Bundle
from openslip.inference.load import choose_device
from openslip.progress import progress
from openslip.run.identity import without_secrets
from openslip.terminal import be_quiet, notice, printable, say

MOST_COLUMNS = 5  # of metrics; the JSON file has all of them

Better = Literal["higher", "lower"] | None


class AlphaTable:
    """One row per finished alpha, with the metrics of each evaluation, or the error that it ended with.

    Args:
        path: JSON file, which is written again after each alpha.
        parents: the two checkpoints, as the user named them.
        config: config of the evaluations.
        better: by name of the evaluation, which values of its headline metric are better.
    """

    def __init__(self, path: Path, parents: tuple[str, str], config: dict[str, Any], better: dict[str, Better]) -> None:
        self.path = path
        self.parents = parents
        self.config = config
        self.better = better
        self.rows: list[dict[str, Any]] = []
        self.headlines: dict[str, str] = {}  # the name of each evaluation's headline metric

    def add(
        self, alpha: Decimal, file: Path, records: Mapping[str, dict[str, Any]], errors: Mapping[str, UserError]
    ) -> None:
        """Append the row of an alpha and write the file.

        Args:
            alpha: weight of the second checkpoint.
            file: the merged checkpoint.
            records: results by name of the evaluation.
            errors: errors by name of the evaluation.

        Raises:
            UserError: the file cannot be written.
        """
        for name, record in records.items():
            if headline := stored.headline(record):
                self.headlines[name] = headline[0]
        self.rows.append(
            {
                "alpha": float(alpha),
                "file": file.name,
                "metrics": {name: record["metrics"] for name, record in records.items()},
                "problems": {name: record["problems"] for name, record in records.items() if record["problems"]},
                "errors": {name: str(error) for name, error in errors.items()},
            }
        )
        content = {
            "a": self.parents[0],
            "b": self.parents[1],
            "rows": self.rows,
            "best": {name: best for name in self.headlines if (best := self.best(name))},
            "config": without_secrets({key: value for key, value in self.config.items() if key != "checkpoint"}),
        }
        with needed(self.path, refusal=UserError, advice="--out names another place"):
            write_text(self.path, json.dumps(content, indent=1) + "\n")

    def best(self, name: str) -> dict[str, Any] | None:
        """Return the best value of an evaluation's headline metric and the alphas that reach it.

        None if the metric has no best value, or no alpha has a value.
        """
        metric, better = self.headlines[name], self.better.get(name)
        values = {row["alpha"]: row["metrics"].get(name, {}).get(metric, math.nan) for row in self.rows}
        values = {alpha: value for alpha, value in values.items() if not math.isnan(value)}
        if better is None or not values:
            return None
        value = (max if better == "higher" else min)(values.values())
        return {"metric": metric, "value": value, "alphas": [alpha for alpha in values if values[alpha] == value]}

    def columns(self) -> list[tuple[str, str]]:
        """Return the evaluations and metrics that the table shows: headline metrics first, then those that vary."""
        shown = list(self.headlines.items())
        if len(shown) == 1:
            (name, headline), *_ = shown
            rows = [row["metrics"][name] for row in self.rows if name in row["metrics"]]
            varying = [metric for metric in rows[0] if len({row.get(metric) for row in rows}) > 1]
            shown += [(name, metric) for metric in varying if metric != headline][: MOST_COLUMNS - 1]
        return shown

    def show(self) -> None:
        """Print the table, the best alpha of each evaluation, and the place of the file."""
        columns = self.columns()
        titles = [metric if len(self.headlines) == 1 else f"{name} {metric}" for name, metric in columns]
        table = Table("alpha", *map(printable, titles))
        for row in self.rows:
            cells = [row["metrics"].get(name, {}).get(metric) for name, metric in columns]
            texts = ["-" if x is None else with_unit(m, x) for (_, m), x in zip(columns, cells, strict=True)]
            table.add_row(f"{row['alpha']:g}", *map(printable, texts))
        Console(markup=False).print(table)
        for name in self.headlines:
            if best := self.best(name):
                alphas = ", ".join(f"{alpha:g}" for alpha in best["alphas"])
                say(f"{name}: best {best['metric']} {with_unit(best['metric'], best['value'])} at alpha {alphas}")
        say(f"all metrics: {self.path}")


def opened_table(settings: Sequence[str], results: Path, parents: tuple[str, str]) -> AlphaTable:
    """Compose the evaluations' config and open the evaluations once, so that mistakes are found before the merge.

    Args:
        settings: settings of `openslip eval`.
        results: the JSON file to write.
        parents: the two checkpoints, as the user named them.

    Raises:
        UserError: a setting is wrong, or an evaluation cannot be opened; one whose data are missing is only listed.
    """
    with progress("composing the config"):
        config, _ = compose_config("eval", [*settings], {"checkpoint": str(results.parent)})
    be_quiet(config["quiet"])
    choose_device(config["device"])
    evaluations, errors = open_all(config["evaluation"])
    for error in errors.values():
        if not isinstance(error, MissingData):
            raise error
    show_errors(errors, num_chosen=len(config["evaluation"]))
    if not evaluations:
        raise UserError("no evaluation has its data: choose others with evaluation=NAME, or leave them out")
    config["evaluation"] = {name: config["evaluation"][name] for name in evaluations}
    return AlphaTable(results, parents, config, {name: part.better for name, part in evaluations.items()})


def evaluate(alpha: Decimal, bundle: Bundle, table: AlphaTable) -> bool:
    """Evaluate a merged checkpoint as `openslip eval` does, and add its row; return whether all succeeded."""
    config, file = table.config, bundle.file
    assert file is not None
    records: dict[str, dict[str, Any]] = {}
    try:
        place = choose_device(config["device"])
        bundle.model.to(place)
        bundle = replace(bundle, device=place).reading(transparency=config["transparency"], exif=config["exif"])
        features = FeatureCache(feature_folder(config["feature_cache"]))
        with sharing(features):
            suite, folder = Suite(bundle, str(file), features), stored.folder_of(str(file), file)
            records, errors = all_records(config, suite, folder, is_written=True)
    except Exception as error:  # of any kind: the next alpha is still evaluated
        errors = {name: as_user_error(error) for name in config["evaluation"]}
    for name, error in errors.items():
        notice(f"error: alpha {alpha:f}: {name}: {error}")
    table.add(alpha, file, records, errors)
    return not errors
