"""The packed text tower against the same function written out, and against open_clip's."""

from functools import partial
from typing import Any

import open_clip.transformer
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from openslip.errors import UserError
from openslip.models import attention, text_transformer
from openslip.models.text_transformer import Block, TextTransformer

CONTEXT = 21
LENGTHS = (5, 1, 21, 8, 5, 9, 16, 17, 2)  # 1: pooled at the start token, as over-long captions under drop_end
TOLERANCES = [(torch.float32, 5e-6), (torch.float64, 1e-9)]


VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "causal mean": {"pooling": "mean", "activation": "gelu"},
    "first": {"causal": False, "pooling": "first", "activation": "gelu"},
    "mean": {"causal": False, "pooling": "mean", "norm_eps": 1e-3},
    "siglip": {"causal": False, "activation": "gelu_tanh", "norm_eps": 1e-6},
}
GELUS = {
    "quick_gelu": lambda x: x / (1 + (-1.702 * x).exp()),
    "gelu": lambda x: x / 2 * (1 + (x / 2**0.5).erf()),
    "gelu_tanh": lambda x: x / 2 * (1 + ((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)).tanh()),
}


def tower(dtype: torch.dtype, **arguments: Any) -> TextTransformer:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 40, "context_length": CONTEXT, "width": 32, "depth": 3, "heads": 4}
    made = TextTransformer(**sizes | arguments).to(dtype)
    for name, parameter in made.named_parameters():
        if "bias" in name:  # zeros would hide a bias that is left out
            nn.init.normal_(parameter, std=0.2)
    return made


def test_initial_weights_have_the_published_standard_deviations():
    # facebookresearch/SLIP, models.py, CLIP.initialize_parameters: width^-0.5, of outputs times (2 depth)^-0.5,
    # (2 width)^-0.5 before the activation.
    torch.manual_seed(0)
    made = TextTransformer(vocab_size=200, context_length=64, width=64, depth=3, heads=4)
    expected = {
        **{"token_embedding.weight": 0.02, "positional_embedding": 0.01},
        **{"attention.in_proj.weight": 0.125, "attention.out_proj.weight": 0.051031},
        **{"fc1.weight": 0.0883883, "fc2.weight": 0.051031},
    }
    found = {name: parameter for name, parameter in made.named_parameters() if "ln_" not in name}
    for name, parameter in found.items():
        kind = name.split(".", 2)[2] if name.startswith("blocks.") else name
        if kind in expected:
            assert float(parameter.detach().std()) == pytest.approx(expected[kind], rel=0.05), name
            assert abs(float(parameter.detach().mean())) < 0.05 * expected[kind], name
        elif kind.startswith("attention."):
            assert not parameter.any(), name
    assert len(found) == 2 + 3 * 8


def captions(lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor]:
    text = torch.randint(0, 40, (len(lengths), CONTEXT), generator=torch.Generator().manual_seed(1))
    return text, torch.tensor(lengths)


def one_by_one(tower: TextTransformer, text: Tensor, length: Tensor, **arguments: Any) -> tuple[Tensor, list[Tensor]]:
    """The same function, written out caption by caption, head by head and query by query; and all token features."""
    chosen = {"activation": "quick_gelu", "causal": True, "pooling": "last", "norm_eps": 1e-5} | arguments

    def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        variance = centred.square().mean(dim=-1, keepdim=True)
        return centred / (variance + chosen["norm_eps"]).sqrt() * layer.weight + layer.bias

    pooled, features = [], []
    for ids, count in zip(text, length.tolist(), strict=True):
        x = tower.token_embedding(ids[:count]) + tower.positional_embedding[:count]
        for block in tower.blocks:
            assert isinstance(block, Block)
            q, k, v = block.attention.in_proj(norm(block.ln_1, x)).split(32, dim=1)
            heads = []
            for head in range(4):
                own = slice(8 * head, 8 * (head + 1))
                rows = []
                for i in range(count):
                    seen = i + 1 if chosen["causal"] else count
                    weights = (k[:seen, own] @ q[i, own] / 8**0.5).exp()
                    rows.append(weights / weights.sum() @ v[:seen, own])
                heads.append(torch.stack(rows))
            x = x + block.attention.out_proj(torch.cat(heads, dim=1))
            x = x + block.fc2(GELUS[chosen["activation"]](block.fc1(norm(block.ln_2, x))))
        x = norm(tower.ln_final, x)
        pooled.append({"last": x[-1], "first": x[0], "mean": x.mean(dim=0)}[chosen["pooling"]])
        features.append(x)
    return torch.stack(pooled), features


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
@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_captions_equal_those_written_out(variant: str, dtype: torch.dtype, tolerance: float):
    model, (text, length) = tower(dtype, **VARIANTS[variant]), captions()
    expected = with_gradients(model, one_by_one(model, text, length, **VARIANTS[variant])[0])
    assert_equal(with_gradients(model, model(text, length)), expected, tolerance)


