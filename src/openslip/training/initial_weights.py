"""Initial weights of a run, from a checkpoint's whole model or from single towers (LiT, arXiv:2111.07991)."""

import inspect
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import NonFiniteError, UserError
from openslip.inference.bundle import Bundle, evaluating
from openslip.inference.config_choices import choices_in
from openslip.inference.load import load
from openslip.inference.wrapped import WrappedModel
from openslip.models.tower import Tower
from openslip.text.tokenizer import Tokenizer

TEXTS = ("a photo of a dog.", "two red squares, beside a large blue ring")
# `EvalTransform.settings()` omits these defaults.
DEFAULTS: dict[str, Any] = {
    name: inspect.signature(EvalTransform).parameters[name].default
    for name in ("interpolation", "resize", "resize_to", "crop")
}
TOLERANCE = 1e-3  # relative to the largest absolute feature value; float32 kernels of the same function differ by less


class InitialWeights:
    """Copies the weights that `init_from` and `towers.*.weights` name into a model to be trained.

    Args:
        model: model to be trained; heads of the objective are not part of it.
        tokenizer: tokenizer of the new run; None without a text tower.
        transform: settings of the new run's evaluation transform.
        allow: class paths outside this package that the checkpoints may name.
        resize: whether to interpolate position embeddings if the checkpoint has another image size or context length.

    Attributes:
        record: entry for the new run's checkpoints: the files that were loaded, and the old and the new size of
            interpolated embeddings.
        notices: messages about differences between run and checkpoints; the checkpoints can be used in spite of them.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer | None,
        transform: Mapping[str, Any],
        *,
        allow: tuple[str, ...] = (),
        resize: bool = False,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.transform = transform
        self.allow = allow
        self.resize = resize
        self.record: dict[str, Any] = {}
        self.notices: list[str] = []

    def load(
        self,
        checkpoint: str | None,
        towers: Mapping[str, Mapping[str, Any]],
        choices: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Copy the whole model first, then single towers.

        Args:
            checkpoint: path of a checkpoint or run folder, the config's `init_from.checkpoint`; or None.
            towers: options by kind of tower (`image`, `text`), the config's `towers`.
            choices: activation and heads that `checkpoint` does not state, from the config's `init_from`; `towers`
                holds them for its own checkpoints.

        Raises:
            UserError: a file is missing, shapes of weights differ, or a tower or tokenizer gives different results.
        """
        if checkpoint is not None:
            self.load_model(checkpoint, choices)
        for kind, options in towers.items():
            if options["weights"] is not None:
                self.load_tower(kind, options["weights"], options)

    def sources(self) -> list[tuple[str, str]]:
        """List the parts whose weights were copied, each with the path that the config names."""
        parts = {"checkpoint": "whole model", "image_tower": "image tower", "text_tower": "text tower"}
        return [(part, self.record[key]) for key, part in parts.items() if key in self.record]

    def load_model(self, path: str, choices: Mapping[str, Any]) -> None:
        """Copy all weights of a checkpoint's model; `logit_bias` keeps its initial value if the checkpoint has none."""
        key = f"init_from.checkpoint={path}"
        with choices_in(choices, "init_from.") as chosen:
            bundle = load(path, allow=self.allow, **chosen)
        refuse_wrapped(bundle, key)
        stored, wanted = children(bundle.model), children(self.model)
        shared = [kind for kind in wanted if kind in stored]
        refuse_non_finite(bundle.model, key)
        lacking = self.model.state_dict().keys() - bundle.model.state_dict().keys() - {"logit_bias"}
        if lacking or bundle.model.state_dict().keys() - self.model.state_dict().keys():
            raise UserError(
                f"{key}: it holds another kind of model ({difference(self.model, bundle.model)}); use the model= that "
                "the checkpoint was trained with, or load single towers with towers.image.weights= and "
                "towers.text.weights="
            )
        for kind in shared:
            self.fit(stored[kind], wanted[kind], kind, key)
        self.copy(bundle.model, self.model, key, strict=False)
        for kind in shared:
            self.compare(bundle, stored[kind], wanted[kind], kind, key)
        if self.model.state_dict().keys() != bundle.model.state_dict().keys():
            self.notices.append(f"{key}: it has no logit_bias, so this run starts with model.logit_bias_init")
        self.record["checkpoint"] = path

    def load_tower(self, kind: str, path: str, choices: Mapping[str, Any]) -> None:
        """Copy the tower of this kind (`image` or `text`) from a checkpoint."""
        key = f"towers.{kind}.weights={path}"
        with choices_in(choices, f"towers.{kind}.") as chosen:
            bundle = load(path, allow=self.allow, **chosen)
        refuse_wrapped(bundle, key)
        stored, tower = children(bundle.model).get(kind), children(self.model).get(kind)
        if stored is None or tower is None:
            which = f"{path} has" if stored is None else "the model to be trained has"
            raise UserError(f"{key}: {which} no {kind} tower; set it to null")
        tower = tower.pretrained_part if isinstance(tower, Tower) else tower
        refuse_non_finite(stored, f"{key}: its {kind} tower")
        self.fit(stored, tower, kind, key)
        self.copy(stored, tower, f"{key}: its {kind} tower differs from this run's")
        self.compare(bundle, stored, tower, kind, key)
        self.record[f"{kind}_tower"] = path

    def fit(self, stored: nn.Module, tower: nn.Module, kind: str, key: str) -> None:
        """Resize a stored tower to the input size of the new tower; if `resize` is off, refuse another size."""
        if not (isinstance(stored, Tower) and isinstance(tower, Tower)) or stored.input_size == tower.input_size:
            return
        if stored.input_size is None or tower.input_size is None:
            return  # `copy` refuses another kind of tower; towers without position embeddings fit
        sizes = [stored.input_size, tower.input_size]
        what = {"image": "image_size", "text": "context_length"}.get(kind, "input size")
        if not self.resize:
            raise UserError(
                f"{key}: its {kind} tower has {what} {sizes[0]}, and this run has {sizes[1]}: set "
                f"init_from.resize=true to interpolate its position embeddings, or use {what} {sizes[0]}"
            )
        stored.resize(tower.input_size)
        self.record.setdefault("resized", {})[f"{kind}_tower.{what}"] = sizes
        self.notices.append(f"{key}: position embeddings interpolated from {what} {sizes[0]} to {sizes[1]}")

    @staticmethod
    def copy(stored: nn.Module, new: nn.Module, key: str, *, strict: bool = True) -> None:
        try:
            new.load_state_dict(stored.state_dict(), strict=strict)
        except RuntimeError as error:
            differences = [line.strip() for line in str(error).splitlines()[1:]]
            more = f", and {len(differences) - 1} more" * (len(differences) > 1)
            raise UserError(f"{key} ({differences[0]}{more}); use the config that it was trained with") from error

    def compare(self, bundle: Bundle, stored: nn.Module, new: nn.Module, kind: str, key: str) -> None:
        """Check what shapes of weights do not show: heads, activation, epsilon, pooling, token ids, transform."""
        if kind == "text":
            self.compare_tokenizers(bundle.tokenizer, key)
        elif kind == "image":
            settings, wanted = DEFAULTS | bundle.transform.settings(), DEFAULTS | dict(self.transform)
            self.notices += [
                f"{key}: it was trained with {name}={settings[name]}; this run has {name}={wanted[name]}"
                for name in ("mean", "std", *DEFAULTS)
                if settings[name] != wanted[name]
            ]
        inputs = self.probe(kind)
        cpu = torch.device("cpu")
        with torch.compiler.set_stance("force_eager"), evaluating(stored, cpu), evaluating(new, cpu):
            theirs, ours = (tower(*inputs) for tower in (stored, new))
        if not torch.allclose(theirs, ours, rtol=0, atol=TOLERANCE * float(theirs.abs().max())):
            raise UserError(
                f"{key}: with the same weights its {kind} tower gives other outputs than this run's tower: compare "
                f"heads, activation, norm eps and pooling. Its settings: {bundle.architecture.get(f'{kind}_tower')}"
            )

    def compare_tokenizers(self, theirs: Tokenizer | None, key: str) -> None:
        """Refuse a tokenizer that gives other ids for the same text; note other differences in `notices`."""
        if theirs is None or self.tokenizer is None:
            return
        if token_ids(theirs) != token_ids(self.tokenizer):
            raise UserError(
                f"{key}: its tokenizer ({type(theirs).__name__}) gives other ids for {TEXTS[0]!r} than this run's "
                f"tokenizer ({type(self.tokenizer).__name__}); use the tokenizer= that the checkpoint was trained with"
            )
        settings, wanted = theirs.settings(), self.tokenizer.settings()
        self.notices += [
            f"{key}: it was trained with tokenizer.{name}={settings[name]}; this run has {wanted[name]}"
            for name in settings.keys() & wanted.keys() - {"context_length"}
            if settings[name] != wanted[name]
        ]

    def probe(self, kind: str) -> tuple[Tensor, ...]:
        """Return the inputs on which two towers of this kind are compared."""
        if kind == "text":
            assert self.tokenizer is not None
            ids, lengths = self.tokenizer.encode(TEXTS)
            return ids[:, : int(lengths.max())], lengths
        size = self.transform["size"]
        return (torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)),)


