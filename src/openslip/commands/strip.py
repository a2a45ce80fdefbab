"""Write a checkpoint that holds only what inference needs: openslip strip runs/NAME small.ckpt."""

import argparse
import os
from collections.abc import Collection
from pathlib import Path

from openslip.commands._choices import add_choices, choices_of
from openslip.commands._imports import importing_pytorch
from openslip.errors import UserError
from openslip.progress import progress
from openslip.terminal import say


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("openslip strip", description=__doc__)
    parser.add_argument("source", metavar="IN", help="a run's folder, a checkpoint, or a published SLIP file")
    parser.add_argument("target", metavar="OUT", help="file to write; the ending .safetensors selects that format")
    parser.add_argument("--allow", action="append", default=[], help="your own class that the checkpoint may use")
    parser.add_argument("--format", help="format of the checkpoint, or a module that reads it; detected by default")
    add_choices(parser)
    return parser


def main(arguments: list[str]) -> int:
    """Write a smaller checkpoint that gives the same predictions, and print both sizes."""
    options = parser().parse_args(arguments)

    with progress("writing the stripped file"):
        before, after = strip(
            options.source, options.target, allow=options.allow, format=options.format, **choices_of(options)
        )
    say(f"{options.source} {before / 1e6:.1f} MB -> {options.target} {after / 1e6:.1f} MB")
    return 0


def strip(
    source: str | Path,
    target: str | Path,
    *,
    allow: Collection[str] = (),
    format: str | None = None,  # noqa: A002
    activation: str | None = None,
    image_heads: int | None = None,
    text_heads: int | None = None,
) -> tuple[int, int]:
    """Write the model of a checkpoint with its tokenizer and transform; return both file sizes in bytes.

    Args:
        source: a run's folder or a checkpoint.
        target: the file to write.
        allow: import paths of your own model and tokenizer classes that the checkpoint may name.
        format: name of the source's format, or import path of a module that reads it; None detects it.
        activation: activation of the MLPs, for a source that does not say it.
        image_heads: attention heads of the image tower, for a source that does not say them.
        text_heads: attention heads of the text tower, for a source that does not say them.
    """
    with importing_pytorch():
        from openslip.inference.files import checkpoint_file
        from openslip.inference.formats.openslip import write
        from openslip.inference.load import load

    source, target = checkpoint_file(source), Path(target)
    if target.resolve() == source.resolve():
        raise UserError(f"strip: {target} is the checkpoint itself; name another file for the stripped one")
    bundle = load(
        source, allow=allow, format=format, activation=activation, image_heads=image_heads, text_heads=text_heads
    )
    temporary = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        write(bundle, temporary)
        load(temporary, allow=allow)  # a file that cannot be loaded must not replace the target
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return source.stat().st_size, target.stat().st_size
