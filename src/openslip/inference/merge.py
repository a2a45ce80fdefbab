"""WiSE-FT: interpolates the weights of two checkpoints of one model. Wortsman et al. 2021, arXiv:2109.01903, section 3.

`theta(alpha) = (1 - alpha) * A + alpha * B`, for every parameter, `logit_scale` included.
"""

import inspect
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import UserError
from openslip.inference.architecture import build_with, find_class
from openslip.inference.bundle import Bundle, evaluating
from openslip.inference.formats.openslip import write
from openslip.inference.load import load
from openslip.inference.rounding import rounded_to
from openslip.inference.strip import whole_file
from openslip.inference.wrapped import WrappedModel
from openslip.models.text_encoder import TextEncoder
from openslip.run.environment import origin
from openslip.run.identity import flat
from openslip.text.tokenizer import Tokenizer

MOST_ALPHAS = 101
MOST_DECIMALS = 20  # of an alpha, which is part of a file's name
# Keys of an architecture that only say how a model starts its training.
INITIAL = ("logit_scale_init", "logit_bias_init")
STATISTICS = ("running_mean", "running_var")  # of batch norm
ABSENT, PRESENT = "absent", "a number"


def alphas(text: str) -> list[Decimal]:
    """Return the interpolation weights that a number, a list `0,0.5,1` or a range `0:1:0.1` (with its end) describes.

    They are decimal numbers, so that a range has 0.3 and not 0.30000000000000004.

    Raises:
        UserError: the text has none of these forms, a weight is not from 0 to 1 or has more than MOST_DECIMALS, the
            steps do not meet the end, or they give more than MOST_ALPHAS weights.
    """
    try:
        numbers = [Decimal(part) for part in text.replace(":", ",").split(",")]
    except InvalidOperation:
        numbers = []
    is_range = ":" in text
    if not numbers or not all(number.is_finite() for number in numbers) or (is_range and len(numbers) != 3):
        raise UserError(f"--alpha {text}: expected a number, a list such as 0,0.5,1, or a range such as 0:1:0.1")
    for number in numbers[:2] if is_range else numbers:
        if not 0 <= number <= 1:
            raise UserError(f"--alpha {text}: expected weights from 0 (only A) to 1 (only B), got {number}")
    if is_range:
        start, end, step = numbers
        if 0 < step <= 1 and step * MOST_ALPHAS <= end - start:
            raise UserError(f"--alpha {text}: more than {MOST_ALPHAS} weights, each of which would be a file")
        if not 0 < step <= 1 or end < start or (end - start) % step:
            raise UserError(f"--alpha {text}: steps of {step} do not lead from {start} to {end}; e.g. 0:1:0.1")
        numbers = [start + step * place for place in range(int((end - start) / step) + 1)]
    if any(-int(number.as_tuple().exponent) > MOST_DECIMALS for number in numbers):
        raise UserError(f"--alpha {text}: expected at most {MOST_DECIMALS} decimals")
    return [abs(number) for number in dict.fromkeys(numbers)]  # abs: -0 is 0


