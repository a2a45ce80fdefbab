"""`hf:ORG/NAME` and `hf:FOLDER`: a model of Hugging Face transformers, with its own tokenizer and image processor."""

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from openslip.errors import MissingPackage, UserError, first_line
from openslip.inference.bundle import Bundle
from openslip.inference.choices import Choices
from openslip.inference.wrapped import WrappedModel, WrappedTokenizer, WrappedTransform, refuse_choices, whole_rows

METHODS = ("get_image_features", "get_text_features", "logit_scale")
WHOLE_ROWS = ("siglip", "siglip2")  # model types that read rows of fixed length, padding included


class TransformersModel(WrappedModel):
    """A model of transformers behind the methods that a bundle calls.

    Args:
        model: the model, with `get_image_features` and `get_text_features`.
        masks: whether the text tower gets a mask of its tokens.
    """

    def __init__(self, model: nn.Module, masks: bool) -> None:
        super().__init__(model)
        self.masks = masks

    def encode_image(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embed"]:
        """Encode images, not normalised."""
        return features(self.model.get_image_features(pixel_values=images))

    def encode_text(
        self, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch embed"]:
        """Encode captions, not normalised; `lengths` is the number of tokens of each caption."""
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths.to(ids.device)[:, None]
        masks = {"attention_mask": mask.long()} if self.masks else {}
        return features(self.model.get_text_features(input_ids=ids, **masks))


@dataclass(frozen=True)
class Processor:
    """An image processor of transformers as a function of one image."""

    processor: Any

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 size size"]:
        """Return the pixels of one image."""
        return torch.as_tensor(self.processor(images=image, return_tensors="pt")["pixel_values"][0])


def features(output: Any) -> Tensor:
    """Return the features in the output of a model; up to version 4 of transformers, they were the output itself."""
    return output if isinstance(output, Tensor) else output.pooler_output


def read(address: str, choices: Choices) -> Bundle:
    """Load a model with transformers, which downloads its files if they are not in its cache.

    No code of the model's files is executed: a model that has its own classes is refused.

    Raises:
        MissingPackage: transformers is not installed.
        UserError: there is no such model; its files cannot be loaded, lack weights or hold weights of another model; it
            does not have two towers; or its images have no fixed size.
    """
    try:
        import tokenizers  # noqa: F401, PLC0415  # transformers imports it late
        import transformers  # noqa: PLC0415  # slow
    except ImportError as error:
        raise MissingPackage('hf: needs transformers; pip install "openslip[hf]"') from error
    origin = f"hf:{address}"
    refuse_choices(choices, origin)
    try:
        config = transformers.AutoConfig.from_pretrained(address, trust_remote_code=False)
        model, report = transformers.AutoModel.from_pretrained(
            address, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(address, trust_remote_code=False)
        processor: Any = transformers.AutoImageProcessor.from_pretrained(address, trust_remote_code=False)
    except Exception as error:  # transformers and the hub have no common type for their errors
        raise UserError(f"{origin}: transformers cannot load it ({first_line(error)[:300]})") from error
    if missing := [name for name in METHODS if not hasattr(model, name)]:
        raise UserError(f"{origin} is a {type(model).__name__} without {', '.join(missing)}: expected two towers")
    if lacking := sorted(map(str, {*report["missing_keys"], *report.get("mismatched_keys", ())})):
        raise UserError(f"{origin}: its files lack {len(lacking)} weights, such as {lacking[0]}")
    left = sorted(name for name in map(str, report["unexpected_keys"]) if not name.endswith("position_ids"))
    if left:
        raise UserError(
            f"{origin}: its files hold {len(left)} weights that a {type(model).__name__} lacks, such as {left[0][:120]}"
        )
    text = config.text_config
    context_length = min(int(text.max_position_embeddings), int(tokenizer.model_max_length))
    whole = config.model_type in WHOLE_ROWS
    return Bundle(
        TransformersModel(model, masks=not whole),
        WrappedTokenizer(
            partial(encode, tokenizer, context_length=context_length, whole=whole),
            context_length=context_length,
            vocab_size=int(text.vocab_size),
            invert=partial(tokenizer.decode, skip_special_tokens=True),
            origin=origin,
        ),
        transform(processor, origin),
        {
            "library": "transformers",
            "version": transformers.__version__,
            "model": address,
            "processor": processor.to_dict(),
            "tokenizer": tokenizer_digest(tokenizer),
        },
        torch.device("cpu"),
    )


def tokenizer_digest(tokenizer: Any) -> str:
    """Hash a tokenizer's vocabulary, special tokens and rules, which lie in files that may change."""
    rules = getattr(tokenizer, "backend_tokenizer", None)
    text = repr(sorted(tokenizer.get_vocab().items())) if rules is None else rules.to_str()
    return hashlib.sha256(f"{tokenizer.special_tokens_map} {text}".encode()).hexdigest()


def encode(tokenizer: Any, texts: list[str], *, context_length: int, whole: bool) -> tuple[Tensor, Tensor]:
    """Return ids and lengths; ids are padded on the right or, if `whole` is true, as the tokenizer pads them.

    Args:
        tokenizer: tokenizer of transformers.
        texts: the captions.
        context_length: longest row.
        whole: whether the model reads rows of fixed length, padding included.
    """
    side = {} if whole else {"padding_side": "right"}
    padding = "max_length" if whole else "longest"
    rows = tokenizer(texts, padding=padding, max_length=context_length, truncation=True, return_tensors="pt", **side)
    return whole_rows(rows["input_ids"]) if whole else (rows["input_ids"], rows["attention_mask"].sum(dim=1))


def transform(processor: Any, origin: str) -> WrappedTransform:
    """Return an image processor as the transform of a bundle.

    Raises:
        UserError: it does not make square images of one size.
    """
    apply = Processor(processor)
    shape = tuple(apply(Image.new("RGB", (48, 32))).shape)
    if (
        shape != tuple(apply(Image.new("RGB", (32, 48))).shape)
        or len(shape) != 3
        or shape[0] != 3
        or shape[1] != shape[2]
    ):
        raise UserError(f"{origin}: its images have no fixed square size (shape {list(shape)}): not supported")
    mean, std = (
        list(getattr(processor, f"image_{name}", None) or [fill] * 3) for name, fill in (("mean", 0.0), ("std", 1.0))
    )
    return WrappedTransform(apply, size=shape[1], mean=mean, std=std, origin=origin)
