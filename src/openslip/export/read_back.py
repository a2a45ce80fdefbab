"""`python -m openslip.export.read_back FORM FOLDER INPUTS OUTPUTS [CLASS ...]`: what a form's library computes.

It is a process of its own, so that nothing but the files can carry the model. The classes are import paths of your own
ones, which the folder may name.
"""

import sys
from pathlib import Path

import numpy as np

from openslip.export import forms
from openslip.export.inputs import CAPTIONS, from_arrays
from openslip.export.read import Read


def main(form: str, folder: str, inputs: str, outputs: str, *allow: str) -> None:
    """Load the folder, encode the inputs, and write the outputs."""
    with np.load(inputs, allow_pickle=False) as file:
        given = dict(file)
    np.savez(outputs, allow_pickle=False, **compute(forms.load(form).read(Path(folder), allow), given))


def compute(model: Read, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the outputs: pixels, ids and features, and the temperature and bias if the form has them.

    Features in float64 (`image_features_64`, `text_features_64`) are those of the given pixels. `image_lengths` and
    `text_lengths` are the lengths of features that the form promises to be of length 1.

    Args:
        model: the exported model.
        given: images; captions, or ids for a model without a vocabulary; and `pixels` for a form without a transform.
            No images and pixels for a model that has only texts.
    """
    result: dict[str, np.ndarray] = {}
    if model.image_features is not None:
        pixels = given["pixels"]
        if model.pixels is not None:
            result["pixels"] = pixels = model.pixels(from_arrays(given))
        result["image_features"] = model.image_features(pixels)
    if model.text_features is not None:
        ids = given["ids"]
        if "captions" in given:
            if model.ids is None:
                raise ValueError("the folder has no tokenizer")
            result["ids"] = ids = model.ids(given["captions"].tolist())
        result["text_features"] = model.text_features(ids[: len(CAPTIONS)])
    if model.double is not None:
        model.double()
        if model.image_features is not None:
            result["image_features_64"] = model.image_features(given["pixels"].astype(np.float64))
        if model.text_features is not None:
            result["text_features_64"] = model.text_features(result.get("ids", given["ids"])[: len(CAPTIONS)])
    if model.is_unit:
        names = [name for name in result if name.endswith("_features")]
        lengths = {name: np.linalg.norm(result[name], axis=1) for name in names}
        result |= {name.replace("features", "lengths"): values for name, values in lengths.items()}
    result |= {f"{tower}_norm_eps": np.array(values) for tower, values in model.norm_eps.items()}
    for name in ("logit_scale", "logit_bias"):
        if (value := getattr(model, name)) is not None:
            result[name] = np.array(value)
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
