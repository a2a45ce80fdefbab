"""Compare what a form's own library computes of an exported folder with what OpenSLIP computes of the model."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import UserError
from openslip.export import forms
from openslip.export.card import CROP
from openslip.export.card_code import LOADING
from openslip.export.inputs import CAPTIONS, ENDS, draw_images, to_arrays
from openslip.inference.bundle import Bundle, evaluating
from openslip.models.text_encoder import TextEncoder
from openslip.terminal import notice
from openslip.text.bare_ids import BareIds

LIMIT = 1e-4  # of each difference, in float32
# In float64: an epsilon of 1e-6 instead of 1e-5, or an approximated GELU, may change features by less than 1e-5.
LIMIT_64 = 1e-8
TENSORS = {"pixels", "ids", "lengths"}
LIBRARIES = {  # of the fresh process: nothing is downloaded, and a GPU would round otherwise
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "CUDA_VISIBLE_DEVICES": "",
}


def compare(bundle: Bundle, folder: Path, form: str, allow: Collection[str] = ()) -> dict[str, float]:
    """Return the largest difference of each quantity that the form's library and OpenSLIP compute.

    Compared are the prepared pixels, the token ids that the model reads (their number that differs), the features at
    unit length (in float32, and in float64 if the library can), exp(logit_scale) (relatively) and logit_bias. `crop` is
    how far features of images are from ours that the form crops elsewhere; the rest is compared on equal crops.

    Args:
        bundle: the exported model.
        folder: the exported folder.
        form: name of the form.
        allow: import paths of your own classes that the folder may name.

    Raises:
        UserError: the library cannot load the folder, or a difference is above the limit.
    """
    define = getattr(forms.load(form), "transform", None)  # optional
    crop = None
    if define is not None:
        bundle, crop = redefined(bundle, define(bundle), form)
    ours = expected(bundle)
    theirs = read_back(folder, form, ours, allow)
    if any(name.endswith("_64") for name in theirs):
        ours |= in_float64(bundle, ours)
    needed = [*theirs, *(name for name in required(ours, form) if name not in theirs)]
    deviations = {name: deviation(name, theirs.get(name), ours) for name in needed}
    wrong = {name: value for name, value in deviations.items() if not value <= limit(name)}
    if wrong:
        listed = ", ".join(f"{name} by {value:.1e} (limit {limit(name):.0e})" for name, value in wrong.items())
        raise UserError(f"--to {form}: the exported model differs from ours in {listed}: it is removed")
    return deviations | ({} if crop is None else {CROP: crop})


def required(ours: dict[str, np.ndarray], form: str) -> list[str]:
    """Return the names of what a form must return of what OpenSLIP computes."""
    names = {"pixels", "image_features", "image_features_64"}
    if LOADING[form].has_texts:
        names |= {"text_features", "text_features_64", "logit_scale", "logit_bias"}
        names |= {"ids"} if "captions" in ours else set()
    return [name for name in ours if name in names]


def limit(name: str) -> float:
    """Return the largest difference of a quantity that is allowed; no id may differ."""
    return 0 if name == "ids" else LIMIT_64 if name.endswith("_64") else LIMIT


def expected(bundle: Bundle) -> dict[str, np.ndarray]:
    """Return the inputs of the check, and what OpenSLIP computes of them."""
    arrays: dict[str, np.ndarray] = {}
    with evaluating(bundle.model, bundle.device):
        if not isinstance(bundle.model, TextEncoder):
            images = draw_images()
            pixels = torch.stack([bundle.transform(image) for image in images])
            image_features = bundle.unit(bundle.model.encode_image(pixels), "image")
            arrays |= to_arrays(images) | {"pixels": pixels.numpy(), "image_features": image_features.numpy()}
        if bundle.tokenizer is not None:
            if isinstance(bundle.tokenizer, BareIds):
                ids = draw_ids(bundle.tokenizer)
                lengths = bundle.tokenizer.lengths(ids)
            else:
                captions = [*CAPTIONS, *ENDS]
                ids, lengths = bundle.tokenizer.encode(captions)
                arrays["captions"] = np.array(captions)
            encoded = bundle.model.encode_text(ids[: len(CAPTIONS)], lengths[: len(CAPTIONS)])
            text_features = bundle.unit(encoded, "text")
            arrays |= {"ids": ids.numpy(), "lengths": lengths.numpy(), "text_features": text_features.numpy()}
    arrays |= {f"{tower}_norm_eps": np.array(norm_eps(bundle.model, tower)) for tower in ("image", "text")}
    scale, bias = (getattr(bundle.model, name, None) for name in ("logit_scale", "logit_bias"))
    if scale is not None:
        arrays["logit_scale"] = scale.detach().exp().double().numpy()
    if bias is not None:
        arrays["logit_bias"] = bias.detach().double().numpy()
    return arrays


def norm_eps(model: nn.Module, tower: str) -> list[float]:
    """List the different epsilons of a tower's norms."""
    layers = getattr(model, f"{tower}_tower", model).modules()
    found = {getattr(layer, "eps", None) for layer in layers}
    return sorted(eps for eps in found if isinstance(eps, float))


