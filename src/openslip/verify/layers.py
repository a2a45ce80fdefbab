"""Compares attention layers on the device with the same layers written out in float64 on the CPU.

Shapes are those of training: heads of size 64, images of 197 tokens, captions of 1 to 77 tokens.
"""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from openslip.models.attention import attention, compute_dtype
from openslip.models.class_token import LastBlock
from openslip.models.text_transformer import SelfAttention, TextTransformer
from openslip.verify.deviation import Arrays, Part, Row, relative, worst
from openslip.verify.recording import DTYPES, as_array, precision

HEADS, HEAD_DIM = 12, 64  # ViT-B/16
IMAGES, IMAGE_TOKENS = 2, 197
CAPTIONS = (1, 3, 8, 9, 14, 15, 16, 40, 77)  # number of tokens, sorted as packing sorts them

# Largest relative deviation: in coarse formats two units for a layer's output, and four units for its gradients.
OUTPUT_TOLERANCES = {"float64": 1e-7, "float32": 1e-5, "tf32": 2 * 2.0**-11, "bfloat16": 2 * 2.0**-8}
GRADIENT_TOLERANCES = OUTPUT_TOLERANCES | {"tf32": 4 * 2.0**-11, "bfloat16": 4 * 2.0**-8}

# Attention kernels by a part of the name of PyTorch's operator; the first match is used.
_KERNELS = {
    "_varlen_attn": "varlen (flash)",
    "cudnn_attention": "cuDNN",
    "flash_attention_for_cpu": "flash (CPU)",
    "flash_attention": "flash",
    "efficient_attention": "memory-efficient",
    "attention_math": "math",
}

Compute = Callable[[Any, Tensor], Tensor]  # from a module and its input to the output


def image_rows(device: str, dtype: str) -> list[Row]:
    """Check an image tower's attention, [2, 12, 197, 64], with the strides of a joint projection of q, k and v."""
    torch.manual_seed(0)
    x = draw(IMAGES, IMAGE_TOKENS, 3, HEADS, HEAD_DIM)

    def ours(_: nn.Module, x: Tensor) -> Tensor:
        q, k, v = x.to(compute_dtype(x)).permute(2, 0, 3, 1, 4)
        return attention(q, k, v)

    def written_out(_: nn.Module, x: Tensor) -> Tensor:
        q, k, v = x.permute(2, 0, 3, 1, 4)
        return softmax_attention(q, k, v)

    return layer_rows("attention of images", nn.Identity(), x, ours, written_out, device, dtype)


def class_token_rows(device: str, dtype: str) -> list[Row]:
    """Compare the last block for the class token alone, which has one query, with timm's whole block."""
    torch.manual_seed(1)
    block = Block(HEADS * HEAD_DIM, HEADS, mlp_ratio=0.25, qkv_bias=True)
    nn.init.normal_(block.get_parameter("attn.qkv.weight"), std=(HEADS * HEAD_DIM) ** -0.5)  # so that scores differ
    last_block = LastBlock()
    x = draw(IMAGES, IMAGE_TOKENS, HEADS * HEAD_DIM)

    def ours(block: Block, x: Tensor) -> Tensor:
        return last_block(block, x) - x[:, :1]  # the residual would hide a deviation

    def whole(block: Block, x: Tensor) -> Tensor:
        return block(x)[:, :1] - x[:, :1]

    return layer_rows("last block, 1 query", rounded(block), x, ours, whole, device, dtype)


