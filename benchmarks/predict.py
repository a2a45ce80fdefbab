"""Zero-shot classification of images from files: OpenSLIP beside three other ways, on the same random ViT-B/32 CLIP.

The ways are the loop of the article that OpenSLIP started from, which for each image reads the pickled model and
encodes each label in the article's four templates; Hugging Face's zero-shot-image-classification pipeline, which has
one template; and the snippet of open_clip's README, with one template and the prompts encoded once. OpenSLIP runs with
four templates and with one. Each way runs in a process of its own, all of them in turn in every round, on the CPU.
Their answers must agree. Rates and ratios are of processor time, so that other work on the machine changes them
little.

    python benchmarks/predict.py --json predict.json
"""

import argparse
import gzip
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rates import Row, show

LABELS = ["armor", "kicking", "punching", "sleeping", "riding", "driving", "running", "eating", "ship", "dog"]
TEMPLATE = "a photo of a {}."
ARTICLE_TEMPLATES = ["a picture of a {}.", "a {} in a video game.", "a {} in an animation.", "a {} in a movie."]
ARTICLE_IMAGES = 3  # for the article's loop, whose time is the same for each image
MAX_DIFFERENCE = 1e-3  # of a probability, between two ways: they resize images differently in the last bit
SECONDS_ABOVE_IMPORTS = 1.0  # of processor time, that a second call from the shell may take
Answer = list[float]  # probability of each label


def openslip(folder: Path, images: list[Path]) -> Iterator[list[Answer]]:
    """OpenSLIP from Python: one image, then the others as a list."""
    yield from classified(folder, images, [TEMPLATE])


def openslip_ensemble(folder: Path, images: list[Path]) -> Iterator[list[Answer]]:
    """The same with the article's templates."""
    yield from classified(folder, images, ARTICLE_TEMPLATES)


def classified(folder: Path, images: list[Path], templates: list[str]) -> Iterator[list[Answer]]:
    import openslip

    model = openslip.load(folder / "clip.pt", activation="quickgelu")
    classify: Any = openslip.ZeroShotClassifier(model, LABELS, templates)
    for part in (images[:1], images[1:]):
        yield [[dict(ranking)[label] for label in LABELS] for ranking in classify(part)]


def article(folder: Path, images: list[Path]) -> Iterator[list[Answer]]:
    """The article's loop: for each image, the pickled model is read, and each label is encoded in all templates."""
    import open_clip
    import torch

    for path in images[:ARTICLE_IMAGES]:
        model = torch.load(folder / "clip.pickle", weights_only=False).eval()
        preprocess: Any = open_clip.image_transform(224, is_train=False)
        with torch.no_grad():
            classes = []
            for label in LABELS:
                ids = open_clip.tokenize([template.format(label) for template in ARTICLE_TEMPLATES])
                classes.append(torch.nn.functional.normalize(model.encode_text(ids, normalize=True).mean(dim=0), dim=0))
            image: Any = preprocess(Image.open(path))
            image = model.encode_image(image[None], normalize=True)
            yield (model.logit_scale.exp() * image @ torch.stack(classes).T).softmax(dim=-1).tolist()


def hugging_face(folder: Path, images: list[Path]) -> Iterator[list[Answer]]:
    """Hugging Face's pipeline: one image, then the others as a list."""
    from transformers import pipeline

    classify: Any = pipeline("zero-shot-image-classification", model=str(folder / "hugging_face"), device="cpu")
    for part in (images[:1], images[1:]):
        found = classify([str(path) for path in part], candidate_labels=LABELS, hypothesis_template=TEMPLATE)
        scores = [{entry["label"]: entry["score"] for entry in ranking} for ranking in found]
        yield [[ranking[label] for label in LABELS] for ranking in scores]


def open_clip(folder: Path, images: list[Path]) -> Iterator[list[Answer]]:
    """The snippet in open_clip's README, with the prompts encoded once."""
    import open_clip
    import torch

    model, _, preprocess = open_clip.create_model_and_transforms(
        "ViT-B-32-quickgelu", pretrained=str(folder / "clip.pt"), load_weights=True
    )
    model.eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-32-quickgelu")
    with torch.no_grad():
        text = model.encode_text(tokenizer([TEMPLATE.format(label) for label in LABELS]), normalize=True)  # pyright: ignore
        for path in images:
            image = model.encode_image(preprocess(Image.open(path)).unsqueeze(0), normalize=True)  # pyright: ignore
            yield (model.logit_scale.exp() * image @ text.T).softmax(dim=-1).tolist()  # pyright: ignore


