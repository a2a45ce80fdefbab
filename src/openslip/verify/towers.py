"""Compares checkpoints of other libraries, loaded with our readers, with the outputs that each library recorded.

A folder holds, for each NAME, the checkpoint `NAME.safetensors`, `NAME.pt`, `NAME.pth.tar` or `NAME.npz`, the library's
configuration in `NAME.json`, and in `NAME_io.npz` the inputs and outputs. A checkpoint `NAME_x.pt` without recordings of
its own, such as the same weights in another container, has the outputs of NAME.
"""

import io
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openslip.errors import UserError, first_line
from openslip.inference.bundle import Bundle
from openslip.inference.load import load
from openslip.verify.deviation import TOLERANCES, Arrays, Row
from openslip.verify.files import read_arrays, read_json
from openslip.verify.recording import DTYPES, as_array, precision

RECORDED = "_io.npz"
CHECKPOINTS = (".safetensors", ".pt", ".pth", ".pth.tar", ".ckpt", ".bin", ".npz")
INPUTS = ("images", "text")

_CAPTIONS = "our readers keep the contrastive part of CoCa, without the captioning decoder"
# Why an array is not compared.
NOT_COMPARED = {
    "attention_mask": "an input that our text towers do not need: the ids say their lengths",
    "caption_labels": _CAPTIONS,
    "caption_logits": _CAPTIONS,
    "caption_logits_full": _CAPTIONS,
    "caption_loss": _CAPTIONS,
    "contrastive_loss": "a training loss of the library; the logits are compared where they are recorded",
    "image_tokens": _CAPTIONS,
    "ssl_features": "our readers drop the SSL head, which inference does not need",
}
UNKNOWN = "openslip verify knows no quantity of this name"

# Names of numbers of heads in the configurations of the libraries whose checkpoints are single files.
_IMAGE_HEADS = ("vision_heads", "image_heads", "vh", "heads")
_TEXT_HEADS = ("transformer_heads", "text_heads", "th", "heads")


@dataclass(frozen=True)
class Outputs:
    """What our model computes from the recorded inputs; each output is computed when it is first asked for."""

    bundle: Bundle
    inputs: dict[str, Tensor]

    @cached_property
    def image_trunk(self) -> Tensor:
        return self.bundle.model.image_tower(self.inputs["images"])

    @cached_property
    def image(self) -> Tensor:
        return self.bundle.model.encode_image(self.inputs["images"])

    @cached_property
    def text(self) -> Tensor:
        ids = self.inputs["text"]
        lengths = self.bundle.need_tokenizer().lengths(ids.cpu())
        return self.bundle.model.encode_text(ids, lengths)

    @property
    def scale(self) -> Tensor:
        return self.bundle.model.logit_scale.exp()

    @property
    def bias(self) -> Tensor:
        if self.bundle.model.logit_bias is None:
            raise UserError("our model has no logit bias")
        return self.bundle.model.logit_bias

    @cached_property
    def logits(self) -> Tensor:
        logits = self.scale * F.normalize(self.image, dim=-1) @ F.normalize(self.text, dim=-1).T
        return logits if self.bundle.model.logit_bias is None else logits + self.bias


# What is compared with a recorded array of this name.
QUANTITIES: dict[str, Callable[[Outputs], Tensor]] = {
    "image_trunk": lambda ours: ours.image_trunk,
    "image_features": lambda ours: ours.image,
    "image_features_normalized": lambda ours: F.normalize(ours.image, dim=-1),
    "text_features": lambda ours: ours.text,
    "text_features_normalized": lambda ours: F.normalize(ours.text, dim=-1),
    "text_features_full": lambda ours: F.normalize(ours.text, dim=-1),  # CoCa's whole output, which is normalised
    "logits": lambda ours: ours.logits,
    "logits_per_image": lambda ours: ours.logits,
    "logits_per_text": lambda ours: ours.logits.T,
    "logit_scale_exp": lambda ours: ours.scale,
    "logit_bias": lambda ours: ours.bias,
}


def holds_towers(folder: Path) -> bool:
    """Whether a folder has recorded outputs of any checkpoint."""
    return any(folder.glob(f"*{RECORDED}"))


def tower_rows(folder: Path, device: str, dtype: str) -> list[Row]:
    """Return a row for each checkpoint and recorded quantity, and one for each file that cannot be read."""
    names = sorted(path.name.removesuffix(RECORDED) for path in folder.glob(f"*{RECORDED}"))
    rows, compared = [], set()
    for file in sorted(folder.iterdir()):
        suffix = suffix_of(file)
        if suffix is None or file.name.endswith(RECORDED):
            continue
        if (name := recorded_name(file.name.removesuffix(suffix), names)) is None:
            rows.append(Row.skipped(file.name, "no recorded outputs of this name"))
            continue
        compared.add(name)
        try:
            rows += compare_file(file, suffix, folder, name, device, dtype)
        except Exception as error:  # the other files are compared all the same
            rows.append(failure(file.name, dtype, error))
    missing = [name for name in names if name not in compared]
    return rows + [failure(name, dtype, UserError(f"no checkpoint {name}.* is beside its outputs")) for name in missing]


