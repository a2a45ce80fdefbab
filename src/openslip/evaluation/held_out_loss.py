"""The contrastive loss of held-out pairs: symmetric InfoNCE. Radford et al. 2021, arXiv:2103.00020, figure 3."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from openslip.data.source import Source
from openslip.errors import UserError
from openslip.evaluation.captions import captions_of
from openslip.evaluation.evaluation import Evaluation
from openslip.evaluation.features import text_features
from openslip.evaluation.image_features import joint_features
from openslip.inference.bundle import Bundle, evaluating


class HeldOutLoss(Evaluation):
    """Mean InfoNCE loss over batches of consecutive pairs, with the model's own temperature.

    A pair is an image with its first caption. The loss depends on the number of negatives, and therefore on
    `loss_batch_size`: compare only losses of the same `loss_batch_size`. An untrained model has about
    ln(loss_batch_size). Pairs after the last whole batch are not used. A model that was trained with a sigmoid loss is
    measured by InfoNCE too.

    Metrics: `loss`, `image_to_text_acc` and `text_to_image_acc` (per cent of rows whose most similar candidate in the
    batch is their own), `num_pairs`.

    Args:
        title: name of the evaluation in its headline.
        source: images with captions.
        loss_batch_size: pairs that are compared with one another.
        batch_size: images per forward pass.
        num_workers: processes that decode images; 0 decodes in this process.

    Raises:
        UserError: the constructor gets a source with less than one batch, or a batch of one; `run` meets a sample
            without a caption, or the model has no text tower.
    """

    headline_metric = "loss"
    better = "lower"

    def __init__(self, *, title: str, source: Source, loss_batch_size: int, batch_size: int, num_workers: int) -> None:
        if not 2 <= loss_batch_size <= len(source):
            raise UserError(
                f"loss_batch_size={loss_batch_size}: expected 2 to {len(source)}, the number of samples in the source"
            )
        self.title = title
        self.source = source
        self.loss_batch_size = loss_batch_size
        self.batch_size = batch_size
        self.num_workers = num_workers

    def headline(self, metrics: dict[str, float]) -> str:
        return (
            f"{self.title}: {metrics['loss']:.4f} in batches of {self.loss_batch_size}, image to text "
            f"{metrics['image_to_text_acc']:.1f} %"
        )

    def run(self, bundle: Bundle) -> dict[str, float]:
        bundle.need_tokenizer()
        captions = captions_of(self.source, "the held-out loss")
        texts = text_features(bundle, [texts[0] for texts in captions])
        images, _ = joint_features(
            bundle, self.source, batch_size=self.batch_size, num_workers=self.num_workers, labels=False
        )
        num_pairs = len(images) // self.loss_batch_size * self.loss_batch_size
        with evaluating(bundle.model, bundle.device):
            batches = [
                info_nce(image, text, bundle.scale())
                for image, text in zip(
                    images[:num_pairs].split(self.loss_batch_size),
                    texts[:num_pairs].split(self.loss_batch_size),
                    strict=True,
                )
            ]
        loss, to_text, to_image = torch.stack(batches).mean(dim=0).tolist()
        return {
            "loss": loss,
            "image_to_text_acc": 100 * to_text,
            "text_to_image_acc": 100 * to_image,
            "num_pairs": float(num_pairs),
        }


def info_nce(
    image: Float[Tensor, "pairs embed"], text: Float[Tensor, "pairs embed"], scale: Float[Tensor, ""]
) -> Float[Tensor, " 3"]:
    """Return the symmetric InfoNCE loss of a batch, and the share of right matches from image to text and back.

    Args:
        image: unit-length image feature of each pair.
        text: unit-length text feature of each pair.
        scale: factor on cosines, exp(logit_scale).
    """
    logits = (scale * image @ text.T).double()
    pair = torch.arange(len(logits), device=logits.device)
    losses = [F.cross_entropy(rows, pair) for rows in (logits, logits.T)]
    shares = [(rows.argmax(dim=1) == pair).double().mean() for rows in (logits, logits.T)]
    return torch.stack([(losses[0] + losses[1]) / 2, *shares])
