"""Masked-token loss, computed for the masked tokens only. Devlin et al. 2018, arXiv:1810.04805, section 3.1."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from openslip.data.captions.masked import NO_LABEL
from openslip.distributed import mean_over_ranks
from openslip.errors import UserError
from openslip.models.batch_norm import at_least_float32
from openslip.models.packing import copied
from openslip.models.tower import Tower


def vocabulary_size(text_tower: Tower) -> int:
    """Return the number of token ids that a text tower reads: the rows of its `token_embedding`.

    Raises:
        UserError: the tower has no embedding of this name.
    """
    embedding = dict(text_tower.named_children()).get("token_embedding")
    if not isinstance(embedding, nn.Embedding):
        raise UserError(
            f"model.text_tower: {type(text_tower).__name__} has no nn.Embedding named token_embedding, so the "
            "vocabulary of the masked-token loss is unknown; name it so, or use model/tower@model.text_tower=text_512"
        )
    return embedding.num_embeddings


def masked_word_losses(
    words: Float[Tensor, "batch tokens width"], labels: Int[Tensor, "batch tokens"], vocabulary: nn.Linear
) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Return, for each caption, the summed cross-entropy of its masked tokens, and their number.

    The vocabulary layer costs more than a block of the text tower, so it is applied to masked tokens only.

    Args:
        words: token features after the final norm.
        labels: ids of the masked tokens, -100 elsewhere. Keep them on the CPU: counting the masked tokens on a GPU
            synchronises with it.
        vocabulary: layer from token features to logits of all token ids.
    """
    labels = labels.cpu()
    places = (labels.flatten() != NO_LABEL).nonzero()[:, 0]
    indices = copied(words.device, places=places, ids=labels.flatten()[places], counts=(labels != NO_LABEL).sum(dim=1))
    logits = at_least_float32(vocabulary(words.flatten(0, 1).index_select(0, indices["places"])))
    losses = F.cross_entropy(logits, indices["ids"], reduction="none")
    captions = indices["places"] // words.shape[1]
    return losses.new_zeros(len(words)).index_add(0, captions, losses), indices["counts"]


def unmasked(ids: Int[Tensor, "batch tokens"], labels: Int[Tensor, "batch tokens"]) -> Int[Tensor, "batch tokens"]:
    """Return the ids of the captions before masking."""
    labels = copied(ids.device, labels=labels.cpu())["labels"]
    return torch.where(labels == NO_LABEL, ids, labels)


def masked_word_loss(
    sums: Float[Tensor, " local"], counts: Int[Tensor, " local"], *, of_each_rank: bool
) -> Float[Tensor, ""]:
    """Return this rank's share of the mean loss per masked token; its mean over ranks is the loss of the global batch.

    Args:
        sums: summed losses of the captions of this rank.
        counts: numbers of masked tokens of these captions.
        of_each_rank: whether the loss is the mean over ranks of each rank's own mean (docs/NUMERICS.md#declip). A token
            then counts more if its rank has few masked tokens, and the loss is NaN if a rank has no masked token.
            Otherwise it is the mean over all masked tokens of the global batch.
    """
    if of_each_rank:
        return sums.sum() / counts.sum()
    return mean_over_ranks(sums.sum(), counts.sum())
