"""DeFILIP: DeCLIP's four terms and FILIP's token-wise similarities. Cui et al. 2022, arXiv:2203.05796, section 3.6."""

import itertools

import torch
from torch import Tensor

from openslip.errors import UserError
from openslip.models.dual_encoder import DualEncoder
from openslip.models.tower import Tokens
from openslip.objectives.declip import DeCLIP
from openslip.objectives.filip import padded_tokens
from openslip.objectives.late_interaction import checked_top_tokens, token_info_nce
from openslip.objectives.masked_words import masked_word_losses, unmasked
from openslip.objectives.objective import Objective


class DeFILIP(Objective):
    """The DeFILIP objective; it reads the batch keys of `DeCLIP`, and needs a model with `token_dim`.

    Args:
        declip: DeCLIP's objective, whose total is part of the loss.
        token_scale: weight of the token-wise term.
        all_pairs: whether the token-wise term is the mean over the four pairs of an image view and a caption view. If
            not, it compares the first views.
        top_tokens: as in `FILIP`.
        count_padding: as in `FILIP`.
        max_token_logit_scale: largest value of `token_logit_scale`, a natural logarithm.

    Raises:
        UserError: as in `FILIP` and `DeCLIP`.
    """

    min_batch_size = 2

    def __init__(
        self,
        *,
        declip: DeCLIP,
        token_scale: float,
        all_pairs: bool,
        top_tokens: int | None,
        count_padding: bool,
        max_token_logit_scale: float,
    ) -> None:
        super().__init__()
        self.declip = declip
        self.token_scale = token_scale
        self.all_pairs = all_pairs
        self.top_tokens = checked_top_tokens(top_tokens)
        self.count_padding = count_padding
        self.max_token_logit_scale = max_token_logit_scale

    def setup(self, model: DualEncoder, /) -> None:
        if model.token_dim is None:
            raise UserError("objective=defilip: the model has no joint space of tokens; set model.token_dim=256")
        self.declip.setup(model)

    def encode(self, model: DualEncoder, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        features: dict[str, Tensor] = {}
        for name in ("image", "image2"):
            if name in self.token_views:
                image, patches = model.image_tower.pooled_and_tokens(batch[name])
                features |= columns(name, model.project_image_tokens(patches))
            else:
                image = model.image_tower(batch[name])
            features[name] = model.project_image(image)
        masked, length, labels = batch["text"], batch["text_length"], batch["text_labels"]
        plain = masked if self.declip.contrasts_masked else unmasked(masked, labels)
        text, words = model.text_tower.pooled_and_tokens(plain, length)
        read = words if self.declip.contrasts_masked else model.text_tower.tokens(masked, length)
        sums, counts = masked_word_losses(read.features, labels, self.declip.vocabulary)
        features |= {"text": model.project_text(text), "masked_loss": sums, "masked_count": counts}
        features |= columns("text", self.words(model, words, plain, length))
        ids2, length2 = batch["text2"], batch["text2_length"]
        if self.all_pairs:
            text2, words2 = model.text_tower.pooled_and_tokens(ids2, length2)
            features |= columns("text2", self.words(model, words2, ids2, length2))
        else:
            text2 = model.text_tower(ids2, length2)
        return features | {"text2": model.project_text(text2)}

    def words(self, model: DualEncoder, words: Tokens, ids: Tensor, lengths: Tensor) -> Tokens:
        """Project the tokens of captions, with padding if `count_padding` is true, into the joint space of tokens."""
        return model.project_text_tokens(padded_tokens(model, ids, lengths) if self.count_padding else words)

    def loss(self, model: DualEncoder, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        terms = self.declip.loss(model, features)
        images, texts = (
            [Tokens(features[f"{name}_tokens"], features[f"{name}_mask"]) for name in names if name in self.token_views]
            for names in (("image", "image2"), ("text", "text2"))
        )
        factor = model.token_logit_scale.exp()
        pairs = [
            token_info_nce(image, text, factor, top_tokens=self.top_tokens, gather_with_grad=True)
            for image, text in itertools.product(images, texts)
        ]
        token = torch.stack([loss for loss, _ in pairs]).mean()
        total = terms["loss"] + self.token_scale * token
        return terms | {"loss": total, "token_loss": token, "token_acc": pairs[0][1]}

    @torch.no_grad()
    def after_step(self, model: DualEncoder, /) -> None:
        self.declip.skipped = self.skipped
        self.declip.after_step(model)
        model.token_logit_scale.clamp_(0, self.max_token_logit_scale)

    def rank_buffers(self) -> dict[str, Tensor]:
        return self.declip.rank_buffers()

    @property
    def token_views(self) -> tuple[str, ...]:
        """The views that are compared token by token."""
        return ("image", "image2", "text", "text2") if self.all_pairs else ("image", "text")


def columns(name: str, tokens: Tokens) -> dict[str, Tensor]:
    """Return the token features of a view and their mask, as entries of the dict that `encode` returns."""
    return {f"{name}_tokens": tokens.features, f"{name}_mask": tokens.mask}
