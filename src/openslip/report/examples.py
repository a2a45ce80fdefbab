"""What the model sees: views of the first batch, and pictures against captions."""

import numpy as np

from openslip.report.pieces import escape, heat, image_tag
from openslip.report.run_files import check

MAX_VIEW_SAMPLES = 8
MAX_SIMILARITY = 16


def views(arrays: dict[str, np.ndarray]) -> str:
    """Samples of the first batch, every view of each."""
    captions = arrays.get("captions", np.array([]))
    views = {name: pixels for name, pixels in arrays.items() if name != "captions" and pixels.ndim == 4}
    check(bool(views), "arrays/views.npz holds no view")
    order = {"image": 0, "aug1": 1, "aug2": 2}
    names = sorted(views, key=lambda name: (order.get(name, 3), name))
    count = min(MAX_VIEW_SAMPLES, *(len(pixels) for pixels in views.values()))
    cards = []
    for place in range(count):
        pictures = "".join(
            f"<div>{image_tag(views[name][place], f'view {name}')}<span>{escape(name)}</span></div>" for name in names
        )
        caption = f"<q>{escape(captions[place])}</q>" if place < len(captions) else ""
        cards.append(f'<figure class="card sample"><div class="views">{pictures}</div>{caption}</figure>')
    many = "one view" if len(names) == 1 else f"{len(names)} views"
    caption = ", and the caption that goes with them" if len(captions) else ""
    return (
        f"<p>Samples of the first batch as the model gets them: {many} of each picture{caption}.</p>"
        f'<div class="samples">{"".join(cards)}</div>'
    )


def similarity(arrays: dict[str, np.ndarray]) -> str:
    """The matrix of cosines of pictures with captions."""
    check(
        {"matrix", "captions", "images"} <= arrays.keys(),
        "arrays/similarity.npz lacks matrix, captions or images",
    )
    full = arrays["matrix"].astype(np.float64)
    check(
        full.ndim == 2 and full.shape == (len(arrays["images"]), len(arrays["captions"])) and full.size > 0,
        "the matrix of arrays/similarity.npz does not fit its images and captions",
    )
    check(np.isfinite(full).all(), "the matrix of arrays/similarity.npz is not finite")
    count = min(MAX_SIMILARITY, len(full))
    matrix, images, captions = full[:count, :count], arrays["images"][:count], arrays["captions"][:count]
    low, high = float(matrix.min()), float(matrix.max())
    found_text = int((matrix.argmax(axis=1) == np.arange(count)).sum())
    found_image = int((matrix.argmax(axis=0) == np.arange(count)).sum())
    head = "".join(
        f'<th scope="col" title="{escape(caption)}">{place}</th>' for place, caption in enumerate(captions, 1)
    )
    rows = []
    for row, (image, caption) in enumerate(zip(images, captions, strict=True)):
        cells = "".join(
            heat(
                (matrix[row, column] - low) / ((high - low) or 1),
                f"{matrix[row, column]:.2f}".replace("0.", ".").replace("-", "&minus;"),
                f"picture {row + 1} with caption {column + 1}, {other}: cosine {matrix[row, column]:.3f}",
                diagonal=row == column,
            )
            for column, other in enumerate(captions)
        )
        rows.append(
            f'<tr><th scope="row"><div class="who"><b>{row + 1}</b>{image_tag(image, str(caption))}'
            f"<span>{escape(caption)}</span></div></th>{cells}</tr>"
        )
    return (
        f"<p>Cosine of {count} pictures (rows) with their {count} captions (columns, same numbers): pale is "
        f"{low:.2f}, full colour {high:.2f}; own pairs are framed. The own caption is the most similar for "
        f"<b>{found_text} of {count}</b> pictures, the own picture for <b>{found_image} of {count}</b> "
        "captions.</p>"
        f'<div class="card scroll"><table class="matrix similarity"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
