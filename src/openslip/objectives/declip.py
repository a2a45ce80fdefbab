"""DeCLIP: two views of each image and caption supervise each other. Li et al. 2021, arXiv:2110.05208, section 3.

As in the published code, the nearest-neighbour term compares each image with the neighbours of all captions, but not
the reverse.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from openslip.distributed import gather
from openslip.errors import UserError
from openslip.models.dual_encoder import DualEncoder
from openslip.objectives.clip import info_nce
from openslip.objectives.logit_scale import LogitScaleLimits
from openslip.objectives.masked_words import masked_word_loss, masked_word_losses, unmasked, vocabulary_size
from openslip.objectives.neighbour_queue import NeighbourQueue
from openslip.objectives.objective import Objective
from openslip.objectives.similarity import Features
from openslip.objectives.simsiam import SimSiam, simsiam_loss
from openslip.objectives.stacked import stacked
from openslip.objectives.tiles import sum_over_rows


class DeCLIP(Objective):
    """The DeCLIP objective; it reads `image`, `image2`, `text`, `text_length`, `text_labels`, `text2`, `text2_length`.

    Args:
        clip_scale: weight of the CLIP term, the mean over the four pairs of an image view and a caption view.
        neighbour_scale: weight of the term that matches images with the nearest neighbours of their captions.
        simsiam_scale: weight of the SimSiam term.
        masked_scale: weight of the masked-token term.
        head_hidden: width of the SimSiam projector; its input is the projected image feature.
        head_bottleneck: width of the hidden layer of the SimSiam predictor.
        queue_size: number of caption features in which nearest neighbours are searched.
        logit_scale_bounds: smallest and largest `logit_scale`.
        largest_factor: largest factor on the cosines, exp(logit_scale).
        published_limits: as `published` in `LogitScaleLimits`.
        contrasts_masked: whether the pooled feature of `text` is that of the masked caption. If not, the caption is
            encoded a second time, without masks.
        rank_queue: whether each rank has a queue of its own captions' features; if false, all ranks have the queue of
            the global batch. With queues of their own, a run resumes on the same number of ranks only.
        queue_wraps: as `wraps` in `NeighbourQueue`.
        rank_batch_norm: as in `SimSiam`.
        rank_masked_mean: as `of_each_rank` in `masked_word_loss`.
        text_epsilon: number added to the norm of a caption's feature before the feature is divided by it.

    The last seven are explained in docs/NUMERICS.md#declip.

    Raises:
        UserError: `logit_scale_bounds` are invalid; in `setup`, the model has no text projection.
    """

    min_batch_size = 2

    def __init__(
        self,
        *,
        clip_scale: float,
        neighbour_scale: float,
        simsiam_scale: float,
        masked_scale: float,
        head_hidden: int,
        head_bottleneck: int,
        queue_size: int,
        logit_scale_bounds: Sequence[float],
        largest_factor: float,
        published_limits: bool,
        contrasts_masked: bool,
        rank_queue: bool,
        queue_wraps: bool,
        rank_batch_norm: bool,
        rank_masked_mean: bool,
        text_epsilon: float,
    ) -> None:
        super().__init__()
        self.clip_scale = clip_scale
        self.neighbour_scale = neighbour_scale
        self.simsiam_scale = simsiam_scale
        self.masked_scale = masked_scale
        self.head_hidden = head_hidden
        self.head_bottleneck = head_bottleneck
        self.queue_size = queue_size
        self.limits = LogitScaleLimits(logit_scale_bounds, largest_factor, published=published_limits)
        self.contrasts_masked = contrasts_masked
        self.rank_queue = rank_queue
        self.queue_wraps = queue_wraps
        self.rank_batch_norm = rank_batch_norm
        self.rank_masked_mean = rank_masked_mean
        self.text_epsilon = text_epsilon

    def setup(self, model: DualEncoder, /) -> None:
        if model.text_projection is None:
            raise UserError("model.projects_text=false: DeCLIP needs a text projection; use projects_text=true")
        width = model.text_projection.shape[1]
        self.simsiam = SimSiam(
            width=width, hidden=self.head_hidden, bottleneck=self.head_bottleneck, rank_batch_norm=self.rank_batch_norm
        )
        self.vocabulary = nn.Linear(model.text_tower.token_width, vocabulary_size(model.text_tower))
        self.queue = NeighbourQueue(size=self.queue_size, width=width, wraps=self.queue_wraps)

    def encode(self, model: DualEncoder, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        image, image2 = model.image_tower.views(batch["image"], batch["image2"])
        ids, lengths, labels = batch["text"], batch["text_length"], batch["text_labels"]
        ids2, lengths2 = batch["text2"], batch["text2_length"]
        if self.contrasts_masked:
            text, words = model.text_tower.pooled_and_tokens(ids, lengths)
            text2 = model.text_tower(ids2, lengths2)
        else:
            words = model.text_tower.tokens(ids, lengths)
            text, text2 = model.text_tower(*stacked(unmasked(ids, labels), lengths, ids2, lengths2)).chunk(2)
        sums, counts = masked_word_losses(words.features, labels, self.vocabulary)
        return {
            "image": model.project_image(image),
            "image2": model.project_image(image2),
            "text": model.project_text(text),
            "text2": model.project_text(text2),
            "masked_loss": sums,
            "masked_count": counts,
        }

    def loss(self, model: DualEncoder, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        images = [Features(features[name], gather_with_grad=True) for name in ("image", "image2")]
        text, text2 = (
            Features(features[name], gather_with_grad=True, epsilon=self.text_epsilon) for name in ("text", "text2")
        )
        factor = self.limits.factor(model)
        pairs = [info_nce(image, caption, factor) for image, caption in itertools.product(images, (text, text2))]
        clip = torch.stack([loss for loss, _ in pairs]).mean()
        neighbours = [
            gather(self.queue.nearest(caption.local.detach(), self.text_epsilon), with_grad=False)
            for caption in (text, text2)
        ]
        matches = [image_rows(image, found, factor) for image, found in itertools.product(images, neighbours)]
        neighbour = torch.stack(matches).mean()
        simsiam = simsiam_loss(*self.simsiam(features["image"], features["image2"]))
        masked = masked_word_loss(features["masked_loss"], features["masked_count"], of_each_rank=self.rank_masked_mean)
        # As published, the second view is pushed first.
        self.new_rows = [(side.local if self.rank_queue else side.all).detach() for side in (text2, text)]
        total = (
            self.clip_scale * clip
            + self.neighbour_scale * neighbour
            + self.simsiam_scale * simsiam
            + self.masked_scale * masked
        )
        return {
            "loss": total,
            "clip_loss": clip,
            "clip_acc": pairs[0][1],
            "neighbour_loss": neighbour,
            "simsiam_loss": simsiam,
            "masked_loss": masked,
        }

    def after_step(self, model: DualEncoder, /) -> None:
        self.limits.after_step(model)
        for rows in self.new_rows:
            self.queue.push(rows, self.skipped)

    def rank_buffers(self) -> dict[str, Tensor]:
        return {"queue": self.queue.features} if self.rank_queue else {}


def image_rows(image: Features, texts: Float[Tensor, "global dim"], factor: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of this rank's images; row i of `texts` belongs to image i of the global batch."""

    def of_rows(rows: Tensor, places: Tensor) -> tuple[Tensor]:
        return (F.cross_entropy(factor * rows @ texts.T, places, reduction="sum"),)

    (total,) = sum_over_rows(of_rows, (image.local, image.places))
    return total / len(image.local)
