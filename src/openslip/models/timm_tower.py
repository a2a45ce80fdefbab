"""An image tower around any timm backbone, without its classifier."""

from collections.abc import Iterable, Sequence
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.layers.attention import Attention
from timm.layers.patch_dropout import PatchDropout
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call

from openslip.errors import UserError
from openslip.models.attention import compute_dtype, fused_is_fastest
from openslip.models.class_token import LastBlock, pools_class_token
from openslip.models.tower import Tokens, Tower, unpadded

# Arguments that make timm read or download weights.
_FETCHING = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


class TimmTower(Tower):
    """A timm backbone as a tower; the published ViT-S is `vit_small_patch16_224` with `num_heads: 12`.

    Args:
        name: model name that `timm.create_model` knows; hub addresses are refused, because they start a download.
        image_size: side of the square input in pixels.
        arguments: further keyword arguments of `timm.create_model` for this model.
        norm_eps: epsilon of all layer norms, such as 1e-5 in CLIP; None for that of the timm model.

    Raises:
        UserError: timm has no such model, an argument would load weights, or the model does not return
            exactly one vector per image.
    """

    def __init__(self, *, name: str, image_size: int, arguments: dict, norm_eps: float | None = None) -> None:
        super().__init__()
        if not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "vit_base_patch16_224"
            raise UserError(f"tower name {name!r} is not a timm model; similar names: {near}. See timm.list_models().")
        if fetching := [f"{key}={arguments[key]}" for key in _FETCHING if arguments.get(key)]:
            raise UserError(
                f"timm argument {', '.join(fetching)} would load weights, but a tower must not load any; set "
                "towers.image.weights= to start from a checkpoint"
            )
        trunk: Any = create(name, image_size, arguments)
        self.trunk = trunk
        for layer in trunk.modules():
            if norm_eps is not None and isinstance(layer, nn.LayerNorm):
                layer.eps = norm_eps
        self.width = pooled_width(trunk, name, image_size, arguments.get("in_chans", 3))
        self.input_size = image_size if hasattr(trunk, "set_input_size") else None
        self.num_prefix_tokens = getattr(trunk, "num_prefix_tokens", 0)
        self.last_block = LastBlock() if pools_class_token(trunk) else None
        if isinstance(getattr(trunk, "cls_token", None), nn.Parameter):
            # The published code used timm 0.5, which initialised the class token with std 0.02. Later versions use
            # 1e-6: docs/NUMERICS.md#cls-token
            nn.init.trunc_normal_(trunk.cls_token, std=0.02)

    @property
    def token_width(self) -> int:
        trunk: Any = self.trunk
        return trunk.num_features

    def forward(self, images: Float[Tensor, "batch channels height width"], /) -> Float[Tensor, "batch features"]:
        trunk: Any = self.trunk
        return trunk.forward_head(self.features(images, class_token_alone=self.last_block is not None))

    def tokens(self, images: Float[Tensor, "batch channels height width"], /) -> Tokens:
        return self.as_tokens(self.features(images))

    def pooled_and_tokens(
        self, images: Float[Tensor, "batch channels height width"], /
    ) -> tuple[Float[Tensor, "batch features"], Tokens]:
        trunk: Any = self.trunk
        features = self.features(images)
        return trunk.forward_head(features), self.as_tokens(features)

    def features(self, images: Tensor, *, class_token_alone: bool = False) -> Any:
        """Return the output of timm's `forward_features`, or only its class token if `class_token_alone` is true."""
        self.choose_kernel(images)
        trunk: Any = self.trunk
        if not self.repeated_blocks():
            return trunk.forward_features(images)
        x = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(images))))
        *before, last = trunk.blocks
        for block in before:
            x = self.run(block, x)
        # If the last block computes only the class token, it keeps few activations, and checkpointing it would save
        # little. Otherwise it is treated like the other blocks.
        x = self.last_block(last, x) if class_token_alone and self.last_block is not None else self.run(last, x)
        return trunk.norm(x)

    def as_tokens(self, features: Any) -> Tokens:
        """Reshape timm's features to one row per token; feature maps may be NCHW or NHWC."""
        if not isinstance(features, Tensor):
            raise UserError(f"{type(self.trunk).__name__} has no single sequence of tokens; use another backbone")
        if features.ndim == 4:
            channels_last = getattr(self.trunk, "output_fmt", "NCHW") == "NHWC"
            features = (features if channels_last else features.permute(0, 2, 3, 1)).flatten(1, 2)
        return unpadded(features)

    def choose_kernel(self, x: Tensor) -> None:
        """Tell timm's attention layers whether to use the fused kernel."""
        fused = fused_is_fastest(x.device, compute_dtype(x))
        for module in self.trunk.modules():
            if isinstance(module, Attention):
                module.fused_attn = fused  # pyright: ignore[reportAttributeAccessIssue]

    def repeated_blocks(self) -> Sequence[nn.Module]:
        """Return the blocks of timm's plain vision transformer; none for others, whose blocks are called by timm."""
        return list(self.trunk.blocks) if type(self.trunk) is VisionTransformer else ()

    def resize(self, input_size: int) -> None:
        trunk: Any = self.trunk
        trunk.set_input_size(img_size=(input_size, input_size))
        self.input_size = input_size

    def checkpoint_blocks(self) -> None:
        trunk: Any = self.trunk
        if self.repeated_blocks():
            super().checkpoint_blocks()
            return
        try:
            trunk.set_grad_checkpointing(True)
        except (AssertionError, AttributeError):  # raised by timm backbones without gradient checkpointing
            super().checkpoint_blocks()
        self.gradient_checkpointing = True

    def drop_patches(self, rate: float) -> None:
        if not isinstance(self.trunk, VisionTransformer):
            super().drop_patches(rate)
        self.trunk.patch_drop = PatchDropout(rate, num_prefix_tokens=self.trunk.num_prefix_tokens)

    def compiled_modules(self) -> Iterable[nn.Module]:
        blocks = self.repeated_blocks()
        last = [] if self.last_block is None else [self.last_block]
        return [*blocks, *last] if blocks else self.trunk.children()


def create(name: str, image_size: int, arguments: dict) -> nn.Module:
    """Create the backbone without its classifier; `img_size` is passed only to backbones that accept it."""
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, img_size=image_size, **arguments)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, pretrained=False, num_classes=0, **arguments)


def pooled_width(trunk: nn.Module, name: str, image_size: int, channels: int) -> int:
    """Compute the size of the pooled feature with a pass on the meta device, where only shapes are computed."""
    blocks = trunk.blocks if type(trunk) is VisionTransformer else None
    try:
        if blocks is not None:
            trunk.blocks = blocks[:1]  # later blocks do not change the shape; a pass through them takes long
        weights = {name: tensor.to("meta") for name, tensor in (*trunk.named_parameters(), *trunk.named_buffers())}
        with torch.no_grad():
            images = torch.empty(2, channels, image_size, image_size, device="meta")
            pooled = functional_call(trunk.eval(), weights, images)
    except Exception as error:  # timm has no common type for its errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"tower {name} does not take images of {image_size} pixels ({reason})") from error
    finally:
        if blocks is not None:
            trunk.blocks = blocks
    trunk.train()
    if not isinstance(pooled, Tensor) or pooled.ndim != 2:
        raise UserError(f"tower {name} does not pool its tokens: leave global_pool in its arguments at the default")
    return pooled.shape[1]
