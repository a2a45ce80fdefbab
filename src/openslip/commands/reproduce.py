"""List runs, from runs on a laptop to those of the SLIP paper; train one, and compare it with known results."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from openslip.commands._imports import importing_pytorch
from openslip.errors import UserError
from openslip.progress import progress
from openslip.reproduce.curves import Recorded, curves_folder, read_recorded, write_recorded
from openslip.reproduce.ladder import entry_details, ladder_lines, rung_lines
from openslip.reproduce.rungs import Entry, Rung, find, ladder
from openslip.terminal import say

AGAIN = "again=true"  # the only setting of `openslip reproduce published`


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "openslip reproduce",
        description=__doc__,
        epilog="Without NAME, the runs are listed. openslip reproduce NAME trains one in runs/NAME_seed0 and compares "
        "it with stored curves of three seeds, or with the published accuracy. For SimCLR it prints the commands that "
        "evaluate and compare the run. The exit code is 1 if a difference is larger than that between seeds, if a "
        "result is missing, or if a setting that affects the result differs from that of the listed run; the seed and "
        "the precision may differ. docs/REPRODUCING.md describes the comparison.",
    )
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="a run of the list; or the letter of a group of runs, which are then only shown; or the word published",
    )
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="settings of the training, such as seed=3 or trainer=ddp"
    )
    parser.add_argument("--run", type=Path, metavar="RUN", help="compare this run instead of training one")
    parser.add_argument(
        "--record",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="store the curves of three or more finished runs of NAME, each with another seed",
    )
    weights = parser.add_argument_group("openslip reproduce published: evaluate the published SLIP files")
    weights.add_argument("--weights", type=Path, metavar="DIR", help="folder of the files, such as slip_base_100ep.pt")
    weights.add_argument("--imagenet", type=Path, metavar="DIR", help="folder of ImageNet, which holds val/")
    return parser


def main(arguments: list[str]) -> int:
    """List the ladder, train, compare or record a run, or evaluate published files; return the exit code."""
    options = parser().parse_intermixed_args(arguments)
    refuse_unused(options)
    if options.name == "published":
        return published(options.weights, options.imagenet, again=AGAIN in options.settings)
    rungs, folder = ladder(), curves_folder()
    if options.name is None:
        say(*ladder_lines(rungs, folder))
        return 0
    rung, entry = find(options.name, rungs)
    if entry is None:
        refuse_rung(options, rung)
        say(*rung_lines(rung))
        for part in rung.entries.values():
            say("", *entry_details(part, read_recorded(part.name, folder)))
        return 0
    recorded = read_recorded(entry.name, folder)
    if options.record:
        return record(entry, options.record, folder)
    if options.run:
        return compare_run(options.run, entry, recorded)
    return train_and_compare(rung, entry, options.settings, recorded)


def refuse_unused(options: argparse.Namespace) -> None:
    """Refuse options that the command would ignore."""
    words = [word for word in (options.name, *options.settings) if word is not None]
    if words and "=" in words[0]:
        raise UserError(f"{words[0]}: give the NAME of a run before its settings; openslip reproduce lists all")
    if extra := [word for word in words[1:] if "=" not in word and not word.startswith("~")]:
        raise UserError(f"{extra[0]}: expected one NAME, and then settings KEY=VALUE")
    if options.name != "published" and (options.weights or options.imagenet):
        raise UserError("--weights and --imagenet belong to `openslip reproduce published`")
    if options.name == "published" and (others := [word for word in options.settings if word != AGAIN]):
        raise UserError(f"{others[0]}: `published` takes no settings but {AGAIN}, which computes stored results again")
    if options.run and options.record:
        raise UserError("--run compares a run and --record stores some: give one of the two")
    if options.settings and (options.run or options.record):
        raise UserError(f"{options.settings[0]}: settings are for training a run; leave them out")
    if (options.run or options.record) and options.name in (None, "published"):
        raise UserError("--run and --record need the name of a run of the ladder: openslip reproduce NAME --run RUN")


def refuse_rung(options: argparse.Namespace, rung: Rung) -> None:
    """Refuse options that need one run, for a rung."""
    if options.record or options.run or options.settings:
        raise UserError(f"{options.name} is a rung: give one of its runs, {', '.join(rung.entries)}")


def config_of(settings: list[str]) -> dict[str, Any]:
    """Compose the config of a training as `openslip train` does."""
    with importing_pytorch():
        from openslip.config.build import settled
        from openslip.config.compose import compose_config
    with progress("composing the config"):
        return settled(compose_config("train", settings)[0])


def record(entry: Entry, runs: list[Path], folder: Path) -> int:
    """Store the curves of finished runs."""
    with importing_pytorch():
        from openslip.reproduce import finished
    recorded = finished.record(runs, entry, config_of([*entry.settings]))
    say(f"stored: {write_recorded(recorded, entry.name, folder)}, and the .yaml beside it")
    return 0


def compare_run(run: Path, entry: Entry, recorded: Recorded | None) -> int:
    """Compare a run with the stored curves and print the differences; return 1 if it deviates."""
    if recorded is None and entry.published is None:
        raise UserError(
            f"nothing is stored of {entry.name} to compare {run} with: train three seeds, and "
            f"openslip reproduce {entry.name} --record RUN RUN RUN stores them"
        )
    with importing_pytorch():
        from openslip.reproduce.comparison import compare
        from openslip.reproduce.finished import read_run
        from openslip.reproduce.table import comparison_lines
    finished = read_run(run, entry)
    given = config_of([*entry.settings]) if recorded is None else recorded.config
    comparison = compare(finished, entry, given, recorded)
    if not comparison.rows and not finished.is_finished:
        first = (
            "a tenth of its steps is compared first" if recorded else "only its result is compared, once it is finished"
        )
        raise UserError(f"{run} is logged up to step {finished.step}, and {first}: its own command resumes it")
    say("", *comparison_lines(comparison, finished, entry, recorded))
    return int(comparison.deviates)


def train_and_compare(rung: Rung, entry: Entry, settings: list[str], recorded: Recorded | None) -> int:
    """Train a run of the ladder in this process, and compare it on the first rank.

    Raises:
        UserError: `debug=` is given, whose short run could not be compared; or the training raises it.
    """
    from openslip.config.words import debug_words  # not above, because it imports Hydra

    if debug := debug_words(settings):
        train_words = " ".join(["openslip train", *entry.settings, debug[0]])
        raise UserError(
            f"{debug[0]} makes another, shorter run, which cannot be compared with {entry.name}: leave it out, or give "
            f"`{train_words}`"
        )
    from openslip import signals

    signals.catch()  # first, because a scheduler's signal would kill the process during the slow imports
    with importing_pytorch():
        from openslip.commands import train
        from openslip.distributed import is_main_process
    if is_main_process():
        say(*rung_lines(rung), "", *entry_details(entry, recorded))  # first, because the config may name a missing file
    config = config_of([*entry.settings, *settings])
    name = config["name"] or f"{entry.name}_seed{config['seed']}"
    given = [word for word in settings if not word.startswith("name=")]
    words = [*entry.settings, *given, f"name={name}"]
    if is_main_process():
        say(f"runs: {shlex.join(['openslip', 'train', *words])}")
    train.main(words)
    if not is_main_process():
        return 0
    folder = Path(config["runs_dir"]) / name
    if entry.after:
        quoted = shlex.quote(str(folder))
        say("next commands:", *(f"  {command.replace('RUN', quoted)}" for command in entry.after))
        say(f"  openslip reproduce {entry.name} --run {quoted}")
        return 0
    return compare_run(folder, entry, recorded)


def published(weights: Path | None, imagenet: Path | None, *, again: bool) -> int:
    """Evaluate the published SLIP files in a folder, and print their table beside the published one."""
    if weights is None or imagenet is None:
        options = {"--weights DIR": weights, "--imagenet DIR": imagenet}
        missing = [option for option, value in options.items() if value is None]
        raise UserError(f"openslip reproduce published needs {' and '.join(missing)}")
    with importing_pytorch():
        from openslip.commands._published_files import evaluate_published
    return evaluate_published(weights, imagenet, again=again)
