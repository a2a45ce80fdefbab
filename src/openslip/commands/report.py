"""Write or update a run's report page: openslip report runs/NAME."""

import argparse
from pathlib import Path

from openslip.report import write_report
from openslip.terminal import say


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("openslip report", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run: runs/NAME")
    return parser


def main(arguments: list[str]) -> int:
    """Write the report page of a run from the files in its folder."""
    options = parser().parse_args(arguments)

    say(write_report(options.run))
    return 0
