"""`tokenizer.json` and `tokenizer_config.json`: a tokenizer for the libraries tokenizers and transformers.

`openslip.text.tokenizer_json` reads them. What CLIP's byte-pair encoding cannot take along is ftfy's repair of texts,
except for its quotation marks, and the decoding of HTML entities: docs/NUMERICS.md#exported-tokenizer.
"""

import base64
import json
import re
import string
from pathlib import Path
from typing import Any

from openslip.errors import UserError
from openslip.text.bare_ids import BareIds
from openslip.text.clip_bpe import ClipBpe, symbols_and_merges
from openslip.text.sentencepiece_model import SentencePieceModel
from openslip.text.tokenizer import Tokenizer
from openslip.text.tokenizer_json import CLIP_WORDS, TokenizerJson, clip_definition, parse

START, END = "<|startoftext|>", "<|endoftext|>"  # in `clip_definition`
OPEN_CLIP = {START: "<start_of_text>", END: "<end_of_text>"}  # the same ids, by their names in open_clip
QUOTES = (("[\u02bc\u2018-\u201b]", "'"), ("[\u201c-\u201f]", '"'))  # as ftfy replaces them


def write_tokenizer(tokenizer: Tokenizer | None, folder: Path, form: str) -> None:
    """Write the files of a tokenizer; none for a model without texts, or whose vocabulary is unknown.

    Args:
        tokenizer: the tokenizer.
        folder: folder to write into.
        form: name of the form, for the error.

    Raises:
        UserError: the tokenizer is of another class.
    """
    if tokenizer is None or isinstance(tokenizer, BareIds):
        return
    if isinstance(tokenizer, SentencePieceModel):
        (folder / "spiece.model").write_bytes(base64.b64decode(tokenizer.model))
        end = {f"{name}_token": "</s>" for name in ("eos", "pad")}
        config = {"tokenizer_class": "SiglipTokenizer", "unk_token": "<unk>", "do_lower_case": True, **end}
    elif isinstance(tokenizer, ClipBpe | TokenizerJson):
        if isinstance(tokenizer, ClipBpe) and (tokenizer.truncation, tokenizer.special_text) == ("drop_end", "plain"):
            raise UserError(
                f"--to {form}: no tokenizer.json drops the end of a truncated text (truncation=drop_end) and reads a "
                "literal end as text (special_text=plain); use --to safetensors"
            )
        definition, config = clip(tokenizer) if isinstance(tokenizer, ClipBpe) else described(tokenizer)
        (folder / "tokenizer.json").write_text(json.dumps(definition, ensure_ascii=False), "utf-8")
        config = {"tokenizer_class": "PreTrainedTokenizerFast"} | config
    else:
        raise UserError(
            f"--to {form}: a {type(tokenizer).__name__} cannot be written as tokenizer.json; use --to safetensors"
        )
    # With an attention mask, SigLIP would not attend to padding, and SLIP would not pool the end of an empty text.
    config = {"model_input_names": ["input_ids"], "padding_side": "right"} | config
    config["model_max_length"] = tokenizer.context_length
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")


def clip(tokenizer: ClipBpe) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return CLIP's byte-pair encoding as a `tokenizer.json`, and its settings for transformers."""
    symbols, merges = symbols_and_merges()
    names = [*symbols, *["<|mask|>"] * tokenizer.mask_token, START, END]
    text = clip_definition({name: number for number, name in enumerate(names)}, merges)
    content: dict[str, Any] = json.loads(text)
    steps = content["normalizer"]["normalizers"]
    steps[:0] = [replacing(pattern, mark) for pattern, mark in QUOTES]
    settings: dict[str, Any] = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    if tokenizer.truncation == "drop_end":
        # The library truncates a text before the post-processor adds its tokens, so the end must be text. The token
        # itself is normalised too, which must not append another end to it. An empty text is not normalised: its end
        # is the padding.
        start, end = content["added_tokens"]
        end["normalized"] = True
        steps.append(replacing(rf"(?<!{re.escape(END)})\z", END))
        content["post_processor"] = prefixed(START, start["id"])
    elif tokenizer.special_text == "plain":
        content["added_tokens"] = []
        settings["split_special_tokens"] = True
        words = CLIP_WORDS.split("|'s", 1)[1]
        content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = f"'s{words}"
    if tokenizer.special_text == "open_clip":
        content, settings = renamed(content), renamed(settings)
    return content, settings


def replacing(pattern: str, content: str) -> dict[str, Any]:
    """Return a normaliser that replaces all matches of a regular expression."""
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def prefixed(token: str, number: int) -> dict[str, Any]:
    """Return a post-processor that only adds a token before each text."""
    parts = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": token, "type_id": 0}}, parts[0]],
        "pair": [{"SpecialToken": {"id": token, "type_id": 0}}, *parts],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def renamed(content: Any) -> Any:
    """Return JSON content in which start and end token have open_clip's names, also within regular expressions."""
    if isinstance(content, dict):
        return {OPEN_CLIP.get(key, key): renamed(value) for key, value in content.items()}
    if isinstance(content, list):
        return [renamed(value) for value in content]
    if isinstance(content, str):
        for name, other in OPEN_CLIP.items():
            content = content.replace(re.escape(name), other) if content != name else other
    return content


def described(tokenizer: TokenizerJson) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the `tokenizer.json` of a tokenizer that was read from one, with the cleaning of texts in it."""
    settings = tokenizer.settings()
    content: dict[str, Any] = json.loads(settings["definition"])
    content |= {"truncation": None, "padding": None}
    plain: dict[str, Any] = {}
    if cleaning := CLEANING[settings["clean"]]:
        before = content.get("normalizer")
        content["normalizer"] = {"type": "Sequence", "normalizers": [*cleaning, *([before] if before else [])]}
    backend = parse(settings["definition"])
    if any(step in NO_PUNCTUATION for step in CLEANING[settings["clean"]]):
        # The cleaning comes first and takes a special token in a text apart. The library would look for it before.
        symbols = backend.get_vocab(with_added_tokens=False)
        content["added_tokens"] = [
            token for token in content.get("added_tokens", []) if symbols.get(token["content"]) != token["id"]
        ]
        plain = {"split_special_tokens": True}
    tokens = {"pad_token": tokenizer.pad, "eos_token": settings["end"]}
    named = {name: backend.id_to_token(number) for name, number in tokens.items() if number is not None}
    return content, {"padding_side": settings["pad_side"], **plain, **named}


SPACES = [replacing(r"\s+", " "), {"type": "Strip", "strip_left": True, "strip_right": True}]
LOWER = [{"type": "Lowercase"}]
NO_PUNCTUATION = [replacing(f"[{re.escape(string.punctuation)}]", "")]
# What `tokenizer_json.CLEAN` does, as normalisers, without ftfy and HTML entities.
CLEANING: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "siglip": [*LOWER, *NO_PUNCTUATION, *SPACES],
    "whitespace": SPACES,
    "whitespace_lower": [*SPACES, *LOWER],
    "canonicalize": [replacing("_", " "), *NO_PUNCTUATION, *LOWER, *SPACES],
}
