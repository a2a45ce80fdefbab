"""The page around the sections, and its style."""

import itertools
import re
from collections.abc import Sequence

from openslip.report.pieces import escape


def whole_page(name: str, header: str, sections: Sequence[tuple[str, str]], absent: Sequence[tuple[str, str]]) -> str:
    """The document of a header, the sections and what was left out."""
    links = "".join(
        f'<a href="#part{place}">{escape(title.split(":")[0])}</a>' for place, (title, _) in enumerate(sections, 1)
    )
    body = "".join(
        f'<section id="part{place}"><h2>{escape(title)}</h2>{content}</section>'
        for place, (title, content) in enumerate(sections, 1)
    )
    body = _with_own_ids(body)
    missing = "".join(f"<li>{escape(title)}: {escape(reason)}.</li>" for title, reason in absent)
    left_out = f'<section class="absent"><h2>Left out</h2><ul>{missing}</ul></section>' if absent else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(name)} - OpenSLIP</title><style>{_STYLE}</style></head><body><main>"
        f'<header><div class="eyebrow">OpenSLIP run</div><h1>{escape(name)}</h1>{header}'
        f"<nav>{links}</nav></header>"
        f"{body}{left_out}</main></body></html>\n"
    )


def _with_own_ids(page: str) -> str:
    """Every drawing calls its parts figure_1, axes_1 and so on: on one page these ids must not meet."""
    number = itertools.count(1)
    return re.sub(
        r"<svg.*?</svg>",
        lambda drawing: re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>d{next(number)}-", drawing[0]),
        page,
        flags=re.DOTALL,
    )


