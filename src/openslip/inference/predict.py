"""A checkpoint and a picture: load a model with all that belongs to it, and ask it which label fits."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from openslip.data.image.decode import open_image
from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import UserError
from openslip.evaluation.evaluation import evaluating
from openslip.inference.checkpoint import build_model, checkpoint_file, read, write
from openslip.inference.formats.slip import PUBLISHED_TOKENIZER, PUBLISHED_TRANSFORM, import_checkpoint, is_published
from openslip.inference.prompts import check_prompts, class_embeddings
from openslip.models.dual_encoder import DualEncoder
from openslip.text.clip_bpe import Tokenizer

BATCH_SIZE = 64

Picture = str | Path | bytes | Image.Image
Ranking = list[tuple[str, float]]


@dataclass(frozen=True)
class LoadedModel:
    """A model with what its inputs need.

    Attributes:
        model: `DualEncoder`, or `ImageEncoder` for SimCLR; in eval mode.
        tokenizer: as in training; None without a text tower.
        transform: of evaluation.
        architecture: the plain fields from which the model was built.
        device: where it lies.
    """

    model: nn.Module
    tokenizer: Tokenizer | None
    transform: EvalTransform
    architecture: dict[str, Any]
    device: torch.device


def load(path: str | Path, *, device: str = "cpu", allow: Collection[str] = ()) -> LoadedModel:
    """A model from a run's folder, a checkpoint, a stripped file, or a published SLIP, CLIP or SimCLR checkpoint.

    Nothing in the file is executed. Published models get their tokenizer's published settings.

    Args:
        path: of the folder or file.
        device: `cpu`, `cuda`, ...; `auto` is the GPU where there is one.
        allow: import paths of model classes of your own that the checkpoint may name.

    Raises:
        UserError: unreadable or hostile file, a class that is not allowed, weights that do not fit.
    """
    place = choose_device(device)
    architecture, weights, tokenizer_settings, transform_settings = _read_parts(read(path), str(path))
    model = build_model(architecture, allow)
    try:
        model.load_state_dict(weights)
        tokenizer = Tokenizer(**tokenizer_settings) if tokenizer_settings else None
        transform = EvalTransform(**transform_settings)
    except (RuntimeError, TypeError) as error:
        what = " ".join(str(error).split())[:200]
        raise UserError(f"checkpoint {path}: its weights or settings do not fit its architecture ({what})") from error
    return LoadedModel(model.float().eval().to(place), tokenizer, transform, architecture, place)


def choose_device(device: str) -> torch.device:
    """The device of that name, or an error that names it."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device={device}: not to be had here ({str(error).splitlines()[0]}); try device=cpu"
        ) from error


def _read_parts(content: dict[str, Any], path: str) -> tuple[dict[str, Any], dict[str, Tensor], dict | None, dict]:
    """Architecture, the model's weights in our names, tokenizer and transform settings."""
    if "openslip" in content:
        ours = content["openslip"]
        if missing := [name for name in ("architecture", "tokenizer", "transform") if name not in ours]:
            raise UserError(
                f"checkpoint {path}: its `openslip` entry lacks {', '.join(missing)}; is it a run's checkpoint?"
            )
        state = content.get("state_dict", {})
        # Averaged weights are what training evaluated, so they are what is used.
        kind = "averaged." if any(name.startswith("averaged.") for name in state) else "model."
        weights = {name.removeprefix(kind): tensor for name, tensor in state.items() if name.startswith(kind)}
        return ours["architecture"], weights, ours["tokenizer"], ours["transform"]
    if not is_published(content):
        keys = ", ".join(str(key) for key in list(content)[:5])
        raise UserError(f"checkpoint {path} is neither a run's nor a published SLIP checkpoint (its keys: {keys})")
    architecture, weights = import_checkpoint(content)
    tokenizer = None
    if "text_tower" in architecture:
        tokenizer = PUBLISHED_TOKENIZER | {"context_length": architecture["text_tower"]["context_length"]}
    transform = PUBLISHED_TRANSFORM | {"size": architecture["image_tower"]["image_size"]}
    return architecture, weights, tokenizer, transform


def strip(source: str | Path, target: str | Path, *, allow: Collection[str] = ()) -> tuple[int, int]:
    """Keeps of a checkpoint what inference needs, and returns the sizes before and after in bytes."""
    source, target = checkpoint_file(source), Path(target)
    if target.resolve() == source.resolve():
        raise UserError(f"strip: {target} is the checkpoint itself; name another file for the stripped one")
    architecture, weights, tokenizer, transform = _read_parts(read(source), str(source))
    with torch.device("meta"):
        build_model(architecture, allow)  # refuses what `load` would refuse
    # clones: a view would drag its whole storage along
    plain = {f"model.{name}": tensor.detach().float().clone() for name, tensor in weights.items()}
    settings = {"format": 1, "architecture": architecture, "tokenizer": tokenizer, "transform": transform}
    write(target, {"openslip": settings, "state_dict": plain})
    return source.stat().st_size, target.stat().st_size


class ZeroShotClassifier:
    """Which of the labels fits a picture: softmax of exp(logit_scale) x cosine. Radford et al. 2021, section 3.1.2.

    Args:
        model: from `load`.
        labels: candidates, one word or more each.
        templates: prompts with `{}` for the label; their embeddings are averaged.
    """

    def __init__(
        self, model: LoadedModel, labels: Sequence[str], templates: Sequence[str] = ("a photo of a {}.",)
    ) -> None:
        if not isinstance(model.model, DualEncoder) or model.tokenizer is None:
            raise UserError("this checkpoint has no text tower (SimCLR): labels need a CLIP or SLIP model")
        if not labels:
            raise UserError('labels is empty: give at least one, e.g. --labels "man kicking,man sleeping"')
        check_prompts(labels, templates)
        self.encoder = model.model
        self.transform = model.transform
        self.device = model.device
        self.labels = list(labels)
        with evaluating(self.encoder, self.device):  # once: pictures come one by one
            self.classes = class_embeddings(
                self.encoder, model.tokenizer, self.labels, list(templates), self.device, BATCH_SIZE
            )

    def __call__(self, images: Picture | Sequence[Picture]) -> Ranking | list[Ranking]:
        """Labels with probabilities, best first; a list of them for a list of pictures."""
        if isinstance(images, (str, Path, bytes, Image.Image)):
            return self.rank([images])[0]
        return self.rank(images)

    def rank(self, images: Sequence[Picture]) -> list[Ranking]:
        """One ranking per picture."""
        rankings: list[Ranking] = []
        for start in range(0, len(images), BATCH_SIZE):
            batch = torch.stack([self.transform(_picture(image)) for image in images[start : start + BATCH_SIZE]])
            with evaluating(self.encoder, self.device):
                features = F.normalize(self.encoder.encode_image(batch.to(self.device)).float(), dim=-1)
                logits = self.encoder.logit_scale.exp() * features @ self.classes.T
                probabilities, places = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
            for row, order in zip(probabilities.tolist(), places.tolist(), strict=True):
                rankings.append([(self.labels[place], p) for place, p in zip(order, row, strict=True)])
        return rankings


def _picture(image: Picture) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, bytes):
        return open_image(image, "picture")
    if not Path(image).is_file():
        raise UserError(f"picture {image}: no such file")
    return open_image(Path(image), str(image))
