"""Which label fits an image: openslip predict a.jpg --checkpoint runs/NAME --labels "cat,dog"."""

import argparse
import json

from openslip.inference.classifier import ZeroShotClassifier
from openslip.inference.load import load
from openslip.inference.prompts import read_lines
from openslip.terminal import say


def main(arguments: list[str]) -> int:
    """Print each image's labels with their probabilities as bars, or as JSON."""
    parser = argparse.ArgumentParser("openslip predict", description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMG", help="image files")
    parser.add_argument("--checkpoint", required=True, help="a run's folder, a checkpoint, or a published SLIP file")
    parser.add_argument("--labels", required=True, help='"man kicking,man sleeping", or @FILE with one per line')
    parser.add_argument("--template", action="append", help='prompt such as "a {} in a movie."; may be repeated')
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--allow", action="append", default=[], help="model class of your own that the file may name")
    parser.add_argument("--format", help="format of the file, if not found by its content; or a module that reads it")
    parser.add_argument("--transparency", choices=("white", "ignore"), help="of images, if not as in the run")
    parser.add_argument("--exif", choices=("apply", "ignore"), help="orientation of images, if not as in the run")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)

    labels = (
        read_lines(options.labels[1:])
        if options.labels.startswith("@")
        else [label.strip() for label in options.labels.split(",") if label.strip()]
    )
    bundle = load(options.checkpoint, device=options.device, allow=options.allow, format=options.format)
    classifier = ZeroShotClassifier(
        bundle.reading(transparency=options.transparency, exif=options.exif),
        labels,
        options.template or ("a photo of a {}.",),
    )
    rankings = classifier.rank(options.images)
    if options.json:
        found = [
            {"image": image, "labels": [{"label": label, "probability": p} for label, p in ranking]}
            for image, ranking in zip(options.images, rankings, strict=True)
        ]
        say(*json.dumps(found, indent=1).splitlines())
        return 0
    width = max(len(label) for label in labels)
    for image, ranking in zip(options.images, rankings, strict=True):
        say(image)
        for label, probability in ranking:
            say(f"  {label:{width}}  {100 * probability:5.1f} %  {'█' * round(40 * probability)}")
    return 0
