"""Geometry of the joint space: how image and text features lie on the unit sphere.

After `run`, `Geometry.arrays` holds the following arrays. P is the number of samples that the feature map shows, evenly
spread over the source, C of classes, M of metrics.

| name | dtype, shape | content |
|---|---|---|
| `map_images` | float32 [P, 2] | image features in the plane of the two largest principal components of all features |
| `map_texts` | float32 [P, 2] | features of the same samples' first captions in the same plane |
| `map_variance` | float64 [2] | share of the variance along each component, in per cent |
| `map_keys` | str [P] | keys of the samples |
| `map_captions` | str [P] | beginning of the first captions |
| `map_labels` | int64 [P] | labels of the samples, -1 without one |
| `map_classes` | str [C] | names of the labels, if the source has any |
| `geometry_metrics`, `geometry_values` | str [M], float64 [M] | the metrics that `run` returned |
"""

from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from openslip.data.source import Source
from openslip.errors import UserError
from openslip.evaluation.captions import captions_of
from openslip.evaluation.evaluation import Evaluation
from openslip.evaluation.features import text_features
from openslip.evaluation.image_features import joint_features
from openslip.inference.bundle import Bundle, evaluating

MOST_SHOWN = 400  # samples of the feature map
CAPTION_LENGTH = 160  # characters of a caption that the feature map keeps

# Exponents of both losses in the paper's experiments: Wang and Isola 2020, section 4.1.
ALPHA = 2.0
T = 2.0


class Geometry(Evaluation):
    """Modality gap, alignment, uniformity and effective rank of the joint space, and equal captions.

    All features have unit length. Metrics: `modality_gap`, `alignment`, `image_uniformity`, `text_uniformity`,
    `image_effective_rank`, `text_effective_rank`, `duplicate_captions_percent` (captions whose text occurs more than
    once), `num_images`, `num_texts`. The functions below define them.

    Args:
        title: name of the evaluation in its headline.
        source: images with one or more captions.
        batch_size: images per forward pass, and features compared with all others at a time.
        num_workers: processes that decode images; 0 decodes in this process.

    Raises:
        UserError: the constructor gets fewer than two samples; `run` meets a sample without a caption, or the model
            has no text tower.
    """

    headline_metric = "modality_gap"
    better = None

    def __init__(self, *, title: str, source: Source, batch_size: int, num_workers: int) -> None:
        if len(source) < 2:
            raise UserError(f"geometry: the source has {len(source)} samples: expected at least 2 to compare")
        self.title = title
        self.source = source
        self.batch_size = batch_size
        self.num_workers = num_workers

    def headline(self, metrics: dict[str, float]) -> str:
        return (
            f"{self.title}: modality gap {metrics['modality_gap']:.3f}, effective rank "
            f"{metrics['image_effective_rank']:.1f} (images), {metrics['text_effective_rank']:.1f} (texts)"
        )

    def run(self, bundle: Bundle) -> dict[str, float]:
        bundle.need_tokenizer()
        captions = captions_of(self.source, "geometry")
        given = [text for texts in captions for text in texts]
        texts = text_features(bundle, given)
        images, labels = joint_features(
            bundle, self.source, batch_size=self.batch_size, num_workers=self.num_workers, labels=False
        )
        counts = torch.tensor([len(texts) for texts in captions])
        of_text = torch.arange(len(captions)).repeat_interleave(counts).to(images.device)
        # In float64: with unit length in float32 only, squared distances of close features would be rounding errors.
        image, text = (F.normalize(features.double(), dim=-1) for features in (images, texts))
        with evaluating(bundle.model, bundle.device):
            metrics = {
                "modality_gap": modality_gap(image, text),
                "alignment": alignment(image[of_text], text),
                "image_uniformity": uniformity(image, self.batch_size),
                "text_uniformity": uniformity(text, self.batch_size),
                "image_effective_rank": effective_rank(image),
                "text_effective_rank": effective_rank(text),
                "duplicate_captions_percent": duplicate_share(given),
                "num_images": float(len(image)),
                "num_texts": float(len(text)),
            }
            first = counts.cumsum(0).sub(counts).to(text.device)  # row of every sample's first caption
            self.arrays = self.feature_map(image, text, first, labels, [texts[0] for texts in captions])
        self.arrays |= {"geometry_metrics": np.array([*metrics]), "geometry_values": np.array([*metrics.values()])}
        return metrics

    def feature_map(
        self,
        image: Float64[Tensor, "images embed"],
        text: Float64[Tensor, "texts embed"],
        first: Int64[Tensor, " images"],
        labels: Int64[Tensor, " images"],
        captions: list[str],
    ) -> dict[str, np.ndarray]:
        """Return the arrays of the feature map, for samples that are evenly spread over the source."""
        count = min(MOST_SHOWN, len(image))
        shown = torch.arange(count) * len(image) // count
        centre, components, variance = principal_components(torch.cat([image, text]), 2)
        rows = shown.to(image.device)
        points = [(features - centre) @ components.T for features in (image[rows], text[first[rows]])]
        arrays = {
            "map_images": points[0].float().cpu().numpy(),
            "map_texts": points[1].float().cpu().numpy(),
            "map_variance": variance.cpu().numpy(),
            "map_keys": np.array([self.source[int(index)].key for index in shown]),
            "map_captions": np.array([captions[int(index)][:CAPTION_LENGTH] for index in shown]),
            "map_labels": labels[rows].cpu().numpy(),
        }
        classes = self.source.classes
        return arrays if classes is None else {**arrays, "map_classes": np.array(list(classes))}


