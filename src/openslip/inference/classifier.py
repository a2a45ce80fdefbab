"""Ask a model which label fits an image."""

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor

from openslip.distributed import notice_once
from openslip.errors import UserError
from openslip.inference.bundle import Bundle
from openslip.inference.images import ImageLike, is_one_image, listed
from openslip.inference.prompts import class_embeddings, repeated, texts

Ranking = list[tuple[str, float]]


class ZeroShotClassifier:
    """Ranks labels by exp(logit_scale) x cosine. Radford et al. 2021, arXiv:2103.00020, section 3.1.2.

    Args:
        bundle: from `openslip.load`.
        labels: candidates, one word or more each.
        templates: prompts with `{}` for the label; their features are averaged.
        probabilities: `softmax`, of which an image's add up to 1; `sigmoid`, each label for itself, for models with a
            `logit_bias`. Zhai et al. 2023, arXiv:2303.15343.

    Raises:
        UserError: one string in place of a list, labels or templates of no use, or sigmoid without a `logit_bias`.
    """

    def __init__(
        self,
        bundle: Bundle,
        labels: Iterable[str | int],
        templates: Iterable[str | int] = ("a photo of a {}.",),
        probabilities: str = "softmax",
    ) -> None:
        if probabilities not in ("softmax", "sigmoid"):
            raise UserError(f"probabilities={probabilities}: expected softmax or sigmoid")
        self.bundle = bundle
        self.labels = texts(labels, "labels")
        self.bias = bundle.bias() if probabilities == "sigmoid" else None
        bundle.need_tokenizer()
        self.scale = bundle.scale()
        self.classes = class_embeddings(bundle.encode_text, self.labels, templates)  # once: images come one by one
        if len(self.labels) == 1 and self.bias is None:
            notice_once(f"labels: {self.labels[0]!r} is the only one, so its probability is always 1: give several")
        if twice := repeated(self.labels):
            notice_once(f"labels: {', '.join(twice)} given several times: they share the probability")

    def __call__(self, images: ImageLike | Iterable[ImageLike]) -> Ranking | list[Ranking]:
        """Labels with probabilities, best first; a list of them for a list of images.

        An image is a path, a file's bytes, a PIL image, a uint8 array [height, width, 3], or a tensor
        [3, height, width], uint8 or floats from 0 to 1.
        """
        return self.rank([images])[0] if is_one_image(images) else self.rank(images)  # pyright: ignore

    def rank(self, images: Iterable[ImageLike]) -> list[Ranking]:
        """One ranking per image."""
        given = listed(images)
        return self.rank_features(self.bundle.encode_image(given)) if given else []

    def rank_features(self, features: Float[Tensor, "images embed"]) -> list[Ranking]:
        """One ranking per unit-length feature of an image."""
        logits = self.scale * features @ self.classes.T
        probabilities = logits.softmax(dim=-1) if self.bias is None else (logits + self.bias).sigmoid()
        sorted_probabilities, places = probabilities.sort(dim=-1, descending=True, stable=True)
        return [
            [(self.labels[place], p) for place, p in zip(order, row, strict=True)]
            for row, order in zip(sorted_probabilities.tolist(), places.tolist(), strict=True)
        ]
