"""Page that compares several runs: their provenance, final metrics, the settings that differ, and their curves."""

from collections.abc import Sequence
from pathlib import Path

from openslip.durable import needed, refuse_unwritable, write_text
from openslip.errors import UserError
from openslip.report.compared_curves import curves
from openslip.report.compared_run import read_runs
from openslip.report.compared_tables import computation, final_metrics, settings
from openslip.report.page import GENERATOR, document

NAME = "OpenSLIP comparison"


def write_comparison(folders: Sequence[Path], path: Path) -> Path:
    """Write a page that compares runs, and return its path.

    Args:
        folders: folders of at least two runs.
        path: the page; an existing file is replaced only if it is a page of this command.

    Raises:
        UserError: a folder is not a run's, or occurs twice; `path` cannot be written, is another file, or is the
            report of one of the runs.
    """
    for folder in folders:
        if path.resolve() == (folder / "report.html").resolve():
            raise UserError(f"{path} is the report of the run {folder}: choose another --output")
    refuse_unwritable(path, advice="choose another --output")
    if path.exists() and not is_comparison(path.read_bytes()):
        raise UserError(f"{path} exists and is no comparison of runs: choose another --output")
    runs = read_runs(folders)
    builders = {
        "Runs": lambda: computation(runs, path),
        "Final metrics": lambda: final_metrics(runs),
        "Settings that differ": lambda: settings(runs),
        "Curves": lambda: curves(runs),
    }
    page = document(NAME, f"{len(runs)} runs", "", builders)
    with needed(path, refusal=UserError, advice="or choose another --output"):
        write_text(path, page)
    return path


def is_comparison(page: bytes) -> bool:
    """Whether a file is a page that compares runs."""
    return GENERATOR.encode() in page[:1000] and f'<div class="eyebrow">{NAME}</div>'.encode() in page