_STYLE = """
:root{--page:#f6f6f3;--card:#fff;--ink:#1b1e22;--muted:#5d6570;--line:#e2e2de;--heat:40 86 200;--on-heat:#fff;
--good:#177245;--bad:#b83227;--s1:#2856c8;--s2:#d2640a;--s3:#177245;--s4:#8436c9;--s5:#b83280;--s6:#0e7490}
@media(prefers-color-scheme:dark){:root{--page:#121417;--card:#1b1e23;--ink:#e9ebee;--muted:#9ba3ae;
--line:#2e333a;
--heat:72 118 235;--good:#5fce98;--bad:#ff8a7d;--s1:#84a9ff;--s2:#ffb066;--s3:#5fce98;--s4:#cba2ff;
--s5:#ff9bd0;--s6:#67d3e8}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:30px;line-height:1.2;margin:2px 0 14px;overflow-wrap:anywhere;letter-spacing:-.01em}
h2{font-size:21px;line-height:1.3;margin:0 0 10px;letter-spacing:-.005em;overflow-wrap:anywhere}
h3{font-size:16px;margin:28px 0 4px}
p{margin:0 0 14px;color:var(--muted);max-width:76ch}p b{color:var(--ink)}
section{margin-top:48px;scroll-margin-top:16px}
.eyebrow{font-size:12px;font-weight:600;letter-spacing:.08em;text-transform:uppercase;color:var(--muted)}
.facts{display:flex;flex-wrap:wrap;gap:6px 20px;margin-bottom:20px}
.fact{font-weight:600}.fact span{font-weight:400;color:var(--muted)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:12px}
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:10px}
.tile{padding:14px 16px}.tile.first{border-left:4px solid var(--s1)}
.label{font-size:13px;color:var(--muted)}.value{font-size:29px;font-weight:650;line-height:1.25;
font-variant-numeric:tabular-nums}
.note{font-size:13px;color:var(--muted)}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin-top:20px;padding-top:12px;
border-top:1px solid var(--line)}
nav a{color:var(--s1);text-decoration:none;padding:4px 0}nav a:hover{text-decoration:underline}
figure{margin:0}.card{padding:14px 16px}
figcaption{font-weight:600;font-size:14px;margin-bottom:4px}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:14px;
margin-bottom:14px}
.charts svg{display:block;width:100%;height:auto;overflow:visible}
.charts svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif!important}
.figures{display:flex;flex-wrap:wrap;gap:10px 28px;margin:0 0 16px}.figures dt{font-size:13px;
color:var(--muted)}
.figures dd{margin:0;font-size:18px;font-weight:600;font-variant-numeric:tabular-nums}
.matrices{display:flex;flex-wrap:wrap;gap:14px;align-items:flex-start}
.matrices figure{max-width:100%}.matrices figcaption{font-weight:400;color:var(--muted)}
.matrices figcaption b{color:var(--ink)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
.matrix{border-collapse:separate;border-spacing:2px;font-size:13px}
.matrix th{font-weight:400;color:var(--muted);padding:2px 6px}.matrix th[scope=row]{text-align:right;
white-space:nowrap}
.matrix tbody td{background:rgb(var(--heat)/var(--h));min-width:42px;height:32px;text-align:center;
border-radius:4px;padding:0 2px}
.matrix td.zero{background:rgb(128 128 128/.07)}
.matrix td.strong{color:var(--on-heat)}.matrix td.diagonal{box-shadow:inset 0 0 0 1.5px var(--ink)}
.matrix.turned thead th{vertical-align:bottom;padding:2px 0}
.matrix.turned thead span{writing-mode:vertical-rl;transform:rotate(180deg);white-space:nowrap}
.matrix.turned tbody td{min-width:34px}
.similarity tbody td{min-width:40px;height:44px;font-size:12px}
.similarity thead th{text-align:center}
.who{display:flex;align-items:center;gap:8px;text-align:left;width:250px;white-space:normal}
.who b{width:18px;text-align:right;flex:none;color:var(--ink)}.who img{width:40px;height:40px;
object-fit:cover;flex:none}
.who span{font-size:12.5px;line-height:1.25;display:-webkit-box;-webkit-line-clamp:3;
-webkit-box-orient:vertical;overflow:hidden}
img{display:block;border-radius:5px}.pixels{image-rendering:pixelated}
.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,270px),1fr));gap:14px}
.views{display:flex;gap:8px}.views div{flex:1 1 0;max-width:140px}.views img{width:100%;height:auto}
.views span{font-size:12px;color:var(--muted)}
.sample q{display:block;margin-top:6px;overflow-wrap:anywhere;quotes:"\\201c" "\\201d"}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:14px}
.picture{display:flex;gap:14px;border-left-width:4px}.picture>img{width:104px;height:104px;object-fit:cover;
flex:none}
.picture>div{flex:1;min-width:0}.right{border-left-color:var(--good)}.wrong{border-left-color:var(--bad)}
.verdict{font-weight:600}.right .verdict{color:var(--good)}.wrong .verdict{color:var(--bad)}
.true{color:var(--good);overflow-wrap:anywhere;line-height:1.3}
.bars{list-style:none;margin:4px 0 0;padding:0;font-size:13px}
.bars li{display:grid;grid-template-columns:1fr auto;gap:0 8px;margin-top:4px;line-height:1.3}
.name{overflow-wrap:anywhere}.share{font-variant-numeric:tabular-nums;color:var(--muted)}
.bar{grid-column:1/3;height:5px;border-radius:3px;background:rgb(128 128 128/.18)}
.bar i{display:block;height:100%;min-width:1px;border-radius:3px;background:rgb(var(--heat))}
.truth .name{color:var(--good);font-weight:600}.truth .bar i{background:var(--good)}
.plain{min-width:min(100%,480px)}.plain th,.plain td{text-align:left;padding:6px 20px 6px 0;
border-bottom:1px solid var(--line);
vertical-align:top}.plain th{font-weight:400;color:var(--muted)}.plain .number{text-align:right}
.environment td{overflow-wrap:anywhere}
details{background:var(--card);border:1px solid var(--line);border-radius:10px}
summary{cursor:pointer;padding:12px 16px;font-weight:600}
pre{margin:0;padding:0 16px 16px;overflow-x:auto;
font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.absent{color:var(--muted);font-size:14px}.absent h2{font-size:16px}.absent ul{margin:0;padding-left:20px}
@media(max-width:600px){main{padding:20px 14px 48px}h1{font-size:24px}h2{font-size:19px}
section{margin-top:36px}
.tiles{grid-template-columns:1fr 1fr;gap:8px}.tile{padding:10px 12px}.tile.first{grid-column:1/3}
.value{font-size:23px}
.card{padding:12px}.who{width:112px}.who span{display:none}.who{width:66px}.matrix tbody td{min-width:34px}
.picture>img{width:84px;height:84px}}
@media print{body{background:#fff}.card,.tile{break-inside:avoid}}
"""
