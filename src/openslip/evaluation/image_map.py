"""A map of images: features in a plane, and how often an image's nearest neighbour is of the same class.

Hadsell, Chopra and LeCun 2006 show such maps of MNIST and NORB (figures 3 to 9). Distances are Euclidean, and features
keep their lengths. After `run`, `ImageMap.arrays` holds the following arrays. P is the number of images that the map
shows, evenly spread over the source, C of classes, A of attributes.

| name | dtype, shape | content |
|---|---|---|
| `map_points` | float32 [P, 2] | features; if wider than 2, in the plane of their two largest principal components |
| `map_variance` | float64 [2] | share of the variance along each component, in per cent; absent at width 2 |
| `map_keys` | str [P] | keys of the images |
| `map_labels` | int64 [P] | labels of the images |
| `map_classes` | str [C] | names of the labels, if the source has any |
| `attribute_names` | str [A] | names of the `attributes`, if there are any |
| `attribute_values` | str [A, C] | every class's value of each attribute, if there are any |
"""

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from openslip.data.source import Source
from openslip.distributed import on_first_rank
from openslip.errors import UserError
from openslip.evaluation.evaluation import Evaluation, top1_line
from openslip.evaluation.frozen_features import check_features, frozen_features
from openslip.evaluation.geometry import principal_components
from openslip.evaluation.metrics import per_cent
from openslip.inference.bundle import Bundle, evaluating

MOST_SHOWN = 400  # images of the map


class ImageMap(Evaluation):
    """Share of images whose nearest other image has the same class, in per cent, and a map of the images.

    Metrics: `top1`, `chance` (the share for a neighbour that is drawn at random), `num_samples`, and per attribute
    `top1_<attribute>` and `chance_<attribute>`: the same for images whose classes have the same value.

    Args:
        title: name of the evaluation in its headline.
        source: labelled images.
        attributes: by name of the attribute, its value for every class, in label order; the map has a copy coloured by
            each. None colours by class.
        features: `joint` for the features after the projection, or `tower` for those before it.
        batch_size: images per forward pass, and images compared with all others at a time.
        num_workers: processes that decode images; 0 decodes in this process.

    Raises:
        UserError: the constructor refuses a value; `run` meets a sample without a label, a label without a value of an
            attribute, or features of width 1.
    """

    def __init__(
        self,
        *,
        title: str,
        source: Source,
        attributes: dict[str, list[str]] | None,
        features: str,
        batch_size: int,
        num_workers: int,
    ) -> None:
        check_features("a map of images", features)
        if len(source) < 2:
            raise UserError(f"a map of images: the source has {len(source)} samples: expected at least 2 to compare")
        self.title = title
        self.source = source
        self.attributes = attributes or {}
        self.features = features
        self.batch_size = batch_size
        self.num_workers = num_workers

    def headline(self, metrics: dict[str, float]) -> str:
        return top1_line(self.title, metrics)

    def run(self, bundle: Bundle) -> dict[str, float]:
        features, of_image = frozen_features(
            bundle,
            self.source,
            features=self.features,
            normalise=False,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
        )
        labels = of_image.cpu().numpy()
        for name, values in self.attributes.items():
            if (highest := int(labels.max())) >= len(values):
                raise UserError(f"attribute {name!r} has {len(values)} values, and an image has label {highest}")
        if features.shape[1] < 2:
            raise UserError(f"a map of images: features have width {features.shape[1]}: expected at least 2")
        with evaluating(bundle.model, bundle.device):
            neighbours = on_first_rank(lambda: nearest_others(features, self.batch_size).cpu().numpy())
            self.arrays = self.map(features, labels)
        metrics = share_of_equals(labels, neighbours, "")
        for name, values in self.attributes.items():
            metrics |= share_of_equals(np.array(values)[labels], neighbours, f"_{name}")
        return {**metrics, "num_samples": float(len(labels))}

    def map(
        self, features: Float[Tensor, "images width"], labels: Int64[np.ndarray, " images"]
    ) -> dict[str, np.ndarray]:
        """Return the arrays of the map, for images that are evenly spread over the source."""
        count = min(MOST_SHOWN, len(features))
        shown = np.arange(count) * len(features) // count
        points, arrays = features.double(), {}
        if features.shape[1] > 2:
            centre, components, variance = principal_components(points, 2)
            points = (points - centre) @ components.T
            arrays["map_variance"] = variance.cpu().numpy()
        arrays |= {
            "map_points": points.float().cpu().numpy()[shown],
            "map_keys": np.array([self.source[int(index)].key for index in shown]),
            "map_labels": labels[shown],
        }
        if self.source.classes is not None:
            arrays["map_classes"] = np.array(list(self.source.classes))
        if self.attributes:
            arrays["attribute_names"] = np.array(list(self.attributes))
            arrays["attribute_values"] = np.array(list(self.attributes.values()))
        return arrays


def nearest_others(features: Float[Tensor, "images width"], chunk: int) -> Int64[Tensor, " images"]:
    """Return the nearest other image of each image by Euclidean distance; of equally near ones, the first.

    Args:
        features: one row per image.
        chunk: rows that are compared with all others at a time.
    """
    nearest, rows = [], features.double()
    for start in range(0, len(rows), chunk):
        distances = torch.cdist(
            rows[start : start + chunk], rows, compute_mode="donot_use_mm_for_euclid_dist"
        )  # [chunk, images]
        distances[:, start : start + chunk].fill_diagonal_(float("inf"))
        nearest.append(distances.argmin(dim=1))
    return torch.cat(nearest)


def share_of_equals(
    values: Shaped[np.ndarray, " images"], neighbours: Int64[np.ndarray, " images"], suffix: str
) -> dict[str, float]:
    """Return how often an image and its neighbour have equal values, and how often two random images have."""
    _, counts = np.unique(values, return_counts=True)
    chance = 100 * float((counts * (counts - 1)).sum()) / (len(values) * (len(values) - 1))
    return {f"top1{suffix}": per_cent(values[neighbours] == values), f"chance{suffix}": chance}
