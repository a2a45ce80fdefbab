"""Compares checkpoints of other libraries, loaded by our readers, with the outputs that each library recorded."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from openslip.errors import UserError, first_line
from openslip.inference.bundle import Bundle
from openslip.inference.files import read
from openslip.inference.formats import slip
from openslip.objectives.heads import projection_head
from openslip.verify.deviation import TOLERANCES, Arrays, Row
from openslip.verify.files import read_arrays
from openslip.verify.recording import DTYPES, as_array, precision
from openslip.verify.tower_files import OUTPUTS, TowerFile, outputs_in, tower_files

INPUTS = ("images", "text")
EXACT = ("float32", "float64")
_CAPTIONS = "our readers keep the contrastive part of CoCa, without the captioning decoder"
# Why an array is not compared.
NOT_COMPARED = {
    "attention_mask": "an input that our text towers do not need: the ids say their lengths",
    "caption_labels": _CAPTIONS,
    "caption_logits": _CAPTIONS,
    "caption_logits_full": _CAPTIONS,
    "caption_loss": _CAPTIONS,
    "contrastive_loss": "a training loss, computed from the features that are compared",
    "image_tokens": _CAPTIONS,
}
UNKNOWN = "openslip verify knows no quantity of this name"


@dataclass(frozen=True)
class Outputs:
    """What our model computes from the recorded inputs; each output is computed when it is first needed."""

    bundle: Bundle
    file: Path
    inputs: dict[str, Tensor]

    @cached_property
    def trunk(self) -> Float[Tensor, "images width"]:
        return self.bundle.model.image_tower(self.inputs["images"])

    @cached_property
    def image(self) -> Float[Tensor, "images embed"]:
        return self.bundle.model.encode_image(self.inputs["images"])

    @cached_property
    def text(self) -> Float[Tensor, "texts embed"]:
        ids = self.inputs["text"]
        lengths = self.bundle.need_tokenizer().lengths(ids.cpu())
        return self.bundle.model.encode_text(ids, lengths)

    @property
    def scale(self) -> Float[Tensor, ""]:
        return self.bundle.model.logit_scale.exp()

    @property
    def bias(self) -> Float[Tensor, ""]:
        if self.bundle.model.logit_bias is None:
            raise UserError("our model has no logit bias")
        return self.bundle.model.logit_bias

    @cached_property
    def logits(self) -> Float[Tensor, "images texts"]:
        logits = self.scale * unit(self.image) @ unit(self.text).T
        return logits if self.bundle.model.logit_bias is None else logits + self.bias

    @cached_property
    def ssl(self) -> Float[Tensor, "images head_output"]:
        """Output of SLIP's SSL head, which is not in the bundle: the checkpoint initialises it for training."""
        published = slip.state_dict(read(self.file))
        head = slip.from_published({key: value for key, value in published.items() if key.startswith("image_mlp.")})
        weights = {name.removeprefix("objective.head."): tensor for name, tensor in head.items()}
        hidden, width = weights["0.weight"].shape
        module = projection_head(width, hidden, len(weights["6.weight"])).eval()
        module.load_state_dict(weights)
        return module.to(self.trunk)(self.trunk)


def unit(features: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    """Normalise rows to unit length."""
    return F.normalize(features, dim=-1)


# What is compared with a recorded array of this name.
QUANTITIES: dict[str, Callable[[Outputs], Tensor]] = {
    "image_trunk": lambda ours: ours.trunk,
    "image_features": lambda ours: ours.image,
    "image_features_normalized": lambda ours: unit(ours.image),
    "text_features": lambda ours: ours.text,
    "text_features_normalized": lambda ours: unit(ours.text),
    "text_features_full": lambda ours: unit(ours.text),  # an output of CoCa's forward pass, which normalises
    "logits": lambda ours: ours.logits,
    "logits_per_image": lambda ours: ours.logits,
    "logits_per_text": lambda ours: ours.logits.T,
    "logit_scale_exp": lambda ours: ours.scale,
    "logit_bias": lambda ours: ours.bias,
    "ssl_features": lambda ours: ours.ssl,
}


def tower_rows(folder: Path, device: str, dtype: str) -> list[Row]:
    """Return a row for each checkpoint and recorded array, and one for each file that cannot be read.

    Raises:
        UserError: the format is coarser than float32, in which logits may deviate more than a fault would change them.
    """
    if dtype not in EXACT:
        raise UserError(f"dtype={dtype!r} is too coarse to compare checkpoints of other libraries; use float32")
    rows, compared = [], set()
    for file in tower_files(folder):
        if file.outputs is None:
            rows.append(Row.skipped(file.path.name, "no recorded outputs of this name"))
            continue
        compared.add(file.outputs.name)
        try:
            rows += compare_file(file, file.outputs, device, dtype)
        except Exception as error:  # the other files are compared all the same
            rows.append(failure(file.path.name, dtype, error))
    missing = [name for name in outputs_in(folder) if f"{name}{OUTPUTS}" not in compared]
    return rows + [
        failure(name, dtype, UserError("no checkpoint of this name is beside its outputs")) for name in missing
    ]


def compare_file(file: TowerFile, outputs: Path, device: str, dtype: str) -> list[Row]:
    """Load one checkpoint and compare each recorded array.

    Raises:
        UserError: the checkpoint cannot be loaded, or nothing that is recorded can be compared.
    """
    recorded = read_arrays(outputs)
    bundle = file.load(device)
    bundle.model.to(DTYPES[dtype])
    inputs = {key: torch.from_numpy(recorded[key]).to(bundle.device) for key in INPUTS if key in recorded}
    inputs = {key: value.to(DTYPES[dtype]) if value.is_floating_point() else value for key, value in inputs.items()}
    ours = Outputs(bundle, file.path, inputs)
    with torch.no_grad(), precision(device, dtype):
        rows = [compare_array(file.path.name, key, recorded, ours, dtype) for key in recorded if key not in INPUTS]
    if all(row.deviation is None for row in rows):
        raise UserError(f"{outputs.name} holds nothing that can be compared")
    return rows


def compare_array(file: str, key: str, recorded: Arrays, ours: Outputs, dtype: str) -> Row:
    """Return the row of one recorded array."""
    label, array = f"{file}: {key}", recorded[key]
    if key not in QUANTITIES:
        return Row.skipped(label, NOT_COMPARED.get(key, UNKNOWN))
    try:
        value = as_array(QUANTITIES[key](ours))
    except Exception as error:  # the other arrays are compared all the same
        return failure(label, dtype, error)
    if value.size == array.size == 1:  # some libraries store single numbers with shape [1]
        array = array.reshape(value.shape)
    note = "" if value.shape == array.shape else f"ours has shape {[*value.shape]}, the recorded one {[*array.shape]}"
    return Row(label, deviation(value, array), TOLERANCES[dtype].output, note)


def deviation(ours: np.ndarray, recorded: np.ndarray) -> float:
    """Return the largest absolute difference over the largest recorded absolute value; infinite if shapes differ."""
    if ours.shape != recorded.shape or not (np.isfinite(ours).all() and np.isfinite(recorded).all()):
        return math.inf
    difference = float(np.abs(ours - recorded.astype(np.float64)).max(initial=0.0))
    scale = float(np.abs(recorded).max(initial=0.0))
    return difference / scale if scale else math.inf if difference else 0.0


def failure(label: str, dtype: str, error: Exception) -> Row:
    """Return the row of what cannot be computed, which is out of tolerance."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return Row(label, math.inf, TOLERANCES[dtype].output, f"{kind}{first_line(error)}")