def refuse_non_finite(stored: nn.Module, who: str) -> None:
    """Refuse weights that are not finite, because every loss would be NaN."""
    for name, weight in stored.state_dict().items():
        if not weight.isfinite().all():
            raise NonFiniteError(f"{who} has NaN or infinite values in {name}; take another checkpoint")


def refuse_wrapped(bundle: Bundle, key: str) -> None:
    """Refuse a model that runs in another library: its weights have that library's names, and it has no towers."""
    if isinstance(bundle.model, WrappedModel):
        raise UserError(
            f"{key}: this model runs in its own library, so its weights cannot be trained here; give a file or folder "
            "of weights in a format of docs/WEIGHTS.md, for example the folder that the hub's page offers"
        )


def children(model: nn.Module) -> dict[str, nn.Module]:
    """Return the towers of a model by kind (`image`, `text`)."""
    return {name.removesuffix("_tower"): child for name, child in model.named_children() if name.endswith("_tower")}


def token_ids(tokenizer: Tokenizer) -> list[list[int]]:
    """Encode `TEXTS`, and return the ids of each text without padding."""
    ids, lengths = tokenizer.encode(TEXTS)
    return [row[:length] for row, length in zip(ids.tolist(), lengths.tolist(), strict=True)]


def difference(wanted: nn.Module, stored: nn.Module) -> str:
    """Describe the keys that only one of two models has: the first key of each model, and the number of the others."""

    def say(who: str, names: set[str]) -> Iterator[str]:
        if names:
            yield f"only {who} has {sorted(names)[0]}{f' and {len(names) - 1} more' * (len(names) > 1)}"

    ours, theirs = set(wanted.state_dict()), set(stored.state_dict())
    return "; ".join([*say("this run", ours - theirs - {"logit_bias"}), *say("the checkpoint", theirs - ours)])
