"""What several forms ask of a model: its two towers, and the position that its text tower pools."""

from typing import Any, NamedTuple

from openslip.errors import UserError
from openslip.inference.bundle import Bundle
from openslip.models.dual_encoder import DualEncoder
from openslip.text.bare_ids import BareIds
from openslip.text.clip_bpe import ClipBpe
from openslip.text.sentencepiece_model import SentencePieceModel
from openslip.text.tokenizer import Tokenizer
from openslip.text.tokenizer_json import TokenizerJson


class Pooled(NamedTuple):
    """The position that a text tower pools: `largest`, `first` or `last`, as in `BareIds`, and the id of `first`."""

    position: str
    end: int | None = None


def dual_encoder(bundle: Bundle, form: str) -> DualEncoder:
    """Return a bundle's model with two towers.

    Raises:
        UserError: it is another model, or one that compares single tokens, whose projections the form has no place for.
    """
    model = bundle.model
    if not isinstance(model, DualEncoder):
        raise UserError(
            f"--to {form}: expected a model with two towers, and {bundle.name()} is a {type(model).__name__}; "
            "use --to safetensors, or --to timm for an image tower"
        )
    if model.token_dim is not None:
        raise UserError(
            f"--to {form}: there is no place for the projections of single tokens (token_dim={model.token_dim}); "
            "use --to safetensors"
        )
    return model


def other_heads(model: DualEncoder) -> str | None:
    """Return what differs from CLIP in mask, pooling, projections or logits; None if nothing does."""
    tower: Any = model.text_tower
    if not getattr(tower, "causal", False) or tower.pooling != "last":  # CoCa's tower pools its class token
        return "a text tower that is not causal or does not pool the last token"
    if model.image_projection is None:
        return "no image projection"
    biases = ("image_projection_bias", "text_projection_bias", "logit_bias")
    return next((name for name in biases if getattr(model, name) is not None), None)


def pooled(tokenizer: Tokenizer, form: str) -> Pooled:
    """Return the rule by which `tokenizer.lengths` finds the pooled position.

    Raises:
        UserError: the tokenizer has a rule of its own.
    """
    if isinstance(tokenizer, ClipBpe):
        return Pooled("largest")
    if isinstance(tokenizer, BareIds | TokenizerJson):
        settings = tokenizer.settings()
        return Pooled(settings["pooled"], settings["end"])
    if isinstance(tokenizer, SentencePieceModel):
        return Pooled("last")
    raise UserError(f"--to {form}: there is no tokenizer like {type(tokenizer).__name__}; use --to safetensors")
