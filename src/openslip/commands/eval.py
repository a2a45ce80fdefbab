"""Evaluate a checkpoint: openslip eval checkpoint=runs/NAME evaluation=imagenet."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from openslip.config.build import build_evaluations
from openslip.config.compose import compose_config
from openslip.data.remote.files import cache_folder
from openslip.distributed import any_rank, is_main_process, of_all_ranks
from openslip.durable import needed, refuse_unwritable, write_text
from openslip.errors import MissingData, OtherRankError, UserError, described
from openslip.evaluation import stored
from openslip.evaluation.evaluation import Evaluation, with_unit
from openslip.evaluation.feature_cache import FeatureCache
from openslip.evaluation.image_features import sharing
from openslip.evaluation.suite import Suite, in_order_of_sources
from openslip.inference.config_choices import choices_in
from openslip.inference.load import load
from openslip.progress import progress
from openslip.run.identity import without_secrets
from openslip.run.launch import launched_ranks, reported_once
from openslip.run.ranks import all_failed, is_broken_connection
from openslip.terminal import be_quiet, notice, printable, say, say_wrapped

ELSEWHERE = "output=FILE names another place"
REPAIRED = "these metrics are of an incomplete or repaired dataset, as the first lines say"

Record = dict[str, Any]  # content of a result's JSON


def main(arguments: list[str]) -> int:
    """Run evaluations on a checkpoint, with its own tokenizer and transform, as in training; return the exit code."""
    with progress("composing the config"), reported_once():
        config, _ = compose_config("eval", arguments)
    be_quiet(config["quiet"])
    with launched_ranks(config["device"]):
        with progress("loading the checkpoint"):
            allow, format_name = tuple(config["allow"]), config["format"]
            with choices_in(config) as choices:
                bundle = load(config["checkpoint"], device=config["device"], allow=allow, format=format_name, **choices)
        bundle = bundle.reading(transparency=config["transparency"], exif=config["exif"])
        features = FeatureCache(feature_folder(config["feature_cache"]))
        suite = Suite(bundle, str(config["checkpoint"]), features)
        with sharing(features):
            return evaluate(config, suite)


def evaluate(config: dict[str, Any], suite: Suite) -> int:
    """Run a config's evaluations, print their metrics and write them; return the exit code.

    Each result is stored when its evaluation ends, and a result that was stored before is not computed again; with
    `output=FILE`, all are computed, and stored in that file alone.
    """
    chosen = config["evaluation"]
    output = None if config["output"] is None else Path(config["output"])
    folder = None if output else stored.folder_of(suite.checkpoint, suite.bundle.file)
    if output is not None and is_main_process():
        refuse_unwritable(output, advice=ELSEWHERE)
    is_written = folder is not None and bool(chosen) and is_main_process() and can_write(folder)
    records, errors = all_records(config, suite, folder, is_written=is_written)
    if is_main_process():
        show_records({name: records[name] for name in chosen if name in records})
        if output is not None and records:
            write_all(output, config, {name: records[name] for name in chosen if name in records}, errors)
        elif folder is not None and is_written and records:
            say_wrapped(f"metrics: {folder}/{report_of(folder)}")
        show_errors({name: errors[name] for name in chosen if name in errors}, num_chosen=len(chosen))
    has_failed = any(not isinstance(error, MissingData) for error in errors.values())
    return int(any_rank(has_failed or (bool(chosen) and not records)))


def all_records(
    config: dict[str, Any], suite: Suite, folder: Path | None, *, is_written: bool
) -> tuple[dict[str, Record], dict[str, UserError]]:
    """Run a config's evaluations; return their results and the errors of those that failed, by name.

    Args:
        config: the config of `openslip eval`.
        suite: the model.
        folder: folder whose stored results are reused; None to compute all.
        is_written: whether this process stores each result in that folder.

    Raises:
        Exception: the only evaluation that was chosen has failed.
    """
    chosen = config["evaluation"]
    evaluations, errors = open_all(chosen)
    records: dict[str, Record] = {}
    for name, evaluation in in_order_of_sources(evaluations):
        try:
            known = None if folder is None or config["again"] else suite.known(folder, name, evaluation, chosen[name])
            records[name] = known or run(suite, name, evaluation, chosen[name])
        except Exception as error:  # any error, such as missing memory, ends no other evaluation
            if len(chosen) == 1 or is_broken_connection(error) or not all_failed(name, failed=True):
                raise
            errors[name] = as_user_error(error)
            continue
        all_failed(name, failed=False)
        if known is not None:
            tell(f"{name}: computed before from the same weights and data (again=true computes it again)")
        elif folder is not None and is_written:
            try:
                if replaced := stored.differences(folder, records[name]):
                    tell(f"{name}: replaces a result of other settings ({replaced}); output=FILE keeps both")
                stored.write(folder, records[name], evaluation.arrays)
                if len(chosen) > 1:
                    tell(f"{name}: stored, {len(records)} of {len(chosen)} evaluations")
            except UserError as error:
                errors[name] = error
        evaluation.arrays = {}  # they may be large, and the report reads them from the file
    return records, errors


def run(suite: Suite, name: str, evaluation: Evaluation, options: dict[str, Any]) -> Record:
    """Run one evaluation, and print first what its dataset lacks."""
    tell(*(f"{name}: {line}" for line in evaluation.problems()))
    with progress(f"evaluating {name}"):
        return suite.run(name, evaluation, options)


def as_user_error(error: Exception) -> UserError:
    """Return an error with the same message and without traceback, whose frames would keep features in memory."""
    return MissingData(str(error), error.place) if isinstance(error, MissingData) else UserError(described(error))


def open_all(chosen: dict[str, Any]) -> tuple[dict[str, Evaluation], dict[str, UserError]]:
    """Build the evaluations, and return those that could be built and the errors of the others.

    Raises:
        UserError: the only evaluation cannot be built.
    """
    evaluations: dict[str, Evaluation] = {}
    errors: dict[str, UserError] = {}
    with progress("opening the evaluations"):
        for name, options in chosen.items():
            try:
                opened = build_evaluations({name: options})
                for source in opened[name].sources().values():
                    _ = source.fingerprint  # computed here, so that a file that cannot be read ends no other
                evaluations |= opened
            except Exception as error:
                errors[name] = error if isinstance(error, UserError) else as_user_error(error)
    for number, messages in enumerate(of_all_ranks({name: str(error) for name, error in errors.items()})):
        for name, message in messages.items():  # an evaluation that one rank cannot build runs on none
            errors.setdefault(name, OtherRankError(f"rank {number}: {message}"))
            evaluations.pop(name, None)
    if len(chosen) == 1:
        for error in errors.values():
            raise error
    return evaluations, errors


def feature_folder(setting: str | None) -> Path | None:
    """Return the folder of image features that the config's `feature_cache` names; None keeps them in memory."""
    return cache_folder("features") if setting == "auto" else None if setting is None else Path(str(setting))


