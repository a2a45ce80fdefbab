"""Make the README's picture: a run's report as Chromium shows it, and names that the model gives to held-out drawings.

python benchmarks/report_picture.py runs/laptop_lit_seed0 docs/laptop_lit.webp

It needs Chromium (Debian's package `chromium`), which runs without a window, and the drawings of `make real`.
"""

import argparse
import base64
import os
import shutil
import subprocess
import tempfile
from html import escape
from pathlib import Path

from PIL import Image, ImageChops

import openslip
from openslip.data.sources.openclipart import Split, named

WIDTH, HEIGHT = 1100, 4000  # pixels; empty rows at the end are cut off
MARGIN = 24
LARGEST = 300_000  # bytes, so that the README loads quickly
NUM_DRAWINGS = 7  # of each split, evenly spaced and not chosen
# Only the first three curves and the first evaluation; files, settings and links mean nothing in a picture.
STYLE = """<style>
section:not(#part1):not(#part2):not(.drawings), nav, .charts > :nth-child(n + 4) { display: none }
.row { display: flex; gap: 12px }
.row figure { width: 140px }
.row img { width: 138px; border: 1px solid var(--line); border-radius: 10px }
.row .right { font-weight: 700 }
</style>"""


def drawings(run: Path, split: Split, title: str) -> str:
    """Return a row of held-out drawings, each with its three most probable names; the right ones are bold."""
    root = Path(os.environ.get("EVALUATION_DATA", "data/evaluation")) / "openclipart"
    source = named(str(root), split)
    names, vectors = list(source.classes or ()), source.label_vectors
    assert vectors is not None
    classify = openslip.ZeroShotClassifier(openslip.load(str(run)), names, ["{}"])
    figures = []
    for place in range(NUM_DRAWINGS):
        index = (2 * place + 1) * len(source) // (2 * NUM_DRAWINGS)
        image = source[index].image
        lines = [
            f"<div{' class=right' if vectors[index][names.index(name)] else ''}>{escape(name)} {probability:.0%}</div>"
            for name, probability in classify.rank([image])[0][:3]
        ]
        encoded = base64.b64encode(image).decode()
        figures.append(f'<figure><img src="data:image/png;base64,{encoded}">{"".join(lines)}</figure>')
    return f'<section class="drawings"><h2>{escape(title)}</h2><div class="row">{"".join(figures)}</div></section>'


def screenshot(page: Path, image: Path) -> None:
    """Render a local page in Chromium."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("error: no Chromium found; install Debian's package chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command = [browser, *options, f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={image}", page.as_uri()]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=120)


def cropped(image: Image.Image) -> Image.Image:
    """Cut off the rows below the last one that differs from the background."""
    background = Image.new("RGB", image.size, image.getpixel((0, 0)))
    box = ImageChops.difference(image, background).getbbox()
    return image if box is None else image.crop((0, 0, image.width, min(image.height, box[3] + MARGIN)))


def main(run: Path, output: Path) -> None:
    sections = drawings(run, "val", "Held-out drawings of seen names") + drawings(
        run, "unseen", "Drawings of names that no caption has"
    )
    report = (run / "report.html").read_text("utf-8").replace("</main>", f"{STYLE}{sections}</main>")
    with tempfile.TemporaryDirectory() as folder:
        page, picture = Path(folder) / "report.html", Path(folder) / "report.png"
        page.write_text(report, "utf-8")
        screenshot(page, picture)
        cropped(Image.open(picture).convert("RGB")).save(output, quality=85)
    if (size := output.stat().st_size) > LARGEST:
        raise SystemExit(f"error: {output} has {size} bytes: expected at most {LARGEST}")
    print(f"{output}: {size} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    main(arguments.run, arguments.output)
