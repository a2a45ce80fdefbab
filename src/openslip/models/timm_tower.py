"""Any timm backbone as an image tower, its classifier removed."""

from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from openslip.errors import UserError
from openslip.models.tower import Tower


class TimmTower(Tower):
    """A backbone by its timm name; the published ViT-S is `vit_small_patch16_224` with `num_heads: 12`.

    Args:
        name: a name that `timm.create_model` knows; hub addresses are refused, since they download.
        image_size: side of the square input in pixels.
        arguments: further arguments of that timm model.
    """

    def __init__(self, *, name: str, image_size: int, arguments: dict) -> None:
        super().__init__()
        if not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "vit_base_patch16_224"
            raise UserError(f"tower name {name!r} is not a timm model; near ones: {near}. See timm.list_models().")
        trunk: Any = create(name, image_size, arguments)
        self.trunk = trunk
        self.width = trunk.num_features
        self.mixes_samples = any(isinstance(module, _BatchNorm) for module in self.trunk.modules())
        if isinstance(getattr(trunk, "cls_token", None), nn.Parameter):
            # timm 0.5 (the published code) drew it with 0.02, later ones with 1e-6: docs/NUMERICS.md#cls-token
            nn.init.trunc_normal_(trunk.cls_token, std=0.02)

    def tokens(self, x: Float[Tensor, "batch channels height width"], /) -> Float[Tensor, "batch tokens features"]:
        trunk: Any = self.trunk
        features = trunk.forward_features(self._attend(x))
        if features.ndim == 3:
            return features
        channels_last = features if features.shape[-1] == self.width else features.permute(0, 2, 3, 1)  # Swin | CNNs
        return channels_last.flatten(1, 2)

    def forward(self, x: Float[Tensor, "batch channels height width"], /) -> Float[Tensor, "batch features"]:
        return self.trunk(self._attend(x))

    def _attend(self, x: Tensor) -> Tensor:
        # The fused kernel's bf16 backward on CPU is 7 times slower than plain matrix products.
        fused = not (x.device.type == "cpu" and torch.is_autocast_enabled("cpu"))
        for module in self.trunk.modules():
            if isinstance(module, Attention):
                module.fused_attn = fused  # pyright: ignore[reportAttributeAccessIssue]
        return x


def create(name: str, image_size: int, arguments: dict) -> nn.Module:
    """The backbone without its classifier; convolutional ones take pictures of any size and are told none."""
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, img_size=image_size, **arguments)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, pretrained=False, num_classes=0, **arguments)
