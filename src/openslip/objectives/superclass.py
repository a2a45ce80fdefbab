"""SuperClass: a linear classifier predicts the tokens of the caption. Huang et al. 2024, arXiv:2411.03313, section 3.2.

It is the modern form of Visual N-Grams: Li et al. 2017, arXiv:1612.09161.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from openslip.distributed import all_sum, world_size
from openslip.errors import UserError
from openslip.models.bag_of_tokens import BagOfTokens, distinct, shares
from openslip.models.dual_encoder import DualEncoder
from openslip.objectives.clip import clamp_logit_scale
from openslip.objectives.objective import Objective
from openslip.objectives.similarity import unit_length
from openslip.objectives.tiles import sum_over_rows


class SuperClass(Objective):
    """The SuperClass objective; it reads the batch keys `image`, `text` and `text_length`.

    The rows of the text tower `BagOfTokens` are the weights of the classifier, whose logits are exp(logit_scale) x the
    unit-length image feature x the row. A token's IDF is log((captions + 1) / (captions with the token + 1)), counted
    over all captions so far, those of the step included: docs/NUMERICS.md#superclass. A caption's target distribution
    over its distinct tokens is proportional to their IDF. No text is encoded in training. For prediction, the tower
    averages the rows of a text's tokens, weighted by their IDF.

    Args:
        max_logit_scale: as in `CLIP`.
    """

    document_counts: Tensor
    num_documents: Tensor

    def __init__(self, *, max_logit_scale: float) -> None:
        super().__init__()
        self.max_logit_scale = max_logit_scale

    def setup(self, model: DualEncoder, /) -> None:
        if not isinstance(model.text_tower, BagOfTokens):
            raise UserError(
                f"objective: SuperClass trains rows of tokens; {type(model.text_tower).__name__} is no BagOfTokens; "
                "add model/tower@model.text_tower=text_bag, or use model=superclass_tiny"
            )
        # Whole numbers, because float32 cannot count beyond 2**24.
        self.register_buffer("document_counts", torch.zeros_like(model.text_tower.token_weight, dtype=torch.int64))
        self.register_buffer("num_documents", torch.zeros((), dtype=torch.int64))

    def encode(self, model: DualEncoder, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        return {
            "image": model.encode_image(batch["image"]),
            "text": batch["text"],
            "distinct": distinct(batch["text"], batch["text_length"]),
        }

    def loss(self, model: DualEncoder, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        image, ids, is_distinct = unit_length(features["image"]), features["text"], features["distinct"]
        self.count(ids, is_distinct)
        rows = model.text_tower.get_parameter("token_embedding.weight").to(image.dtype)
        target = shares(is_distinct * self.idf().to(image.dtype)[ids])
        loss = cross_entropy(model.logit_scale.exp() * image, rows, ids, target)
        return {"loss": loss, "token_loss": loss}

    @torch.no_grad()
    def count(self, ids: Int[Tensor, "local length"], is_distinct: Bool[Tensor, "local length"]) -> None:
        """Add the global batch to the counts, which `after_step` stores unless the step is skipped."""
        counts = torch.zeros_like(self.document_counts, dtype=torch.float32)
        counts.index_add_(0, ids.flatten(), is_distinct.flatten().float())
        self.new_counts = self.document_counts + all_sum(counts).long()
        self.new_documents = self.num_documents + len(ids) * world_size()

    def idf(self) -> Float[Tensor, " vocabulary"]:
        """Return the weight of each token, from counts that include the captions of this step."""
        return ((self.new_documents + 1).double() / (self.new_counts + 1)).log()

    @torch.no_grad()
    def after_step(self, model: DualEncoder, /) -> None:
        self.new_counts = torch.where(self.skipped, self.document_counts, self.new_counts)
        self.new_documents = torch.where(self.skipped, self.num_documents, self.new_documents)
        self.document_counts.copy_(self.new_counts)
        self.num_documents.copy_(self.new_documents)
        tower, is_known = model.text_tower, self.new_counts > 0
        tower.get_buffer("token_weight").copy_(self.idf() * is_known)
        tower.get_buffer("is_known").copy_(is_known)
        clamp_logit_scale(model, self.max_logit_scale)


def cross_entropy(
    image: Float[Tensor, "local dim"],
    rows: Float[Tensor, "vocabulary dim"],
    ids: Int[Tensor, "local length"],
    target: Float[Tensor, "local length"],
) -> Float[Tensor, ""]:
    """Return the mean over images of the cross-entropy with a distribution over the caption's tokens.

    If there are many images, only the logits of one tile of images are in memory at a time.

    Args:
        image: features of this rank's images, scaled.
        rows: weights of the classifier.
        ids: the caption's tokens.
        target: probability of each token; a row of zeros adds nothing to the loss.
    """

    def of_rows(
        image: Float[Tensor, "tile dim"], ids: Int[Tensor, "tile length"], target: Float[Tensor, "tile length"]
    ) -> tuple[Float[Tensor, ""]]:
        logits = image @ rows.T
        return ((target.sum(dim=1) * logits.logsumexp(dim=1)).sum() - (target * logits.gather(1, ids)).sum(),)

    (total,) = sum_over_rows(of_rows, (image, ids, target))
    return total / len(image)
