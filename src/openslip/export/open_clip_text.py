"""Text towers in open_clip's form: its text transformer, with a causal mask or pooling the last of fixed positions."""

from typing import Any, NamedTuple

from torch import Tensor

from openslip.errors import UserError
from openslip.export.open_clip_image import activation_arguments
from openslip.export.towers import Pooled, pooled
from openslip.inference.layouts import coca, openai
from openslip.inference.layouts.keys import rename, table
from openslip.models.coca_text import CocaText
from openslip.models.dual_encoder import DualEncoder
from openslip.models.text_transformer import Block, TextTransformer
from openslip.text.tokenizer import Tokenizer

POOL_TYPES = {"largest": "argmax", "first": "eos", "last": "last"}
_NAMES = table(
    (ours, theirs) for theirs, ours in (*openai.TEXT_TOWER, *coca.NAMES) if not ours.startswith("image_tower.")
)


class TextPart(NamedTuple):
    """`text_cfg` without tokenizer, and the weights by the names of open_clip's class `CLIP`."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    activation: str
    has_class_token: bool


def text_part(model: DualEncoder, tokenizer: Tokenizer) -> TextPart:
    """Return the text tower and its projection in open_clip's form.

    Raises:
        UserError: open_clip has no such tower or tokenizer. The error names the forms that can express it.
    """
    tower = model.text_tower
    if not isinstance(tower, TextTransformer | CocaText):
        raise UserError(f"--to open_clip: there is no text tower like {type(tower).__name__}; use --to safetensors")
    if model.text_projection is None:
        raise UserError("--to open_clip: open_clip always projects texts, and this model does not; use --to onnx")
    rule, is_causal = pooled(tokenizer, "open_clip"), isinstance(tower, CocaText) or tower.causal
    if isinstance(tower, TextTransformer) and (tower.pooling != "last" or not (is_causal or rule.position == "last")):
        raise UserError(
            f"--to open_clip: its text tower pools one token, and is causal if texts are padded; this one has "
            f"causal={tower.causal}, pooling={tower.pooling}; use --to onnx"
        )
    block = tower.blocks[0]
    assert isinstance(block, Block)
    heads, hidden = block.attention.heads, block.fc1.out_features
    config = {
        "context_length": tower.context_length,
        "vocab_size": tower.token_embedding.num_embeddings,
        "width": tower.width,
        "heads": heads,
        "layers": len(tower.blocks),
        "mlp_ratio": openai.mlp_ratio(tower.width, hidden),
        "embed_cls": isinstance(tower, CocaText),
        "no_causal_mask": not is_causal,
        "pad_id": 0,
        "proj_bias": model.text_projection_bias is not None,
        "act_kwargs": activation_arguments(block.activation),
        "norm_kwargs": {"eps": block.ln_1.eps},
        **pooling(rule),
    }
    weights = rename({n: w for n, w in model.state_dict().items() if n.startswith("text_tower.")}, _NAMES)
    if model.text_projection_bias is None:
        weights["text_projection"] = model.text_projection.detach()
    else:
        weights["text_projection.weight"] = model.text_projection.detach().T
        weights["text_projection.bias"] = model.text_projection_bias.detach()
    return TextPart(config, weights, block.activation, isinstance(tower, CocaText))


def pooling(rule: Pooled) -> dict[str, Any]:
    """Return the settings of the pooled position."""
    return {"pool_type": POOL_TYPES[rule.position]} | ({} if rule.end is None else {"eos_id": rule.end})