class Pair:
    """Two checkpoints of one model, whose weights can be interpolated.

    Args:
        first: the checkpoint of alpha 0, such as a zero-shot model.
        second: the checkpoint of alpha 1, such as the model that was fine-tuned from `first`.
        allow: import paths of your own model and tokenizer classes that the checkpoints may name.

    Attributes:
        notes: lines about what is not exactly an interpolation.

    Raises:
        UserError: architecture, tokenizer or preprocessing differ, or another library computes a model.
    """

    def __init__(self, first: Bundle, second: Bundle, allow: Collection[str] = ()) -> None:
        for bundle in (first, second):
            if isinstance(bundle.model, WrappedModel):
                raise UserError(
                    f"{bundle.origin}: this model runs in its own library, so its weights cannot be merged; give a "
                    "file or folder of weights in a format of docs/WEIGHTS.md"
                )
        refuse_different(first, second, allow)
        self.first, self.second, self.allow = first, second, allow
        self.weights = state_of(first), state_of(second)
        self.notes = [*dtype_note(*self.weights), *statistics_note(self.weights[0]), *integers_note(*self.weights)]

    def write(self, alpha: Decimal, target: Path) -> Bundle:
        """Write the model of one alpha as `openslip strip` writes models, and return it as loaded from the file.

        The target appears only once it is complete and has been loaded.

        Raises:
            UnwrittenError: the target cannot be written.
        """
        model = self.first.model
        model.load_state_dict(interpolated(*self.weights, alpha), assign=True)
        merged = replace(self.first, model=model, provenance=self.provenance(alpha))
        with whole_file(target) as temporary:
            write(merged, temporary)
            loaded = load(temporary, allow=self.allow)
        return replace(loaded, origin=str(target), file=target)

    def provenance(self, alpha: Decimal) -> dict[str, Any]:
        """Return how the model of one alpha came to be, with the provenance of both parents."""
        parents = [
            {"checkpoint": str(bundle.origin), "weight": float(weight), "provenance": bundle.provenance}
            for bundle, weight in ((self.first, 1 - alpha), (self.second, alpha))
        ]
        return {"merge": {"alpha": float(alpha), **origin(), "parents": parents}}


def state_of(bundle: Bundle) -> dict[str, Tensor]:
    """Return the weights and buffers of a model by name."""
    return {name: weight.detach() for name, weight in bundle.model.state_dict().items()}


def interpolated(first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: Decimal) -> dict[str, Tensor]:
    """Return (1 - alpha) * first + alpha * second, computed in float64 and stored in the dtype of the first.

    For 0 and 1 these are the tensors of the first and the second themselves, because 0 * inf would be NaN. Integers are
    those of the first unless alpha is 1.
    """
    if alpha in (0, 1):
        return dict(second if alpha else first)
    weights = float(1 - alpha), float(alpha)
    return {
        name: (weights[0] * tensor.double() + weights[1] * second[name].double()).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in first.items()
    }


def refuse_different(first: Bundle, second: Bundle, allow: Collection[str]) -> None:
    """Refuse two bundles whose preprocessing, tokenizer or architecture differ: their mean would be no model.

    Raises:
        UserError: they differ; the message names a key and both values.
    """
    parts = [
        ("transform", *(transform_settings(bundle.transform) for bundle in (first, second))),
        ("tokenizer", *(settings_of(bundle.tokenizer) for bundle in (first, second))),
    ]
    for part, *settings in parts:
        refuse_keys(first, second, part, differences(*settings))
    changed = differences(*(completed(bundle.architecture, allow) for bundle in (first, second)))
    if changed and not computes_the_same(first, second, allow):
        refuse_keys(first, second, "architecture", changed)


