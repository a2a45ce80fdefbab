"""The HTML document around the sections."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from openslip.report.pieces import escape


def whole_page(name: str, header: str, sections: Sequence[tuple[str, str]], absent: Sequence[tuple[str, str]]) -> str:
    """The document of a header, titled sections, and what is absent for what reason."""
    links = "".join(
        f'<a href="#part{place}">{escape(title.split(":")[0])}</a>' for place, (title, _) in enumerate(sections, 1)
    )
    body = "".join(
        f'<section id="part{place}"><h2>{escape(title)}</h2>{content}</section>'
        for place, (title, content) in enumerate(sections, 1)
    )
    # Every drawing calls its parts figure_1, axes_1 and so on: on one page these ids must differ.
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
