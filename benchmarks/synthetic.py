"""What the data path is measured on: pictures of realistic size and content, prose, and the shards they lie in."""

import ast
import io
import json
import random
import re
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 500, 375  # YFCC's and ImageNet's usual picture
ORIGINAL_BYTES = 118_000
SHORT_SIDE = 256
SMALL_BYTES = 35_000


class Pair(NamedTuple):
    """An encoded picture, its copy with a short side of 256, and its caption."""

    original: bytes
    small: bytes
    caption: str


def make_pairs(count: int, seed: int) -> list[Pair]:
    """Different pictures and captions, each JPEG as close to its size as the quality allows."""
    rng = np.random.default_rng(seed)
    pairs = []
    for caption in make_captions(count, seed):
        image = draw(rng)
        scale = SHORT_SIDE / min(image.size)
        small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        pairs.append(Pair(encode(image, ORIGINAL_BYTES), encode(small, SMALL_BYTES), caption))
    return pairs


def draw(rng: np.random.Generator) -> Image.Image:
    """The spectrum of photographs (amplitude falls with frequency), shapes with sharp edges, and a sensor's noise."""
    width, height = (WIDTH, HEIGHT) if rng.random() < 0.75 else (HEIGHT, WIDTH)
    shapes = Image.new("RGB", (width, height), tuple(rng.integers(40, 200, 3).tolist()))
    brush = ImageDraw.Draw(shapes)
    for _ in range(rng.integers(5, 15)):
        left, top = rng.integers(-100, width), rng.integers(-100, height)
        box = (left, top, left + rng.integers(30, 250), top + rng.integers(30, 250))
        shape = brush.ellipse if rng.random() < 0.5 else brush.rectangle
        shape(list(map(int, box)), fill=tuple(rng.integers(0, 256, 3).tolist()))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    amplitude = 1 / np.maximum(frequency, 1 / width) ** rng.uniform(0.9, 1.2)
    spectra = np.fft.rfft2(rng.standard_normal((4, height, width))) * amplitude
    spectra[:, 0, 0] = 0
    textures = np.fft.irfft2(spectra, s=(height, width))
    textures /= textures.std(axis=(1, 2), keepdims=True)
    colours = 40 * textures[0] + 15 * textures[1:]  # brightness varies more than colour
    noise = rng.normal(0, 4, (height, width, 3))
    pixels = 0.6 * np.asarray(shapes) + 50 + colours.transpose(1, 2, 0) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, size: int) -> bytes:
    """The JPEG of at most this size with the highest quality."""
    low, high = 20, 98
    data = b""
    while low <= high:
        quality = (low + high) // 2
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= size:
            data, low = buffer.getvalue(), quality + 1
        else:
            high = quality - 1
    assert data
    return data


def make_captions(count: int, seed: int) -> list[str]:
    """Different captions of a few sentences, about 36 ids on average as YFCC's, and a language's long tail of words."""
    rng = random.Random(seed)
    sentences = sorted(set(read_sentences()))
    rng.shuffle(sentences)
    captions: list[str] = []
    words: list[str] = []
    wanted = rng.lognormvariate(2.45, 0.8)
    for sentence in sentences:
        words += sentence.split()
        if len(words) >= wanted:
            captions.append(" ".join(words))
            words, wanted = [], rng.lognormvariate(2.45, 0.8)
        if len(captions) == count:
            return captions
    raise ValueError(f"{count} captions wanted, but the documentation has sentences for {len(captions)} only")


def read_sentences() -> Iterator[str]:
    """Of the documentation that comes with Python and with the installed packages."""
    for paragraph in (part for text in read_documentation() for part in re.split(r"\n\s*\n", text)):
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
            words = sentence.split()
            if 3 <= len(words) <= 120 and sum(word.isalpha() for word in words) >= 0.7 * len(words):
                yield sentence


def read_documentation() -> Iterator[str]:
    library = Path(sysconfig.get_path("stdlib"))
    for file in sorted(library.rglob("*.py")):
        if {"site-packages", "test", "tests"} & set(file.parts):
            continue
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""
    for file in sorted(Path(sysconfig.get_path("purelib")).glob("*.dist-info/METADATA")):
        yield file.read_text(encoding="utf-8", errors="replace")


def write_shards(folder: Path, pictures: list[bytes], captions: list[str], num_shards: int, with_json: bool) -> None:
    """KEY.jpg, KEY.txt and, where asked, a KEY.json that repeats the caption, as img2dataset's."""
    folder.mkdir(parents=True)
    for number in range(num_shards):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for place in range(number, len(pictures), num_shards):
                key, caption = f"{place:09d}", captions[place]
                add(tar, f"{key}.jpg", pictures[place])
                add(tar, f"{key}.txt", caption.encode())
                if with_json:
                    fields = {"caption": caption, "key": key, "url": f"https://example.org/{key}", "status": "success"}
                    add(tar, f"{key}.json", json.dumps(fields).encode())


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_small_shard(path: Path, picture: bytes, count: int) -> None:
    """The same picture and caption under `count` keys, for what an index costs."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(count):
            for suffix, content in (("jpg", picture), ("txt", b"a caption")):
                member = tarfile.TarInfo(f"{number:09}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
