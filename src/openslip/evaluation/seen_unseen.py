"""Zero-shot classification among names that training captions have, and among names that they lack.

The candidates are the seen names for images of seen names, and the unseen names for images of unseen names. In
generalised zero-shot learning, all names are candidates for all images: Xian et al. 2017, arXiv:1707.00600, section 2.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from openslip.data.source import Source
from openslip.errors import UserError
from openslip.evaluation.evaluation import Evaluation
from openslip.evaluation.features import text_features
from openslip.evaluation.image_features import joint_features
from openslip.evaluation.metrics import best_classes, per_cent
from openslip.evaluation.multilabel import checked_vectors
from openslip.inference.bundle import Bundle, evaluating
from openslip.inference.prompts import class_embeddings, texts_of


class SeenUnseen(Evaluation):
    """Zero-shot accuracy on images of seen and of unseen names, in per cent; an image may have several right names.

    Metrics: `top1_seen`, the share of images of seen names for which the most similar seen name is right, and its
    `chance_seen`; with `unseen`, also `top1_unseen` and `chance_unseen`, and with all names as candidates,
    `top1_seen_of_all`, `top1_unseen_of_all` and their `harmonic_mean`; `num_samples`.

    Args:
        title: name of the evaluation in its headline.
        seen: images with `label_vectors` of names that training captions have.
        unseen: the same with names that they lack; None for a text tower that cannot know a word that no caption has.
        templates: prompts, as in `ZeroShot`.
        batch_size: images per forward pass.
        num_workers: processes that decode images; 0 decodes in this process.

    Raises:
        UserError: a source has no label vectors or no names, a name is seen and unseen, or the model has no text tower.
    """

    headline_metric = "top1_seen"

    def __init__(
        self,
        *,
        title: str,
        seen: Source,
        unseen: Source | None,
        templates: Iterable[Any] | str | Path,
        batch_size: int,
        num_workers: int,
    ) -> None:
        self.title = title
        self.seen = seen
        self.unseen = unseen
        self.names = {role: names_of(source, role) for role, source in self.sources().items()}
        if both := set(self.names["seen"]) & set(self.names.get("unseen", ())):
            raise UserError(f"{title}: {min(both)!r} is a seen and an unseen name: expected different names")
        self.vectors = {
            role: checked_vectors(source, title, len(self.names[role])) for role, source in self.sources().items()
        }
        self.templates = texts_of(templates, "templates")
        self.batch_size = batch_size
        self.num_workers = num_workers

    def headline(self, metrics: dict[str, float]) -> str:
        line = f"{self.title}: seen names {metrics['top1_seen']:.1f} % (chance {metrics['chance_seen']:.1f} %)"
        if self.unseen is None:
            return line
        return (
            f"{line}, unseen names {metrics['top1_unseen']:.1f} % (chance {metrics['chance_unseen']:.1f} %), "
            f"harmonic mean among all names {metrics['harmonic_mean']:.1f} %"
        )

    def run(self, bundle: Bundle) -> dict[str, float]:
        bundle.need_tokenizer()
        classes = {role: self.classes(bundle, names) for role, names in self.names.items()}
        images = {
            role: joint_features(
                bundle, source, batch_size=self.batch_size, num_workers=self.num_workers, labels=False
            ).features
            for role, source in self.sources().items()
        }
        metrics = {}
        with evaluating(bundle.model, bundle.device):
            for role, vectors in self.vectors.items():
                metrics[f"top1_{role}"] = hits(images[role], classes[role], vectors)
                metrics[f"chance_{role}"] = 100 * float(vectors.mean())
            if self.unseen is not None:
                names = torch.cat([*classes.values()])
                # No image has a right name of the other role.
                padding = {"seen": (0, len(classes["unseen"])), "unseen": (len(classes["seen"]), 0)}
                seen, unseen = (
                    hits(images[role], names, np.pad(vectors, ((0, 0), padding[role])))
                    for role, vectors in self.vectors.items()
                )
                both = 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0
                metrics |= {"top1_seen_of_all": seen, "top1_unseen_of_all": unseen, "harmonic_mean": both}
        return {**metrics, "num_samples": float(sum(map(len, self.vectors.values())))}

    def classes(self, bundle: Bundle, names: Sequence[str]) -> Float[Tensor, "names embed"]:
        return class_embeddings(lambda texts: text_features(bundle, texts), names, self.templates)


def names_of(source: Source, role: str) -> list[str]:
    """Return a source's class names; raise if it has none."""
    if source.classes is None:
        raise UserError(f"{role}: the source has no names of its labels; expected a dataset that has them")
    return list(source.classes)


def hits(
    images: Float[Tensor, "images width"], classes: Float[Tensor, "names width"], vectors: UInt8[np.ndarray, "_ names"]
) -> float:
    """Return the share of images for which the most similar class is one of theirs."""
    predictions = best_classes(images @ classes.T, 1)[:, 0].cpu().numpy()
    return per_cent(vectors[np.arange(len(vectors)), predictions] > 0)
