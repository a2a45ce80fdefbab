"""The packed text tower against the plain one: padded rows, every token through every layer."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from openslip.models import text_transformer
from openslip.models.text_transformer import Block, TextTransformer, quick_gelu

CONTEXT = 21
LENGTHS = (5, 1, 21, 8, 5, 9, 16, 17, 2)  # 1: pooled at the start token, as over-long captions under drop_end
TOLERANCES = [(torch.float32, 5e-6), (torch.float64, 1e-9)]


def tower(dtype: torch.dtype) -> TextTransformer:
    torch.manual_seed(0)
    return TextTransformer(vocab_size=40, context_length=CONTEXT, width=32, depth=3, heads=4).to(dtype)


def captions(lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor]:
    text = torch.randint(0, 40, (len(lengths), CONTEXT), generator=torch.Generator().manual_seed(1))
    return text, torch.tensor(lengths)


def padded(tower: TextTransformer, text: Tensor, length: Tensor) -> Tensor:
    """The same function on padded rows, attention written out."""
    x = tower.token_embedding(text) + tower.positional_embedding[: text.shape[1]]
    later = torch.ones(text.shape[1], text.shape[1], dtype=torch.bool).triu(1)
    for block in tower.blocks:
        assert isinstance(block, Block)
        heads = block.attention.heads
        q, k, v = block.attention.in_proj(block.ln_1(x)).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(later, float("-inf"))
        x = x + block.attention.out_proj((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))
        x = x + block.fc2(quick_gelu(block.fc1(block.ln_2(x))))
    return tower.ln_final(x)[torch.arange(len(text)), length - 1]


def with_gradients(tower: TextTransformer, features: Tensor) -> list[Tensor]:
    """Features, and the gradients of a loss that weighs each of their numbers differently."""
    weights = torch.randn(features.shape, dtype=features.dtype, generator=torch.Generator().manual_seed(2))
    loss = (features * weights.to(features.device)).sum()
    return [features, *torch.autograd.grad(loss, list(tower.parameters()))]


def assert_equal(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        # Key biases have no gradient but rounding, so a tensor is compared with the larger of itself and 1.
        assert (ours - theirs).abs().max() <= tolerance * max(theirs.abs().max().item(), 1.0)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_packed_captions_equal_padded_ones(dtype: torch.dtype, tolerance: float):
    model, (text, length) = tower(dtype), captions()
    expected = with_gradients(model, padded(model, text, length))
    assert_equal(with_gradients(model, model(text, length)), expected, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_a_caption_alone_equals_itself_among_others(dtype: torch.dtype, tolerance: float):
    model, (text, length) = tower(dtype), captions()
    alone = torch.cat([model(text[i : i + 1, : length[i]], length[i : i + 1]) for i in range(len(text))])
    expected = with_gradients(model, model(text, length))
    assert_equal(with_gradients(model, alone), expected, tolerance)


def test_what_stands_after_the_pooled_token_does_not_matter():
    model, (text, length) = tower(torch.float32), captions()
    other = text.where(torch.arange(CONTEXT) < length[:, None], 39)
    assert torch.equal(model(text, length), model(other, length))


def test_a_length_beyond_the_row_is_refused():
    model, (text, length) = tower(torch.float32), captions()
    with pytest.raises(AssertionError, match="no longer than its row"):
        model(text[:, :20], length)


def test_no_padding_token_is_multiplied():
    model, (text, length) = tower(torch.float32), captions()
    rows: dict[str, int] = {}

    def count(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda _module, inputs, _output: rows.update({name: len(inputs[0])}))

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            count(name, module)
    model(text, length)
    tokens, pooled = sum(LENGTHS), len(LENGTHS)
    # The last block: keys and values of all tokens, everything else of the pooled one. Its in_proj is used in parts.
    last = {"blocks.2.attention.out_proj", "blocks.2.ln_2", "blocks.2.fc1", "blocks.2.fc2", "ln_final"}
    assert len(rows) == 3 * 6 + 1 - 1
    assert {name for name, found in rows.items() if found == pooled} == last
    assert {found for name, found in rows.items() if name not in last} == {tokens}


def test_work_grows_with_the_tokens_alone():
    model, (text, length) = tower(torch.float32), captions()

    def flops(columns: int, lengths: Tensor) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(text[:, :columns], lengths)
        return counter.get_total_flops()

    assert flops(CONTEXT, length.clamp(max=8)) == flops(8, length.clamp(max=8))
    assert flops(8, length.clamp(max=4)) < 0.75 * flops(8, length.clamp(max=8))


def test_packed_rows_are_handed_to_a_varlen_kernel_as_it_wants_them(monkeypatch: pytest.MonkeyPatch):
    # The kernel runs on GPUs alone; this one does the same sequence by sequence.
    def sequence_by_sequence(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_starts: Tensor,
        k_starts: Tensor,
        longest_q: int,
        longest_k: int,
        *,
        causal: bool,
    ) -> Tensor:
        assert q_starts.dtype == k_starts.dtype == torch.int32
        assert q_starts.diff().max() <= longest_q
        assert k_starts.diff().max() <= longest_k
        parts = []
        for i in range(len(q_starts) - 1):
            queries, keys = slice(*q_starts[i : i + 2].tolist()), slice(*k_starts[i : i + 2].tolist())
            asking, asked, told = (x.transpose(0, 1) for x in (q[queries], k[keys], v[keys]))
            parts.append(F.scaled_dot_product_attention(asking, asked, told, is_causal=causal).transpose(0, 1))
        return torch.cat(parts)

    model, (text, length) = tower(torch.float64), captions()
    expected = with_gradients(model, padded(model, text, length))
    monkeypatch.setattr(text_transformer, "varlen_is_possible", lambda *_: True)
    monkeypatch.setattr(text_transformer, "varlen_attention", sequence_by_sequence)
    assert_equal(with_gradients(model, model(text, length)), expected, 1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpus_kernels_equal_the_cpus():
    model, (text, length) = tower(torch.float32), captions()
    expected = with_gradients(model, model(text, length))
    model, text = model.cuda(), text.cuda()
    in_float32 = [x.cpu() for x in with_gradients(model, model(text, length))]
    assert_equal(in_float32, expected, 1e-3)  # TF32 may be on
    with torch.autocast("cuda", torch.bfloat16):
        features = model(text, length)
    assert_equal([features.detach().float().cpu()], expected[:1], 0.05)
