"""Scaled dot-product attention with the fastest kernel for the device and the dtype."""

import inspect

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int32
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

# In torch 2.10, `varlen_attn` has no argument `window_size`; another argument makes attention causal.
VARLEN = "window_size" in inspect.signature(varlen_attn).parameters
HALF = (torch.float16, torch.bfloat16)


def fused_is_fastest(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the fused attention kernel is the fastest for this device and dtype.

    For 16-bit dtypes on the CPU, plain matrix products are 2 to 5 times faster than the fused kernel, in the forward
    and in the backward pass.
    """
    return device.type != "cpu" or dtype not in HALF


def varlen_is_possible(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether flash attention can be used; sequences of different lengths then need no padding."""
    if not VARLEN or device.type != "cuda" or dtype not in HALF or head_dim % 8 or head_dim > 256:
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which matrix products of `x` are computed; autocast is taken into account."""
    if x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def attention(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch heads keys dim"],
    v: Float[Tensor, "batch heads keys dim"],
    mask: Bool[Tensor, "#batch 1 #queries keys"] | None = None,
    *,
    causal: bool = False,
) -> Float[Tensor, "batch heads queries dim"]:
    """Compute scaled dot-product attention over sequences of equal length; shorter sequences must be padded.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: true where a query may attend to a key; None if every query may attend to every key.
        causal: whether a query attends only to the keys up to its own position; requires `mask=None`.
    """
    if fused_is_fastest(q.device, q.dtype):
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()[None, None]
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v


def varlen_attention(
    q: Float[Tensor, "queries heads dim"],
    k: Float[Tensor, "keys heads dim"],
    v: Float[Tensor, "keys heads dim"],
    q_starts: Int32[Tensor, " starts"],
    k_starts: Int32[Tensor, " starts"],
    longest_q: int,
    longest_k: int,
    *,
    causal: bool,
) -> Float[Tensor, "queries heads dim"]:
    """Compute attention within each of several sequences that are packed one after the other, without padding.

    Args:
        q: queries of all sequences.
        k: keys of all sequences.
        v: values of all sequences.
        q_starts: index of each sequence's first row in `q`; the last element is the number of rows of `q`.
        k_starts: index of each sequence's first row in `k`; the last element is the number of rows of `k`.
        longest_q: upper bound on the number of queries per sequence.
        longest_k: upper bound on the number of keys per sequence.
        causal: whether a query attends only to the keys up to its own position.
    """
    y = varlen_attn(q, k, v, q_starts, k_starts, longest_q, longest_k, window_size=(-1, 0) if causal else (-1, -1))
    assert isinstance(y, Tensor)
    return y