def modality_gap(image: Float64[Tensor, "images embed"], text: Float64[Tensor, "texts embed"]) -> float:
    """Return the distance between the mean image feature and the mean text feature, from 0 to 2.

    Liang et al. 2022, arXiv:2203.02053, section 4.2.

    Args:
        image: unit-length features of the images.
        text: unit-length features of the captions.
    """
    return float((image.mean(dim=0) - text.mean(dim=0)).norm())


def alignment(image: Float64[Tensor, "pairs embed"], text: Float64[Tensor, "pairs embed"]) -> float:
    """Return the mean squared distance between an image and its caption, from 0 (equal) to 4 (opposite).

    Wang and Isola 2020, arXiv:2005.10242, section 4.1.1, with the image and its caption as positive pair.

    Args:
        image: unit-length image feature of each pair.
        text: unit-length text feature of each pair.
    """
    return float((image - text).norm(dim=-1).pow(ALPHA).mean())


def uniformity(features: Float64[Tensor, "rows embed"], chunk: int) -> float:
    """Return the logarithm of the mean of exp(-2 |x - y|^2) over all pairs of different rows.

    It is 0 if all rows are equal, and about -4 for rows that are evenly spread in many dimensions. Wang and Isola 2020,
    arXiv:2005.10242, section 4.1.2.

    Args:
        features: unit-length features.
        chunk: rows that are compared with all others at a time.
    """
    total = features.new_zeros(())
    for start in range(0, len(features), chunk):
        # For unit length, |x - y|^2 = 2 - 2 x.y.
        potential = (2 * T * (features[start : start + chunk] @ features.T - 1)).exp()  # [chunk, rows]
        potential[:, start : start + chunk].fill_diagonal_(0)  # a row is no pair with itself
        total += potential.sum()
    return float((total / (len(features) * (len(features) - 1))).log())


def effective_rank(features: Float[Tensor, "rows embed"]) -> float:
    """Return exp(entropy) of the singular values, scaled to sum to 1: the effective rank, 1 to min(rows, embed).

    Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality", definition 1. The features are
    not centred.
    """
    values = torch.linalg.svdvals(features.double().cpu())
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def duplicate_share(captions: list[str]) -> float:
    """Return the per cent of the captions whose text occurs more than once."""
    return 100 * sum(count for count in Counter(captions).values() if count > 1) / len(captions)


def principal_components(
    features: Float64[Tensor, "rows embed"], count: int
) -> tuple[Float64[Tensor, " embed"], Float64[Tensor, "count embed"], Float64[Tensor, " count"]]:
    """Return the mean of the rows, their largest principal components, and their shares of the variance in per cent.

    The largest coefficient of a component is positive, so that its direction is not left to chance.
    """
    centre = features.mean(dim=0)
    centred = features - centre
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    components = vectors.T.flip(0)[:count]
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    return centre, components * largest.sign(), 100 * values.flip(0)[:count] / values.sum()
