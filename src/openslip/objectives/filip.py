"""FILIP: images and captions are compared token by token. Yao et al. 2021, arXiv:2111.07783, section 3.1.

"Published code" below means the code of Cui et al. 2022, arXiv:2203.05796 (Sense-GVT/DeCLIP).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from openslip.errors import UserError
from openslip.models.dual_encoder import DualEncoder
from openslip.models.tower import Tokens
from openslip.objectives.clip import clamp_logit_scale, info_nce
from openslip.objectives.late_interaction import checked_top_tokens, token_info_nce
from openslip.objectives.objective import Objective
from openslip.objectives.similarity import Features


class FILIP(Objective):
    """The FILIP objective; it reads the batch keys `image`, `text` and `text_length`.

    The projections of the tokens belong to the model (`token_dim`), because FILIP classifies with them.

    Args:
        token_scale: weight of the loss of token-wise similarities.
        clip_scale: weight of CLIP's loss of pooled features; all evaluations except `TokenZeroShot` compare these.
        top_tokens: number of tokens of each image and each text that are kept as keys; None keeps all, as queries do.
        count_padding: whether a caption's padding up to the context length counts as words, as in the published code.
        gather_with_grad: whether gradients of both losses reach the keys of all ranks, as in `CLIP`.
        max_logit_scale: largest value of `logit_scale` and of `token_logit_scale`, as in `CLIP`.

    Raises:
        UserError: `top_tokens` is less than 1; in `setup`, the model has no `token_dim`; in `encode`, `count_padding`
            is true and the text tower has no context length.
    """

    min_batch_size = 2

    def __init__(
        self,
        *,
        token_scale: float,
        clip_scale: float,
        top_tokens: int | None,
        count_padding: bool,
        gather_with_grad: bool,
        max_logit_scale: float,
    ) -> None:
        super().__init__()
        self.token_scale = token_scale
        self.clip_scale = clip_scale
        self.top_tokens = checked_top_tokens(top_tokens)
        self.count_padding = count_padding
        self.gather_with_grad = gather_with_grad
        self.max_logit_scale = max_logit_scale

    def setup(self, model: DualEncoder, /) -> None:
        if model.token_dim is None:
            raise UserError("objective=filip: the model has no joint space of tokens; set model.token_dim=256")

    def encode(self, model: DualEncoder, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        image, patches = model.image_tower.pooled_and_tokens(batch["image"])
        text, words = model.text_tower.pooled_and_tokens(batch["text"], batch["text_length"])
        if self.count_padding:
            words = padded_tokens(model, batch["text"], batch["text_length"])
        patches, words = model.project_image_tokens(patches), model.project_text_tokens(words)
        return {
            "image": model.project_image(image),
            "text": model.project_text(text),
            "image_tokens": patches.features,
            "image_mask": patches.mask,
            "text_tokens": words.features,
            "text_mask": words.mask,
        }

    def loss(self, model: DualEncoder, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        image, text = (Features(features[name], gather_with_grad=self.gather_with_grad) for name in ("image", "text"))
        clip, clip_acc = info_nce(image, text, model.logit_scale.exp())
        token, token_acc = token_info_nce(
            Tokens(features["image_tokens"], features["image_mask"]),
            Tokens(features["text_tokens"], features["text_mask"]),
            model.token_logit_scale.exp(),
            top_tokens=self.top_tokens,
            gather_with_grad=self.gather_with_grad,
        )
        return {
            "loss": self.clip_scale * clip + self.token_scale * token,
            "clip_loss": clip,
            "clip_acc": clip_acc,
            "token_loss": token,
            "token_acc": token_acc,
        }

    @torch.no_grad()
    def after_step(self, model: DualEncoder, /) -> None:
        clamp_logit_scale(model, self.max_logit_scale)
        model.token_logit_scale.clamp_(0, self.max_logit_scale)


def padded_tokens(model: DualEncoder, text: Tensor, text_length: Tensor) -> Tokens:
    """Return the features of all tokens of the context, which the tower encodes as if each were a word.

    A causal text tower computes the same features for the caption's own tokens as without padding. Columns that the
    batch lacks are filled with id 0, the padding of CLIP's tokenizer.
    """
    context = model.text_tower.input_size
    if context is None:
        raise UserError(
            f"count_padding=true: {type(model.text_tower).__name__} has no context length up to which captions are "
            "padded; set objective.count_padding=false"
        )
    padded = F.pad(text, (0, context - text.shape[1]))
    return model.text_tower.tokens(padded, torch.full_like(text_length, context))
