"""Parts of the section of `openslip.evaluation.image_map`: a map of the images for each attribute."""

import numpy as np

from openslip.report.charts import COLOURS, legend
from openslip.report.drawings import point_map
from openslip.report.pieces import escape
from openslip.report.run_files import AbsentError, check


def is_image_map(arrays: dict[str, np.ndarray]) -> bool:
    """Whether arrays are those of `openslip.evaluation.image_map`."""
    return {"map_points", "map_keys", "map_labels"} <= arrays.keys()


def image_map(arrays: dict[str, np.ndarray], name: str) -> list[str]:
    """Build the maps: one for each attribute, or one whose colours are the classes.

    Args:
        arrays: arrays of the evaluation, by name.
        name: name of the evaluation, for error messages.
    """
    try:
        return [_maps(arrays)]
    except (AbsentError, IndexError, KeyError, TypeError, ValueError) as error:
        raise AbsentError(f"arrays/{name}.npz does not hold a map of images ({error})") from error


def _maps(arrays: dict[str, np.ndarray]) -> str:
    points, keys, labels = (arrays[key] for key in ("map_points", "map_keys", "map_labels"))
    count = len(keys)
    check(points.shape == (count, 2) and bool(np.isfinite(points).all()), "the map's points do not fit")
    check(labels.shape == (count,) and count > 0, "the map's labels do not fit its points")
    classes = arrays.get("map_classes")
    names = [str(label) if classes is None else str(classes[label]) for label in labels.tolist()]
    texts = [f"image {key}\nclass: {name}" for key, name in zip(keys, names, strict=True)]
    groups = {"class": names}
    if "attribute_names" in arrays:
        values = zip(arrays["attribute_names"], arrays["attribute_values"], strict=True)
        groups = {str(attribute): [str(of_class[label]) for label in labels] for attribute, of_class in values}
    figures = "".join(_map(points, texts, title, values) for title, values in groups.items())
    plane = "The axes are the two dimensions of the model's output."
    if "map_variance" in arrays:
        shares = " and ".join(f"{share:.1f} %" for share in arrays["map_variance"])
        plane = f"The axes are the two directions along which the features vary most ({shares} of the variance)."
    return (
        f"<h3>Map of images</h3><p>{count:,} images, evenly spread over the test set. {plane} Images that lie together "
        "are alike to the model; colours show in what. The mouse shows which image a point is.</p>"
        f'<div class="charts">{figures}</div>'
    )


def _map(points: np.ndarray, texts: list[str], title: str, values: list[str]) -> str:
    """Draw the map in colours of the values, or in one colour if there are more values than colours."""
    distinct = list(dict.fromkeys(sorted(values)))
    colours, shown = [0] * len(values), ""
    if len(distinct) <= len(COLOURS):
        colours = [distinct.index(value) for value in values]
        shown = legend([(value, place) for place, value in enumerate(distinct)])
    drawing = point_map([(points, colours, texts, False)], f"Map of {len(values)} images by {title}")
    return f'<figure class="card map"><figcaption>{escape(title)}</figcaption>{shown}{drawing}</figure>'
