"""What the formats share: choices of the user, names of weights, and ids without a vocabulary."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from openslip.errors import UserError
from openslip.inference.architecture import build_tokenizer
from openslip.inference.choices import Choices, agree, heads
from openslip.inference.layouts.keys import fit, number_of, rename, shape, table
from openslip.text.bare_ids import BareIds
from openslip.text.clip_bpe import ClipBpe
from openslip.text.tokenizer import Tokenizer

FILE = Path("weights.pt")


def test_a_needed_activation_is_asked_for_with_its_choices():
    with pytest.raises(
        UserError, match=r"give --activation quickgelu \(OpenAI, MetaCLIP and .*\) or --activation gelu"
    ):
        Choices().need_activation()
    assert Choices(activation="quickgelu").need_activation() == "quick_gelu"
    assert Choices(activation="gelu_tanh").check_activation("gelu_tanh") == "gelu_tanh"
    assert Choices().check_activation("gelu") == "gelu"
    with pytest.raises(UserError, match="activation=quick_gelu: the file says gelu; leave activation out"):
        Choices(activation="quickgelu").check_activation("gelu")


@pytest.mark.parametrize("wrong", [{"activation": "relu"}, {"image_heads": 0}, {"text_heads": True}])
def test_impossible_choices_are_refused(wrong: dict[str, Any]):
    with pytest.raises(UserError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}: expected"):
        Choices(**wrong)


def test_heads_are_chosen_or_one_per_64_channels():
    assert heads(FILE, "image_heads", 768, None) == 12
    assert heads(FILE, "image_heads", 48, 4) == 4
    assert agree("image_heads", 12, 12) == 12
    with pytest.raises(UserError, match=r"weights\.pt: width 48 does not tell the number of text_heads.*--text-heads"):
        heads(FILE, "text_heads", 48, None)
    with pytest.raises(UserError, match="image_heads=5 does not divide the width 48"):
        heads(FILE, "image_heads", 48, 5)


NAMES = table([("a.{n}.", "b.{n}.x."), ("in_", "out."), ("one", "two")])


def test_names_are_translated_and_unknown_and_taken_ones_kept():
    given = {"a.12.w": 1, "in_weight": 2, "one": 3, "one.more": 4, "a.x.w": 5}
    assert rename(given, NAMES) == {"b.12.x.w": 1, "out.weight": 2, "two": 3, "one.more": 4, "a.x.w": 5}
    assert rename({"two": 1, "one": 2}, NAMES) == {"two": 1, "one": 2}  # `one` is reported as unexpected


def test_a_model_takes_all_weights_or_none():
    model = nn.Linear(2, 3)
    before = model.weight.detach().clone()
    weights = {"weight": torch.ones(3, 2), "bias": torch.ones(3)}
    wrong = {**weights, "bias": torch.ones(4), "extra": torch.ones(1)}
    with pytest.raises(
        UserError, match=r"weights\.pt: 1 of 2 weights matched; 1 unexpected: extra; 1 of another shape"
    ):
        fit(model, wrong, FILE)
    with pytest.raises(UserError, match=r"1 of 2 weights matched; 1 missing: bias"):
        fit(model, {"weight": torch.ones(3, 2)}, FILE)
    assert torch.equal(model.weight, before)
    fit(model, weights, FILE)
    assert torch.equal(model.weight, torch.ones(3, 2))


def test_blocks_are_counted_and_gaps_and_odd_shapes_named():
    assert number_of({"h.0.w": 0, "h.1.w": 0, "h.1.b": 0, "g.7.w": 0}, "h.") == 2
    with pytest.raises(UserError, match=r"has h\.5 but only 2 such blocks"):
        number_of({"h.0.w": 0, "h.5.w": 0}, "h.")
    with pytest.raises(UserError, match="lacks the weight w"):
        shape({}, "w", ndim=1)
    for odd in (torch.ones(2), torch.ones(0, 2)):
        with pytest.raises(UserError, match=r"the weight w has shape .*; expected 2 sizes"):
            shape({"w": odd}, "w", ndim=2)


IDS = torch.tensor([[5, 2, 9, 0], [9, 7, 7, 9], [1, 1, 1, 1]])


@pytest.mark.parametrize(
    ("settings", "lengths"),
    [({"pooled": "largest"}, [3, 1, 1]), ({"pooled": "first", "end": 7}, [1, 2, 1]), ({"pooled": "last"}, [4, 4, 4])],
)
def test_ids_without_a_vocabulary_have_lengths_and_no_texts(settings: dict[str, Any], lengths: list[int]):
    tokenizer = BareIds(context_length=4, vocab_size=10, **settings)
    rebuilt = build_tokenizer({"_target_": "openslip.text.bare_ids.BareIds", **tokenizer.settings()})
    for same in (tokenizer, rebuilt, pickle.loads(pickle.dumps(tokenizer))):
        assert same is not None
        assert same.lengths(IDS).tolist() == lengths
        assert (same.context_length, same.vocab_size) == (4, 10)
    with pytest.raises(UserError, match=r"texts cannot be encoded: .*vocabulary of 10 ids is not CLIP's"):
        tokenizer.encode(["a"])
    with pytest.raises(UserError, match="ids cannot be decoded"):
        tokenizer.decode([1])


@pytest.mark.parametrize("wrong", [{"pooled": "mean"}, {"pooled": "first"}, {"pooled": "last", "end": 3}])
def test_a_pooled_position_that_makes_no_sense_is_refused(wrong: dict[str, Any]):
    with pytest.raises(UserError, match=f"tokenizer.pooled='{wrong['pooled']}'"):
        BareIds(context_length=4, vocab_size=10, **wrong)


def test_lengths_of_given_ids_are_those_that_encode_returns():
    for special_text in ("plain", "token", "open_clip"):
        tokenizer = ClipBpe(context_length=16, truncation="keep_end", special_text=special_text)
        ids, lengths = tokenizer.encode(["a photo", "", "word " * 40])
        assert torch.equal(tokenizer.lengths(ids), lengths)
    own = type("Own", (Tokenizer,), {"encode": None, "decode": None, "settings": None})()
    with pytest.raises(UserError, match="Own cannot tell the lengths of given ids: define its method `lengths`"):
        own.lengths(IDS)
