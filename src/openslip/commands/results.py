"""Show the stored results of runs and checkpoints in one table: openslip results runs/A runs/B --format markdown."""

import argparse
from pathlib import Path

from openslip.commands._imports import importing_pytorch
from openslip.durable import needed, write_text
from openslip.errors import UserError
from openslip.terminal import say


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("openslip results", description=__doc__)
    parser.add_argument(
        "places",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folder of a run, or a checkpoint that openslip eval has evaluated",
    )
    parser.add_argument("--format", choices=("terminal", "markdown", "csv", "html"), default="terminal")
    parser.add_argument("--published", metavar="NAME", help="published checkpoint to compare with, e.g. slip_base_25ep")
    parser.add_argument("--output", type=Path, help="file to write instead of printing")
    return parser


def main(arguments: list[str]) -> int:
    """Print or write the table."""
    options = parser().parse_args(arguments)

    with importing_pytorch():
        from openslip.report.results import read_results
        from openslip.report.results_formats import FORMATS
    text = FORMATS[options.format](read_results(options.places, options.published))
    if options.output is None:
        say(*text.splitlines())
        return 0
    with needed(options.output, refusal=UserError, advice="or choose another --output"):
        write_text(options.output, text)
    say(options.output)
    return 0
