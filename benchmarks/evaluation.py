"""Zero-shot and retrieval evaluation: OpenSLIP beside open_clip, clip_benchmark and obvious loops, same random weights.

    python benchmarks/evaluation.py --json evaluation.json --clip-benchmark-python FOLDER/bin/python

- The classifier of 40 ImageNet classes x 80 templates, beside open_clip's `build_zero_shot_classifier`. That function
  encodes 10 classes at a time, padded to 77 tokens, so that one such batch has the rate of all.
- Zero-shot classification of images from files, beside the loop that encodes one image at a time.
- Retrieval of 25,000 captions x 5,000 images from random features, beside clip_benchmark's `evaluate`, each in a
  process of its own, whose memory is measured. clip_benchmark 1.6.2 needs an environment with numpy 2.2 (as in
  `tests/support/record_clip_benchmark.py`); without `--clip-benchmark-python`, its rows are left out.
- Three evaluations of one data set in one pass over its images, beside three passes.

Rates and ratios are of processor time, on one thread, so that other work on the machine changes them little. Results
must agree, or the part fails.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from rates import Rates, Row, show
from safetensors.torch import save_file
from torch import Tensor

import openslip
from openslip.data.sources.image_folder import ImageFolder
from openslip.evaluation.feature_cache import FeatureCache
from openslip.evaluation.image_features import sharing
from openslip.evaluation.knn import KNN
from openslip.evaluation.zeroshot import ZeroShot
from openslip.inference.imagenet_prompts import imagenet_classnames, imagenet_templates
from openslip.inference.prompts import class_embeddings

CLASSIFIER_BAR = 14  # times open_clip's rate
MAX_MEMORY = 1.0  # GB that retrieval may add to its process
MAX_DIFFERENCE = 1e-5  # of a class embedding's elements
MODEL = "ViT-B-32-quickgelu"


class Sizes(NamedTuple):
    classes: int
    templates: int
    images: int
    captioned: int  # images of the retrieval, each with five captions
    width: int  # of the retrieval's features
    layers: int | None  # per tower; None for those of ViT-B/32
    rounds: int


FULL = Sizes(classes=40, templates=80, images=64, captioned=5_000, width=512, layers=None, rounds=3)
QUICK = Sizes(classes=4, templates=8, images=8, captioned=100, width=16, layers=1, rounds=1)


def prepare(folder: Path, sizes: Sizes) -> Any:
    """Write images in class folders and the weights as a folder of open_clip's, and return open_clip's model."""
    config: Any = open_clip.get_model_config(MODEL)
    if sizes.layers is not None:
        for tower in ("vision_cfg", "text_cfg"):
            config[tower] = {**config[tower], "layers": sizes.layers}
    torch.manual_seed(0)
    model = open_clip.CLIP(**config).eval()
    mean, std = list(open_clip.OPENAI_DATASET_MEAN), list(open_clip.OPENAI_DATASET_STD)
    preprocess = {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "model").mkdir()
    described = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    (folder / "model" / "open_clip_config.json").write_text(described, encoding="utf-8")
    state = {key: tensor.contiguous().clone() for key, tensor in model.state_dict().items()}
    save_file(state, folder / "model" / "open_clip_model.safetensors")
    rng = np.random.default_rng(0)
    for place in range(sizes.images):
        path = folder / "images" / ("cat", "dog", "ring", "ship")[place % 4] / f"{place:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
    return model


def classifier(folder: Path, theirs: Any, sizes: Sizes) -> Iterator[Row]:
    """Measure the classifier of many classes and templates."""
    names = imagenet_classnames()[:: 1000 // sizes.classes][: sizes.classes]
    templates = imagenet_templates(80)[: sizes.templates]
    bundle = openslip.load(folder / "model")
    tokenizer = open_clip.get_tokenizer(MODEL)
    batch = names[:10]
    built: dict[str, Tensor] = {}

    def ours() -> int:
        built["ours"] = class_embeddings(bundle.encode_text, names, templates)
        return len(names) * len(templates)

    def open_clips() -> int:
        with_braces: Sequence[str] = templates
        built["theirs"] = open_clip.build_zero_shot_classifier(theirs, tokenizer, batch, with_braces).T
        return len(batch) * len(templates)

    rates = Rates({"openslip": ours, "open_clip": open_clips}, sizes.rounds)
    yield rates.row("open_clip", "prompts/cpu s", label="classifier, open_clip")
    label = f"classifier, openslip, {len(names)} x {len(templates)}"
    yield rates.row("openslip", "prompts/cpu s", "open_clip", CLASSIFIER_BAR, label)
    yield agreement("classifier, difference", built["ours"][: len(batch)], built["theirs"])


def agreement(name: str, ours: Tensor, theirs: Tensor) -> Row:
    difference = float((ours - theirs).abs().max())
    if difference > MAX_DIFFERENCE:
        raise AssertionError(f"{name} {difference:.1e}: expected at most {MAX_DIFFERENCE:g}")
    return Row(name, 1e6 * difference, "millionths")


def zero_shot(folder: Path, theirs: Any, sizes: Sizes) -> Iterator[Row]:
    """Measure zero-shot classification of image files, prompts included, in this process."""
    source = ImageFolder(root=str(folder / "images"))
    names, templates = list(source.classes or ()), imagenet_templates(7)
    bundle = openslip.load(folder / "model")
    tokenizer: Any = open_clip.get_tokenizer(MODEL)
    preprocess: Any = open_clip.image_transform(bundle.transform.size, is_train=False)
    paths = sorted((folder / "images").rglob("*.jpg"), key=lambda path: (path.parent.name, path.name))
    predicted: dict[str, list[int]] = {}

    def ours() -> int:
        evaluation = ZeroShot(
            title="", source=source, classnames=names, templates=templates, batch_size=32, num_workers=0
        )
        evaluation.run(bundle)
        predicted["ours"] = evaluation.arrays["predictions"].tolist()
        return len(source)

    def loop() -> int:
        with torch.no_grad():
            classes = []
            for name in names:
                text = theirs.encode_text(tokenizer([template.replace("{}", name) for template in templates]))
                classes.append(F.normalize(F.normalize(text, dim=-1).mean(dim=0), dim=-1))
            predicted["loop"] = []
            for path in paths:
                image = theirs.encode_image(preprocess(Image.open(path))[None])
                predicted["loop"].append(int((F.normalize(image, dim=-1) @ torch.stack(classes).T).argmax()))
        return len(paths)

    rates = Rates({"openslip": ours, "loop": loop}, sizes.rounds)
    agree = np.mean(np.array(predicted["ours"]) == np.array(predicted["loop"]))
    yield rates.row("loop", "images/cpu s", label="zero-shot, one image at a time with open_clip")
    yield rates.row("openslip", "images/cpu s", "loop", label="zero-shot, openslip")
    yield Row("zero-shot, equal predictions", 100 * float(agree), "%")


def one_pass(folder: Path, sizes: Sizes) -> Iterator[Row]:
    """Measure three evaluations of one data set that share their image features, and three that do not."""
    source = ImageFolder(root=str(folder / "images"))
    bundle = openslip.load(folder / "model")
    shared: dict[str, Any] = {"batch_size": 32, "num_workers": 0}
    knn = KNN(title="", train=source, test=source, k=2, temperature=0.07, **shared)
    evaluations = [
        ZeroShot(title="", source=source, classnames=None, templates=["a {}."], **shared),
        ZeroShot(title="", source=source, classnames=None, templates=["a photo of a {}."], **shared),
        knn,
    ]
    metrics: dict[str, list[dict[str, float]]] = {}

    def together() -> int:
        with sharing(FeatureCache(None)):
            metrics["together"] = [evaluation.run(bundle) for evaluation in evaluations]
        return len(source)

    def separately() -> int:
        metrics["separately"] = [evaluation.run(bundle) for evaluation in evaluations]
        return len(source)

    rates = Rates({"together": together, "separately": separately}, sizes.rounds)
    if metrics["together"] != metrics["separately"]:
        raise AssertionError(f"{metrics['together']} in one pass, {metrics['separately']} in separate ones")
    yield rates.row("separately", "images/cpu s", label="three evaluations, a pass for each")
    yield rates.row("together", "images/cpu s", "separately", label="three evaluations, one pass")


def retrieval(folder: Path, sizes: Sizes, python: Path | None) -> Iterator[Row]:
    """Measure retrieval from random features, each way in a process of its own."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((sizes.captioned, sizes.width), dtype=np.float32)
    noise = rng.standard_normal((5 * sizes.captioned, sizes.width), dtype=np.float32)
    np.save(folder / "images.npy", images)
    np.save(folder / "texts.npy", images.repeat(5, axis=0) + 12 * noise)  # many queries do not find theirs at once
    ours = measured("openslip", folder, Path(sys.executable))
    yield Row(f"retrieval {5 * sizes.captioned} x {sizes.captioned}, openslip", ours["seconds"], "cpu s")
    yield Row("retrieval, openslip, its process's memory", ours["gigabytes"], "GB")
    yield Row("retrieval, openslip, to spare of 1 GB added", MAX_MEMORY - ours["added_gigabytes"], "GB", bar=0)
    if python is None:
        return
    theirs = measured("clip_benchmark", folder, python)
    if not np.allclose(ours["recalls"], theirs["recalls"], rtol=0, atol=1e-6):
        raise AssertionError(f"recalls {ours['recalls']}, clip_benchmark's {theirs['recalls']}")
    ratio = theirs["seconds"] / ours["seconds"]
    yield Row("retrieval, clip_benchmark", theirs["seconds"], "cpu s", "openslip", ratio)
    yield Row("retrieval, clip_benchmark, its process's memory", theirs["gigabytes"], "GB")


def measured(way: str, folder: Path, python: Path) -> dict[str, Any]:
    command = [str(python), str(Path(__file__).with_name("retrieval_way.py")), way, str(folder)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{way}: {process.stderr.strip().splitlines()[-1]}")
    return json.loads(process.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see whether everything runs")
    parser.add_argument("--rounds", type=int, help="after one that warms up")
    parser.add_argument("--clip-benchmark-python", type=Path, help="python of an environment with clip_benchmark")
    options = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    sizes = sizes._replace(rounds=options.rounds or sizes.rounds)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs = prepare(folder, sizes)
        show(
            retrieval(folder, sizes, options.clip_benchmark_python),
            classifier(folder, theirs, sizes),
            zero_shot(folder, theirs, sizes),
            one_pass(folder, sizes),
            file=options.json,
            needs_bars=not options.quick,  # tiny sizes say nothing of speed
        )


if __name__ == "__main__":
    main()
