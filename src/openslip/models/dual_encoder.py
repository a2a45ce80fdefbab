"""Two towers, their projections into one space, and a learnable temperature. Radford et al. 2021, arXiv:2103.00020."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from openslip.errors import UserError
from openslip.models.tower import Tokens, Tower


class DualEncoder(nn.Module):
    """Maps images and captions into one joint space; the features are normalised later, when they are compared.

    Args:
        image_tower: tower that encodes images.
        text_tower: tower that encodes token ids.
        embed_dim: dimension of the joint space.
        logit_scale_init: initial value of `logit_scale`, the natural logarithm of the factor on the cosines (in the
            paper, ln(1/0.07) = 2.6593).
        projection_bias: whether both projections have a bias, initially zero; `text` gives one to the text projection
            only, as in DeCLIP and SigLIP.
        projects_image: whether there is an image projection; if not, as in SigLIP, the image tower has width
            `embed_dim`.
        projects_text: whether there is a text projection; if not, as with word vectors, the text tower has width
            `embed_dim`.
        logit_bias_init: initial value of the bias added to the logits (-10 in SigLIP); None for a model without
            a logit bias.
        token_dim: dimension of the joint space of single tokens, as in FILIP (arXiv:2111.07783); None for a model whose
            tokens are not compared.

    Raises:
        UserError: `projection_bias` is unknown, or a tower without a projection has another width than `embed_dim` or
            is to get a projection bias.
    """

    def __init__(
        self,
        *,
        image_tower: Tower,
        text_tower: Tower,
        embed_dim: int,
        logit_scale_init: float,
        projection_bias: bool | str = False,
        projects_image: bool = True,
        projects_text: bool = True,
        logit_bias_init: float | None = None,
        token_dim: int | None = None,
    ) -> None:
        super().__init__()
        if projection_bias not in (True, False, "text"):
            raise UserError(f"projection_bias={projection_bias}: expected true, false or text")
        if not projects_image and (projection_bias is True or image_tower.width != embed_dim):
            raise UserError(
                f"projects_image=false with projection_bias={projection_bias} and an image tower of width "
                f"{image_tower.width}: expected false or text, and width {embed_dim} (embed_dim)"
            )
        if not projects_text and (projection_bias or text_tower.width != embed_dim):
            raise UserError(
                f"projects_text=false with projection_bias={projection_bias} and a text tower of width "
                f"{text_tower.width}: expected false, and width {embed_dim} (embed_dim)"
            )
        self.token_dim = token_dim
        self.image_tower = image_tower
        self.text_tower = text_tower
        self.image_projection = nn.Parameter(torch.empty(image_tower.width, embed_dim)) if projects_image else None
        self.text_projection = nn.Parameter(torch.empty(text_tower.width, embed_dim)) if projects_text else None
        self.image_projection_bias = nn.Parameter(torch.zeros(embed_dim)) if projection_bias is True else None
        self.text_projection_bias = nn.Parameter(torch.zeros(embed_dim)) if projection_bias else None
        self.logit_scale = nn.Parameter(torch.tensor(float(logit_scale_init)))
        self.logit_bias = None if logit_bias_init is None else nn.Parameter(torch.tensor(float(logit_bias_init)))
        if token_dim is not None:
            self.image_token_projection = nn.Linear(image_tower.token_width, token_dim)
            self.text_token_projection = nn.Linear(text_tower.token_width, token_dim)
            self.token_logit_scale = nn.Parameter(self.logit_scale.detach().clone())
        if self.image_projection is not None:
            nn.init.normal_(self.image_projection, std=image_tower.width**-0.5)
        if self.text_projection is not None:
            nn.init.normal_(self.text_projection, std=text_tower.width**-0.5)

    def project_image(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch embed"]:
        """Project features of the image tower into the joint space."""
        return project(features, self.image_projection, self.image_projection_bias)

    def project_text(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch embed"]:
        """Project features of the text tower into the joint space."""
        return project(features, self.text_projection, self.text_projection_bias)

    def encode_image(self, image: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embed"]:
        """Encode images into the joint space; the features are not normalised."""
        return self.project_image(self.image_tower(image))

    def encode_text(
        self, text: Int[Tensor, "batch length"], text_length: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch embed"]:
        """Encode captions into the joint space, not normalised; `text_length` is the number of ids of each caption."""
        return self.project_text(self.text_tower(text, text_length))

    def project_image_tokens(self, tokens: Tokens) -> Tokens:
        """Project the features of an image's patches into the joint space of tokens; prefix tokens are left out."""
        features, mask = (x[:, self.image_tower.num_prefix_tokens :] for x in tokens)
        return Tokens(self.image_token_projection(features), mask)

    def project_text_tokens(self, tokens: Tokens) -> Tokens:
        """Project the features of a text's tokens into the joint space of tokens."""
        return Tokens(self.text_token_projection(tokens.features), tokens.mask)


def project(features: Tensor, projection: Tensor | None, bias: Tensor | None) -> Tensor:
    projected = features if projection is None else features @ projection
    return projected if bias is None else projected + bias
