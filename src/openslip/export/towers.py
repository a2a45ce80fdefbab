"""What several forms ask of a model: its two towers, and the position that its text tower pools."""

from typing import NamedTuple

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
