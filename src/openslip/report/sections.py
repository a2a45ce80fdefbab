"""Sections of the page: views of the first batch, image-caption similarity, text files."""

from pathlib import Path

import numpy as np

from openslip.report.pieces import escape, heat, image_tag, matrix
from openslip.report.run_files import check

MAX_VIEW_SAMPLES = 8
MAX_SIMILARITY = 16


def views(arrays: dict[str, np.ndarray]) -> str:
    """Build the section of views: samples of the first batch with all views of each image."""
    views = {name: array for name, array in arrays.items() if array.ndim == 4}
    captions = [array for array in arrays.values() if array.ndim == 1 and len(array)]
    check(bool(views), "arrays/views.npz holds no view")
    cards = []
    for place in range(min(MAX_VIEW_SAMPLES, *map(len, views.values()))):
        images = "".join(
            f"<div>{image_tag(views[name][place], f'view {name}')}<span>{escape(name)}</span></div>" for name in views
        )
        quotes = "".join(f"<q>{escape(texts[place])}</q>" for texts in captions if place < len(texts))
        cards.append(f'<figure class="card sample"><div class="views">{images}</div>{quotes}</figure>')
    many = "one view" if len(views) == 1 else f"{len(views)} views"
    with_captions = ", and its captions" if len(captions) > 1 else ", and its caption" if captions else ""
    return (
        f"<p>Samples of the first batch: {many} of each image as the model gets it{with_captions}.</p>"
        f'<div class="samples">{"".join(cards)}</div>'
    )


def similarity(arrays: dict[str, np.ndarray]) -> str:
    """Build the section of similarities: a matrix of the cosines between images and captions."""
    name = "arrays/similarity.npz"
    check({"matrix", "captions", "images"} <= arrays.keys(), f"{name} lacks matrix, captions or images")
    full = arrays["matrix"].astype(np.float64)
    fits = full.shape == (len(arrays["images"]), len(arrays["captions"])) and full.size > 0
    check(fits, f"the matrix of {name} does not fit its images and captions")
    check(np.isfinite(full).all(), f"the matrix of {name} is not finite")
    count = min(MAX_SIMILARITY, len(full))
    cosines, images, captions = full[:count, :count], arrays["images"][:count], arrays["captions"][:count]
    low, high = float(cosines.min()), float(cosines.max())
    found_text, found_image = (int((cosines.argmax(axis=axis) == np.arange(count)).sum()) for axis in (1, 0))
    head = [f'<th scope="col" title="{escape(caption)}">{place}</th>' for place, caption in enumerate(captions, 1)]
    rows = []
    for row, (image, caption) in enumerate(zip(images, captions, strict=True)):
        cells = [
            heat(
                (cosine - low) / ((high - low) or 1),
                f"{cosine:.2f}".replace("0.", ".").replace("-", "&minus;"),
                f"image {row + 1} with caption {column + 1}, {captions[column]}: cosine {cosine:.3f}",
                diagonal=row == column,
            )
            for column, cosine in enumerate(cosines[row])
        ]
        who = f"<b>{row + 1}</b>{image_tag(image, str(caption))}<span>{escape(caption)}</span>"
        rows.append((f'<div class="who">{who}</div>', cells))
    return (
        f"<p>Cosine of {count} images (rows) with their {count} captions (columns, same numbers): pale is "
        f"{low:.2f}, full colour {high:.2f}; true pairs are framed. The true caption is the most similar for "
        f"<b>{found_text} of {count}</b> images, the true image for <b>{found_image} of {count}</b> "
        f'captions.</p><div class="card scroll">{matrix(" similarity", head, rows)}</div>'
    )


def text_file(folder: Path, name: str) -> str:
    """Build a collapsed section with the content of a text file."""
    check((folder / name).is_file(), f"there is no {name}")
    text = (folder / name).read_text(encoding="utf-8", errors="replace")
    return f"<details><summary>{name}</summary><pre>{escape(text)}</pre></details>"
