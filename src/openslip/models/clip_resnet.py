"""CLIP's ResNet: a stem of three convolutions, blurred strides, attention pooling. Radford et al. 2021, section 2.4.

arXiv:2103.00020. It is not timm's ResNet-D: each stride of a block is an average pooling after its 3x3 convolution
(Zhang 2019, arXiv:1904.11486), and the last feature map is pooled by one layer of attention whose query is its mean.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from openslip.errors import UserError
from openslip.models.attention import attention
from openslip.models.tower import Tokens, Tower, unpadded

EXPANSION = 4  # channels that a block returns, in multiples of its inner channels
STRIDE = 32  # pixels of the image per position of the last feature map


class ClipResNet(Tower):
    """A ResNet with attention pooling, whose pooled feature is already in the joint space.

    A `DualEncoder` needs no image projection for it (`projects_image: false`).

    Args:
        image_size: side of the square input in pixels, a multiple of 32.
        depths: number of blocks of each of the four stages, such as [3, 4, 6, 3] in RN50.
        channels: channels after the stem, 64 in RN50; the last feature map has 32 times as many.
        width: size of the pooled feature, which is that of the joint space.
        heads: heads of the attention pooling, 32 in RN50.

    Raises:
        UserError: sizes contradict each other.
    """

    def __init__(self, *, image_size: int, depths: Sequence[int], channels: int, width: int, heads: int) -> None:
        super().__init__()
        if image_size % STRIDE or len(depths) != 4 or min(depths) < 1 or channels % 2:
            raise UserError(
                f"ClipResNet with image_size={image_size}, depths={[*depths]}, channels={channels}: expected a "
                f"multiple of {STRIDE}, four depths of at least 1, and an even number"
            )
        self.width = width
        self.input_size = image_size
        half = channels // 2
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        stages, inputs = [], channels
        for number, depth in enumerate(depths):
            inner = channels << number
            blocks = [Bottleneck(inputs, inner, stride=1 if number == 0 else 2)]
            inputs = inner * EXPANSION
            stages.append(nn.ModuleList([*blocks, *(Bottleneck(inputs, inner) for _ in range(depth - 1))]))
        self.stages = nn.ModuleList(stages)
        self.pool = AttentionPool((image_size // STRIDE) ** 2, inputs, width, heads)

    @property
    def token_width(self) -> int:
        return self.pool.width

    def repeated_blocks(self) -> Sequence[nn.Module]:
        return [block for stage in self.stages for block in stage]  # pyright: ignore[reportGeneralTypeIssues]

    def forward(self, images: Float[Tensor, "batch 3 height width"], /) -> Float[Tensor, "batch features"]:
        return self.pool(self.feature_map(images))

    def tokens(self, images: Float[Tensor, "batch 3 height width"], /) -> Tokens:
        return unpadded(self.feature_map(images))

    def pooled_and_tokens(
        self, images: Float[Tensor, "batch 3 height width"], /
    ) -> tuple[Float[Tensor, "batch features"], Tokens]:
        features = self.feature_map(images)
        return self.pool(features), unpadded(features)

    def feature_map(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch positions channels"]:
        """Return the last feature map, one row per position."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        for block in self.repeated_blocks():
            x = self.run(block, x)
        return x.flatten(2).transpose(1, 2)


class Bottleneck(nn.Module):
    """Residual block of convolutions 1x1, 3x3 and 1x1; the stride is an average pooling."""

    def __init__(self, inputs: int, inner: int, *, stride: int = 1) -> None:
        super().__init__()
        outputs = inner * EXPANSION
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        nn.init.zeros_(self.bn3.weight)  # the block starts as its shortcut, as in the published code
        self.shortcut = None
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs rows columns"]:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.pooled(y)))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(self.pooled(x))))

    def pooled(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x


class AttentionPool(nn.Module):
    """Multi-head attention of the mean of a feature map to the mean and all positions, with position embeddings."""

    def __init__(self, positions: int, width: int, outputs: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"ClipResNet: heads={heads} do not divide the {width} channels of its last feature map")
        self.width = width
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(positions + 1, width))
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, outputs)
        for weight in (self.positional_embedding, *(layer.weight for layer in self.children())):
            nn.init.normal_(weight, std=width**-0.5)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Float[Tensor, "batch positions width"]) -> Float[Tensor, "batch outputs"]:
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding
        q, k, v = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        return self.c_proj(attention(q, k, v).transpose(1, 2).flatten(1))