@pytest.mark.parametrize("variant", VARIANTS)
def test_token_features_equal_those_written_out(variant: str):
    model, (text, length) = tower(torch.float64, **VARIANTS[variant]), captions()
    pooled, features = one_by_one(model, text, length, **VARIANTS[variant])
    found, tokens = model.pooled_and_tokens(text, length)
    assert torch.equal(tokens.mask, torch.arange(CONTEXT) < length[:, None])
    assert not tokens.features[~tokens.mask].any()
    expected = with_gradients(model, torch.cat([pooled, *features]))
    # The rows of the captions, one after the other
    assert_equal(with_gradients(model, torch.cat([found, tokens.features[tokens.mask]])), expected, 1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_open_clips_transformer_is_the_same_function(variant: str):
    arguments = {"activation": "quick_gelu", "causal": True, "pooling": "last", "norm_eps": 1e-5} | VARIANTS[variant]
    activations = {
        "quick_gelu": open_clip.transformer.QuickGELU,
        "gelu": nn.GELU,
        "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    }
    model, (text, length) = tower(torch.float64, **arguments), captions(tuple(len(LENGTHS) * [CONTEXT]))
    theirs = open_clip.transformer.TextTransformer(
        context_length=CONTEXT,
        vocab_size=40,
        width=32,
        heads=4,
        layers=3,
        output_dim=32,
        no_causal_mask=not arguments["causal"],
        pool_type="none" if arguments["pooling"] == "mean" else arguments["pooling"],
        proj_type="none",
        act_layer=activations[arguments["activation"]],
        norm_layer=partial(nn.LayerNorm, eps=arguments["norm_eps"]),  # pyright: ignore[reportArgumentType]
    ).double()
    theirs.load_state_dict({open_clip_name(name): value for name, value in model.state_dict().items()})
    expected = theirs(text)
    expected = expected.mean(dim=1) if arguments["pooling"] == "mean" else expected
    found = model(text, length)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    truth = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, truth.pop(open_clip_name(name)), rtol=1e-9, atol=1e-9)
    assert not truth


def open_clip_name(name: str) -> str:
    name = name.replace("blocks.", "transformer.resblocks.").replace("attention.in_proj.", "attn.in_proj_")
    return name.replace("attention.", "attn.").replace("fc1", "mlp.c_fc").replace("fc2", "mlp.c_proj")


@pytest.mark.parametrize("variant", VARIANTS)
def test_plain_products_equal_the_fused_kernel(variant: str, monkeypatch: pytest.MonkeyPatch):
    model, (text, length) = tower(torch.float64, **VARIANTS[variant]), captions()
    expected = with_gradients(
        model, torch.cat([model(text, length), model.tokens(text, length).features.flatten(0, 1)])
    )
    monkeypatch.setattr(attention, "fused_is_fastest", lambda *_: False)
    found = torch.cat([model(text, length), model.tokens(text, length).features.flatten(0, 1)])
    assert_equal(with_gradients(model, found), expected, 1e-5)  # their softmax is made in float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "first"}, "pooling=first with causal=true"),
        ({"pooling": "argmax"}, "pooling=argmax: expected one of last, first, mean"),
        ({"activation": "relu"}, "activation=relu: expected one of quick_gelu, gelu, gelu_tanh"),
        ({"heads": 5}, "heads=5 do not divide width=32"),
    ],
)
def test_arguments_that_contradict_each_other_are_named(arguments: dict[str, Any], message: str):
    sizes: dict[str, Any] = {"vocab_size": 9, "context_length": 4, "width": 32, "depth": 1, "heads": 4}
    with pytest.raises(UserError, match=message):
        TextTransformer(**sizes | arguments)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_caption_alone_equals_itself_among_others(variant: str, dtype: torch.dtype, tolerance: float):
    model, (text, length) = tower(dtype, **VARIANTS[variant]), captions()
    alone = torch.cat([model(text[i : i + 1, : length[i]], length[i : i + 1]) for i in range(len(text))])
    expected = with_gradients(model, model(text, length))
    assert_equal(with_gradients(model, alone), expected, tolerance)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_stands_after_the_pooled_token_does_not_matter(variant: str):
    model, (text, length) = tower(torch.float32, **VARIANTS[variant]), captions()
    other = text.where(torch.arange(CONTEXT) < length[:, None], 39)
    assert torch.equal(model(text, length), model(other, length))


def test_a_length_beyond_the_row_is_refused():
    model, (text, length) = tower(torch.float32), captions()
    with pytest.raises(AssertionError, match="no longer than its row"):
        model(text[:, :20], length)


@pytest.mark.parametrize("variant", ["published", "first", "siglip"])
def test_no_padding_token_is_multiplied(variant: str):
    model, (text, length) = tower(torch.float32, **VARIANTS[variant]), captions()
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_rows_are_handed_to_a_varlen_kernel_as_it_wants_them(variant: str, monkeypatch: pytest.MonkeyPatch):
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

    model, (text, length) = tower(torch.float64, **VARIANTS[variant]), captions()
    pooled, features = one_by_one(model, text, length, **VARIANTS[variant])
    monkeypatch.setattr(text_transformer, "varlen_is_possible", lambda *_: True)
    monkeypatch.setattr(text_transformer, "varlen_attention", sequence_by_sequence)
    assert_equal(with_gradients(model, model(text, length)), with_gradients(model, pooled), 1e-9)
    found = model.tokens(text, length)
    assert_equal([found.features[found.mask]], [torch.cat(features)], 1e-9)


ON_GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
@pytest.mark.parametrize("heads", [2, 16])  # of size 64, as in training, and 8
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.03)])  # TF32 may be on
def test_a_devices_kernels_are_near_float64_forward_and_backward(
    precision: str, tolerance: float, variant: str, heads: int, device: str
):
    # The pooled features come from the last block, in which a caption has one query.
    model, (text, length) = tower(torch.float64, width=128, heads=heads, **VARIANTS[variant]), captions()
    expected = with_gradients(model, model(text, length))
    model = model.float().to(device)
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
        features = model(text.to(device), length)
    assert features.dtype == torch.float32  # after a layer norm
    found = [x.cpu() for x in with_gradients(model, features.double())]
    whole = torch.stack([x.norm() for x in expected[1:]]).norm()
    for ours, exact in zip(found, expected, strict=True):
        assert (ours - exact).norm() <= tolerance * max(exact.norm(), 0.1 * whole)
