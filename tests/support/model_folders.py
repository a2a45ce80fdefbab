"""Folders as transformers writes them, made of the recorded towers."""

import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import sentencepiece
from PIL import Image
from recorded_towers import FOLDER, config

from openslip.inference.imagenet_prompts import imagenet_classnames
from openslip.text import clip_bpe
from openslip.text.tokenizer_json import clip_definition

ODD_TEXTS = [
    "a photo of a cat",
    "A Photo OF a CAT.",
    "  two   spaces\tand\na newline ",
    "the dog's bowl isn't here, they're gone; we've left, I'LL say",
    "price: $1,299.99 (50% off!)",
    "na\u00efve caf\u00e9 \u2013 d\u00e9j\u00e0 vu\u2026",
    "東京タワーの夜景 猫と犬",
    "한국어 문장",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440 \u039f\u0394\u039f\u03a3",
    "مرحبا بالعالم",
    "😀😃 smile 👩‍👩‍👧‍👦 family",
    "&lt;b&gt;bold&lt;/b&gt; &amp;amp; more",
    "Ã©tÃ© schÃ¶n",
    "http://example.com/a_b-c?d=1#e @user_name",
    "<|endoftext|> in the middle <|startoftext|>",
    "<start_of_text>x<end_of_text> </s> <unk> <pad>",
    "",
    "   ",
    ".",
    "!!!???",
    "a" * 300,
    "word " * 200,
    "\ufb01ne ligature \ufb02ow \uff26\uff55\uff4c\uff4c\uff57\uff49\uff44\uff54\uff48",
    "zero\u200bwidth\u200djoin \ufeff",
    "½ cup ²³ ①",
    "\u0130stanbul \u1e9e \u01c5 \u00df \u017f K",
    "IMG_20190812_143355.jpg",
    "\x00 \x01 control \x7f",
    "e\u0301 combining a\u030a \u0345",
    "itap of a {}.",
]


def odd_texts(number: int = 50) -> list[str]:
    """Return odd captions: some by hand, the others of random characters of many scripts."""
    rng, texts = random.Random(0), list(ODD_TEXTS)
    while len(texts) < number:
        stops = (0x80, 0x250, 0x600, 0x3100, 0xD7FF)
        texts.append("".join(chr(rng.randrange(32, stop)) for stop in rng.choices(stops, k=rng.randrange(1, 40))))
    return texts


def odd_images() -> list[Image.Image]:
    """Return 20 images of odd sizes and modes."""
    rng = random.Random(0)
    sizes = [(1, 1), (2, 7), (7, 2), (31, 90), (33, 47), (47, 33), (100, 24), (24, 100), (25, 24), (24, 27)]
    sizes += [(240, 25), (25, 240), (23, 23), (640, 480), (97, 98), (51, 24), (35, 24), (24, 35), (300, 299), (64, 48)]
    modes = ["RGB", "L", "RGBA", "P", "CMYK", "LA", "1", "RGB", "RGB", "YCbCr"]
    images = []
    for (width, height), mode in zip(sizes, modes * 2, strict=True):
        noise = rng.randbytes((width // 2 + 1) * (height // 2 + 1) * 4)
        image = Image.frombytes("RGBA", (width // 2 + 1, height // 2 + 1), noise).resize((width, height))
        between = {"1": "L", "LA": "L", "P": "RGB"}.get(mode, "RGBA")
        images.append(image.convert(between).convert(mode))
    images[3].info["transparency"] = 7  # of a palette
    return images


def folder_of(name: str, folder: Path, **changes: Any) -> Path:
    """Lay out a recorded tower as `save_pretrained` does; changes of the config name `part.key` or `key`."""
    content = config(name)
    for key, value in changes.items():
        *parts, last = key.split("__")
        inside = content
        for part in parts:
            inside = inside[part]
        inside[last] = value
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    shutil.copyfile(FOLDER / f"{name}.safetensors", folder / "model.safetensors")
    return folder


def clip_vocabulary() -> tuple[dict[str, int], list[str]]:
    """Return CLIP's symbols with their ids, and its merges, as `vocab.json` and `merges.txt` hold them."""
    vocabulary = clip_bpe._read_vocabulary()
    symbols = [*vocabulary.symbols, "<|startoftext|>", "<|endoftext|>"]
    merges = [f"{symbols[first]} {symbols[second]}" for first, second in vocabulary.merges]
    return {symbol: i for i, symbol in enumerate(symbols)}, merges


def clip_json() -> str:
    """Return CLIP's vocabulary as a `tokenizer.json`."""
    return clip_definition(*clip_vocabulary())


def sentencepiece_model() -> bytes:
    """Train a small vocabulary with SigLIP's special ids: `<pad>` 0, `</s>` 1, `<unk>` 2."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*map(str.lower, imagenet_classnames()), *ODD_TEXTS]),
        model_writer=file,
        vocab_size=600,
        character_coverage=0.98,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return file.getvalue()
