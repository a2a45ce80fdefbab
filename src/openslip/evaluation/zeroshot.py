"""Zero-shot classification by prompt ensembles. Radford et al. 2021, arXiv:2103.00020, section 3.1.

Published SLIP's protocol: ranked by cosine in float32, the lower class first among equals. After `run`,
`ZeroShot.arrays` holds (N samples in the source's order, C classes, T templates, K = min(5, C), P pictures,
A attributes):

| name | dtype, shape | what |
|---|---|---|
| `classnames` | str [C] | candidates in label order |
| `templates` | str [T] | prompts, with `{}` |
| `labels` | int64 [N] | true class |
| `predictions` | int64 [N] | most similar class (= `top_classes[:, 0]`) |
| `top_classes` | int64 [N, K] | most similar classes, best first |
| `top_probabilities` | float32 [N, K] | their softmax(exp(logit_scale) * cosine) over all C classes |
| `pictures` | uint8 [P, 3, H, W] | samples evenly spread over the source, as the model sees them |
| `picture_indices` | int64 [P] | their rows in the arrays above |
| `attribute_names` | str [A] | only with `attributes` |
| `attribute_values` | str [A, C] | only with `attributes`: every class's value |
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openslip.data.image.decode import open_image
from openslip.data.image.eval_transform import EvalTransform
from openslip.data.source import Source
from openslip.errors import UserError
from openslip.evaluation.evaluation import Evaluation, evaluating, gather_batches, labelled_batches, top1_line
from openslip.inference.prompts import check_prompts, class_embeddings
from openslip.models.dual_encoder import DualEncoder
from openslip.text.clip_bpe import Tokenizer

TEXTS_PER_BATCH = 256  # prompts are some 10 tokens long: on a CPU larger batches fall out of the cache
NUM_PICTURES = 16


class ZeroShot(Evaluation):
    """Share of pictures whose own class name is the most similar text, in per cent.

    Figures: `top1`, `top5` (from 5 classes on), `chance` (of top1), `num_samples`, and per attribute
    `top1_<attribute>`: the share of pictures for which the predicted class has the right value.

    Args:
        title: what the headline calls it.
        source: pictures with labels.
        classnames: the name of every label.
        templates: prompts, each with `{}` in the place of the name.
        tokenizer: the one that the model was trained with; None (a model without text) is refused by `run`.
        transform: the one for test pictures.
        batch_size: pictures per forward pass.
        num_workers: processes that decode pictures; 0 decodes in this one.
        attributes: per attribute, every class's value.

    Raises:
        UserError: here on names, templates or attributes of no use; in `run` on a label without a name, a
            sample without a label, a model without a text tower.
    """

    def __init__(
        self,
        *,
        title: str,
        source: Source,
        classnames: list[str],
        templates: list[str],
        tokenizer: Tokenizer | None,
        transform: EvalTransform,
        batch_size: int,
        num_workers: int,
        attributes: dict[str, list[str]] | None = None,
    ) -> None:
        check_prompts(classnames, templates)
        if len(source) == 0:
            raise UserError("zero-shot: the source has no samples")
        for name, values in (attributes or {}).items():
            if len(values) != len(classnames):
                raise UserError(
                    f"attribute {name!r} has {len(values)} values for {len(classnames)} classes: expected one per class"
                )
        self.title = title
        self.source = source
        self.classnames = classnames
        self.templates = templates
        self.tokenizer = tokenizer
        self.transform = transform
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.attributes = attributes or {}
        self.arrays: dict[str, np.ndarray] = {}

    def headline(self, figures: dict[str, float]) -> str:
        """Top-1 beside chance."""
        return top1_line(self.title, figures)

    def run(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Encode the classes once, then the pictures."""
        if not isinstance(model, DualEncoder) or self.tokenizer is None:
            raise UserError(
                f"zero-shot needs a text tower and a tokenizer, which this {type(model).__name__} has not: "
                "evaluate it with openslip.evaluation.knn.KNN"
            )
        with evaluating(model, device):
            classes = class_embeddings(model, self.tokenizer, self.classnames, self.templates, device, TEXTS_PER_BATCH)
            labels, top_classes, top_probabilities = self._classify(model, classes, device)
        predictions = top_classes[:, 0]
        self.arrays = {
            "classnames": np.array(self.classnames),
            "templates": np.array(self.templates),
            "labels": labels,
            "predictions": predictions,
            "top_classes": top_classes,
            "top_probabilities": top_probabilities,
            **self._pictures(),
        }
        figures = {"top1": _per_cent(predictions == labels)}
        if len(self.classnames) >= 5:
            figures["top5"] = _per_cent((top_classes == labels[:, None]).any(axis=1))
        figures |= {"chance": 100 / len(self.classnames), "num_samples": float(len(labels))}
        if self.attributes:
            values = np.array(list(self.attributes.values()))
            self.arrays |= {"attribute_names": np.array(list(self.attributes)), "attribute_values": values}
            for name, of_class in zip(self.attributes, values, strict=True):
                figures[f"top1_{name}"] = _per_cent(of_class[predictions] == of_class[labels])
        return figures

    def _classify(
        self, model: DualEncoder, classes: Tensor, device: torch.device
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        num_top = min(5, len(classes))
        top = [torch.empty(0, num_top, dtype=torch.int64, device=device)]
        probabilities = [torch.empty(0, num_top, device=device)]
        labels = [torch.empty(0, dtype=torch.int64, device=device)]
        for image, label in labelled_batches(
            self.source,
            self.transform,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            device=device,
        ):
            self._check_labels(label)
            cosines = F.normalize(model.encode_image(image), dim=-1) @ classes.T  # [B, C]
            best = cosines.sort(dim=1, descending=True, stable=True).indices[:, :num_top]
            top.append(best)
            probabilities.append((cosines * model.logit_scale.exp()).softmax(dim=1).gather(1, best))
            labels.append(label)
        gathered = [
            gather_batches(torch.cat(parts), len(self.source), self.batch_size).cpu().numpy()
            for parts in (labels, top, probabilities)
        ]
        return gathered[0], gathered[1], gathered[2]

    def _check_labels(self, label: Tensor) -> None:
        highest = int(label.max())
        if highest >= len(self.classnames):
            raise UserError(
                f"label {highest} is outside the {len(self.classnames)} class names "
                f"(0 to {len(self.classnames) - 1}): give classnames as many names as the source has classes"
            )

    def _pictures(self) -> dict[str, np.ndarray]:
        count = min(NUM_PICTURES, len(self.source))
        indices = np.arange(count) * len(self.source) // count
        samples = [self.source[int(index)] for index in indices]
        images = torch.stack([self.transform(open_image(sample.image, sample.key)) for sample in samples])
        settings = self.transform.settings()
        mean, std = (torch.tensor(settings[key]).view(3, 1, 1) for key in ("mean", "std"))
        pixels = (images * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
        return {"pictures": pixels.numpy(), "picture_indices": indices}


def _per_cent(right: np.ndarray) -> float:
    return 100 * int(right.sum()) / len(right)
