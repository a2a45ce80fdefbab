"""Contract: a bundle is a model with its tokenizer and image transform; evaluations, exports and classifiers use it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from openslip.data.image.eval_transform import EvalTransform
from openslip.distributed import notice_once
from openslip.errors import NonFiniteError, UserError
from openslip.inference.images import TENSOR, ImageLike, is_one_image, listed, to_image
from openslip.models.prefix_sharing import sharing_prefixes
from openslip.models.tower import Tower
from openslip.text.tokenizer import Tokenizer
from openslip.text.word_vectors import words_in

BATCH_SIZE = 64


@dataclass(frozen=True)
class Bundle:
    """A model, its tokenizer and its image transform, together as one object; `openslip.load` returns it.

    Attributes:
        model: provides `encode_image(images)` and, if there is a tokenizer, `encode_text(ids, lengths)`.
        tokenizer: the tokenizer that the model was trained with; None for a model without a text tower.
        transform: the evaluation transform from image to model input.
        architecture: the model config from which the model was built.
        device: the device that holds the model.
        origin: the path, published name or address that `openslip.load` was given; None during training.
        provenance: how the model was trained, as in its run's `env.json`; empty if the file does not say.
        file: the file or folder that was read, such as the newest checkpoint of a run's folder; None if not known.
        in_training: whether the model is being trained. If so, words that it has not learned cause a notice, not an
            error.
    """

    model: Any
    tokenizer: Tokenizer | None
    transform: EvalTransform
    architecture: dict[str, Any]
    device: torch.device
    origin: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None
    in_training: bool = False

    def encode_image(
        self,
        images: Float[Tensor, "images 3 height width"] | Iterable[ImageLike] | ImageLike,
        *,
        gradients: bool = False,
    ) -> Float[Tensor, "images embed"]:
        """Encode images to unit-length float32 features, one row per image; a single image gives one row.

        Args:
            images: a float tensor that stacks images returned by `transform`, or an image, or a list of images. An
                image is a path, an http(s) address, encoded image bytes, a PIL image, a uint8 array
                [height, width, 3], or a tensor [3, height, width] of uint8 or of floats from 0 to 1.
            gradients: whether gradients flow from the features to `images`, which must be the stacked float tensor.
                The model's weights get no gradients.

        Raises:
            UserError: an image has none of these forms, or cannot be read.
            NonFiniteError: the model's features are not finite.
        """
        stack = images if isinstance(images, Tensor) and not is_one_image(images) else None
        if gradients and (stack is None or not stack.is_floating_point()):
            raise UserError(f"gradients=True: expected {self.stack_form()}, because other images are read as pixels")
        features = []
        for batch in self.transform_all(listed(images)) if stack is None else self.transformed(stack):
            with (
                frozen(self.model) if gradients else nullcontext(),
                evaluating(self.model, self.device, gradients=gradients),
            ):
                features.append(self.unit(self.model.encode_image(batch.to(self.device)), "image"))
        if not features:
            raise UserError("no images to encode: expected at least one")
        return torch.cat(features)

    def transform_all(self, images: Sequence[ImageLike]) -> Iterator[Float[Tensor, "batch 3 height width"]]:
        """Yield batches of transformed images."""
        for start in range(0, len(images), BATCH_SIZE):
            yield torch.stack([self.input(image) for image in images[start : start + BATCH_SIZE]])

    def input(self, image: ImageLike) -> Float[Tensor, "3 size size"]:
        """Transform one image to the model's input."""
        return self.transform(to_image(image, self.transform.to_rgb))

    def transformed(self, images: Tensor) -> Iterator[Float[Tensor, "batch 3 height width"]]:
        """Check a stacked image tensor and yield it in batches; uint8 images are transformed first."""
        size, shape = self.transform.size, tuple(images.shape)
        if images.ndim == 4 and images.dtype == torch.uint8:
            yield from self.transform_all(listed(images))
            return
        if shape[1:] != (3, size, size) or not images.is_floating_point() or not images.isfinite().all():
            kind = str(images.dtype).removeprefix("torch.")
            raise UserError(
                f"tensor of shape {list(shape)} and type {kind}: expected {self.stack_form()}, or a list of images; "
                f"{TENSOR}"
            )
        yield from images.split(BATCH_SIZE)

    def stack_form(self) -> str:
        """Describe the stacked image tensor that `encode_image` takes, for error messages."""
        size = self.transform.size
        return f"finite floats [images, 3, {size}, {size}] as bundle.transform makes them"

    def encode_text(self, texts: Iterable[str]) -> Float[Tensor, "texts embed"]:
        """Encode texts to unit-length float32 features, in the order of the texts.

        Internally texts are sorted by length and, at equal length, alphabetically. Each batch is trimmed to its longest
        text to reduce padding. If several texts of a batch begin with the same tokens, a causal
        `TextTransformer` that does not pool the mean computes these tokens only once.

        Raises:
            UserError: the model has no text tower, the list is empty, one string was given instead of a list, the list
                holds something else than strings, or a text has words that the text tower has not learned.
        """
        if isinstance(texts, str):
            raise UserError(f"expected a list of texts, got the string {texts[:40]!r}: write [{texts[:40]!r}]")
        if not (given := list(texts)):
            raise UserError("no texts to encode: expected at least one")
        if others := [text for text in given if not isinstance(text, str)]:
            raise UserError(f"expected a list of texts, got {type(others[0]).__name__} {others[0]!r:.40} in it")
        ids, lengths = self.need_tokenizer().encode(given)
        self.refuse_unknown(given)
        num_tokens = lengths.tolist()
        order = torch.tensor(sorted(range(len(given)), key=lambda row: (num_tokens[row], given[row])))
        features = []
        for rows in order.split(BATCH_SIZE):
            trimmed = ids[rows, : int(lengths[rows].max())]
            with evaluating(self.model, self.device), sharing_prefixes():
                encoded = self.model.encode_text(trimmed.to(self.device), lengths[rows])
                features.append(self.unit(encoded, "text"))
        return torch.cat(features)[order.argsort().to(self.device)]

    def refuse_unknown(self, texts: Sequence[str]) -> None:
        """Refuse texts with words that the text tower has not learned: the known words alone give a wrong feature.

        During training there is only a notice, because later captions may contain these words. Punctuation that the
        tower has not learned is ignored: `a dog.` is accepted even if no caption ended with a full stop.
        """
        tower = getattr(self.model, "text_tower", None)
        known = tower.known_ids() if isinstance(tower, Tower) else None
        if known is None:
            return
        words_of = {text: words_in(text) for text in texts}
        words = [*dict.fromkeys(word for words in words_of.values() for word in words)]
        known, unknown = known.cpu(), set()
        for word in words:
            ids, lengths = self.need_tokenizer().encode([word])
            if not known[ids[0, : int(lengths[0])]].all():
                unknown.add(word)
        for text, words in words_of.items():
            if not words or not unknown.isdisjoint(words):
                missing = ", ".join(word for word in words if word in unknown) or "any word"
                problem = f"its text tower has not learned {missing} of the text {text[:80]!r}"
                if self.in_training:  # an evaluation must not end a training that has not seen all words yet
                    notice_once(f"{problem}: the evaluation uses the words that it has learned")
                    return
                raise UserError(
                    f"{self.name()}: {problem}: take other labels, or templates without such words, for example {{}}"
                )

    def similarity(
        self, images: Float[Tensor, "images 3 height width"] | Iterable[ImageLike], texts: Iterable[str]
    ) -> Float[Tensor, "images texts"]:
        """Return the cosine similarity of every image with every text, from -1 to 1."""
        return self.encode_image(images) @ self.encode_text(texts).T

    def reading(self, *, transparency: str | None = None, exif: str | None = None) -> "Bundle":
        """Return a bundle of the same model with other settings for reading images.

        Args:
            transparency: `white` or `ignore`, as in `EvalTransform`; None keeps the checkpoint's setting.
            exif: `apply` or `ignore`, as in `EvalTransform`; None keeps the checkpoint's setting.
        """
        given = {key: value for key, value in (("transparency", transparency), ("exif", exif)) if value is not None}
        transform = copy(self.transform)
        transform.to_rgb = replace(self.transform.to_rgb, **given)
        return replace(self, transform=transform)

    def unit(self, features: Float[Tensor, "rows width"], tower: str) -> Float[Tensor, "rows width"]:
        """Normalise features to unit length.

        Args:
            features: features that the model returned.
            tower: `image` or `text`, for the error message.

        Raises:
            NonFiniteError: the norm of a feature is NaN or infinite, so that every comparison would be meaningless.
        """
        if not features.norm(dim=-1).isfinite().all():
            raise NonFiniteError(f"{self.name()}: its {tower} features are not finite ({self.why_not_finite()})")
        return F.normalize(features, dim=-1)

    def scale(self) -> Float[Tensor, ""]:
        """Return exp(logit_scale), the factor on cosine similarities; raise if it is not finite."""
        scale = self.model.logit_scale.detach().exp()
        if not scale.isfinite().all():
            raise NonFiniteError(f"{self.name()}: exp(logit_scale) is {scale.item()}: expected a number, 100 at most")
        return scale

    def bias(self) -> Float[Tensor, ""]:
        """Return `logit_bias`; models that were trained with a sigmoid loss, such as SigLIP, add it to their logits.

        Raises:
            UserError: the model has no `logit_bias`.
            NonFiniteError: the bias is NaN or infinite.
        """
        bias = getattr(self.model, "logit_bias", None)
        if bias is None:
            raise UserError(
                f"{self.name()}: sigmoid probabilities need a model with a logit_bias, trained with a sigmoid loss; "
                f"{type(self.model).__name__} has none: use softmax"
            )
        if not bias.isfinite().all():
            raise NonFiniteError(f"{self.name()}: logit_bias is {bias.item()}: expected a number")
        return bias.detach()

    def name(self) -> str:
        """Return the model's name for error messages: its checkpoint or, during training, its class."""
        return f"checkpoint {self.origin}" if self.origin else type(self.model).__name__

    def why_not_finite(self) -> str:
        """Explain features that are not finite: name a weight that is not finite, or say that weights are too large."""
        for name, weight in self.model.state_dict().items():
            if not weight.isfinite().all():
                return f"NaN or infinite values in {name}: the file is damaged or its training diverged; use another"
        return "its weights are finite but too large: its training diverged; use an earlier checkpoint"

    def need_tokenizer(self) -> Tokenizer:
        """Return the tokenizer; raise if the model has no text tower."""
        if self.tokenizer is None:
            raise UserError(
                f"texts need a text tower and a tokenizer, and {type(self.model).__name__} has neither: take a CLIP or "
                "SLIP model, or evaluate image features with k-NN"
            )
        return self.tokenizer


@contextmanager
def evaluating(model: nn.Module, device: torch.device, *, gradients: bool = False) -> Iterator[None]:
    """Run the body in eval mode, without autocast and TF32; then restore settings and random state.

    Args:
        model: model whose modules are in eval mode within this context.
        device: device of the model.
        gradients: whether operations are recorded for the backward pass.
    """
    modes = [(module, module.training) for module in model.modules()]
    matmul_precision, allow_tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    model.eval()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
    try:
        with (
            torch.set_grad_enabled(gradients),
            torch.autocast(device.type, enabled=False),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            yield
    finally:
        if device.type == "cuda":
            torch.set_float32_matmul_precision(matmul_precision)
            torch.backends.cudnn.allow_tf32 = allow_tf32
        for module, training in modes:
            module.training = training


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Turn off the gradients of the weights in this context, so that no autograd graph built in it contains them."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        for weight in trainable:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in trainable:
            weight.requires_grad_(True)