def refuse_keys(first: Bundle, second: Bundle, part: str, changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise an error that names the first key of a part in which two bundles differ; return if there is none."""
    if changed:
        key, values = next(iter(changed.items()))
        more = f" and {len(changed) - 1} more keys" * (len(changed) > 1)
        raise UserError(
            f"the checkpoints differ in {part}.{key}: {shown(values[0])} in {first.origin}, {shown(values[1])} in "
            f"{second.origin}{more}: give two checkpoints of one model, such as one before and after fine-tuning"
        )


def shown(value: Any) -> str:
    """Return a value for an error message; long ones are shortened."""
    short = reprlib.Repr()
    short.maxstring = 40
    return value if value in (ABSENT, PRESENT) else short.repr(value)


def differences(first: dict[str, Any], second: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys in which nested settings differ, with both values."""
    values = flat(first), flat(second)
    keys = sorted(values[0].keys() | values[1].keys())
    pairs = {key: (values[0].get(key, ABSENT), values[1].get(key, ABSENT)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def transform_settings(transform: EvalTransform) -> dict[str, Any]:
    """Return all settings of a transform, also those that are its defaults."""
    names = ("size", "interpolation", "resize", "resize_to", "crop")
    colours = {name: list(getattr(transform, name)) for name in ("mean", "std")}
    reading = {"transparency": "white", "exif": "ignore"} | transform.to_rgb.settings()
    return {name: getattr(transform, name) for name in names} | colours | reading


def settings_of(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return the class and the settings of a tokenizer."""
    return {} if tokenizer is None else {"class": type(tokenizer).__name__, **tokenizer.settings()}


def completed(architecture: Any, allow: Collection[str]) -> Any:
    """Return an architecture with the defaults of its classes for absent keys.

    `logit_scale_init` and `logit_bias_init` are replaced by whether they are set: their values do not matter, but a
    model without `logit_bias` is another model.
    """
    if not isinstance(architecture, dict):
        return architecture
    settings = {key: completed(value, allow) for key, value in architecture.items()}
    if "_target_" in architecture:
        parameters = inspect.signature(find_class(architecture["_target_"], allow)).parameters.values()
        settings = {each.name: each.default for each in parameters if each.default is not each.empty} | settings
    is_absent = {key: settings[key] is None for key in INITIAL if key in settings}
    return settings | {key: ABSENT if absent else PRESENT for key, absent in is_absent.items()}


@torch.no_grad()
def computes_the_same(first: Bundle, second: Bundle, allow: Collection[str]) -> bool:
    """Whether two architectures with the same weights give the same features, bit for bit.

    One model can be described in several ways: `vit_small_patch16_224` with `embed_dim: 768, num_heads: 12` is
    `vit_base_patch16_224`. Equal shapes do not suffice, because they show neither heads nor activation.
    """
    weights = first.model.state_dict()
    shapes = [{name: tensor.shape for name, tensor in bundle.model.state_dict().items()} for bundle in (first, second)]
    if shapes[0] != shapes[1] or type(first.model) is not type(second.model):
        return False
    generator = torch.Generator().manual_seed(0)
    size = first.transform.size
    images = torch.randn(2, 3, size, size, generator=generator)
    cpu, outputs = torch.device("cpu"), []
    for bundle in (first, second):
        model: Any = build_with(weights, bundle.architecture, allow)
        with evaluating(model, cpu):
            features = [] if isinstance(model, TextEncoder) else [model.encode_image(images)]
            if bundle.tokenizer is not None:
                length = bundle.tokenizer.context_length
                ids = torch.randint(
                    bundle.tokenizer.vocab_size, (2, length), generator=torch.Generator().manual_seed(0)
                )
                features.append(model.encode_text(ids, torch.tensor([length, length // 2 + 1])))
        outputs.append(features)
    return all(torch.equal(*pair) for pair in zip(*outputs, strict=True))


def dtype_note(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """Return a line if weights have been rounded to 16 bits, because their mean is written in float32."""
    dtypes = {name: dtype for name, weights in (("A", first), ("B", second)) if (dtype := rounded_to(weights))}
    if not dtypes:
        return []
    parents = " and ".join(f"{name} is of {dtype}" for name, dtype in dtypes.items())
    return [
        f"{parents}; merged files are of float32: openslip strip --dtype float16 or bfloat16 halves and rounds them"
    ]


def statistics_note(weights: Mapping[str, Tensor]) -> list[str]:
    """Return a line if a model has running statistics: averaging them only approximates those of the merged model."""
    layers = {name.rpartition(".")[0] for name in weights if name.endswith(STATISTICS)}
    if not layers:
        return []
    return [
        f"batch norm: the running statistics of {len(layers)} layers are averaged as well; they only approximate those "
        "that the merged model would have on images"
    ]


def integers_note(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """Return a line if integer buffers differ, which cannot be averaged."""
    names = [name for name, x in first.items() if not x.is_floating_point() and not torch.equal(x, second[name])]
    if not names:
        return []
    more = f" and {len(names) - 1} more" * (len(names) > 1)
    return [f"integer buffers differ and are those of the first checkpoint (alpha 1: of the second): {names[0]}{more}"]
