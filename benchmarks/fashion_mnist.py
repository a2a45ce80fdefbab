"""Fashion-MNIST, all 70,000 real images: our classifiers beside scikit-learn's, a pretrained tower beside raw pixels.

    python benchmarks/fashion_mnist.py
    python benchmarks/fashion_mnist.py --checkpoint runs/NAME    # also its zero-shot accuracy

The first run fetches the dataset (31 MB) and the tower (17 MB), and writes the dataset a second time as a `wds_*`
folder; features of the tower are kept in a cache. Everything goes through both readers: torchvision's class and the
`wds_*` folder. Raw pixels are a model whose tower returns the 784 values of an image, so that k-NN and probe run as on
any model; scikit-learn gets the arrays of torchvision's own class. The exit code is 1 if a line misses its bar.
"""

import argparse
import io
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torchvision.datasets import FashionMNIST

import openslip
from openslip.config.build import build
from openslip.config.folder import config_folder
from openslip.config.obtain import data_folder, find
from openslip.data.get.folder import create
from openslip.data.image.eval_transform import EvalTransform
from openslip.data.source import Source
from openslip.data.sources.subset import Subset
from openslip.data.sources.torchvision_set import TorchvisionSet
from openslip.data.sources.wds_folder import WdsFolder
from openslip.durable import durable, write_text
from openslip.evaluation.feature_cache import FeatureCache
from openslip.evaluation.image_features import sharing
from openslip.evaluation.knn import KNN
from openslip.evaluation.probe import LinearProbe
from openslip.evaluation.zeroshot import ZeroShot
from openslip.inference.bundle import Bundle
from openslip.models.image_encoder import ImageEncoder
from openslip.models.tower import Tokens, Tower, unpadded

SPLITS = ("train", "test")
NUM_IMAGES = {"train": 60_000, "test": 10_000}
SHARD = 10_000  # images
K, TEMPERATURE = 20, 0.07  # as in configs/evaluation/builtin_knn.yaml
C_PIXELS = 0.03  # a penalty with which both fits converge, in about 400 iterations
C_TOWER = 1e-2
TEMPLATES = ["a photo of a {}.", "a picture of a {}.", "a drawing of a {}."]


class Row(NamedTuple):
    """A line of the table; `bar` is the largest difference that is allowed or, with a +, the least."""

    name: str
    value: float
    beside: str = ""
    other: float | None = None
    bar: str = ""

    def holds(self) -> bool:
        if self.other is None or not self.bar:
            return True
        difference = self.value - self.other
        return difference >= float(self.bar) if self.bar.startswith("+") else abs(difference) <= float(self.bar)


class Pixels(Tower):
    """A tower without weights: the 784 values of an image from 0 to 1, of which all channels are equal."""

    width = 28 * 28

    def forward(self, images: Tensor, /) -> Tensor:
        return images[:, 0].flatten(1)

    def tokens(self, images: Tensor, /) -> Tokens:
        return unpadded(images[:, 0].flatten(1)[:, None])


