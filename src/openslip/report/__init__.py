"""Report of a run as one self-contained HTML page: no scripts, no downloads, light and dark mode, any screen size.

`run_files` reads the run's folder; `charts`, `evaluations` and `sections` build the page's sections from `pieces`.
"""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from openslip.durable import needed, write_text
from openslip.errors import UserError
from openslip.report.charts import curves
from openslip.report.evaluations import evaluation
from openslip.report.pieces import escape
from openslip.report.run_files import AbsentError, at, evaluation_names, read_arrays, read_config, read_metrics
from openslip.report.sections import header, similarity, text_file, views


def write_report(run_folder: Path) -> Path:
    """Write `report.html` from the files in a run's folder, and return its path; the page's end lists missing parts.

    The files are `metrics.csv`, `config.yaml`, `env.json`, `arrays/views.npz`, `arrays/similarity.npz`, and for each
    evaluation NAME `arrays/NAME.npz` (`openslip.evaluation.zeroshot` lists its arrays).
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
        "Configuration": lambda: text_file(run_folder, "config.yaml"),
        "Environment": lambda: text_file(run_folder, "env.json"),
    }
    sections, absent = [], []
    for title, build in builders.items():
        try:
            sections.append((title, build()))
        except AbsentError as reason:
            absent.append((title, str(reason)))
    page = whole_page(run_folder.resolve().name, header(run_folder, config, metrics), sections, absent)
    path = run_folder / "report.html"
    with needed(path, advice=f"then openslip report {run_folder}"):
        write_text(path, page)
    return path


def whole_page(name: str, header: str, sections: Sequence[tuple[str, str]], absent: Sequence[tuple[str, str]]) -> str:
    """Return the HTML document.

    Args:
        name: name of the run.
        header: HTML of the header.
        sections: titles and HTML of the sections.
        absent: titles of the missing sections, and why they are missing.
    """
    links = "".join(
        f'<a href="#part{place}">{escape(title.split(":")[0])}</a>' for place, (title, _) in enumerate(sections, 1)
    )
    body = "".join(
        f'<section id="part{place}"><h2>{escape(title)}</h2>{content}</section>'
        for place, (title, content) in enumerate(sections, 1)
    )
    # Matplotlib uses the ids figure_1, axes_1 and so on in every drawing, but ids must be unique on a page.
    number = itertools.count(1)
    body = re.sub(
        r"<svg.*?</svg>",
        lambda drawing: re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>d{next(number)}-", drawing[0]),
        body,
        flags=re.DOTALL,
    )
    reasons = "".join(f"<li>{escape(title)}: {escape(reason)}.</li>" for title, reason in absent)
    missing = f'<section class="absent"><h2>Not available</h2><ul>{reasons}</ul></section>' if absent else ""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(name)} - OpenSLIP</title><style>\n{style}</style></head><body><main>"
        f'<header><div class="eyebrow">OpenSLIP run</div><h1>{escape(name)}</h1>{header}'
        f"<nav>{links}</nav></header>"
        f"{body}{missing}</main></body></html>\n"
    )
