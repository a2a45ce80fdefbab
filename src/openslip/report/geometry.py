"""Parts of the section of `openslip.evaluation.geometry`: its metrics in plain words, and the feature map."""

import numpy as np

from openslip.report.charts import COLOURS, legend
from openslip.report.drawings import point_map
from openslip.report.pieces import escape
from openslip.report.run_files import AbsentError, check

# By metric: its name, and what its values mean.
MEANINGS = {
    "modality_gap": (
        "modality gap",
        "Distance between the mean image and the mean text, from 0 to 2. Near 0: both lie in one region. Contrastive "
        "training usually leaves a gap; while it is large, images and texts cannot be ranked together in one search.",
    ),
    "alignment": (
        "alignment",
        "Mean squared distance of an image and its caption: lower is better. 0: equal; 2: unrelated.",
    ),
    "image_uniformity": (
        "uniformity of images",
        "How evenly images fill the sphere: lower is better. Near 0: all images look alike to the model (collapse); "
        "about -4: evenly spread.",
    ),
    "text_uniformity": ("uniformity of texts", "The same of captions; captions that repeat raise it."),
    "image_effective_rank": (
        "effective rank of images",
        "Number of directions that image features really use: higher is better. 1: collapse; the width of the joint "
        "space is the most.",
    ),
    "text_effective_rank": ("effective rank of texts", "The same of text features."),
    "duplicate_captions_percent": (
        "captions that repeat, %",
        "Captions whose text occurs more than once: lower is better, because a copy counts as a wrong answer in the "
        "contrastive loss and in retrieval.",
    ),
}


def is_geometry(arrays: dict[str, np.ndarray]) -> bool:
    """Whether arrays are those of `openslip.evaluation.geometry`."""
    return {"geometry_metrics", "geometry_values", "map_images", "map_texts"} <= arrays.keys()


def geometry(arrays: dict[str, np.ndarray], name: str) -> list[str]:
    """Build the table of metrics and the feature map.

    Args:
        arrays: arrays of the evaluation, by name.
        name: name of the evaluation, for error messages.
    """
    try:
        return [_numbers(arrays), _feature_map(arrays)]
    except (AbsentError, IndexError, KeyError, TypeError, ValueError) as error:
        raise AbsentError(f"arrays/{name}.npz does not hold a geometry ({error})") from error


def _numbers(arrays: dict[str, np.ndarray]) -> str:
    values = dict(zip(map(str, arrays["geometry_metrics"]), arrays["geometry_values"].tolist(), strict=True))
    rows = "".join(
        f'<tr><td>{escape(title)}</td><td class="number"><b>{values[metric]:.4g}</b></td>'
        f'<td class="meaning">{escape(meaning)}</td></tr>'
        for metric, (title, meaning) in MEANINGS.items()
        if metric in values
    )
    return (
        '<div class="card scroll"><table class="plain meanings"><thead><tr><th>metric</th><th class="number">value</th>'
        f"<th>what it means</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _feature_map(arrays: dict[str, np.ndarray]) -> str:
    points = [arrays["map_images"], arrays["map_texts"]]
    keys, captions, labels = (arrays[key] for key in ("map_keys", "map_captions", "map_labels"))
    count = len(keys)
    check(
        all(one.shape == (count, 2) and bool(np.isfinite(one).all()) for one in points), "the map's points do not fit"
    )
    check(len(captions) == len(labels) == count > 0, "the map's texts do not fit its points")
    classes = [str(name) for name in arrays.get("map_classes", ())]
    occurring = sorted(set(labels.tolist()))
    names = [classes[label] if 0 <= label < len(classes) else "" for label in labels]
    of_class = [f"\nclass: {name}" if name else "" for name in names]
    texts = [
        [
            f"image {key}{ending}\ncaption: {caption}"
            for key, caption, ending in zip(keys, captions, of_class, strict=True)
        ],
        [f"caption: {caption}{ending}" for caption, ending in zip(captions, of_class, strict=True)],
    ]
    if all(names) and 1 < len(occurring) <= len(COLOURS):
        colours = [[occurring.index(label) for label in labels]] * 2
        how = "Circles are images, diamonds are captions; the colour is the class."
        shown = legend([(classes[label], place) for place, label in enumerate(occurring)])
    else:
        colours = [[0] * count, [1] * count]
        how = "Circles are images, diamonds are captions."
        shown = legend([("images", 0), ("captions", 1)])
    variance = " and ".join(f"{share:.1f} %" for share in arrays["map_variance"])
    drawing = point_map(
        [(points[0], colours[0], texts[0], False), (points[1], colours[1], texts[1], True)],
        f"Feature map of {count} images and {count} captions",
    )
    return (
        f"<h3>Feature map</h3><p>{count:,} images and their captions in the plane of the two directions along which "
        f"all features vary most (principal components; {variance} of the variance). {how} Two separate clouds are the "
        "modality gap; a cloud that shrinks to a point is a collapse. The mouse shows which sample a point is.</p>"
        f'<figure class="card map">{shown}{drawing}</figure>'
    )
