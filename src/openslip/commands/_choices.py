"""Options for what some checkpoint files do not state, shared by the commands that load foreign checkpoints."""

import argparse
from typing import Any

from openslip.inference.choices import ACTIVATIONS


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Add the options --activation, --image-heads and --text-heads."""
    choices = parser.add_argument_group("for a checkpoint that leaves these open (an error then asks for them)")
    choices.add_argument("--activation", choices=[*ACTIVATIONS], help="activation of the MLPs")
    choices.add_argument("--image-heads", type=int, metavar="N", help="attention heads of the image tower")
    choices.add_argument("--text-heads", type=int, metavar="N", help="attention heads of the text tower")


def choices_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the values of these options as arguments of `openslip.load`."""
    return {name: getattr(options, name) for name in ("activation", "image_heads", "text_heads")}
