"""Built-in image-caption dataset: drawn images with four attributes; training never shows some combinations."""

import io
import itertools
import math
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Integer, UInt8
from PIL import Image

from openslip.data.source import Source
from openslip.data.sources.shards import ShardSource
from openslip.durable import needed
from openslip.errors import UserError
from openslip.progress import progress

Split = Literal["train", "unseen", "seen"]
Combination = tuple[int, int, int, int]  # for each of ATTRIBUTES, the index of its value

RGB = {
    "red": (214, 40, 40),
    "yellow": (240, 215, 50),
    "green": (50, 160, 70),
    "cyan": (70, 205, 215),
    "blue": (45, 80, 215),
    "pink": (245, 140, 190),
}
ATTRIBUTES = {
    "size": ("small", "large"),
    "texture": ("plain", "striped", "checkered"),
    "colour": tuple(RGB),
    "shape": ("square", "triangle", "cross", "ring"),
}

FORMAT = 1  # version of the drawing code; part of the folder's name, because other code draws another dataset
PIXELS = 40
NUM_IMAGES: dict[Split, int] = {"train": 10_240, "unseen": 1_450, "seen": 1_495}
IMAGES_PER_SHARD = 2_048
JPEG_QUALITY = 90

SYNONYMS = {
    "small": ("small", "small", "little", "tiny"),
    "large": ("large", "large", "big", "huge"),
    "plain": ("plain", "plain", "solid"),
    "striped": ("striped", "striped", "banded"),
    "checkered": ("checkered", "checkered", "checked"),
    "cyan": ("cyan", "cyan", "turquoise"),
    "cross": ("cross", "cross", "plus sign"),
    "ring": ("ring", "ring", "hoop"),
}
SENTENCES = (
    "a {}",
    "a {}",
    "a photo of a {}",
    "a picture of a {}",
    "a drawing of a {}",
    "there is a {} here",
    "this is a {}",
    "one {} on a background",
    "a {} in the picture",
    "look at this {}",
)
DROPPED = 0.05  # share of the captions that omit one attribute (never the shape)


def builtin(root: str, split: Split, shuffle_captions: bool = False) -> Source:
    """Open one split of the dataset, which is written below `root` on first use.

    `train` has captions and labels. `unseen` (combinations that training never shows) and `seen` (other images of the
    training combinations) have only labels. A label is an index into `classnames()`.

    Args:
        root: folder for the dataset, which takes about 50 MB.
        split: `train`, `unseen` or `seen`.
        shuffle_captions: permute the captions among the training images, as a control experiment.
    """
    if split not in NUM_IMAGES:
        raise UserError(f"data split {split!r} of the built-in set: expected one of {', '.join(NUM_IMAGES)}")
    folder = write(Path(root), shuffle_captions=shuffle_captions)
    shards = sorted(str(path) for path in folder.glob(f"{split}-*.tar"))
    if len(shards) != (expected := math.ceil(NUM_IMAGES[split] / IMAGES_PER_SHARD)):
        raise UserError(
            f"{folder} holds {len(shards)} of the {expected} shards {split}-*.tar: delete the folder, and the same "
            "command draws it again"
        )
    source = ShardSource(shards=shards, require="caption" if split == "train" else "label")
    source.classes = classnames()
    return source


def combinations() -> list[Combination]:
    """List all combinations of attribute values; a label is an index into this list."""
    size, texture, colour, shape = (range(len(values)) for values in ATTRIBUTES.values())
    return list(itertools.product(size, texture, colour, shape))


def is_unseen(combination: Combination) -> bool:
    """Whether training never shows a combination: one fifth, but any three attribute values still meet in training."""
    size, texture, colour, shape = combination
    return (2 * size + texture + 2 * colour + shape) % 5 == 0


def classnames() -> list[str]:
    """Class names for zero-shot classification: all combinations, whether training shows them or not."""
    return [" ".join(values) for values in itertools.product(*ATTRIBUTES.values())]


def attributes() -> dict[str, list[str]]:
    """Map each attribute to its value in every class name."""
    columns = zip(*itertools.product(*ATTRIBUTES.values()), strict=True)
    return {name: list(values) for name, values in zip(ATTRIBUTES, columns, strict=True)}


