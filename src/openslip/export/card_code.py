"""The code in a model card: lines that load the folder and end at the logits of an image and two captions."""

from typing import NamedTuple

from openslip.data.image.eval_transform import EvalTransform
from openslip.inference.bundle import Bundle
from openslip.models.text_encoder import TextEncoder
from openslip.text.bare_ids import BareIds


class Loading(NamedTuple):
    """How a form is loaded.

    Attributes:
        library: the library, by its name on the hub.
        has_texts: whether the form holds texts.
        images: lines of Python that prepare an image.
        alone: lines that follow for a model without captions.
        texts: lines that follow for a model with captions. BIAS adds the bias of a model that has one.
        bias: the bias in these lines.
    """

    library: str
    has_texts: bool
    images: str
    alone: str
    texts: str = ""
    bias: str = "model.logit_bias"


LOADING = {
    "huggingface": Loading(
        "transformers",
        True,
        """import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

model = AutoModel.from_pretrained("FOLDER").eval()
processor = AutoImageProcessor.from_pretrained("FOLDER", backend="pil")
images = processor(images=[Image.open("image.jpg")], return_tensors="pt")
""",
        """with torch.no_grad():
    features = model.get_image_features(**images).pooler_output""",
        """tokenizer = AutoTokenizer.from_pretrained("FOLDER")
texts = tokenizer(["a cat", "a dog"], padding="max_length", truncation=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**images, **texts).logits_per_image""",
    ),
    "onnx": Loading(
        "onnx",
        True,
        """import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

settings = json.loads(Path("FOLDER/preprocessing.json").read_text())
size, mean, std = (settings["image"][name] for name in ("size", "mean", "std"))
image = Image.open("image.jpg").convert("RGB")
RESIZE
pixels = ((np.asarray(image) / 255 - mean) / std).astype(np.float32).transpose(2, 0, 1)[None]
""",
        """features = onnxruntime.InferenceSession("FOLDER/image.onnx").run(None, {"pixels": pixels})[0]""",
        """tokenizer = Tokenizer.from_file("FOLDER/tokenizer.json")
ids = np.array([row.ids for row in tokenizer.encode_batch(["a cat", "a dog"])])
images = onnxruntime.InferenceSession("FOLDER/image.onnx").run(None, {"pixels": pixels})[0]
texts = onnxruntime.InferenceSession("FOLDER/text.onnx").run(None, {"ids": ids})[0]
logits = settings["logit_scale"] * images @ texts.TBIAS""",
        'settings["logit_bias"]',
    ),
    "open_clip": Loading(
        "open_clip",
        True,
        """import open_clip
import torch
from PIL import Image

model, preprocess = open_clip.create_model_from_pretrained("local-dir:FOLDER")
model.eval()  # it is loaded in training mode
pixels = preprocess(Image.open("image.jpg"))[None]
""",
        """with torch.no_grad():
    features = model.encode_image(pixels, normalize=True)""",
        """tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")
with torch.no_grad():
    images = model.encode_image(pixels, normalize=True)
    texts = model.encode_text(tokenizer(["a cat", "a dog"]), normalize=True)
    logits = model.logit_scale.exp() * images @ texts.TBIAS""",
    ),
    "safetensors": Loading(
        "openslip",
        True,
        """import openslip

model = openslip.load("FOLDER")
""",
        'features = model.encode_image(["image.jpg"])',
        """images, texts = model.encode_image(["image.jpg"]), model.encode_text(["a cat", "a dog"])
logits = model.scale() * images @ texts.TBIAS""",
        "model.bias()",
    ),
    "timm": Loading(
        "timm",
        False,
        """import timm
import torch
from PIL import Image

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
pixels = transform(Image.open("image.jpg").convert("RGB"))[None]
""",
        """with torch.no_grad():
    features = model(pixels)  # in the space of the texts, if the model has texts; not of length 1""",
    ),
}
# As `EvalTransform` resizes and crops, for a form without an image processor of its own.
RESIZES = {
    "squash": "image = image.resize((size, size), Image.Resampling.KERNEL)",
    "longest": """factor = max(image.size) / size
resized = image.resize([max(1, round(side / factor)) for side in image.size], Image.Resampling.KERNEL)
image = Image.new("RGB", (size, size))
image.paste(resized, tuple((size - side) // 2 for side in resized.size))""",
    "shortest": """width, height = (int(RESIZED * side / min(image.size)) for side in image.size)
left, top = HALF
image = image.resize((width, height), Image.Resampling.KERNEL).crop((left, top, left + size, top + size))""",
}
HALVES = {
    "round": "round((width - size) / 2), round((height - size) / 2)",
    "floor": "(width - size) // 2, (height - size) // 2",
}


def code_of(form: str, bundle: Bundle) -> str:
    """Return lines of Python that load a folder named FOLDER and encode `image.jpg` and two captions.

    Args:
        form: name of the form.
        bundle: the exported model.
    """
    loading = LOADING[form]
    if isinstance(bundle.model, TextEncoder):  # only our own form holds one
        return f'{loading.images}features = model.encode_text(["a cat", "a dog"])'
    has_captions = bundle.tokenizer is not None and not isinstance(bundle.tokenizer, BareIds)
    has_bias = getattr(bundle.model, "logit_bias", None) is not None
    lines = loading.images + (loading.texts if has_captions and loading.texts else loading.alone)
    lines = lines.replace("RESIZE\n", f"{resize_lines(bundle.transform)}\n")
    return lines.replace("BIAS", f" + {loading.bias}" if has_bias else "")


def resize_lines(transform: EvalTransform) -> str:
    """Return lines that resize and crop `image` as a transform does."""
    lines = RESIZES[transform.resize].replace("KERNEL", transform.interpolation.upper())
    return lines.replace("RESIZED", str(transform.resize_to or "size")).replace("HALF", HALVES[transform.crop])
