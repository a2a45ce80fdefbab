"""Tiny checkpoints in foreign formats, with the features that their own libraries computed: tests/data/towers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openslip.inference.bundle import Bundle

FOLDER = Path(__file__).parents[1] / "data/towers"
TOLERANCE = 1e-5  # of the largest value


def recorded(name: str) -> dict[str, Tensor]:
    """Return the recorded inputs and outputs of a tower."""
    with np.load(FOLDER / f"{name}_io.npz", allow_pickle=False) as arrays:
        return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}


def config(name: str) -> dict[str, Any]:
    """Return the configuration from which the library built the model."""
    return json.loads((FOLDER / f"{name}.json").read_text())["config"]


def deviations(bundle: Bundle, io: dict[str, Tensor]) -> dict[str, float]:
    """Return the largest deviation of features, logits, scale and bias, relative to the largest recorded value."""
    model = bundle.model
    found = {}
    with torch.no_grad():
        found["image_features"] = model.encode_image(io["images"])
        if bundle.tokenizer is not None and "text" in io:
            found["text_features"] = model.encode_text(io["text"], bundle.tokenizer.lengths(io["text"]))
            units = [torch.nn.functional.normalize(found[f"{kind}_features"], dim=1) for kind in ("image", "text")]
            scale, bias = bundle.scale(), getattr(model, "logit_bias", None)
            logits = scale * units[0] @ units[1].T + (0 if bias is None else bias)
            found |= {"logits_per_image": logits, "logit_scale_exp": scale}
            if bias is not None:
                found["logit_bias"] = bias.detach()
    return {
        name: float((value - io[name].reshape(value.shape)).abs().max() / io[name].abs().max())
        for name, value in found.items()
        if name in io
    }


def assert_as_recorded(bundle: Bundle, name: str, expected: set[str]) -> None:
    """Compare a bundle with the recording of this name; `expected` names the arrays that must have been compared."""
    differing = deviations(bundle, recorded(name))
    assert differing.keys() == expected
    assert max(differing.values(), default=0.0) <= TOLERANCE, differing


BOTH = {"image_features", "text_features", "logits_per_image", "logit_scale_exp"}
