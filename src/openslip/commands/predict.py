"""Rank labels by how well they fit images: openslip predict a.jpg --checkpoint runs/NAME --labels "cat,dog"."""

import argparse
import csv
import io
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from openslip.commands._choices import add_choices, choices_of
from openslip.commands._imports import importing_pytorch
from openslip.data.class_names import alike
from openslip.data.image.settings import SETTINGS
from openslip.data.listing import is_image, others_line, visible_files
from openslip.data.remote.files import cache_folder
from openslip.durable import durable, needed, refuse_unwritable
from openslip.errors import UserError
from openslip.progress import progress
from openslip.terminal import notice, printable, say, width

if TYPE_CHECKING:
    from torch import Tensor

    from openslip.inference.classifier import Ranking, ZeroShotClassifier

FILES = (".csv", ".jsonl")
HELP = {
    "transparency": "composite transparent images on white, or ignore the transparency",
    "exif": "apply EXIF orientation, which turns images upright, or ignore it",
}
THREADS = 8  # number of threads that read images; most wait for a disk or a server
SHORTEST_BAR, LONGEST_BAR = 10, 40  # columns of a bar that stands for the probability 1
ELSEWHERE = "--output FILE names another place"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("openslip predict", description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMG", help="image files, folders of images, or http(s) addresses")
    parser.add_argument(
        "--checkpoint", "--model", required=True, help="a run's folder, or a checkpoint of OpenSLIP or another project"
    )
    parser.add_argument("--labels", required=True, help='"man kicking,man sleeping", or @FILE with one label per line')
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--template", action="append", help='prompt, may be repeated; default: "a photo of a {}."')
    prompts.add_argument(
        "--templates",
        metavar="LIST",
        help="imagenet7, imagenet80, a set such as food101, or a file, one prompt per line",
    )
    parser.add_argument(
        "--underscores",
        choices=("space", "keep"),
        default="space",
        help="space (default): prompts have a space for each _ in a label; keep: they have the _",
    )
    parser.add_argument(
        "--probabilities",
        choices=("softmax", "sigmoid"),
        default="softmax",
        help="softmax (default): the probabilities sum to 1; sigmoid: each label gets an independent probability; the "
        "model must have a logit_bias",
    )
    parser.add_argument("--top", type=int, metavar="K", help="show only the K most probable labels of each image")
    parser.add_argument(
        "--reject",
        type=float,
        metavar="P",
        help="give no label to an image whose most probable label has a probability below P",
    )
    parser.add_argument("--device", default="auto", help="device of the model: auto (default), cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--allow", action="append", default=[], help="import path of your own class that the checkpoint may name"
    )
    parser.add_argument(
        "--format", help="format of the checkpoint, or a module that reads the file; detected by default"
    )
    add_choices(parser)
    for name, known in SETTINGS.items():
        parser.add_argument(f"--{name}", choices=known, help=f"{HELP[name]}; by default as the checkpoint says")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a bar chart of probabilities")
    form.add_argument("--csv", action="store_true", help="print CSV instead of the bar chart: one row per image")
    form.add_argument(
        "--output", type=Path, help="file to write: .csv (one row per image) or .jsonl (one object per image)"
    )
    return parser


def main(arguments: list[str]) -> int:
    """Print each image's labels with their probabilities as bars, JSON or CSV, or write them to a file."""
    options = parser().parse_args(arguments)

    if options.top is not None and options.top < 1:
        raise UserError(f"--top {options.top}: expected at least 1")
    with importing_pytorch():
        from openslip.inference.classifier import TEMPLATE, ZeroShotClassifier
        from openslip.inference.load import load
        from openslip.inference.prompts import texts_of
    if options.output:
        check_output(options.output)
    labels = read_labels(options.labels)
    templates = texts_of(options.templates or options.template or [TEMPLATE], "templates")
    with progress("loading the checkpoint"):
        bundle = load(
            options.checkpoint, device=options.device, allow=options.allow, format=options.format, **choices_of(options)
        )
    with progress("encoding the labels"):
        classifier = ZeroShotClassifier(
            bundle.reading(transparency=options.transparency, exif=options.exif),
            labels,
            templates,
            options.probabilities,
            reject=options.reject,
            underscores=options.underscores,
            cache=cache_folder("embeddings"),
        )
    paths, unusable = image_paths(options.images)
    num_ranked = 0
    with results(options, labels) as write:
        for path, ranking in rank_each(classifier, paths):
            write(path, ranking[: options.top])
            num_ranked += 1
    if options.output:
        say(f"{options.output}: {num_ranked} images")
    num_bad = len(paths) - num_ranked
    if num_bad and len(paths) > 1:
        notice(f"error: {num_bad} of {len(paths)} images could not be read")
    return 1 if num_bad or unusable else 0


def read_labels(text: str) -> list[str]:
    """Read labels from comma-separated text or a file; blank and repeated ones are dropped with a notice.

    Args:
        text: labels between commas, or `@FILE` for a file with one label per line.
    """
    from openslip.inference.prompts import all_lines

    given = all_lines(text[1:]) if text.startswith("@") else split_labels(text)
    labels = [label for label in given if label]
    kept = list({alike(label): label for label in reversed(labels)}.values())[::-1]
    lines = []
    if len(labels) < len(given):
        lines.append(f"{len(given) - len(labels)} blank dropped")
    if twice := [label for label in kept if sum(alike(label) == alike(other) for other in labels) > 1]:
        lines.append(f"{', '.join(twice)} given several times and kept once")
    if lines and kept:
        notice(f"labels: {'; '.join(lines)}")
    return kept


def split_labels(text: str) -> list[str]:
    """Split labels at commas; a label in quotation marks may contain commas."""
    try:
        rows = csv.reader(text.splitlines(), skipinitialspace=True, strict=True)
        labels = [label.strip() for row in rows for label in row]
    except csv.Error as error:
        raise UserError(f"--labels {text}: a quotation mark is left open; @FILE has one label per line") from error
    for label in labels:
        if label[:1] in ("[", "{") or (len(label) > 1 and label[0] == label[-1] == "'"):
            raise UserError(f"--labels {text}: separate labels by commas, without brackets or quotation marks")
    return labels


def image_paths(arguments: list[str]) -> tuple[list[str], int]:
    """Return the paths of image files, sorted within each folder, and the number of folders without images."""
    paths, without = [], 0
    for argument in arguments:
        folder = Path(argument)
        if not folder.is_dir():
            paths.append(argument)
            continue
        found = visible_files(folder, below=True)
        files = [file for file in found if is_image(file)]
        if others := [file for file in found if not is_image(file)]:
            notice(f"{argument}: skipped {others_line(others, folder)}")
        if not files:
            notice(f"error: {argument}: the folder holds no image")
            without += 1
        paths += map(str, files)
    return paths, without


def rank_each(classifier: "ZeroShotClassifier", paths: list[str]) -> Iterator[tuple[str, "Ranking"]]:
    """Yield the path and ranking of each image; an unreadable image is reported on stderr and skipped."""
    import torch

    from openslip.inference.bundle import BATCH_SIZE

    bundle = classifier.bundle

    def read(path: str) -> "Tensor | UserError":
        try:
            return bundle.input(path)
        except UserError as error:
            return error

    with progress("classifying images", total=len(paths)) as advance, ThreadPoolExecutor(THREADS) as threads:
        for start in range(0, len(paths), BATCH_SIZE):
            batch = paths[start : start + BATCH_SIZE]
            readable, images = [], []
            for path, image in zip(batch, threads.map(read, batch), strict=True):
                if isinstance(image, UserError):
                    notice(f"error: {image}")
                else:
                    images.append(image)
                    readable.append(path)
                advance(1)
            if images:
                features = bundle.encode_image(torch.stack(images))
                yield from zip(readable, classifier.rank_features(features), strict=True)


Write = Callable[[str, "Ranking"], None]


def results(options: argparse.Namespace, labels: list[str]) -> AbstractContextManager[Write]:
    """Return what takes the rankings: a file or a printer of bars, JSON or CSV."""
    if options.output:
        return writer(options.output, labels, options.top)
    if options.csv:
        return csv_printer(labels, options.top)
    return json_printer() if options.json else bar_printer(labels)


@contextmanager
def bar_printer(labels: list[str]) -> Iterator[Write]:
    """Print the probabilities of an image's labels as bars; in a terminal, long labels are wrapped to its width."""
    room = max(len(printable(label)) for label in labels)
    longest = LONGEST_BAR
    if sys.stdout.isatty():
        columns = width() - len("    100.0 %  ")  # for label and bar
        room = min(room, columns - SHORTEST_BAR)
        longest = min(longest, columns - room)

    def write(path: str, ranking: "Ranking") -> None:
        say(path, *([] if ranking else ["  no label"]))
        for label, probability in ranking:
            *above, last = textwrap.wrap(printable(label), room, break_on_hyphens=False)
            say(*(f"  {line}" for line in above))
            say(f"  {last:{room}}  {100 * probability:5.1f} %  {'█' * round(longest * probability)}")

    yield write


@contextmanager
def json_printer() -> Iterator[Write]:
    """Collect all rankings and print them as one JSON list at the end."""
    entries = []
    yield lambda path, ranking: entries.append(as_json(path, ranking))
    say(*json.dumps(entries, indent=1).splitlines())


@contextmanager
def csv_printer(labels: list[str], top: int | None) -> Iterator[Write]:
    """Print each ranking as a line of CSV as soon as it is known."""
    say(csv_line(columns(labels, top)))
    yield lambda path, ranking: say(csv_line(cells(path, ranking, labels, top)))


@contextmanager
def writer(output: Path, labels: list[str], top: int | None) -> Iterator[Write]:
    """Write rankings to a CSV or JSON lines file, which appears only once it is complete."""
    with needed(output, refusal=UserError, advice=ELSEWHERE), durable(output) as file:

        def write(path: str, ranking: "Ranking") -> None:
            is_csv = output.suffix == ".csv"
            line = csv_line(cells(path, ranking, labels, top)) if is_csv else json.dumps(as_json(path, ranking))
            file.write(f"{line}\n".encode("utf-8", "surrogateescape"))

        if output.suffix == ".csv":
            file.write(f"{csv_line(columns(labels, top))}\n".encode())
        yield write


def check_output(output: Path) -> None:
    """Refuse an output file that cannot be written, before any image is ranked."""
    if output.suffix not in FILES:
        raise UserError(f"--output {output}: expected a name that ends in {' or '.join(FILES)}")
    refuse_unwritable(output, advice=ELSEWHERE)


def as_json(path: str, ranking: "Ranking") -> dict:
    return {"image": path, "labels": [{"label": label, "probability": p} for label, p in ranking]}


def columns(labels: list[str], top: int | None) -> list[str]:
    """Return the header of a CSV: the image, the most probable label and its probability, and then the others.

    Without `top` there is a column with the probability of each label, else the pairs `label_2`, `probability_2`, ...
    """
    others = labels if top is None else [f"{name}_{n}" for n in range(2, top + 1) for name in ("label", "probability")]
    return ["image", "label", "probability", *others]


def cells(path: str, ranking: "Ranking", labels: list[str], top: int | None) -> list:
    """Return one row of a CSV; a rejected image has no value in any column but the first."""
    probabilities = dict(ranking)
    if top is None and ranking:
        return [path, *ranking[0], *(probabilities[label] for label in labels)]
    values = [value for pair in ranking for value in pair]
    return [path, *values, *[""] * (len(columns(labels, top)) - 1 - len(values))]


def csv_line(cells: list) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="").writerow(cells)
    return buffer.getvalue()
