"""Zero-shot classification by token-wise similarity. Yao et al. 2021, arXiv:2111.07783 (FILIP), section 3."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from openslip.data.source import Source
from openslip.errors import NonFiniteError, UserError
from openslip.evaluation.class_names import class_names
from openslip.evaluation.evaluation import Evaluation, classification_line
from openslip.evaluation.features import gather_batches, image_batches
from openslip.evaluation.metrics import accuracies, best_classes
from openslip.inference.bundle import Bundle, evaluating
from openslip.inference.prompts import texts_of
from openslip.models.tower import Tokens
from openslip.objectives.filip import padded_tokens
from openslip.objectives.late_interaction import late_interaction, unit_tokens

TEXTS_PER_BATCH = 256
IMAGES_PER_PRODUCT = 32  # images whose similarities with all prompts exist at a time


class TokenZeroShot(Evaluation):
    """Zero-shot accuracy, in per cent, where the score of a class is the mean similarity of an image with its prompts.

    A similarity is the mean over the image's patches of the largest cosine with a word of the prompt. `ZeroShot`
    compares pooled features instead. Metrics: `top1`, `mean_per_class`, `top5` and `mean_of_top1_top5` (with at least 5
    classes), `chance` and `num_samples`.

    Args:
        title: name of the evaluation in its headline.
        source: images with labels.
        classnames: as in `ZeroShot`.
        templates: as in `ZeroShot`.
        count_padding: whether the padding of prompts counts as words, as in the objective that trained the model.
        batch_size: images per forward pass.
        num_workers: processes that decode images; 0 decodes in this process.

    Raises:
        UserError: the constructor gets invalid names or templates; or `run` meets a label without a name or a sample
            without a label, or the model has no projections of tokens.
        NonFiniteError: a token's feature is not finite.
    """

    def __init__(
        self,
        *,
        title: str,
        source: Source,
        classnames: Iterable[Any] | str | Path | None,
        templates: Iterable[Any] | str | Path,
        count_padding: bool,
        batch_size: int,
        num_workers: int,
    ) -> None:
        classes = class_names(
            classnames, source.classes, "space", labels_are_sorted_names=source.labels_are_sorted_names
        )
        self.title = title
        self.source = source
        self.names = classes.prompted
        self.templates = texts_of(templates, "templates")
        self.count_padding = count_padding
        self.batch_size = batch_size
        self.num_workers = num_workers

    def headline(self, metrics: dict[str, float]) -> str:
        return classification_line(self.title, metrics, self.headline_metric)

    def run(self, bundle: Bundle) -> dict[str, float]:
        if not hasattr(bundle.model, "project_text_tokens") or bundle.model.token_dim is None:
            raise UserError(
                f"{bundle.name()}: its tokens have no joint space, so only pooled features can be compared: use "
                "evaluation=imagenet or builtin, or train with objective=filip"
            )
        with evaluating(bundle.model, bundle.device):
            prompts = self.prompts(bundle)
            ranked, of_image = [], []
            for images, labels in image_batches(
                bundle, self.source, batch_size=self.batch_size, num_workers=self.num_workers
            ):
                tokens = unit(bundle, bundle.model.project_image_tokens(bundle.model.image_tower.tokens(images)))
                scores = torch.cat([self.scores(part, prompts) for part in split(tokens, IMAGES_PER_PRODUCT)])
                ranked.append(best_classes(scores, min(5, len(self.names))))
                of_image.append(labels.to(bundle.device))
            top_classes, label = (
                gather_batches(rows, len(self.source), self.batch_size, bundle.device).cpu().numpy()
                for rows in (ranked, of_image)
            )
        if label.max() >= len(self.names):
            raise UserError(f"label {label.max()} is outside the {len(self.names)} class names: give as many names")
        metrics = accuracies(top_classes, label, len(self.names))
        return metrics | {"chance": 100 / len(self.names), "num_samples": float(len(label))}

    def prompts(self, bundle: Bundle) -> Tokens:
        """Return the unit-length tokens of all prompts, template by template; every rank computes all of them."""
        texts = [template.replace("{}", name) for template in self.templates for names in self.names for name in names]
        ids, lengths = bundle.need_tokenizer().encode(texts)
        parts = []
        for rows in torch.arange(len(texts)).split(TEXTS_PER_BATCH):
            trimmed = ids[rows, : int(lengths[rows].max())].to(bundle.device)
            if self.count_padding:
                tokens = padded_tokens(bundle.model, trimmed, lengths[rows])
            else:
                tokens = bundle.model.text_tower.tokens(trimmed, lengths[rows])
            parts.append(unit(bundle, bundle.model.project_text_tokens(tokens)))
        width = max(part.mask.shape[1] for part in parts)
        missing = [width - part.mask.shape[1] for part in parts]
        return Tokens(
            torch.cat([F.pad(part.features, (0, 0, 0, m)) for part, m in zip(parts, missing, strict=True)]),
            torch.cat([F.pad(part.mask, (0, m)) for part, m in zip(parts, missing, strict=True)]),
        )

    def scores(self, images: Tokens, prompts: Tokens) -> Float[Tensor, "images classes"]:
        """Return the mean similarity of each image with the prompts of each class."""
        similarity = late_interaction(images, prompts).view(len(images.mask), len(self.templates), -1).mean(dim=1)
        return torch.stack([names.mean(dim=1) for names in similarity.split(list(map(len, self.names)), dim=1)], dim=1)


def unit(bundle: Bundle, tokens: Tokens) -> Tokens:
    """Normalise each token's feature to length 1."""
    if not tokens.features.isfinite().all():
        raise NonFiniteError(f"{bundle.name()}: its token features are not finite ({bundle.why_not_finite()})")
    return Tokens(unit_tokens(tokens.features), tokens.mask)


def split(tokens: Tokens, size: int) -> list[Tokens]:
    """Split into parts of at most so many samples."""
    return [Tokens(*part) for part in zip(tokens.features.split(size), tokens.mask.split(size), strict=True)]
