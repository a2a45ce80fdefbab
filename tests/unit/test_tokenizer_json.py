"""Tokenizers of foreign libraries: rows, lengths, settings, and what is refused."""

import base64
import builtins
import json
import pickle
from typing import Any

import pytest
import torch
from model_folders import clip_json, odd_texts, sentencepiece_model

from openslip.errors import MissingPackage, UserError
from openslip.inference.architecture import build_tokenizer
from openslip.text.clip_bpe import ClipBpe
from openslip.text.sentencepiece_model import SentencePieceModel
from openslip.text.tokenizer import Tokenizer
from openslip.text.tokenizer_json import TokenizerJson, canonicalize, siglip, whitespace

END = 49407


@pytest.fixture(scope="module")
def definition() -> str:
    return clip_json()


@pytest.fixture(scope="module")
def model() -> str:
    return base64.b64encode(sentencepiece_model()).decode()


@pytest.fixture(scope="module", params=["json", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, definition: str, model: str) -> Tokenizer:
    if request.param == "json":
        return TokenizerJson(definition=definition, context_length=16, pad=END, pooled="first", end=END)
    return SentencePieceModel(model=model, context_length=16)


def test_settings_and_pickling_make_the_tokenizer_again(tokenizer: Tokenizer):
    target = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
    built = build_tokenizer({"_target_": target, **json.loads(json.dumps(tokenizer.settings()))})
    ids, lengths = tokenizer.encode(odd_texts())
    for again in (built, pickle.loads(pickle.dumps(tokenizer))):
        assert again is not None
        assert torch.equal(again.encode(odd_texts())[0], ids)
        assert torch.equal(again.encode(odd_texts())[1], lengths)
        assert torch.equal(again.lengths(ids), lengths)


def test_rows_have_one_length_and_long_texts_keep_their_end(tokenizer: Tokenizer):
    end = tokenizer.special_ids["end"]
    ids, _ = tokenizer.encode(["", "a dog", "word " * 100])
    assert ids.shape == (3, 16)
    assert ids[2, -1] == end
    assert tokenizer.num_tokens("word " * 100) > 100
    assert torch.equal(tokenizer.encode(["word " * 100])[0], ids[2:])  # counting has not changed the truncation
    assert tokenizer.encode([])[0].shape == (0, 16)


def test_ids_are_decoded(tokenizer: Tokenizer):
    assert tokenizer.decode(tokenizer.encode(["a tiger shark"])[0][0].tolist()) == "a tiger shark"


@pytest.mark.parametrize(("pooled", "end", "expected"), [("first", END, 4), ("largest", None, 4), ("last", None, 16)])
def test_the_length_is_the_pooled_position_plus_one(definition: str, pooled: str, end: int | None, expected: int):
    made = TokenizerJson(definition=definition, context_length=16, pad=END, pooled=pooled, end=end)
    assert made.encode(["a dog"])[1].tolist() == [expected]


def test_rows_can_be_padded_on_the_left(definition: str):
    made = TokenizerJson(definition=definition, context_length=6, pad=0, pooled="last", pad_side="left")
    assert made.encode(["a dog"])[0].tolist() == [[0, 0, 49406, 320, 1929, END]]


def test_a_saved_tokenizer_may_truncate_and_pad_by_itself_and_does_not_here(definition: str):
    content = json.loads(definition)
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {"strategy": {"Fixed": 5}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 7}
    content["padding"] |= {"pad_type_id": 0, "pad_token": "x"}
    settings: dict[str, Any] = {"context_length": 16, "pad": END, "pooled": "largest"}
    ours = TokenizerJson(definition=definition, **settings).encode(odd_texts())[0]
    assert torch.equal(TokenizerJson(definition=json.dumps(content), **settings).encode(odd_texts())[0], ours)


def test_plain_captions_have_the_ids_of_our_own_tokenizer_and_odd_ones_do_not(definition: str):
    ours = ClipBpe(context_length=77, truncation="keep_end", special_text="token")
    theirs = TokenizerJson(definition=definition, context_length=77, pad=0, pooled="largest")
    plain = ["a photo of a cat", "The dog's bowl, 12.5 km!", "", "word " * 100]
    assert torch.equal(ours.encode(plain)[0], theirs.encode(plain)[0])
    assert torch.equal(ours.encode(plain)[1], theirs.encode(plain)[1])
    for odd in ("salt &amp; pepper", "Ã©tÃ©", "ﬁne"):  # transformers neither decodes entities nor repairs texts
        assert not torch.equal(ours.encode([odd])[0], theirs.encode([odd])[0])


def test_texts_are_cleaned():
    assert siglip(" A_b, the  Dog's\tbowl! ") == "ab the dogs bowl"
    assert canonicalize(" A_b, the  Dog&#39;s\tbowl! ") == "a b the dogs bowl"
    assert whitespace(" A  &amp;amp;\nB ") == "A & B"


FAULTS: dict[str, dict[str, Any]] = {
    "no JSON": {"definition": "{"},
    "another JSON": {"definition": "{}"},
    "an unknown model": {"definition": json.dumps({"version": "1.0", "model": {"type": "os.system"}})},
    "an unknown cleaning": {"clean": "scrub"},
    "an unknown side": {"pad_side": "middle"},
    "an unknown pooling": {"pooled": "middle"},
    "no end": {"pooled": "first"},
    "a short context": {"context_length": 2},
    "a pad outside": {"pad": 49408},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_setting_is_refused_by_name(fault: str, definition: str):
    settings = {"definition": definition, "context_length": 16, "pad": 0, "pooled": "largest"} | FAULTS[fault]
    with pytest.raises(UserError, match=r"^tokenizer\.|^its tokenizer\.json cannot be read"):
        TokenizerJson(**settings)


@pytest.mark.parametrize("damaged", ["????", "AAAA", ""])
def test_a_damaged_sentencepiece_model_is_refused(damaged: str):
    with pytest.raises(UserError, match=r"spiece\.model cannot be read"):
        SentencePieceModel(model=damaged, context_length=16)


def test_a_missing_library_is_one_line(definition: str, model: str, monkeypatch: pytest.MonkeyPatch):
    found = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name in ("tokenizers", "sentencepiece"):
            raise ImportError(name)
        return found(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackage, match=r'needs tokenizers; pip install "openslip\[hf\]"$'):
        TokenizerJson(definition=definition, context_length=16, pad=0, pooled="largest")
    with pytest.raises(MissingPackage, match=r'needs sentencepiece; pip install "openslip\[hf\]"$'):
        SentencePieceModel(model=model, context_length=16)
