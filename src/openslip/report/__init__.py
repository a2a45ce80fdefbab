"""Reports as self-contained HTML pages: no scripts, no downloads, light and dark mode, any screen size.

`run_files` reads a run's folder. `header`, `training`, `evaluations`, `sections` and `files` build the parts of a run's
page from `charts` and `pieces`; `page` puts them together. `comparison` builds the page of several runs.
"""

from pathlib import Path

from openslip.durable import needed, write_text
from openslip.report.evaluations import evaluation
from openslip.report.files import files
from openslip.report.header import header
from openslip.report.later_evaluations import with_later_evaluations
from openslip.report.page import document
from openslip.report.run_files import at, evaluation_names, read_arrays, read_config, read_metrics, refuse_other_folders
from openslip.report.sections import similarity, text_file, views
from openslip.report.training import curves


def write_report(run_folder: Path) -> Path:
    """Write `report.html` from the files in a run's folder, and return its path; the page's end lists missing parts.

    The files are `metrics.csv`, `config.yaml`, `env.json`, `arrays/views.npz`, `arrays/similarity.npz`, and for each
    evaluation NAME `arrays/NAME.npz` (`openslip.evaluation.zeroshot` lists its arrays), and what `openslip eval` has
    stored in `evaluations/`.
    """
    refuse_other_folders(run_folder)
    config = read_config(run_folder)
    metrics = with_later_evaluations(read_metrics(run_folder / "metrics.csv"), run_folder)
    builders = {"Training": lambda: curves(metrics)}
    for name in evaluation_names(run_folder, metrics):
        title = at(config, f"evaluation.{name}.title")
        heading = f"Evaluation {name}: {title}" if isinstance(title, str) else f"Evaluation {name}"
        builders[heading] = lambda name=name: evaluation(run_folder, name, metrics)
    builders |= {
        "Views": lambda: views(read_arrays(run_folder, "views")),
        "Images and captions": lambda: similarity(read_arrays(run_folder, "similarity")),
        "Files": lambda: files(run_folder),
        "Configuration": lambda: text_file(run_folder, "config.yaml"),
        "Environment": lambda: text_file(run_folder, "env.json"),
    }
    page = document("OpenSLIP run", run_folder.resolve().name, header(run_folder, config, metrics), builders)
    path = run_folder / "report.html"
    with needed(path, advice=f"then openslip report {run_folder}"):
        write_text(path, page)
    return path
