from pathlib import Path


def write_report(run_folder: Path) -> Path:
    path = run_folder / "report.html"
    path.write_text("x")
    return path
