"""Section of files: relative links to what lies beside the page."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from openslip.report.pieces import escape, file_size
from openslip.report.run_files import check

FILES = {
    "config.yaml": "all settings",
    "env.json": "command, commit, versions and hardware of each start",
    "metrics.csv": "every metric by step",
    "result*.json": "final metrics",
    "evaluation-*.json": "metrics of a later evaluation",
    "evaluations/*/*.json": "metrics of a checkpoint",
    "bad_samples*.jsonl": "unreadable samples that were replaced",
    "checkpoints/step-*.ckpt": "checkpoint",
    "checkpoints/best.ckpt": "link to the checkpoint with the best evaluation result",
    "arrays/*.npz": "arrays of this page",
}


def files(folder: Path) -> str:
    """Build the section of links to the run's files."""
    items = [
        f'<li><a href="{quote(name)}">{escape(name)}</a> <span>{content}{size}</span></li>'
        for pattern, content in FILES.items()
        for name, size in matching(folder, pattern)
    ]
    check(bool(items), "there are no files")
    return f'<ul class="files">{"".join(items)}</ul>'


def matching(folder: Path, pattern: str) -> Sequence[tuple[str, str]]:
    """List the paths of a run's files that match a pattern, relative to its folder, with the sizes of large ones."""
    names = [path.relative_to(folder) for path in sorted(folder.glob(pattern)) if path.is_file()]
    return [
        (name.as_posix(), f", {file_size((folder / name).stat().st_size)}" if len(name.parts) > 1 else "")
        for name in names
    ]