def write(root: Path, *, shuffle_captions: bool = False) -> Path:
    """Write the dataset unless it exists, and return its folder.

    Safe to call from several processes at once: each writes its own folder, and one of them gets the final name.
    """
    folder = root / f"builtin-{FORMAT}{'-shuffled' if shuffle_captions else ''}"
    if not folder.is_dir():
        try:
            root.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=root))
        except OSError as error:
            raise UserError(
                f"data.source.root {str(root)!r}: cannot be written ({error.strerror}); name a folder that can"
            ) from None
        try:
            with progress("drawing the built-in dataset", total=sum(NUM_IMAGES.values())) as advance:
                for split in NUM_IMAGES:
                    _write_split(partial, split, shuffle_captions, advance)
            partial.chmod(0o755)  # mkdtemp made it private
            try:
                os.rename(partial, folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process was first, with the same bytes
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write_split(folder: Path, split: Split, shuffle_captions: bool, advance: Callable[[float], None]) -> None:
    labels, captions, images = _draw_split(split)
    if shuffle_captions:
        order = np.random.default_rng(0).permutation(len(captions))
        captions = [captions[place] for place in order]
    for shard, start in enumerate(range(0, len(labels), IMAGES_PER_SHARD)):
        path = folder / f"{split}-{shard:04d}.tar"
        full = needed(path, refusal=UserError, advice="XDG_CACHE_HOME= names another place")
        with full, tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for place in range(start, min(start + IMAGES_PER_SHARD, len(labels))):
                key = f"{split}{place:06d}"
                _add(tar, f"{key}.jpg", _jpeg(images[place]))
                if split == "train":
                    _add(tar, f"{key}.txt", captions[place].encode())
                _add(tar, f"{key}.cls", str(labels[place]).encode())
                advance(1)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # with time 0 and no owner: the bytes are the same on every day and machine
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _jpeg(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def _draw_split(split: Split) -> tuple[list[int], list[str], UInt8[np.ndarray, "images height width 3"]]:
    """Draw the labels (random order, equal numbers per class), captions and images of a split, from a fixed seed."""
    rng = np.random.default_rng([FORMAT, list(NUM_IMAGES).index(split)])
    table = combinations()
    allowed = [label for label, combination in enumerate(table) if is_unseen(combination) == (split == "unseen")]
    labels = rng.permutation(np.resize(np.array(allowed), NUM_IMAGES[split]))
    values = np.array(table)[labels]
    images = [draw(values[start : start + 512], rng) for start in range(0, len(values), 512)]
    captions = [caption(table[label], rng) for label in labels]
    return labels.tolist(), captions, np.concatenate(images)


def caption(combination: Combination, rng: np.random.Generator) -> str:
    """Draw a sentence that states the attributes in one of several ways, and sometimes omits one."""
    words = []
    for values, place in zip(ATTRIBUTES.values(), combination, strict=True):
        choices = SYNONYMS.get(values[place], (values[place],))
        words.append(choices[int(rng.integers(len(choices)))])
    noun = words.pop()
    if rng.random() < DROPPED:
        del words[int(rng.integers(len(words)))]
    if rng.random() < 0.3:
        words = [words[place] for place in rng.permutation(len(words))]
    return SENTENCES[int(rng.integers(len(SENTENCES)))].format(" ".join([*words, noun]))


def draw(
    values: Integer[np.ndarray, "images 4"], rng: np.random.Generator
) -> UInt8[np.ndarray, "images height width 3"]:
    """Draw one image per combination; position, tilt, shades, background and noise are random nuisances.

    Args:
        values: one combination per row.
        rng: source of the nuisances.
    """
    num = len(values)
    size, texture, colour, shape = (column[:, None, None] for column in values.T)

    def uniform(low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
        return rng.uniform(low, high, (num, 1, 1)).astype(np.float32)

    radius = np.where(size == 0, uniform(10.0, 11.5), uniform(16.5, 18.5))
    free = PIXELS / 2 - 1 - radius
    x, y = PIXELS / 2 + free * uniform(-0.8, 0.8), PIXELS / 2 + free * uniform(-0.8, 0.8)
    angle = uniform(-0.1, 0.1)
    rows, columns = np.mgrid[:PIXELS, :PIXELS].astype(np.float32) + 0.5
    right, down = columns[None] - x, rows[None] - y
    u = np.cos(angle) * right + np.sin(angle) * down  # [N, P, P], the object's own axes, in pixels
    v = np.cos(angle) * down - np.sin(angle) * right
    inside = _smooth(np.choose(shape, _distances(u / radius, v / radius)) * radius)

    period = uniform(5.5, 7.0)
    phase_u, phase_v = uniform(0.0, 2 * np.pi), uniform(0.0, 2 * np.pi)
    wave_u, wave_v = np.sin(2 * np.pi * u / period + phase_u), np.sin(2 * np.pi * v / period + phase_v)
    dark = np.choose(texture, [np.zeros_like(u), _smooth(-wave_v * period / 6), _smooth(-wave_u * wave_v * period / 4)])

    shade = np.array([*RGB.values()], np.float32)[colour[:, 0, 0]][:, None, None] / 255  # [N, 1, 1, 3]
    shade = shade * uniform(0.8, 1.05)[..., None] + rng.normal(0, 0.03, (num, 1, 1, 3)).astype(np.float32)
    ink = shade * (1 - 0.8 * dark[..., None])
    slope_x, slope_y = uniform(-0.1, 0.1), uniform(-0.1, 0.1)
    light = uniform(0.05, 0.3) + slope_x * (columns / PIXELS - 0.5) + slope_y * (rows / PIXELS - 0.5)
    tint = rng.normal(0, 0.05, (num, 1, 1, 3)).astype(np.float32)
    image = (light[..., None] + tint) * (1 - inside[..., None]) + ink * inside[..., None]
    image += rng.standard_normal(image.shape, np.float32) * np.float32(0.02)
    return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _distances(u: np.ndarray, v: np.ndarray) -> list[np.ndarray]:
    """Signed distances to the outlines of the shapes in ATTRIBUTES, negative inside; the shapes fill [-1, 1]."""
    across, along = abs(u), abs(v)
    square = np.maximum(across, along) - 0.85
    triangle = np.maximum(0.88 * across - 0.47 * v - 0.45, v - 0.8)
    cross = np.minimum(np.maximum(across - 0.3, along - 0.98), np.maximum(across - 0.98, along - 0.3))
    ring = abs(np.hypot(u, v) - 0.74) - 0.24
    return [square, triangle, cross, ring]


def _smooth(distance: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Coverage of a pixel by a shape at a signed distance in pixels, for antialiased edges."""
    return (0.5 - distance).clip(0, 1)
