"""Tokenizers in the form of transformers: `tokenizer.json`, CLIP's older files, or SigLIP's `spiece.model`."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openslip.errors import UserError
from openslip.inference.layouts.folder import file_in, read_json
from openslip.inference.layouts.openai import CLIP_VOCABULARY
from openslip.text.bare_ids import BareIds
from openslip.text.clip_bpe import ClipBpe
from openslip.text.sentencepiece_model import SentencePieceModel
from openslip.text.tokenizer import Tokenizer
from openslip.text.tokenizer_json import TokenizerJson, clip_definition, parse


def tokenizer_in(
    folder: Path, *, family: str, context_length: int, vocab_size: int, pooled: str, end: int | None = None
) -> Tokenizer:
    """Return the tokenizer of a folder, from `tokenizer.json`, or CLIP's older files, or SigLIP's `spiece.model`.

    CLIP's older files are `vocab.json` and `merges.txt`. Without any of these files, a vocabulary of CLIP's size is
    CLIP's, and any other is unknown (`BareIds`).

    Args:
        folder: the folder.
        family: `clip` or `siglip`.
        context_length: ids per row.
        vocab_size: number of rows of the token embedding.
        pooled: position that the model pools, as in `BareIds`.
        end: the id that ends a text, for `pooled="first"`.

    Raises:
        MissingPackage: the library `tokenizers` is not installed.
        UserError: a file cannot be read, or the vocabulary is larger than the model's.
    """
    definition = definition_in(folder, family)
    if definition is None and family == "siglip" and (path := file_in(folder, "spiece.model")) is not None:
        model = base64.b64encode(path.read_bytes()).decode()
        return fitting(folder, SentencePieceModel(model=model, context_length=context_length), vocab_size)
    if definition is None:
        if family == "clip" and vocab_size == CLIP_VOCABULARY:
            return ClipBpe(context_length=context_length, truncation="keep_end", special_text="token")
        return BareIds(context_length=context_length, vocab_size=vocab_size, pooled=pooled, end=end)
    settings = tokenizer_settings(folder)
    kind = str(settings.get("tokenizer_class"))
    if kind.startswith("Siglip2Tokenizer"):
        definition = lower_cased(definition)
    pad = pad_id(definition, settings.get("pad_token"), family)
    tokenizer = TokenizerJson(
        definition=definition,
        context_length=context_length,
        pad=pad,
        pooled=pooled,
        end=end,
        clean="siglip" if kind.startswith("SiglipTokenizer") else "none",
        pad_side=settings.get("padding_side") or ("left" if kind.startswith("Siglip2Tokenizer") else "right"),
    )
    return fitting(folder, tokenizer, vocab_size)


def fitting(folder: Path, tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """Return a tokenizer if the model has an embedding for each of its ids.

    Raises:
        UserError: the model has fewer.
    """
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} ids, but its model only {vocab_size}: "
            "the files do not belong together"
        )
    return tokenizer


def definition_in(folder: Path, family: str) -> str | None:
    """Return the content of `tokenizer.json`, or build it from CLIP's older files; None if the folder has neither."""
    if (path := file_in(folder, "tokenizer.json")) is not None:
        return read_text(path)
    vocabulary, merges = file_in(folder, "vocab.json"), file_in(folder, "merges.txt")
    if family != "clip" or vocabulary is None or merges is None:
        return None
    lines = [line for line in read_text(merges).splitlines() if line and not line.startswith("#version")]
    return clip_definition(read_json(vocabulary), lines)


def tokenizer_settings(folder: Path) -> dict[str, Any]:
    """Read the settings of a tokenizer, which two files may hold.

    As in transformers, a config with `added_tokens_decoder` says everything itself; in older folders, the special
    tokens of `special_tokens_map.json` take precedence over those of the config.
    """
    files = (file_in(folder, name) for name in ("tokenizer_config.json", "special_tokens_map.json"))
    config, special = ({} if path is None else read_json(path) for path in files)
    return config if "added_tokens_decoder" in config else config | special


def pad_id(definition: str, token: Any, family: str) -> int:
    """Return the id that pads rows: that of the stated token, or of transformers' default for the model."""
    content = token.get("content") if isinstance(token, Mapping) else token
    if content is None:
        content = "<|endoftext|>" if family == "clip" else "</s>"
    found = parse(definition).token_to_id(str(content))
    if found is None:
        raise UserError(f"its tokenizer lacks the padding token {str(content)[:80]!r}")
    return found


def lower_cased(definition: str) -> str:
    """Return a tokenizer that makes texts lower-case first, as transformers' Siglip2Tokenizer does."""
    content = json.loads(definition)
    normalizer, lower = content.get("normalizer"), {"type": "Lowercase"}
    steps: Sequence[Any] = [lower] if normalizer is None else [lower, normalizer]
    content["normalizer"] = {"type": "Sequence", "normalizers": steps}
    return json.dumps(content)


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
