"""Write a run's report page, or a page that compares several runs: openslip report runs/NAME [runs/OTHER ...]."""

import argparse
from pathlib import Path

from openslip.commands._imports import importing_pytorch
from openslip.errors import UserError
from openslip.progress import progress
from openslip.terminal import say


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("openslip report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run; several are compared")
    parser.add_argument("--output", type=Path, help="page of a comparison, comparison.html by default")
    return parser


def main(arguments: list[str]) -> int:
    """Write a page from the files in the folders of one or more runs, and print its path."""
    options = parser().parse_args(arguments)
    several = len(options.runs) > 1
    if options.output is not None and not several:
        raise UserError("--output is the page of a comparison: give several runs; one run's page is RUN/report.html")

    with importing_pytorch():
        from openslip.report import write_report
        from openslip.report.comparison import write_comparison
    with progress("writing the report"):
        if several:
            page = write_comparison(options.runs, options.output or Path("comparison.html"))
        else:
            page = write_report(options.runs[0])
    say(page)
    return 0
