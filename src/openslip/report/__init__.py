"""A run's folder as one self-contained page: no scripts, nothing fetched, light and dark, any screen.

`run_files` reads the folder, `summary` makes the top of the page, `charts`, `evaluations` (with `classification`),
`examples` and `settings` make its sections out of `pieces`, and `page` puts them together.
"""

from pathlib import Path

from openslip.durable import write_text
from openslip.errors import UserError
from openslip.report.charts import curves
from openslip.report.evaluations import evaluation
from openslip.report.examples import similarity, views
from openslip.report.page import whole_page
from openslip.report.run_files import AbsentError, at, evaluation_names, read_arrays, read_config, read_metrics
from openslip.report.settings import config_text, environment
from openslip.report.summary import header


def write_report(run_folder: Path) -> Path:
    """Write `report.html` from what a run left, and return its path; the page's end names what was absent.

    Reads `metrics.csv`, `config.yaml`, `env.json`, `arrays/views.npz`, `arrays/similarity.npz`, and any other
    `arrays/NAME.npz` as the arrays of the evaluation NAME (`openslip.evaluation.zeroshot` lists them).
    """
    if not any((run_folder / name).is_file() for name in ("metrics.csv", "config.yaml")):
        raise UserError(
            f"{run_folder}: not a run's folder, it has neither metrics.csv nor config.yaml; try runs/<name>"
        )
    config, metrics = read_config(run_folder), read_metrics(run_folder / "metrics.csv")
    builders = {"Training": lambda: curves(metrics)}
    for name in evaluation_names(run_folder, metrics):
        title = at(config, f"evaluation.{name}.title")
        heading = f"Evaluation {name}: {title}" if isinstance(title, str) else f"Evaluation {name}"
        builders[heading] = lambda name=name: evaluation(run_folder, name, metrics)
    builders |= {
        "Views": lambda: views(read_arrays(run_folder, "views")),
        "Images and captions": lambda: similarity(read_arrays(run_folder, "similarity")),
        "Configuration": lambda: config_text(run_folder),
        "Environment": lambda: environment(run_folder),
    }
    sections, absent = [], []
    for title, build in builders.items():
        try:
            sections.append((title, build()))
        except AbsentError as reason:
            absent.append((title, str(reason)))
    page = whole_page(run_folder.resolve().name, header(run_folder, config, metrics), sections, absent)
    path = run_folder / "report.html"
    write_text(path, page)
    return path
