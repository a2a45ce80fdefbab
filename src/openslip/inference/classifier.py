"""Zero-shot classifier: rank text labels by how well they fit an image."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from openslip.data.class_names import words
from openslip.distributed import notice_once
from openslip.errors import UserError
from openslip.inference.bundle import Bundle
from openslip.inference.embedding_cache import cached_embeddings
from openslip.inference.images import ImageLike, is_one_image, listed
from openslip.inference.prompts import repeated, templates_of, texts

Ranking = list[tuple[str, float]]

TEMPLATE = "a photo of a {}."


class ZeroShotClassifier:
    """Ranks labels for images by exp(logit_scale) x cosine. Radford et al. 2021, arXiv:2103.00020, section 3.1.2.

    The labels' embeddings are computed once: another classifier of the same bundle, labels and templates reuses them.

    Args:
        bundle: the bundle that `openslip.load` returned.
        labels: candidate labels, each a word or a phrase.
        templates: prompts with `{}` for the label; the unit-length features of a label's prompts are averaged and
            normalised again. One string, a list, a tuple, a set (which is sorted), a text file, `imagenet7`,
            `imagenet80` or another published table (`food101`); the default is `a photo of a {}.`.
        probabilities: `softmax` or `sigmoid`. With `softmax`, the probabilities of an image's labels sum to 1. With
            `sigmoid`, each label gets an independent probability; the model must have a `logit_bias`, which is added to
            the logits: Zhai et al. 2023, arXiv:2303.15343.
        reject: from 0 to 1; an image whose most probable label has a lower probability fits no label, and its ranking
            is empty. With `softmax` the probability depends on the other labels and is at least 1 / number of labels.
        candidate_labels: other name of `labels`, as in Hugging Face's zero-shot pipeline.
        hypothesis_template: other name of `templates`, as in Hugging Face's zero-shot pipeline.
        underscores: `space` reads `_` in labels as a space in prompts, as in evaluations; `keep` leaves it.
        cache: folder that keeps the labels' embeddings for later processes; None keeps them in memory only. If code of
            yours or of another library is part of the model or tokenizer, the folder is not used.

    Raises:
        UserError: labels or templates are missing, invalid or given by both names, labels are one string instead of a
            list, `reject` is out of range, `underscores` has another value, or `sigmoid` was chosen for a model without
            a `logit_bias`.
    """

    def __init__(
        self,
        bundle: Bundle,
        labels: Iterable[str | int] | None = None,
        templates: Iterable[str | int] | str | Path | None = None,
        probabilities: str = "softmax",
        *,
        reject: float | None = None,
        candidate_labels: Iterable[str | int] | None = None,
        hypothesis_template: Iterable[str | int] | str | Path | None = None,
        underscores: str = "space",
        cache: Path | None = None,
    ) -> None:
        if probabilities not in ("softmax", "sigmoid"):
            raise UserError(f"probabilities={probabilities}: expected softmax or sigmoid")
        if reject is not None and not 0 <= reject <= 1:
            raise UserError(f"reject={reject}: expected a probability from 0 to 1")
        labels = either("labels", labels, "candidate_labels", candidate_labels)
        templates = either("templates", templates, "hypothesis_template", hypothesis_template)
        if labels is None:
            raise UserError("labels are missing: give labels=['cat', 'dog'], or candidate_labels=")
        self.bundle = bundle
        self.labels = texts(labels, "labels")
        self.reject = reject
        self.bias = bundle.bias() if probabilities == "sigmoid" else None
        bundle.need_tokenizer()
        self.scale = bundle.scale()
        names = [words(label, underscores) for label in self.labels]
        if "" in names:
            raise UserError(f"labels: {self.labels[names.index('')]!r} is blank in prompts: expected words")
        self.classes = cached_embeddings(
            bundle, names, templates_of(TEMPLATE if templates is None else templates), cache
        )
        if underscores == "space" and any("_" in label for label in self.labels):
            notice_once("labels: `_` is read as a space (`keep` for underscores leaves it)")
        if len(self.labels) == 1 and self.bias is None:
            notice_once(f"labels: {self.labels[0]!r} is the only one, so its probability is always 1: give several")
        elif reject is not None and self.bias is None and reject * len(self.labels) <= 1:
            notice_once(
                f"reject={reject} rejects nothing: the most probable of {len(self.labels)} labels always has a "
                f"probability of at least {1 / len(self.labels):.3g}"
            )
        if twice := repeated(self.labels) if underscores == "space" else []:
            notice_once(f"labels: {', '.join(twice)} given several times: they share the probability")

    def __call__(self, images: ImageLike | Iterable[ImageLike]) -> Ranking | list[Ranking]:
        """Rank the labels for one image, or for each image of a list.

        Args:
            images: an image or a list of images. An image is a path, an http(s) address, encoded image bytes, a PIL
                image, a uint8 array [height, width, 3], or a tensor [3, height, width] of uint8 or of floats from 0 to
                1.

        Returns:
            A ranking: pairs of label and probability, most probable first; empty if the image is rejected. For a list
            of images, a list of rankings.
        """
        return self.rank([images])[0] if is_one_image(images) else self.rank(images)  # pyright: ignore

    def rank(self, images: Iterable[ImageLike]) -> list[Ranking]:
        """Return one ranking per image."""
        given = listed(images)
        return self.rank_features(self.bundle.encode_image(given)) if given else []

    def rank_features(self, features: Float[Tensor, "images embed"]) -> list[Ranking]:
        """Return one ranking per image, computed from unit-length image features."""
        logits = self.scale * features @ self.classes.T
        probabilities = logits.softmax(dim=-1) if self.bias is None else (logits + self.bias).sigmoid()
        sorted_probabilities, places = probabilities.sort(dim=-1, descending=True, stable=True)
        rankings = [
            [(self.labels[place], p) for place, p in zip(order, row, strict=True)]
            for row, order in zip(sorted_probabilities.tolist(), places.tolist(), strict=True)
        ]
        return [[] if self.reject is not None and ranking[0][1] < self.reject else ranking for ranking in rankings]


def either(name: str, value: Any, other_name: str, other: Any) -> Any:
    """Return the value that is given by one of two names, or None; raise if it is given by both."""
    if value is not None and other is not None:
        raise UserError(f"{name} and {other_name} are two names of the same argument: give one of them")
    return other if value is None else value