def suffix_of(file: Path) -> str | None:
    """Return the suffix of a checkpoint file, or None if it is none."""
    suffixes = [suffix for suffix in CHECKPOINTS if file.name.endswith(suffix) and file.is_file()]
    return max(suffixes, key=len, default=None)


def recorded_name(stem: str, names: list[str]) -> str | None:
    """Return the name of the recorded outputs of a checkpoint: its own, or the longest one that it extends."""
    return max((name for name in names if stem == name or stem.startswith(f"{name}_")), key=len, default=None)


def compare_file(file: Path, suffix: str, folder: Path, name: str, device: str, dtype: str) -> list[Row]:
    """Load one checkpoint as its user would, and compare each recorded array.

    Raises:
        UserError: the checkpoint cannot be loaded.
    """
    recorded = read_arrays(folder / f"{name}{RECORDED}")
    described = folder / f"{name}.json"
    description = read_json(described) if described.is_file() else {}
    config = description.get("config", description)
    with laid_out(file, suffix, config) as path, redirect_stderr(io.StringIO()):  # notices would name the copy
        bundle = load(path, device=device, **choices(config))
    bundle.model.to(DTYPES[dtype])
    inputs = {key: torch.from_numpy(recorded[key]).to(bundle.device) for key in INPUTS if key in recorded}
    if "images" in inputs:
        inputs["images"] = inputs["images"].to(DTYPES[dtype])
    ours = Outputs(bundle, inputs)
    with torch.no_grad(), precision(device, dtype):
        rows = [row(f"{file.name}: {key}", key, recorded, ours, dtype) for key in recorded if key not in INPUTS]
    if all(row.deviation is None for row in rows):
        raise UserError(f"{name}{RECORDED} holds nothing that could be compared")
    return rows


@contextmanager
def laid_out(file: Path, suffix: str, config: dict[str, Any]) -> Iterator[Path]:
    """Yield the path to load: the file, or a temporary folder of the form in which its library stores a model."""
    names = None
    if suffix == ".safetensors" and "vision_cfg" in config:
        names = "open_clip_config.json", "open_clip_model.safetensors"
        stated = {"model_cfg": config, "preprocess_cfg": {}}
    elif suffix == ".safetensors" and "model_type" in config:
        names = "config.json", "model.safetensors"
        stated = config
    if names is None:
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="openslip-verify-") as folder:
        path = Path(folder)
        (path / names[0]).write_text(json.dumps(stated))
        shutil.copyfile(file, path / names[1])
        yield path


def choices(config: dict[str, Any]) -> dict[str, Any]:
    """Return what a configuration answers that a single file may leave open, as arguments of `load`."""
    stated = {**config.get("dims", {}), **config}
    numbers = {
        "image_heads": next((stated[key] for key in _IMAGE_HEADS if key in stated), None),
        "text_heads": next((stated[key] for key in _TEXT_HEADS if key in stated), None),
    }
    return {key: value for key, value in numbers.items() if value is not None}


def row(label: str, key: str, recorded: Arrays, ours: Outputs, dtype: str) -> Row:
    """Compare one recorded array."""
    if key not in QUANTITIES:
        return Row.skipped(label, NOT_COMPARED.get(key, UNKNOWN))
    try:
        value = as_array(QUANTITIES[key](ours))
    except Exception as error:  # the other quantities are compared all the same
        return failure(label, dtype, error)
    array = recorded[key]
    if value.size == array.size == 1:  # some libraries store scalars with shape [1]
        array = array.reshape(value.shape)
    note = "" if value.shape == array.shape else f"shape {[*value.shape]}; recorded {[*array.shape]}"
    return Row(label, deviation(value, array), TOLERANCES[dtype].output, note)


def deviation(ours: np.ndarray, recorded: np.ndarray) -> float:
    """Return the largest absolute difference over the largest recorded absolute value; infinite if shapes differ."""
    if ours.shape != recorded.shape:
        return math.inf
    difference = float(np.abs(ours - recorded.astype(np.float64)).max(initial=0.0))
    scale = float(np.abs(recorded).max(initial=0.0))
    if not math.isfinite(difference) or not math.isfinite(scale) or scale == 0:
        return 0.0 if difference == 0 else math.inf
    return difference / scale


def failure(label: str, dtype: str, error: Exception) -> Row:
    """Return the row of what could not be computed, which is out of tolerance."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return Row(label, math.inf, TOLERANCES[dtype].output, f"{kind}{first_line(error)}")
