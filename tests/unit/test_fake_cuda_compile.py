"""Compiled towers as a GPU runs them: no graph break, and at most two forms of a block for batches of all sizes."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block as ImageBlock
from torch import Tensor
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._dynamo.utils import counters
from versions import OLD_TORCH

from openslip.models import attention, text_transformer
from openslip.models.class_token import LastBlock
from openslip.models.text_transformer import Block as TextBlock
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
IMAGES = [6, 4, 5, 7, 8, 3, 9, 2]


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
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`compile_blocks` leads to graphs of both passes, run by PyTorch itself."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(attention, "varlen_attn", varlen_attn)
    monkeypatch.setattr(text_transformer, "varlen_is_possible", lambda *_: True)
    monkeypatch.setattr(attention, "fused_is_fastest", lambda *_: True)
    torch._dynamo.reset()  # earlier tests may have filled the cache of compiled forms
    counters.clear()
    jaxtyping.config.update("jaxtyping_disable", True)  # the compiler cannot see through the tests' type checker
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
    torch._dynamo.reset()


def num_forms(function: Callable) -> int:
    """Compiled forms of a function, one for each set of guards; all modules of a class share them."""
    return len(_debug_get_cache_entry_list(function))


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


@pytest.mark.parametrize("checkpointed", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("compiler")
def test_a_text_block_has_two_forms_for_batches_of_all_packed_sizes(checkpointed: bool):
    tower = text_tower()
    expected = [gradients(tower, *captions(lengths)) for lengths in CAPTIONS]
    if checkpointed:
        tower.checkpoint_blocks()
    tower.compile_blocks()
    for number, (lengths, values) in enumerate(zip(CAPTIONS, expected, strict=True)):
        found = gradients(tower, *captions(lengths))
        for one, other in zip(found, values, strict=True):
            torch.testing.assert_close(one, other, rtol=0.05, atol=0.05 * float(other.abs().max()))
        assert not counters["graph_break"]
        # All tokens, or the pooled ones alone. The first form is traced twice and kept once: Dynamo first takes `eps`
        # of the layer norms for a symbol, which the backend sends back.
        assert num_forms(TextBlock.forward) == 2, number


@pytest.mark.usefixtures("compiler")
def test_an_image_block_has_a_form_for_the_first_batch_size_and_one_for_all_others():
    tower = image_tower()
    tower.compile_blocks()
    for number, size in enumerate(IMAGES):
        gradients(tower, torch.randn(size, 3, 32, 32))
        forms = [num_forms(ImageBlock.forward), num_forms(LastBlock.forward)]
        assert forms == ([1, 1] if number == 0 else [2, 2]), number
    assert not counters["graph_break"]