def write_wds(source: Source, folder: Path) -> None:
    """Write a labelled source as a split of a `wds_*` folder; `nshards.txt` comes last, as a killed run has none."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = range(0, len(source), SHARD)
    for number, start in enumerate(shards):
        with durable(folder / f"{number}.tar") as file, tarfile.open(fileobj=file, mode="w") as tar:
            for place in range(start, min(start + SHARD, len(source))):
                sample = source[place]
                for suffix, content in (("png", sample.image), ("cls", str(sample.label).encode())):
                    member = tarfile.TarInfo(f"s{place:07}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    write_text(folder / "nshards.txt", str(len(shards)))


def readers(root: Path) -> dict[str, dict[str, Source]]:
    """The two splits by reader; what is missing is fetched or written."""
    for name in ("fashion_mnist", "efficientnet_lite0"):
        entry = find(name, [config_folder()])
        assert entry.folder is not None
        create(build(entry.fetcher, name), root / entry.folder)
    sources: dict[str, dict[str, Source]] = {
        "torchvision": {
            split: TorchvisionSet(dataset="FashionMNIST", root=str(root), arguments={"train": split == "train"})
            for split in SPLITS
        }
    }
    folder = root / "wds_fashion_mnist"
    for split, source in sources["torchvision"].items():
        if not (folder / split / "nshards.txt").exists():
            write_wds(source, folder / split)
        write_text(folder / "classnames.txt", "".join(f"{name}\n" for name in source.classes or ()))
    sources["wds"] = {split: WdsFolder(root=str(folder), split=split) for split in SPLITS}
    return sources


def arrays(root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [N, 784] from 0 to 1 and labels, as torchvision's own class reads them."""
    dataset = FashionMNIST(str(root), train=split == "train", download=False)
    return dataset.data.numpy().reshape(-1, 784) / 255.0, dataset.targets.numpy()


def refuse_other_pixels(source: Source, pixels: np.ndarray, labels: np.ndarray) -> None:
    for place, (row, label) in enumerate(zip(pixels, labels, strict=True)):
        sample = source[place]
        image = np.asarray(Image.open(io.BytesIO(sample.image)))
        assert sample.label == label, (place, sample.label, label)
        assert np.array_equal(image.flatten() / 255.0, row), place


def with_size(bundle: Bundle, size: int) -> Bundle:
    """The same model on smaller images, which a convolutional tower takes: whole, without timm's crop."""
    transform = EvalTransform(
        size=size, mean=bundle.transform.mean, std=bundle.transform.std, interpolation="bicubic", transparency="ignore"
    )
    return Bundle(bundle.model, None, transform, bundle.architecture, bundle.device, bundle.origin)


def pixel_bundle() -> Bundle:
    transform = EvalTransform(size=28, mean=[0.0] * 3, std=[1.0] * 3)
    return Bundle(ImageEncoder(image_tower=Pixels()).eval(), None, transform, {}, torch.device("cpu"))


def knn(train: Source, test: Source, bundle: Bundle) -> tuple[float, np.ndarray]:
    evaluation = KNN(title="k-NN", train=train, test=test, k=K, temperature=TEMPERATURE, batch_size=500, num_workers=0)
    top1 = evaluation.run(bundle)["top1"]
    return top1, evaluation.arrays["predictions"]


def probe(train: Source, test: Source, bundle: Bundle, c: float) -> float:
    evaluation = LinearProbe(
        title="linear probe",
        train=train,
        test=test,
        validation=None,
        c=c,
        seed=0,
        features="tower",
        normalise=False,
        precision="float64",
        decrease=1e-6,
        max_iterations=1000,
        batch_size=500,
        num_workers=0,
    )
    return evaluation.run(bundle)["top1"]


