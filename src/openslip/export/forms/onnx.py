"""ONNX graphs of both towers, `image.onnx` and `text.onnx`, with `preprocessing.json` and `tokenizer.json`.

Both graphs take batches of any size and return float32 features of length 1. `image.onnx` takes `pixels`
[batch, 3, size, size], and `text.onnx` takes `ids` [batch, context]: rows of int64 as `tokenizer.json` pads them.
"""

import json
import logging
import math
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from openslip.errors import UserError
from openslip.export.onnx_towers import ImageGraph, TextGraph
from openslip.export.packages import Packages
from openslip.export.read import Read
from openslip.export.tokenizer_files import write_tokenizer
from openslip.export.towers import dual_encoder, pooled
from openslip.inference.bundle import Bundle, evaluating
from openslip.models.text_encoder import TextEncoder
from openslip.text.bare_ids import BareIds
from openslip.text.clip_bpe import ClipBpe
from openslip.text.sentencepiece_model import SentencePieceModel
from openslip.text.tokenizer import Tokenizer

NEEDS = Packages(("onnx", "onnxscript", "onnxruntime", "tokenizers"), "onnx")
WRITE_NEEDS = Packages(("onnx", "onnxscript"), "onnx")
IMAGE, TEXT, SETTINGS, VOCABULARY = "image.onnx", "text.onnx", "preprocessing.json", "tokenizer.json"
LARGEST = 2_000_000_000  # bytes of weights in one file of ONNX; more are written to a file beside it
NORMS = {f"{kind}Normalization" for kind in ("Batch", "Group", "Instance", "Layer", "RMS")}
DEFAULT_EPS = 1e-5  # of these operators in ONNX
TRACED = 2  # samples in the batch from which the graph is made


def write(bundle: Bundle, folder: Path) -> None:
    """Write the graphs, and what prepares their inputs.

    Raises:
        UserError: the model has no image tower, or a text tower or vocabulary that has no such form.
    """
    if isinstance(bundle.model, TextEncoder):
        raise UserError("--to onnx: expected a model with an image tower, and this one has none; use --to safetensors")
    settings: dict[str, Any] = {"image": bundle.transform.settings() | explicit(bundle)}
    size = bundle.transform.size
    with evaluating(bundle.model, bundle.device):
        if bundle.tokenizer is not None:
            model, rule = dual_encoder(bundle, "onnx"), pooled(bundle.tokenizer, "onnx")
            write_vocabulary(bundle.tokenizer, folder)
            length = bundle.tokenizer.context_length
            ids = torch.ones(TRACED, length, dtype=torch.int64)
            write_graph(TextGraph(model, rule), "ids", ids, folder / TEXT)
            settings["text"] = {"context_length": length, "pooled": rule.position, "end": rule.end}
        write_graph(ImageGraph(bundle.model), "pixels", torch.zeros(TRACED, 3, size, size), folder / IMAGE)
    for name in ("logit_scale", "logit_bias"):
        value = getattr(bundle.model, name, None)
        if value is not None:
            settings[name] = float(value.detach().exp() if name == "logit_scale" else value.detach())
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def explicit(bundle: Bundle) -> dict[str, Any]:
    """Return the settings of the transform that are left out of its own if they are its defaults."""
    transform = bundle.transform
    names = ("interpolation", "resize", "resize_to", "crop")
    return {name: getattr(transform, name) for name in names}


