"""Write or update a run's report page: openslip report runs/NAME."""

import argparse
from pathlib import Path

from openslip.progress import progress
from openslip.report import write_report
from openslip.terminal import say


def main(arguments: list[str]) -> int:
    """Write the report page of a run from the files in its folder."""
    parser = argparse.ArgumentParser("openslip report", description=__doc__)
    parser.add_argument("run", type=Path, help="runs/NAME")
    options = parser.parse_args(arguments)

    with progress("writing the report"):
        page = write_report(options.run)
    say(page)
    return 0
