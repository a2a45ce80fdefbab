"""Compares zero-shot classification and the evaluation transform with recordings."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openslip.data.image.eval_transform import EvalTransform
from openslip.inference.formats import slip
from openslip.inference.prompts import class_embeddings
from openslip.models.dual_encoder import DualEncoder
from openslip.objectives.similarity import unit_length
from openslip.verify.deviation import TOLERANCES, Arrays, Part, Row, Trio, relative, worst
from openslip.verify.files import is_recorded, read_arrays
from openslip.verify.recording import DTYPES, Run, as_array, build, precision, read_run


def zero_shot_rows(folder: Path, device: str, dtype: str) -> list[Row]:
    """Compare class embeddings, cosines and probabilities of the run `clip` after its last step."""
    recorded = read_arrays(folder / "zero_shot.npz")
    tolerances = TOLERANCES[dtype]
    rows = [_transform_row(recorded, tolerances.output if dtype == "float32" else TOLERANCES["float32"].output)]
    if "text" not in recorded or not is_recorded(folder / "clip.npz"):
        return [Row.skipped("zero-shot", "no text in zero_shot.npz, or no clip.npz"), *rows]
    run = read_run(folder, "clip")
    on_cpu = {other: _classify(run, recorded, "cpu", other) for other in ("float32", "float64")}
    ours = on_cpu.get(dtype) if device == "cpu" else None
    trio = Trio(ours or _classify(run, recorded, device, dtype), on_cpu["float32"], on_cpu["float64"])
    for key in trio.ours.keys() & recorded:
        noise = relative(trio.single[key], trio.exact[key])
        part = Part("", relative(trio.ours[key], recorded[key]), tolerances.allow(tolerances.output, noise))
        rows.append(worst(f"zero-shot: {key.replace('_', ' ')}", [part]))
    return sorted(rows, key=lambda row: row.quantity)


@torch.no_grad()
def _classify(run: Run, recorded: Arrays, device: str, dtype: str) -> Arrays:
    model, _ = build(run, run.group("final/"), gather_with_grad=True)
    assert isinstance(model, DualEncoder)
    model.to(device, DTYPES[dtype]).eval()
    text = torch.from_numpy(recorded["text"])
    num_classes, num_templates = text.shape[:2]

    def encode_text(prompts: list[str]) -> Tensor:
        ids = torch.stack([text[tuple(map(int, prompt.split("/")))] for prompt in prompts])
        lengths = ids.argmax(dim=1) + 1  # the published code pools the largest id
        return unit_length(model.encode_text(ids.to(device), lengths))

    with precision(device, dtype):
        names, templates = (list(map(str, range(count))) for count in (num_classes, num_templates))
        classes = class_embeddings(encode_text, names, [f"{{}}/{template}" for template in templates])
        images = model.encode_image(torch.from_numpy(recorded["images"]).to(device, DTYPES[dtype]))
    logits = unit_length(images).double() @ classes.double().T
    probabilities = (model.logit_scale.double().exp() * logits).softmax(dim=-1)
    results = {"class_embeddings": classes, "logits": logits, "probabilities": probabilities}
    return {key: as_array(value) for key, value in results.items()}


def _transform_row(recorded: Arrays, tolerance: float) -> Row:
    y, x = np.mgrid[0:301, 0:402].astype(np.float64)  # the image that the README of the recordings describes
    red, green = x * 255 / 401, y * 255 / 300
    blue = 127 + 127 * np.sin(x / 9) * np.cos(y / 7)
    image = Image.fromarray(np.stack([red, green, blue], axis=-1).round().astype(np.uint8))
    pixels = as_array(EvalTransform(**slip.PUBLISHED_TRANSFORM)(image))
    ours = {
        "eval_transform_mean": pixels.mean(axis=(1, 2)),
        "eval_transform_std": pixels.std(axis=(1, 2), ddof=1),
        "eval_transform_rows": pixels[:, ::37, ::29],
    }
    parts = [Part(key, relative(array, recorded[key]), tolerance) for key, array in ours.items() if key in recorded]
    return worst("evaluation transform", parts)
