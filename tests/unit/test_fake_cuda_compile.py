"""Compiled towers as a GPU runs them: no graph breaks, and few forms however many sizes the batches have."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from versions import OLD_TORCH

from openslip.models import attention, text_transformer
from openslip.models.text_transformer import TextTransformer
from openslip.models.timm_tower import TimmTower
from openslip.models.tower import Tower
from openslip.training.precision import autocast

pytestmark = [
    pytest.mark.skipif(OLD_TORCH, reason="its compiler does not take the tests' type checker"),
    pytest.mark.filterwarnings("ignore"),  # of the compiler, about itself
]
CPU = torch.device("cpu")
CAPTIONS = [(3, 20, 7), (5, 5, 5), (2, 9), (30, 2, 12, 4), (77, 3), (11, 12, 13, 14, 15), (40, 41), (6, 7, 8, 9)]
IMAGES = [6, 6, 6, 6, 6, 6, 6, 6]
OTHER_IMAGES = [6, 4, 5, 7, 8, 3, 9, 2]


def by_sequence(q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor, causal: bool) -> Tensor:
    parts = []
    for i in range(len(q_starts) - 1):
        queries, keys = slice(*q_starts[i : i + 2].tolist()), slice(*k_starts[i : i + 2].tolist())
        asking, asked, told = (x.transpose(0, 1) for x in (q[queries], k[keys], v[keys]))
        parts.append(F.scaled_dot_product_attention(asking, asked, told, is_causal=causal).transpose(0, 1))
    return torch.cat(parts)


@torch.library.custom_op("openslip_tests::varlen", mutates_args=())
def varlen(q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor, causal: bool) -> Tensor:
    """On the CPU, as the GPU's kernel: one operation to the compiler, with a backward pass of its own."""
    return by_sequence(q, k, v, q_starts, k_starts, causal)


@torch.library.custom_op("openslip_tests::varlen_backward", mutates_args=())
def varlen_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grads = [torch.empty_like(x) for x in (q, k, v)]
    for i in range(len(q_starts) - 1):
        queries, keys = slice(*q_starts[i : i + 2].tolist()), slice(*k_starts[i : i + 2].tolist())
        asking, asked, told, back = (
            x.transpose(0, 1).float() for x in (q[queries], k[keys], v[keys], gradient[queries])
        )
        scale = asking.shape[-1] ** -0.5
        scores = scale * asking @ asked.mT
        if causal:
            scores = scores.masked_fill(scores.new_ones(scores.shape[-2:]).triu(1) > 0, float("-inf"))
        shares = scores.softmax(dim=-1)
        of_shares = back @ told.mT
        of_scores = scale * shares * (of_shares - (of_shares * shares).sum(dim=-1, keepdim=True))
        for grad, rows, value in zip(
            grads, (queries, keys, keys), (of_scores @ asked, of_scores.mT @ asking, shares.mT @ back), strict=True
        ):
            grad[rows] = value.transpose(0, 1).to(grad.dtype)
    return grads[0], grads[1], grads[2]


varlen.register_fake(lambda q, *_: torch.empty_like(q))
varlen_backward.register_fake(lambda _, q, k, v, *__: tuple(torch.empty_like(x) for x in (q, k, v)))


def keep(ctx: Any, inputs: Any, output: Tensor) -> None:
    *kept, ctx.causal = inputs
    ctx.save_for_backward(*kept)


varlen.register_autograd(
    lambda ctx, gradient: (*varlen_backward(gradient, *ctx.saved_tensors, ctx.causal), None, None, None),
    setup_context=keep,
)


def varlen_attn(
    q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor, *_: int, window_size: tuple[int, int]
) -> Tensor:
    return varlen(q, k, v, q_starts, k_starts, window_size == (-1, 0))


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Counts the graphs that `compile_blocks` leads to."""
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    monkeypatch.setattr(attention, "varlen_attn", varlen_attn)
    monkeypatch.setattr(text_transformer, "varlen_is_possible", lambda *_: True)
    monkeypatch.setattr(attention, "fused_is_fastest", lambda *_: True)
    torch._dynamo.reset()  # earlier tests may have filled the cache of compiled forms
    counters.clear()
    jaxtyping.config.update("jaxtyping_disable", True)  # the compiler cannot see through the tests' type checker
    yield counter
    jaxtyping.config.update("jaxtyping_disable", False)
    torch._dynamo.reset()


def text_tower() -> TextTransformer:
    torch.manual_seed(0)
    return TextTransformer(vocab_size=50, context_length=77, width=128, depth=3, heads=2)


def image_tower() -> TimmTower:
    torch.manual_seed(0)
    arguments = {"patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 2}
    return TimmTower(name="vit_base_patch16_224", image_size=32, arguments=arguments)


def gradients(tower: Tower, *inputs: Tensor) -> list[Tensor]:
    with autocast(CPU, "bf16-mixed"):
        feature = tower(*inputs)
    tower.zero_grad()
    feature.float().square().sum().backward()
    return [feature, *(parameter.grad for parameter in tower.parameters() if parameter.grad is not None)]


def captions(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return torch.randint(50, (len(lengths), 77), generator=torch.Generator().manual_seed(1)), torch.tensor(lengths)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_text_tower_has_three_graphs_for_all_batches_and_no_graph_break(
    compiler: CompileCounterWithBackend, checkpointed: bool
):
    tower = text_tower()
    expected = [gradients(tower, *captions(lengths)) for lengths in CAPTIONS]
    if checkpointed:
        tower.checkpoint_blocks()
    tower.compile_blocks()
    for lengths, values in zip(CAPTIONS, expected, strict=True):
        found = gradients(tower, *captions(lengths))
        for one, other in zip(found, values, strict=True):
            torch.testing.assert_close(one, other, rtol=0.05, atol=0.05 * float(other.abs().max()))
    assert not counters["graph_break"]
    assert compiler.frame_count == 3  # the two kinds of block, one of them twice


@pytest.mark.parametrize(("sizes", "forms"), [(IMAGES, 2), (OTHER_IMAGES, 4)], ids=["one size", "eight sizes"])
def test_the_image_tower_has_two_forms_a_block_and_no_graph_break(
    compiler: CompileCounterWithBackend, sizes: list[int], forms: int
):
    tower = image_tower()
    tower.compile_blocks()
    for size in sizes:
        gradients(tower, torch.randn(size, 3, 32, 32))
    assert not counters["graph_break"]
    assert compiler.frame_count == forms  # a block and the last one, for one size and for all others
