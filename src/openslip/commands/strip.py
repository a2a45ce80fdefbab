"""Write a checkpoint that holds only what inference needs: openslip strip runs/NAME small.ckpt."""

import argparse
import shlex
from pathlib import Path

from openslip.commands._choices import add_choices, choices_of
from openslip.commands._imports import importing_pytorch
from openslip.errors import UserError
from openslip.inference.dtypes import DTYPES
from openslip.inference.endings import ENDINGS
from openslip.progress import progress
from openslip.terminal import mention, say


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("openslip strip", description=__doc__)
    parser.add_argument("source", metavar="IN", help="a run's folder, a checkpoint, or a published name")
    parser.add_argument("target", metavar="OUT", help=f"file to write, with the ending {', '.join(ENDINGS)}")
    parser.add_argument(
        "--allow", action="append", default=[], help="import path of your own class that the checkpoint may name"
    )
    parser.add_argument(
        "--format", help="format of the checkpoint, or a module that reads the file; detected by default"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="dtype of the weights in the file; by default the first of float16 and bfloat16 that changes no weight, "
        "else float32",
    )
    parser.add_argument("--keep-head", action="store_true", help="also keep the objective's weights, e.g. an SSL head")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    add_choices(parser)
    return parser


def main(arguments: list[str]) -> int:
    """Write a smaller checkpoint that gives the same predictions, and print both sizes and the dtype."""
    options = parser().parse_args(arguments)
    target = Path(options.target)
    if target.suffix.lower() not in ENDINGS and not target.is_dir():
        raise UserError(f"{target}: expected a file that ends in {', '.join(ENDINGS)}")

    with importing_pytorch():
        from openslip.inference.strip import strip
    with progress("writing the stripped file"):
        stripped = strip(
            options.source,
            options.target,
            allow=options.allow,
            format=options.format,
            dtype=options.dtype,
            keep_head=options.keep_head,
            force=options.force,
            **choices_of(options),
        )
    before, after = (f"{size / 1e6:.1f} MB" for size in (stripped.before, stripped.after))
    say(f"{options.source} {before} -> {options.target} {after} ({stripped.dtype})")
    mention(f"next: openslip eval {shlex.quote(f'checkpoint={options.target}')} evaluation=NAME")
    return 0