def caption_rows(device: str, dtype: str) -> list[Row]:
    """Check attention within packed captions: causal, and for the pooled tokens with one query per caption."""
    torch.manual_seed(2)
    tower = TextTransformer(vocab_size=1, context_length=max(CAPTIONS), width=8 * HEAD_DIM, depth=1, heads=8)
    tower = rounded(tower)
    ids, lengths = torch.zeros(len(CAPTIONS), max(CAPTIONS), dtype=torch.long), torch.tensor(CAPTIONS)
    x = draw(sum(CAPTIONS), tower.width)

    def ours(tower: TextTransformer, x: Tensor, *, pooled: bool) -> Tensor:
        packing, layer = tower.pack(ids.to(x.device), lengths), layer_of(tower)
        return layer.pooled(x, packing, packing.last) if pooled else layer(x, packing)

    def written_out(tower: TextTransformer, x: Tensor, *, pooled: bool) -> Tensor:
        layer = layer_of(tower)
        attended = []
        for caption in x.split(CAPTIONS):
            q, k, v = layer.in_proj(caption).unflatten(1, (3, layer.heads, -1)).permute(1, 2, 0, 3)
            y = softmax_attention(q, k, v, causal=True).transpose(0, 1).flatten(1)
            attended.append(y[-1:] if pooled else y)
        return layer.out_proj(torch.cat(attended))

    rows = []
    for label, pooled in (("packed captions", False), ("pooled captions, 1 query", True)):
        mine, exact = partial(ours, pooled=pooled), partial(written_out, pooled=pooled)
        rows += layer_rows(label, tower, x, mine, exact, device, dtype)
    return rows


def layer_of(tower: TextTransformer) -> SelfAttention:
    layer = tower.blocks[0].attention
    assert isinstance(layer, SelfAttention)
    return layer


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Compute attention by its definition."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if causal:
        scores = scores + torch.full_like(scores, -math.inf).triu(1)
    return scores.softmax(dim=-1) @ v


def layer_rows(
    label: str, module: nn.Module, x: Tensor, ours: Compute, written_out: Compute, device: str, dtype: str
) -> list[Row]:
    """Return a row of a layer's output, and one of the gradients of its input and weights.

    Args:
        label: name of the layer in the rows.
        module: module with the weights, in float32.
        x: input of the layer, in float32.
        ours: implementation to check, run on the device.
        written_out: reference for the same function, run in float64 on the CPU.
        device: device to check.
        dtype: format to check; bfloat16 runs under autocast.
    """
    with Operators() as operators:
        computed = passes(module, x, ours, device, dtype)
    exact = passes(module, x, written_out, "cpu", "float64")
    deviations = {name: relative(computed[name], array) for name, array in exact.items()}
    output = Part("", deviations.pop("output"), OUTPUT_TOLERANCES[dtype])
    gradients = [Part(name, deviation, GRADIENT_TOLERANCES[dtype]) for name, deviation in deviations.items()]
    return [
        worst(f"{label}, {dtype}: output", [output], f"kernel: {operators.kernel()}"),
        worst(f"{label}, {dtype}: gradients", gradients),
    ]


def passes(module: nn.Module, x: Tensor, compute: Compute, device: str, dtype: str) -> Arrays:
    """Return the output, and the gradients of a sum in which each element of the output has another weight."""
    module = copy.deepcopy(module).to(device, DTYPES[dtype])
    x = x.detach().clone().to(device, DTYPES[dtype]).requires_grad_()
    with precision(device, dtype):
        y = compute(module, x)
    torch.manual_seed(3)
    y.backward(draw(*y.shape).to(y))
    leaves = {"input": x, **dict(module.named_parameters())}
    gradients = {name: as_array(leaf.grad) for name, leaf in leaves.items() if leaf.grad is not None}
    return {"output": as_array(y), **gradients}


def draw(*shape: int) -> Tensor:
    """Draw normal numbers that bfloat16 represents exactly, so that a deviation includes no rounding of inputs."""
    return torch.randn(shape).bfloat16().float()


@torch.no_grad()
def rounded(module: nn.Module) -> Any:
    """Change a module's weights to values that bfloat16 represents exactly, and its biases to nonzero ones."""
    for name, parameter in module.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter, std=0.2)
        parameter.copy_(parameter.bfloat16())
    return module


class Operators(TorchDispatchMode):
    """Records the names of the operators that PyTorch calls."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))

    def kernel(self) -> str:
        """Return the name of the attention kernel among the recorded operators."""
        for part, kernel in _KERNELS.items():
            if any(part in name for name in self.names):
                return kernel
        return "unfused attention"
