"""The HTML document around the sections of a page."""

import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from openslip.report.pieces import escape
from openslip.report.run_files import AbsentError

GENERATOR = '<meta name="generator" content="openslip report">'


def document(kind: str, name: str, header: str, builders: Mapping[str, Callable[[], str]]) -> str:
    """Return a self-contained HTML document, which names at its end the sections that are not available, and why.

    Args:
        kind: what the page is about, above its title.
        name: title of the page.
        header: HTML below the title.
        builders: by the title of each section, a function that returns its HTML or raises AbsentError.
    """
    sections, absent = [], []
    for title, build in builders.items():
        try:
            sections.append((title, build()))
        except AbsentError as reason:
            absent.append((title, str(reason)))
    links = "".join(
        f'<a href="#part{place}">{escape(title.split(":")[0])}</a>' for place, (title, _) in enumerate(sections, 1)
    )
    body = "".join(
        f'<section id="part{place}"><h2>{escape(title)}</h2>{content}</section>'
        for place, (title, content) in enumerate(sections, 1)
    )
    reasons = "".join(f"<li>{escape(title)}: {escape(reason)}.</li>" for title, reason in absent)
    missing = f'<section class="absent"><h2>Not available</h2><ul>{reasons}</ul></section>' if absent else ""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{GENERATOR}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(name)} - OpenSLIP</title><style>\n{style}</style></head><body><main>"
        f'<header><div class="eyebrow">{escape(kind)}</div><h1>{escape(name)}</h1>{header}'
        f"<nav>{links}</nav></header>"
        f"{with_own_ids(body)}{missing}</main></body></html>\n"
    )


def with_own_ids(body: str) -> str:
    """Give the ids of each drawing a prefix: Matplotlib repeats its ids, and ids must be unique on a page."""
    number = itertools.count(1)
    return re.sub(
        r"<svg.*?</svg>",
        lambda drawing: re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>d{next(number)}-", drawing[0]),
        body,
        flags=re.DOTALL,
    )
