"""Retrieval from stored features in a process of its own: processor time, memory, recalls; for `evaluation.py`.

python benchmarks/retrieval_way.py openslip FOLDER
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def run_way(way: str, folder: Path) -> None:
    """Compute the recalls in this process, and print them with the processor time and the memory that they took."""
    torch.set_num_threads(1)
    images, texts = (
        F.normalize(torch.from_numpy(np.load(folder / f"{kind}.npy")), dim=1) for kind in ("images", "texts")
    )
    recalls = WAYS[way](images[:64], texts[:320])  # imports and warms up
    Path("/proc/self/clear_refs").write_text("5")  # the peak of the memory starts again
    before, memory = time.process_time(), gigabytes("VmRSS")
    recalls = WAYS[way](images, texts)
    seconds, peak = time.process_time() - before, gigabytes("VmHWM")
    measured = {"seconds": seconds, "added_gigabytes": peak - memory, "gigabytes": peak, "recalls": recalls}
    print(json.dumps(measured))


def gigabytes(name: str) -> float:
    """Return a memory figure of this process: `VmRSS`, now, or `VmHWM`, its peak.

    `getrusage` would count the peak of the process that started this one.
    """
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e9


def recalls_of_openslip(images: Tensor, texts: Tensor) -> list[float]:
    from openslip.evaluation.retrieval import CHUNK, rank_metrics, ranks

    of_image = torch.arange(len(images))
    of_text = of_image.repeat_interleave(len(texts) // len(images))
    to_image = rank_metrics(ranks(texts, of_text, images, of_image, chunk=CHUNK), len(images))
    to_text = rank_metrics(ranks(images, of_image, texts, of_text, chunk=CHUNK), len(texts))
    return [metrics[f"recall_{place}"] / 100 for metrics in (to_image, to_text) for place in (1, 5, 10)]


def recalls_of_clip_benchmark(images: Tensor, texts: Tensor) -> list[float]:
    from clip_benchmark.metrics.zeroshot_retrieval import evaluate  # pyright: ignore[reportMissingImports]

    class Features:
        """A model whose features are given."""

        def encode_image(self, images: Tensor) -> Tensor:
            return images

        def encode_text(self, texts: Tensor) -> Tensor:
            return texts

    count = len(texts) // len(images)
    rows = [[str(index * count + place) for place in range(count)] for index in range(len(images))]
    batches = ((images[start : start + 64], rows[start : start + 64]) for start in range(0, len(images), 64))
    metrics = evaluate(
        Features(),
        batches,
        lambda captions: texts[[int(caption) for caption in captions]],
        "cpu",
        amp=False,
        recall_k_list=[1, 5, 10],
    )
    return [metrics[f"{way}_retrieval_recall@{place}"] for way in ("image", "text") for place in (1, 5, 10)]


WAYS: dict[str, Callable[[Tensor, Tensor], list[float]]] = {
    "openslip": recalls_of_openslip,
    "clip_benchmark": recalls_of_clip_benchmark,
}


if __name__ == "__main__":
    run_way(sys.argv[1], Path(sys.argv[2]))