def write_vocabulary(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a `tokenizer.json` that also truncates and pads, so that it makes whole rows; none for bare ids.

    Raises:
        UserError: the vocabulary has no such form.
    """
    if isinstance(tokenizer, SentencePieceModel):
        raise UserError(
            "--to onnx: a spiece.model is no vocabulary of the library tokenizers; use --to huggingface, or load the "
            "model from a folder with a tokenizer.json"
        )
    write_tokenizer(tokenizer, folder, "onnx")
    if isinstance(tokenizer, BareIds):
        return
    (folder / "tokenizer_config.json").unlink()  # of transformers
    content = json.loads((folder / VOCABULARY).read_text("utf-8"))
    # The library adds no end token to an empty text if the tokenizer drops ends; this padding is one.
    drops_end = isinstance(tokenizer, ClipBpe) and tokenizer.truncation == "drop_end"
    length = tokenizer.context_length
    content["truncation"] = {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": length},
        "direction": tokenizer.settings().get("pad_side", "right").capitalize(),
        "pad_to_multiple_of": None,
        "pad_id": tokenizer.special_ids["end" if drops_end else "pad"],
        "pad_type_id": 0,
        "pad_token": "",
    }
    (folder / VOCABULARY).write_text(json.dumps(content, ensure_ascii=False), "utf-8")


def write_graph(graph: nn.Module, name: str, example: Tensor, path: Path) -> None:
    """Write a graph with a batch of any size.

    Args:
        graph: module of one tensor.
        name: name of the input.
        example: input from which the graph is made.
        path: the file to write.
    """
    batch = torch.export.Dim("batch")
    with quiet_exporter():
        program: Any = torch.onnx.export(
            graph.eval(),
            (example,),
            input_names=[name],
            output_names=["features"],
            dynamic_shapes=({0: batch},),
            dynamo=True,
            verbose=False,
        )
    contents = program.model.graph
    for part in (contents, *contents.all_nodes()):
        part.metadata_props.clear()  # stack traces, which name folders of this machine
    num_bytes = sum(weight.const_value.nbytes for weight in contents.initializers.values())
    program.save(path, external_data=num_bytes > LARGEST)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Hide what the exporter warns of its own parts."""
    log = logging.getLogger("onnxscript")
    level = log.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            log.setLevel(logging.ERROR)
            yield
    finally:
        log.setLevel(level)


def read(folder: Path, allow: Collection[str] = ()) -> Read:
    """Load the folder with onnxruntime, tokenizers and Pillow."""
    settings = json.loads((folder / SETTINGS).read_text("utf-8"))
    image = settings["image"]

    def pixels(images: list[Image.Image]) -> np.ndarray:
        return np.stack([prepare(each, image) for each in images])

    has_text, has_vocabulary = (folder / TEXT).exists(), (folder / VOCABULARY).exists()
    return Read(
        pixels=pixels,
        image_features=runner(folder / IMAGE),
        ids=tokenize(folder / VOCABULARY) if has_vocabulary else None,
        text_features=runner(folder / TEXT) if has_text else None,
        logit_scale=settings.get("logit_scale"),
        logit_bias=settings.get("logit_bias"),
        is_unit=True,
        norm_eps={
            tower: norm_eps(folder / file)
            for tower, file in (("image", IMAGE), ("text", TEXT))
            if (folder / file).exists()
        },
    )


def norm_eps(path: Path) -> list[float]:
    """List the different epsilons of the norms in a graph."""
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    norms = [{part.name: part.f for part in node.attribute} for node in nodes if node.op_type in NORMS]
    return sorted({norm.get("epsilon", DEFAULT_EPS) for norm in norms})


def runner(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that a graph computes, in batches of several sizes to see that any size works."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(inputs: np.ndarray) -> np.ndarray:
        parts = (part for part in (inputs[:1], inputs[1:4], inputs[4:]) if len(part))
        return np.concatenate([np.asarray(session.run(None, {name: part})[0]) for part in parts])

    return run


def tokenize(path: Path) -> Callable[[list[str]], np.ndarray]:
    """Return the tokenizer of a `tokenizer.json` that pads."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    return lambda texts: np.array([row.ids for row in tokenizer.encode_batch(texts)], np.int64)


def prepare(image: Image.Image, settings: dict[str, Any]) -> np.ndarray:
    """Prepare an opaque image as `preprocessing.json` says, with Pillow and numpy."""
    size, image = settings["size"], image.convert("RGB")
    kernel = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[settings["interpolation"]]
    width, height = image.size
    if settings["resize"] == "squash":
        image = image.resize((size, size), kernel)
    elif settings["resize"] == "longest":
        factor = max(width, height) / size
        new = max(1, round(width / factor)), max(1, round(height / factor))
        ground = Image.new("RGB", (size, size))
        ground.paste(image.resize(new, kernel), ((size - new[0]) // 2, (size - new[1]) // 2))
        image = ground
    else:
        to, short = settings["resize_to"] or size, min(width, height)
        new = int(to * width / short), int(to * height / short)
        half: Any = {"round": round, "floor": math.floor}[settings["crop"]]
        left, top = half((new[0] - size) / 2), half((new[1] - size) / 2)
        image = image.resize(new, kernel).crop((left, top, left + size, top + size))
    values = np.asarray(image, np.float32) / 255
    values = (values - np.array(settings["mean"], np.float32)) / np.array(settings["std"], np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1))
