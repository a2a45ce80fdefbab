"""Prefixes that captions share are computed once, and no feature changes by it."""

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from evaluation_models import CLASSNAMES, TEMPLATES, bundle, dual_encoder, tokenizer
from ranks import Ranks
from retrieval_models import text_features_on_this_rank
from torch import Tensor, nn

from openslip.inference.imagenet_prompts import imagenet_templates
from openslip.inference.prompts import class_embeddings
from openslip.models.prefix_sharing import shares_prefixes, sharing_prefixes
from openslip.models.text_transformer import TextTransformer
from openslip.text.clip_bpe import ClipBpe

CONTEXT = 13


def tower(dtype: torch.dtype, **arguments: Any) -> TextTransformer:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 40, "context_length": CONTEXT, "width": 32, "depth": 3, "heads": 4}
    model = TextTransformer(**sizes | arguments).to(dtype).eval()
    for name, parameter in model.named_parameters():
        if "bias" in name or "embedding" in name:  # published values differ too little to show a wrong row
            nn.init.normal_(parameter, std=0.5)
    return model


def captions() -> tuple[Tensor, Tensor]:
    """Captions of two ids, so that most share a prefix, some are equal, and some are the beginning of others."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(38, 40, (60, CONTEXT), generator=generator)
    ids[:, 0] = 3
    return ids, torch.randint(1, CONTEXT + 1, (60,), generator=generator)


def rows_of_layers(model: nn.Module) -> dict[str, int]:
    """The number of rows that every linear layer got in the last call."""
    rows: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(
                lambda _module, inputs, _output, name=name: rows.update({name: len(inputs[0])})
            )
    return rows


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_features_are_those_of_the_plain_way(dtype: torch.dtype, tolerance: float):
    model, (ids, lengths) = tower(dtype), captions()
    expected = model(ids, lengths)
    with sharing_prefixes():
        shared = model(ids, lengths)
        alone = torch.cat([model(ids[i : i + 1], lengths[i : i + 1]) for i in range(len(ids))])
    assert expected.std(dim=0).min() > 0.1
    torch.testing.assert_close(shared, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(alone, expected, rtol=0, atol=tolerance)


def test_a_layer_computes_one_row_for_each_distinct_prefix():
    model, (ids, lengths) = tower(torch.float32), captions()
    rows = rows_of_layers(model)
    prefixes = {tuple(caption[:end]) for caption, length in zip(ids.tolist(), lengths.tolist(), strict=True)
                for end in range(1, length + 1)}  # fmt: skip
    with sharing_prefixes():
        model(ids, lengths)
    assert {rows[f"blocks.{block}.fc1"] for block in (0, 1)} == {len(prefixes)}
    assert rows["blocks.2.fc1"] == len(ids), "the last block computes the pooled tokens alone"
    assert len(prefixes) < int(lengths.sum()) / 2
    model(ids, lengths)
    assert rows["blocks.0.fc1"] == int(lengths.sum()), "outside the context, as in training, no row is shared"


@pytest.mark.parametrize("arguments", [{"causal": False}, {"causal": False, "pooling": "first"}, {"pooling": "mean"}])
def test_towers_that_read_ahead_or_pool_all_tokens_are_computed_the_plain_way(arguments: dict[str, Any]):
    model, (ids, lengths) = tower(torch.float32, **arguments), captions()
    rows = rows_of_layers(model)
    expected = model(ids, lengths)
    with sharing_prefixes():
        assert torch.equal(model(ids, lengths), expected)
    assert rows["blocks.0.fc1"] == int(lengths.sum())


def test_features_of_all_tokens_are_complete():
    model, (ids, lengths) = tower(torch.float64), captions()
    expected = model.tokens(ids, lengths)
    with sharing_prefixes():
        features, mask = model.tokens(ids, lengths)
    torch.testing.assert_close(features, expected.features, rtol=0, atol=1e-13)
    assert torch.equal(mask, expected.mask)


def test_gradients_of_shared_rows_are_those_of_the_plain_way():
    model, (ids, lengths) = tower(torch.float64), captions()
    gradients = []
    for context in (False, True):
        model.zero_grad()
        if context:
            with sharing_prefixes():
                pooled = model(ids, lengths)
        else:
            pooled = model(ids, lengths)
        pooled.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    for shared, plain in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(shared, plain, rtol=1e-9, atol=1e-9)


def test_clips_text_tower_gives_the_same_unit_features_in_float32():
    torch.manual_seed(0)
    model = TextTransformer(vocab_size=49408, context_length=24, width=512, depth=12, heads=8).eval()
    ids, lengths = tokenizer().encode(
        [text.replace("{}", name) for text in imagenet_templates(7) for name in CLASSNAMES]
    )
    with torch.no_grad():
        plain = F.normalize(model(ids, lengths), dim=1)
        with sharing_prefixes():
            shared = F.normalize(model(ids, lengths), dim=1)
    torch.testing.assert_close(shared, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_features_are_as_near_to_the_exact_ones_as_those_of_the_plain_way(dtype: torch.dtype):
    model, (ids, lengths) = tower(torch.float64), captions()
    with torch.no_grad():
        exact = F.normalize(model(ids, lengths), dim=1)
        model = model.to(dtype)
        plain = F.normalize(model(ids, lengths).double(), dim=1)
        with sharing_prefixes():
            shared = F.normalize(model(ids, lengths).double(), dim=1)
    error = (plain - exact).abs().max()
    assert 0 < error < 100 * torch.finfo(dtype).eps, "the weights' rounding"
    assert (shared - exact).abs().max() <= 1.5 * error
    assert (shared - plain).abs().max() <= error


@pytest.mark.parametrize("truncation", ["keep_end", "drop_end"])
@pytest.mark.parametrize("context_length", [8, 24])
def test_truncated_texts_have_the_features_of_the_plain_way(truncation: str, context_length: int):
    """Texts that are equal up to where they are cut, in a length of which some are cut and some fit."""
    torch.manual_seed(0)
    model = TextTransformer(vocab_size=49408, context_length=context_length, width=32, depth=3, heads=4).double()
    words = ClipBpe(context_length=context_length, truncation=truncation, special_text="plain")
    beginnings = ["a", "a photo of a red", "a photo of a red fox in the snow and a dog " * 3]
    texts = [f"{beginning} {ending}" for beginning in beginnings for ending in ("cat", "dog", "cat and dog", "c")]
    ids, lengths = words.encode(texts)
    assert (ids[:, -1] != 0).sum() >= 4
    assert (ids[:, -1] == 0).any()
    expected = model(ids, lengths)
    with sharing_prefixes():
        torch.testing.assert_close(model(ids, lengths), expected, rtol=0, atol=1e-13)


def test_another_thread_does_not_share():
    inside, ended = threading.Event(), threading.Event()

    def share() -> None:
        with sharing_prefixes():
            inside.set()
            ended.wait(10)

    thread = threading.Thread(target=share)
    thread.start()
    try:
        assert inside.wait(10)
        assert not shares_prefixes()
        with sharing_prefixes():
            assert shares_prefixes()
        assert not shares_prefixes()
    finally:
        ended.set()
        thread.join()
    assert not shares_prefixes()


def test_a_classifier_shares_the_beginnings_of_its_templates():
    model = dual_encoder()
    rows: list[int] = []
    layer: Any = model.text_tower.get_submodule("blocks.0.fc1")
    layer.register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    class_embeddings(bundle(model).encode_text, CLASSNAMES, TEMPLATES)
    prompts = [template.replace("{}", name) for template in TEMPLATES for name in CLASSNAMES]
    assert sum(rows) < 0.7 * int(tokenizer().encode(prompts)[1].sum())


def test_ranks_have_the_features_of_one_process_to_the_last_bit(two_ranks: Ranks):
    prompts = [template.replace("{}", name) for name in CLASSNAMES for template in TEMPLATES] * 2
    alone = text_features_on_this_rank(prompts, 4)
    for features in two_ranks(text_features_on_this_rank, prompts, 4):
        assert torch.equal(features, alone)
    assert torch.equal(alone[: len(prompts) // 2], alone[len(prompts) // 2 :]), "equal texts have equal features"
