"""Check this machine, its runs and their checkpoints, and report problems; nothing is changed."""

import argparse
from pathlib import Path

from openslip.commands._imports import importing_pytorch
from openslip.errors import UserError
from openslip.progress import progress
from openslip.terminal import say_wrapped


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("openslip doctor", description=__doc__)
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        metavar="DIR",
        help="folder of one run, or of several; by default that of --runs",
    )
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help="folder of several runs; by default runs/; ignored if DIR is given"
    )
    return parser


def main(arguments: list[str]) -> int:
    """Print each finding, with advice if it is a problem; in a terminal, long ones are wrapped to its width."""
    options = parser().parse_args(arguments)

    folder = options.folder or options.runs
    if folder is not None and not folder.is_dir():
        problem = "is a file" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {problem}; expected the folder of a run, or of several")

    with importing_pytorch():
        from openslip.doctor import examine
    with progress("examining the machine and its runs"):
        findings = examine(folder or Path("runs"))
    say_wrapped(*(finding.line() for finding in findings), indent=24)
    return 0