def in_float64(bundle: Bundle, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the features in float64 of the pixels and ids in `arrays`."""
    model = deepcopy(bundle.model).double()
    given = {name: torch.from_numpy(arrays[name]) for name in TENSORS & arrays.keys()}
    with evaluating(model, bundle.device):
        features = {}
        if "pixels" in given:
            features["image"] = model.encode_image(given["pixels"].double())
        if "ids" in given:
            features["text"] = model.encode_text(*(given[name][: len(CAPTIONS)] for name in ("ids", "lengths")))
    return {f"{tower}_features_64": bundle.unit(values, tower).numpy() for tower, values in features.items()}


def redefined(bundle: Bundle, transform: EvalTransform, form: str) -> tuple[Bundle, float | None]:
    """Return the bundle with the transform that a form defines, and how far features of its images are from ours.

    A notice says so too; it is None if all pixels are equal.
    """
    defined = replace(bundle, transform=transform)
    before, after = (torch.stack([each.transform(image) for image in draw_images()]) for each in (bundle, defined))
    rows = (before != after).flatten(1).any(dim=1)
    if not rows.any():
        return defined, None
    with evaluating(bundle.model, bundle.device):
        ours, theirs = (bundle.unit(bundle.model.encode_image(pixels[rows]), "image") for pixels in (before, after))
    change = float((ours - theirs).abs().max())
    notice(
        f"--to {form} crops {int(rows.sum())} of {len(rows)} images one pixel elsewhere than OpenSLIP, which "
        f"changes their features by up to {change:.1e} (docs/NUMERICS.md#export-crop)"
    )
    return defined, change


def draw_ids(tokenizer: BareIds) -> torch.Tensor:
    """Draw rows of ids for a model whose vocabulary is unknown; each row holds the end token once, if there is one."""
    end = tokenizer.vocab_size - 1 if tokenizer.end is None else tokenizer.end
    shape = len(CAPTIONS), tokenizer.context_length
    ids = torch.randint(0, tokenizer.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    ids[ids == end] = (end + 1) % tokenizer.vocab_size
    rows = torch.arange(len(ids))
    places = 1 + rows % (tokenizer.context_length - 1)
    ids[rows, places] = end
    if tokenizer.pooled != "last":
        ids[torch.arange(tokenizer.context_length) > places[:, None]] = 0  # padding, which CoCa tells by its id
    return ids


def read_back(
    folder: Path, form: str, inputs: dict[str, np.ndarray], allow: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Load a folder with the form's library in a fresh process, and return what it computes.

    Raises:
        UserError: the process fails or is killed.
    """
    with tempfile.TemporaryDirectory() as place:
        given, result = Path(place, "inputs.npz"), Path(place, "outputs.npz")
        kept = ("image_0", "pixels", "captions", "ids")
        np.savez(given, allow_pickle=False, **{name: inputs[name] for name in inputs if name.startswith(kept)})
        command = [sys.executable, "-P", "-m", "openslip.export.read_back", form, str(folder), str(given), str(result)]
        # Your own classes are imported as here; -P alone leaves out the folder in which the command was started.
        environment = os.environ | LIBRARIES | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
        process = subprocess.run([*command, *allow], env=environment, capture_output=True, text=True, errors="replace")
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            raise UserError(
                f"--to {form}: the process of the check was ended by {name}, usually because the memory did not "
                "suffice: export on a machine with more, or leave the check out with --no-check"
            )
        if process.returncode:
            lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
            raise UserError(f"--to {form}: its library cannot load the exported folder ({lines[-1][:300]})")
        with np.load(result, allow_pickle=False) as file:
            return dict(file)


def deviation(name: str, theirs: np.ndarray | None, ours: dict[str, np.ndarray]) -> float:
    """Return the largest difference of a quantity, or the number of ids that differ.

    It is infinite if the form does not have the quantity, or if shapes differ.
    """
    if theirs is None:
        return float("inf")
    if name.endswith("_lengths"):
        return float(np.abs(theirs - 1).max())
    if name.endswith("_norm_eps"):  # each must be one of ours; batch norms may have become part of convolutions
        return float(np.abs(theirs[:, None] / ours[name] - 1).min(axis=1, initial=np.inf).max(initial=0))
    if name == "ids":
        lengths = ours["lengths"]
        if len(theirs) != len(lengths) or theirs.shape[1] < lengths.max():
            return float("inf")
        read = np.arange(lengths.max()) < lengths[:, None]
        return float((theirs[:, : lengths.max()] != ours["ids"][:, : lengths.max()])[read].sum())
    if name not in ours or theirs.shape != ours[name].shape:
        return float("inf")
    values = theirs.astype(np.float64)
    if "_features" in name:
        # As F.normalize: the feature of a text without any known word is zero.
        values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    difference = float(np.abs(values - ours[name]).max())
    return difference / float(ours[name]) if name == "logit_scale" else difference
