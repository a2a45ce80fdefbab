"""Our own checkpoints: Lightning's of a run, and stripped files with the model's weights alone.

Both hold an entry `openslip`: `format`, `architecture` (the model's config), `tokenizer` and `transform` (their
constructors' arguments), and in a run's checkpoint `step`.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import UserError
from openslip.inference.architecture import build_model, build_tokenizer
from openslip.inference.bundle import Bundle
from openslip.inference.files import peek, unwrapped
from openslip.inference.files import write as write_file
from openslip.text.tokenizer import Tokenizer

FORMAT = 2  # 1: the tokenizer's entry had no _target_, since there was only CLIP's
ENTRIES = ("format", "architecture", "tokenizer", "transform")


def detect(path: Path) -> bool:
    """Whether the file has our entry."""
    return "openslip" in peek(path)


def read(path: Path, *, allow: Collection[str] = ()) -> Bundle:
    """The model of a checkpoint; its EMA weights where it has them, since training evaluated those."""
    content = peek(path)
    entry = content["openslip"]
    if missing := [name for name in ENTRIES if name not in entry]:
        raise UserError(f"checkpoint {path}: its `openslip` entry lacks {', '.join(missing)}")
    if entry["format"] not in range(1, FORMAT + 1):
        raise UserError(
            f"checkpoint {path} has format {entry['format']}, and this version reads 1 to {FORMAT}: "
            "pip install -U openslip"
        )
    description = entry["tokenizer"]
    if entry["format"] == 1 and description is not None:
        description = {"_target_": "openslip.text.clip_bpe.ClipBpe", **description}
    state = {unwrapped(str(name)): tensor for name, tensor in content.get("state_dict", {}).items()}
    kind = "averaged." if any(name.startswith("averaged.") for name in state) else "model."
    weights = {name.removeprefix(kind): tensor for name, tensor in state.items() if name.startswith(kind)}
    model = build_model(entry["architecture"], allow)
    known = model.state_dict().keys()  # a model of one's own may have a part that is named `module`
    weights = {name if name in known else unwrapped(name): tensor for name, tensor in weights.items()}
    try:
        model.load_state_dict(weights)
        tokenizer, transform = build_tokenizer(description, allow), EvalTransform(**entry["transform"])
    except (RuntimeError, TypeError) as error:
        what = " ".join(str(error).split())[:200]
        raise UserError(f"checkpoint {path}: its weights or settings do not fit its architecture ({what})") from error
    return Bundle(model, tokenizer, transform, entry["architecture"], torch.device("cpu"))


def write(bundle: Bundle, path: Path) -> None:
    """A stripped file: float32 weights and what inference needs beside them."""
    weights = {f"model.{name}": tensor.detach().cpu().float() for name, tensor in bundle.model.state_dict().items()}
    entry = describe(bundle.architecture, bundle.tokenizer, bundle.transform)
    write_file(path, {"openslip": entry, "state_dict": weights})


def describe(architecture: dict[str, Any], tokenizer: Tokenizer | None, transform: EvalTransform) -> dict[str, Any]:
    """The entry `openslip`: plain fields from which `read` builds everything again."""
    target = tokenizer and f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
    return {
        "format": FORMAT,
        "architecture": architecture,
        "tokenizer": tokenizer and {"_target_": target, **tokenizer.settings()},
        "transform": transform.settings(),
    }
