"""Any timm backbone as an image tower, its classifier removed."""

from collections.abc import Callable
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.layers.attention import Attention
from timm.layers.patch_dropout import PatchDropout
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from openslip.errors import UserError
from openslip.models.attention import compute_dtype, fused_is_fastest
from openslip.models.class_token import class_token_alone, pools_class_token
from openslip.models.tower import Tower

# Arguments with which timm opens or fetches another file.
_FETCHING = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


class TimmTower(Tower):
    """A backbone by its timm name; the published ViT-S is `vit_small_patch16_224` with `num_heads: 12`.

    Args:
        name: a name that `timm.create_model` knows; hub addresses are refused, since they download.
        image_size: side of the square input in pixels.
        arguments: further arguments of that timm model.

    Raises:
        UserError: no such name, or an argument that would bring weights from elsewhere.
    """

    def __init__(self, *, name: str, image_size: int, arguments: dict) -> None:
        super().__init__()
        if not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "vit_base_patch16_224"
            raise UserError(f"tower name {name!r} is not a timm model; near ones: {near}. See timm.list_models().")
        if fetching := [f"{key}={arguments[key]}" for key in _FETCHING if arguments.get(key)]:
            raise UserError(
                f"timm argument {', '.join(fetching)}: a tower brings no weights of its own; training starts from "
                "those of a checkpoint by towers.image.weights="
            )
        trunk: Any = create(name, image_size, arguments)
        self.trunk = trunk
        self.width = trunk.num_features
        self.mixes_samples = any(isinstance(module, _BatchNorm) for module in self.trunk.modules())
        self.gradient_checkpointing = False
        self.last_block: Callable[[Any, Tensor], Tensor] | None = (
            class_token_alone if pools_class_token(trunk) else None
        )
        if isinstance(getattr(trunk, "cls_token", None), nn.Parameter):
            # timm 0.5 (the published code) drew it with 0.02, later ones with 1e-6: docs/NUMERICS.md#cls-token
            nn.init.trunc_normal_(trunk.cls_token, std=0.02)

    def tokens(self, x: Float[Tensor, "batch channels height width"], /) -> Float[Tensor, "batch tokens features"]:
        self.choose_kernel(x)
        trunk: Any = self.trunk
        features = trunk.forward_features(x)
        if features.ndim == 3:
            return features
        channels_last = features if features.shape[-1] == self.width else features.permute(0, 2, 3, 1)  # Swin | CNNs
        return channels_last.flatten(1, 2)

    def forward(self, x: Float[Tensor, "batch channels height width"], /) -> Float[Tensor, "batch features"]:
        self.choose_kernel(x)
        trunk: Any = self.trunk
        if self.last_block is None:
            return trunk(x)
        x = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(x))))
        *before, last = trunk.blocks
        for block in before:
            x = checkpointed(block, x) if self.gradient_checkpointing else block(x)
        return trunk.forward_head(trunk.norm(self.last_block(last, x)))

    def choose_kernel(self, x: Tensor) -> None:
        """Tells timm's attention layers whether to use the fused kernel."""
        fused = fused_is_fastest(x.device, compute_dtype(x))
        for module in self.trunk.modules():
            if isinstance(module, Attention):
                module.fused_attn = fused  # pyright: ignore[reportAttributeAccessIssue]

    def checkpoint_blocks(self) -> None:
        trunk: Any = self.trunk
        try:
            trunk.set_grad_checkpointing(True)
        except (AssertionError, AttributeError):  # timm's ways to say that this backbone cannot
            super().checkpoint_blocks()
        self.gradient_checkpointing = True

    def drop_patches(self, rate: float) -> None:
        if not isinstance(self.trunk, VisionTransformer):
            super().drop_patches(rate)
        self.trunk.patch_drop = PatchDropout(rate, num_prefix_tokens=self.trunk.num_prefix_tokens)

    def compile_blocks(self) -> None:
        """Block by block where it is a vision transformer, since all of them share one compiled form."""
        if self.last_block is None:
            self.trunk.compile()
            return
        self.last_block = torch.compile(class_token_alone)
        for block in self.trunk.blocks:
            block.compile()


def checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    y: Any = checkpoint(block, x, use_reentrant=False)
    return y


def create(name: str, image_size: int, arguments: dict) -> nn.Module:
    """The backbone without its classifier; convolutional ones take pictures of any size and are told none."""
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, img_size=image_size, **arguments)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, pretrained=False, num_classes=0, **arguments)