@contextmanager
def step(name: str) -> Iterator[None]:
    """Print how long a step takes."""
    started = time.perf_counter()
    yield
    print(f"{time.perf_counter() - started:6.1f} s  {name}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=data_folder(), help="folder of the data: EVALUATION_DATA")
    parser.add_argument("--checkpoint", help="a model with a text tower, for zero-shot")
    parser.add_argument("--images", type=int, default=60_000, help="training images for pixels; fewer to try it out")
    parser.add_argument("--tower-images", type=int, default=10_000, help="training images for the pretrained tower")
    parser.add_argument("--size", type=int, default=96, help="side in pixels of the images that the tower gets")
    options = parser.parse_args()

    root, rows = options.root, []
    with step("data"):
        sources = readers(root)
        given = {split: arrays(root, split) for split in SPLITS}
    for name, splits in sources.items():
        with step(f"{name}: pixels and labels of all images equal torchvision's"):
            for split in SPLITS:
                assert len(splits[split]) == NUM_IMAGES[split]
                refuse_other_pixels(splits[split], *given[split])

    count = min(options.images, NUM_IMAGES["train"])
    used = {name: {"train": first(splits["train"], count), "test": splits["test"]} for name, splits in sources.items()}
    (pixels, labels), (test_pixels, test_labels) = given["train"], given["test"]
    pixels, labels = pixels[spread(len(pixels), count)], labels[spread(len(labels), count)]

    with step("scikit-learn's k-NN"):
        neighbours = KNeighborsClassifier(
            K,
            metric="cosine",
            weights=lambda distances: np.exp(-distances / TEMPERATURE),  # pyright: ignore[reportArgumentType]
            algorithm="brute",
        ).fit(pixels, labels)
        expected = neighbours.predict(test_pixels)
    theirs_knn = 100 * float((expected == test_labels).mean())
    with step("scikit-learn's logistic regression"):
        regression = LogisticRegression(C=C_PIXELS, tol=1e-5, max_iter=1000).fit(pixels, labels)
    theirs_probe = 100 * regression.score(test_pixels, test_labels)
    for name, splits in used.items():
        with step(f"{name}: k-NN and probe on pixels"), sharing(FeatureCache(None)):
            top1, predictions = knn(splits["train"], splits["test"], pixel_bundle())
            rows.append(Row(f"k-NN on pixels, {name}", top1, "scikit-learn", theirs_knn, "0"))
            same = 100 * float((predictions == expected).mean())
            rows.append(Row(f"  of its predictions, {name}", same, "equal ones", 100.0, "0"))
            top1 = probe(splits["train"], splits["test"], pixel_bundle(), C_PIXELS)
            rows.append(Row(f"probe on pixels, {name}", top1, "scikit-learn", theirs_probe, "0.1"))

    few = first(sources["torchvision"]["train"], options.tower_images)
    test = sources["torchvision"]["test"]
    tower = with_size(openslip.load(root / "efficientnet_lite0"), options.size)
    with step("pixels of the tower's training images"), sharing(FeatureCache(None)):
        pixel_knn, _ = knn(few, test, pixel_bundle())
        pixel_probe = probe(few, test, pixel_bundle(), C_PIXELS)
    with step("pretrained tower"), sharing(FeatureCache(root / ".features")):
        rows.append(Row(f"k-NN on the tower, {len(few):,}", knn(few, test, tower)[0], "pixels", pixel_knn, "+3"))
        rows.append(
            Row(f"probe on the tower, {len(few):,}", probe(few, test, tower, C_TOWER), "pixels", pixel_probe, "+3")
        )

    if options.checkpoint:
        bundle = openslip.load(options.checkpoint)
        for name, splits in sources.items():
            with step(f"{name}: zero-shot"):
                evaluation = ZeroShot(
                    title="zero-shot",
                    source=splits["test"],
                    classnames=None,
                    templates=TEMPLATES,
                    batch_size=250,
                    num_workers=0,
                )
                metrics = evaluation.run(bundle)
                rows.append(Row(f"zero-shot, {name}", metrics["top1"], "chance", metrics["chance"]))

    print(f"{'top-1 in per cent':32} {'ours':>7}  {'beside':14} {'':7} {'difference':>10} {'bar':>6}")
    for row in rows:
        other = "" if row.other is None else f"{row.other:7.2f} {row.value - row.other:+10.2f}"
        verdict = "" if not row.bar else " holds" if row.holds() else " MISSED"
        print(f"{row.name:32} {row.value:7.2f}  {row.beside:14} {other} {row.bar:>6}{verdict}")
    return 0 if all(row.holds() for row in rows) else 1


def spread(total: int, count: int) -> np.ndarray:
    """Places of evenly spread samples, as `Subset` takes them."""
    return np.arange(count) * total // count


def first(source: Source, count: int) -> Source:
    return source if count >= len(source) else Subset(source, count)


if __name__ == "__main__":
    sys.exit(main())