Way = Callable[[Path, list[Path]], Iterator[list[Answer]]]
WAYS: dict[str, tuple[Way, str]] = {  # and the package that a way needs
    "openslip": (openslip, "openslip"),
    "openslip_ensemble": (openslip_ensemble, "openslip"),
    "article": (article, "open_clip"),
    "hugging_face": (hugging_face, "transformers"),
    "open_clip": (open_clip, "open_clip"),
}


def run_way(name: str, folder: Path) -> None:
    """Classify the images in this process, and print when answers came: processor time, wall clock, probabilities."""
    for answers in WAYS[name][0](folder, sorted((folder / "images").iterdir())):
        print(json.dumps([time.process_time(), time.time(), answers]), flush=True)


def prepare(folder: Path, num_images: int) -> None:
    """Write the images, and the model as a state dict and as a pickle."""
    import open_clip
    import torch

    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for place in range(num_images):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / "images" / f"{place:04}.jpg", quality=90)
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32-quickgelu", load_weights=False)
    torch.save(model, folder / "clip.pickle")
    torch.save(model.state_dict(), folder / "clip.pt")


def write_hugging_face(weights: Path, folder: Path) -> None:
    """Write the model, tokenizer and image processor as Hugging Face's library stores them."""
    import open_clip
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizerFast  # pyright: ignore[reportAttributeAccessIssue]

    config = CLIPConfig(projection_dim=512, vision_config={"patch_size": 32, "hidden_size": 768}, text_config={})
    model = CLIPModel(config)
    model.load_state_dict(
        hugging_face_weights(torch.load(weights)), strict=False
    )  # it has buffers of positions besides
    model.save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    vocabulary = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    merges = gzip.decompress(vocabulary.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    symbols = [*open_clip.tokenizer.SimpleTokenizer().encoder][:-2]
    ids = {symbol: place for place, symbol in enumerate([*symbols, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    CLIPTokenizerFast.from_pretrained(folder, model_max_length=77).save_pretrained(folder)


def hugging_face_weights(weights: dict[str, Any]) -> dict[str, Any]:
    """Rename OpenAI's weights, whose layout open_clip has, to Hugging Face's."""
    names = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.proj": "visual_projection.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "text_projection": "text_projection.weight",
    }
    parts = {
        **{"visual.ln_pre": "vision_model.pre_layrnorm", "visual.ln_post": "vision_model.post_layernorm"},
        **{"ln_final": "text_model.final_layer_norm", "visual.transformer.resblocks": "vision_model.encoder.layers"},
        **{"transformer.resblocks": "text_model.encoder.layers", ".ln_1": ".layer_norm1", ".ln_2": ".layer_norm2"},
        **{".attn.out_proj": ".self_attn.out_proj", ".c_fc": ".fc1", ".c_proj": ".fc2"},
    }
    renamed: dict[str, Any] = {}
    for name, weight in weights.items():
        target = names.get(name, name)
        for ours, theirs in parts.items():
            target = target.replace(ours, theirs)
        if name.endswith("proj") or name == "text_projection":
            renamed[target] = weight.T
        elif ".in_proj_" in name:
            for letter, part in zip("qkv", weight.chunk(3), strict=True):
                renamed[target.replace(".attn.in_proj_", f".self_attn.{letter}_proj.")] = part
        else:
            renamed[target] = weight
    return renamed


class Measured:
    """What one run of a way took."""

    def __init__(self, name: str, folder: Path) -> None:
        start = time.time()
        command = [sys.executable, __file__, "--way", name, "--folder", str(folder)]
        process = subprocess.run(command, capture_output=True, text=True, env=offline())
        if process.returncode:
            raise RuntimeError(f"{name}: {process.stderr.strip().splitlines()[-1]}")
        answers = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("[")]
        first, last = answers[0], answers[-1]
        self.probabilities = np.array([row for answer in answers for row in answer[2]])
        num_images = len(self.probabilities)
        self.first_wall, self.first_cpu = first[1] - start, first[0]
        self.rate = (num_images - 1) / (last[0] - first[0])  # images per second of processor time, after the first


REFERENCES = {"openslip_ensemble": "openslip_ensemble", "article": "openslip_ensemble"}  # of the others: openslip


def offline() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1"}


def rows(name: str, runs: list[Measured], reference: list[Measured]) -> Iterator[Row]:
    yield Row(f"{name}: to the first answer, wall", statistics.median(run.first_wall for run in runs), "s")
    yield Row(f"{name}: to the first answer, processor", statistics.median(run.first_cpu for run in runs), "s")
    yield Row(f"{name}: after the first answer", statistics.median(run.rate for run in runs), "images/cpu s")
    yield Row(f"{name}: difference to openslip", differs(runs, reference), "probability")


def differs(runs: list[Measured], reference: list[Measured]) -> float:
    """Return the largest difference of a probability to OpenSLIP's; 0 if OpenSLIP has failed."""
    if not reference:
        return 0.0
    probabilities = runs[0].probabilities
    return float(abs(probabilities - reference[0].probabilities[: len(probabilities)]).max())


def measure(folder: Path, num_images: int, rounds: int) -> Iterator[Row]:
    prepare(folder, num_images)
    runs: dict[str, list[Measured]] = {name: [] for name in WAYS}
    failures: list[str] = []
    if importlib.util.find_spec("transformers"):
        try:
            write_hugging_face(folder / "clip.pt", folder / "hugging_face")
        except Exception as error:  # then the other ways are measured
            failures.append(f"transformers cannot store the model: {error}")
    whole: dict[str, float] = {}  # processor seconds for all images, from the start of the process
    for turn in range(rounds):
        for name, (_way, package) in WAYS.items():
            installed = importlib.util.find_spec(package) is not None
            try:
                if installed:
                    runs[name].append(Measured(name, folder))
            except RuntimeError as error:
                failures.append(str(error))
            if turn < rounds - 1:
                continue
            if not runs[name]:
                yield Row(name, math.nan, "failed" if installed else f"{package} is not installed")
                continue
            whole[name] = statistics.median(run.first_cpu + (num_images - 1) / run.rate for run in runs[name])
            reference = runs[REFERENCES.get(name, "openslip")]
            yield from rows(name, runs[name], reference)
            if (difference := differs(runs[name], reference)) > MAX_DIFFERENCE:
                failures.append(f"{name}: its probabilities differ from OpenSLIP's by {difference:.3g}")
    if "openslip_ensemble" in whole and "article" in whole:
        rate, ratio = num_images / whole["openslip_ensemble"], whole["article"] / whole["openslip_ensemble"]
        yield Row(f"openslip_ensemble, {num_images} images with the start", rate, "images/cpu s", "article", ratio, 20)
    if "openslip" in whole:
        rate = num_images / whole["openslip"]
        others = {name: whole[name] for name in ("hugging_face", "open_clip") if name in whole}
        for name, seconds in others.items():
            ratio = seconds / whole["openslip"]
            bar = 1 if seconds == min(others.values()) else None
            yield Row(f"openslip, {num_images} images with the start", rate, "images/cpu s", name, ratio, bar)
    if failures:
        raise RuntimeError("; ".join(failures))


def measure_shell(folder: Path, rounds: int) -> Iterator[Row]:
    """What `openslip predict` takes in a second call with the same labels."""
    from openslip.inference.formats.openslip import write
    from openslip.inference.load import load

    (image, *_) = sorted((folder / "images").iterdir())
    write(load(folder / "clip.pt", activation="quickgelu"), folder / "stripped.pt")
    environment = offline() | {"OPENSLIP_CACHE": str(folder / "cache")}
    words = ["predict", str(image), "--model", str(folder / "stripped.pt"), "--labels", ",".join(LABELS)]
    call = [sys.executable, "-m", "openslip", *words]
    imports = [sys.executable, "-c", "import torch, timm"]
    first = processor_seconds(call, environment)
    above = []
    for _ in range(rounds):
        bare = processor_seconds(imports, environment)
        above.append(processor_seconds(call, environment) - bare)
    yield Row("openslip predict, first call", first, "cpu s")
    seconds = statistics.median(above)
    yield Row("openslip predict, second call above the imports", seconds, "cpu s")
    yield Row("seconds to spare of those allowed", SECONDS_ABOVE_IMPORTS - seconds, "cpu s", bar=0)


def processor_seconds(command: list[str], environment: dict[str, str]) -> float:
    """Run a command, and return the processor time that it took."""
    before = os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=[*WAYS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        run_way(options.way, options.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        show(measure(folder, options.images, options.rounds), measure_shell(folder, options.rounds), file=options.json)


if __name__ == "__main__":
    main()