def can_write(folder: Path) -> bool:
    """Check, before metrics are computed, whether files can be written in a folder; if not, say so."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        refuse_unwritable(existing / "evaluation.json", advice=ELSEWHERE)
    except UserError as error:
        notice(f"{error}; the metrics are only printed")
        return False
    return True


def write_all(output: Path, config: dict[str, Any], records: dict[str, Record], errors: dict[str, UserError]) -> None:
    """Write the metrics of all evaluations into one file, and the reasons why others have none."""
    content = {
        "checkpoint": str(config["checkpoint"]),
        "metrics": {name: record["metrics"] for name, record in records.items()},
        "notes": {name: record["notes"] for name, record in records.items()},
        "missing": {name: str(error) for name, error in errors.items() if isinstance(error, MissingData)},
        "failed": {name: str(error) for name, error in errors.items() if not isinstance(error, MissingData)},
        "config": without_secrets({key: value for key, value in config.items() if key != "output"}),
    }
    is_replaced = output.exists()
    with needed(output, refusal=UserError, advice=ELSEWHERE):
        write_text(output, json.dumps(content, indent=1) + "\n")
    say_wrapped(f"metrics: {output}{' (replaced)' if is_replaced else ''}")


def report_of(folder: Path) -> str:
    """Return the command that shows results in the report of their run; nothing if they are of another checkpoint."""
    run = folder.parents[1] if folder.parent.name == stored.FOLDER else None
    return "" if run is None else f"; `openslip report {run}` adds them to its report"


def tell(*lines: object) -> None:
    """Print lines on the first rank."""
    if is_main_process():
        say_wrapped(*lines)


def show_records(records: dict[str, Record]) -> None:
    """Print a table of all metrics, and a line for each evaluation."""
    show(
        {name: record["metrics"] for name, record in records.items()},
        {name: record["notes"] for name, record in records.items()},
    )
    for name, record in records.items():
        say_wrapped(record["headline"])
        if record["problems"]:
            say_wrapped(f"{name}: {REPAIRED}")


def show_errors(errors: dict[str, UserError], *, num_chosen: int) -> None:
    """List the evaluations without data, with the command that gets each, and those that failed."""
    missing = {name: error for name, error in errors.items() if isinstance(error, MissingData)}
    if missing:
        say(f"no data for {len(missing)} of {num_chosen} evaluations:")
        say_wrapped(*(f"  {name}: {error}" for name, error in missing.items()))
    for name, error in errors.items():
        if name not in missing:
            notice(f"error: {name}: {error}")


def show(results: dict[str, dict[str, float]], notes: dict[str, dict[str, str]]) -> None:
    """Print one row per metric and note."""
    table = Table("evaluation", "metric", "value")
    for name, metrics in results.items():
        for metric, value in metrics.items():
            table.add_row(*map(printable, (name, metric, with_unit(metric, value))))
        for note, text in notes[name].items():
            table.add_row(*map(printable, (name, note, text)))
    Console(markup=False).print(table)
