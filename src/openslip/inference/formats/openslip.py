"""OpenSLIP's own format: a run's Lightning checkpoints, and stripped files that contain only what inference needs.

Both kinds of files have an entry `openslip`. It holds `format`, `architecture` (the model's config), `tokenizer` and
`transform` (their constructor arguments). In a run's checkpoint, it also holds `step`. It usually holds `provenance`,
the content of the run's `env.json`.
"""

import json
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openslip.data.image.eval_transform import LARGEST, EvalTransform
from openslip.errors import UserError
from openslip.inference.architecture import build_tokenizer, build_with
from openslip.inference.bundle import Bundle
from openslip.inference.choices import Choices
from openslip.inference.files import peek, unwrapped, unwrapped_weights
from openslip.inference.files import write as write_file
from openslip.inference.stated import refuse_other
from openslip.text.tokenizer import Tokenizer

FORMAT = 2  # in format 1, the tokenizer's entry had no _target_, because CLIP's was the only tokenizer
IN_FOLDER = "model.safetensors"  # the stripped file in a folder that `openslip export` wrote
ENTRIES = ("format", "architecture", "tokenizer", "transform")


def detect(path: Path) -> bool:
    """Tell whether the file, or the file of a folder, has an entry `openslip`."""
    return "openslip" in peek(file_of(path))


def file_of(path: Path) -> Path:
    """Return the file itself, or the file of a folder that `openslip export` wrote."""
    return path / IN_FOLDER if (path / IN_FOLDER).is_file() else path


def read(path: Path, choices: Choices) -> Bundle:
    """Read the model of a checkpoint; if it has EMA weights, they replace the trained weights.

    Args:
        path: the checkpoint file, or an exported folder.
        choices: your own classes that the checkpoint may name; the file answers everything else, so other choices must
            agree with it.
    """
    path = file_of(path)
    content = peek(path)
    entry, state = content["openslip"], content.get("state_dict")
    if not isinstance(entry, dict):
        raise UserError(f"checkpoint {path}: its `openslip` entry is a {type(entry).__name__}; expected a dict")
    if missing := [name for name in ENTRIES if name not in entry]:
        raise UserError(f"checkpoint {path}: its `openslip` entry lacks {', '.join(missing)}")
    if not isinstance(entry["format"], int | str | None):
        raise UserError(f"checkpoint {path}: its format is a {type(entry['format']).__name__}; expected a number")
    if entry["format"] not in range(1, FORMAT + 1):
        raise UserError(
            f"checkpoint {path} has format {str(entry['format'])[:20]}, and this version reads 1 to {FORMAT}: "
            "pip install -U openslip"
        )
    description = entry["tokenizer"]
    if entry["format"] == 1 and isinstance(description, dict):
        description = {"_target_": "openslip.text.clip_bpe.ClipBpe", **description}
    weights = model_weights(path, state)
    transform = build_transform(path, entry["transform"])
    model = build_with(weights, entry["architecture"], choices.allow)
    refuse_other(choices, model)
    tokenizer = build_tokenizer(description, choices.allow)
    provenance = plain(path, entry.get("provenance", {}))  # missing in files of early versions
    return Bundle(model, tokenizer, transform, entry["architecture"], torch.device("cpu"), provenance=provenance)


def model_weights(path: Path, state: Any) -> dict[str, Tensor]:
    """Select the model's weights from a `state_dict`: the EMA weights if there are any."""
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path}: its `state_dict` is a {type(state).__name__}; expected a dict of tensors")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            key = name[:120] if isinstance(name, str) else reprlib.repr(name)
            what = f"{key}, an entry from {type(name).__name__} to {type(value).__name__}"
            raise UserError(f"checkpoint {path}: `state_dict` holds {what}; expected entries from str to Tensor")
    state = unwrapped_weights(state)
    kind = "averaged." if any(name.startswith("averaged.") for name in state) else "model."
    return {name.removeprefix(kind): tensor for name, tensor in state.items() if name.startswith(kind)}


def build_transform(path: Path, settings: Any) -> EvalTransform:
    """Build the transform, and refuse invalid settings: a NaN in the settings would make every feature NaN."""
    try:
        size, mean, std = (settings[name] for name in ("size", "mean", "std"))
        finite = len(mean) == len(std) == 3 and all(map(math.isfinite, (*mean, *std)))
        sides = (size, settings.get("resize_to") or size)
        if all(isinstance(side, int) and 0 < side <= LARGEST for side in sides) and finite and min(std) > 0:
            return EvalTransform(**settings)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError):
        pass  # the error below is raised
    raise UserError(
        f"checkpoint {path}: its `transform` is {reprlib.repr(settings)}; "
        "expected size, and mean and std of three channels"
    )


def plain(path: Path, provenance: Any) -> dict[str, Any]:
    """Return the provenance of a checkpoint, or refuse what JSON cannot hold."""
    try:
        json.dumps(provenance)
        if isinstance(provenance, dict):
            return provenance
    except (TypeError, ValueError):
        pass  # the error below is raised
    raise UserError(
        f"checkpoint {path}: its `provenance` is {reprlib.repr(provenance)}; expected a dict of plain values"
    )


def objective_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights of the objective that a checkpoint holds, such as SLIP's SSL head, by their names in it."""
    state = peek(file_of(path)).get("state_dict")
    weights = state.items() if isinstance(state, dict) else ()
    named = ((unwrapped(str(name)), tensor) for name, tensor in weights if isinstance(tensor, Tensor))
    return {name: tensor for name, tensor in named if name.startswith("objective.")}


def write(
    bundle: Bundle, path: Path, dtype: torch.dtype = torch.float32, objective: Mapping[str, Tensor] | None = None
) -> None:
    """Write a stripped checkpoint: weights, the settings that inference needs, and the provenance.

    Args:
        bundle: what to write.
        path: the file to write; the ending .safetensors selects that format.
        dtype: dtype of the stored weights; single values, such as `logit_scale`, are always float32.
        objective: weights of the objective, each with a name that starts with `objective.`.

    Raises:
        UserError: a weight overflows `dtype`, or the file cannot be written.
    """
    weights = {f"model.{name}": tensor for name, tensor in bundle.model.state_dict().items()} | dict(objective or {})
    weights = {name: stored(name, tensor.detach().cpu(), dtype) for name, tensor in weights.items()}
    entry = describe(bundle.architecture, bundle.tokenizer, bundle.transform)
    if bundle.provenance:
        entry["provenance"] = bundle.provenance
    write_file(path, {"openslip": entry, "state_dict": weights})


def stored(name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight as it is stored; integers stay what they are."""
    if not weight.is_floating_point():
        return weight
    converted = weight.to(dtype if weight.ndim else torch.float32)
    if dtype == torch.float16 and not torch.equal(converted.isfinite(), weight.isfinite()):
        raise UserError(
            f"weight {name} has values up to {weight.abs().max():.3g}, and float16 ends at 65504: "
            "use --dtype bfloat16 or float32"
        )
    return converted


def describe(architecture: dict[str, Any], tokenizer: Tokenizer | None, transform: EvalTransform) -> dict[str, Any]:
    """Return the entry `openslip`: plain fields from which `read` rebuilds model, tokenizer and transform."""
    target = tokenizer and f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
    return {
        "format": FORMAT,
        "architecture": architecture,
        "tokenizer": tokenizer and {"_target_": target, **tokenizer.settings()},
        "transform": transform.settings(),
    }
