"""Records the figures that clip_benchmark's own functions give for random models on made-up sets.

clip_benchmark 1.6.2 needs an environment of its own, because its `accuracy` fails with numpy 2.4:

    python -m venv --system-site-packages FOLDER && FOLDER/bin/pip install --no-deps clip-benchmark==1.6.2 numpy==2.2.6
    PYTHONPATH=src:tests/support FOLDER/bin/python tests/support/record_clip_benchmark.py tests/data/clip_benchmark.json
"""

import io
import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import open_clip
import torch
from clip_benchmark.metrics import (  # pyright: ignore[reportMissingImports]
    zeroshot_classification,
    zeroshot_retrieval,
)
from clip_benchmark_sets import SETS, TEMPLATES, MadeUp, model_config, random_model
from PIL import Image

BATCH_SIZE = 32
PACKAGES = ("clip-benchmark", "open_clip_torch", "torch", "numpy", "scikit-learn")


class Batches:
    """Iterates over batches of images with labels or captions, as a data loader of clip_benchmark's data sets does."""

    def __init__(self, dataset: MadeUp, transform: Any) -> None:
        self.dataset = dataset
        self.transform = transform

    def __iter__(self) -> Iterator[tuple[torch.Tensor, Any]]:
        samples = [self.dataset[index] for index in range(len(self.dataset))]
        for start in range(0, len(samples), BATCH_SIZE):
            batch = samples[start : start + BATCH_SIZE]
            images = torch.stack([self.transform(Image.open(io.BytesIO(sample.image))) for sample in batch])
            if self.dataset.classes:
                yield images, torch.tensor([sample.label for sample in batch])
            else:
                yield images, [list(sample.captions) for sample in batch]


def figures(size: str, name: str) -> dict[str, float | list[int]]:
    model, config = random_model(size), model_config(size)
    pixels = config["vision_cfg"]["image_size"]
    batches = Batches(MadeUp(name, pixels), open_clip.image_transform(pixels, is_train=False))
    tokenizer = open_clip.get_tokenizer("ViT-B-32-quickgelu")
    if name not in TEMPLATES:
        places = [1, 5, 10]
        return zeroshot_retrieval.evaluate(model, batches, tokenizer, "cpu", amp=False, recall_k_list=places)
    classes, templates = batches.dataset.classes, [text.replace("{}", "{c}") for text in TEMPLATES[name]]
    metrics = zeroshot_classification.evaluate(model, batches, tokenizer, classes, templates, "cpu", amp=False)
    classifier = zeroshot_classification.zero_shot_classifier(model, tokenizer, classes, templates, "cpu", amp=False)
    logits, _ = zeroshot_classification.run_classification(model, classifier, batches, "cpu", amp=False)
    top = logits.topk(2).values
    margin = (top[:, 0] - top[:, 1]).min().item() / 100
    return {**metrics, "smallest_margin_of_cosines": margin, "predictions": logits.argmax(dim=1).tolist()}


def main() -> None:
    torch.set_num_threads(1)
    recorded: dict[str, Any] = {"versions": {name: version(name) for name in PACKAGES}}
    for size in ("small", "full"):
        recorded[size] = {name: figures(size, name) for name in SETS}
    text = json.dumps(recorded, indent=1).replace("NaN", "null")  # acc5 of fewer than five classes
    Path(sys.argv[1]).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
