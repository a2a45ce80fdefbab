"""Write a model for another library, and check that the other library computes the same features as OpenSLIP."""

import argparse
import os
from pathlib import Path

from openslip.commands._choices import add_choices, choices_of
from openslip.commands._imports import importing_pytorch
from openslip.errors import UserError
from openslip.export import forms
from openslip.export.place import prepare
from openslip.progress import progress
from openslip.terminal import mention, say


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "openslip export",
        description=__doc__,
        epilog="Example: openslip export runs/NAME --to huggingface FOLDER. "
        "The library for which the folder is written loads it in a process of its own. On a few images and texts, its "
        "pixels, token ids and features are compared with ours, and the largest differences are printed. If one is "
        "above 1e-4 (in float64: 1e-8), or an id differs, the folder is removed, and the exit code is 1. Some "
        "libraries crop images of some sizes with a shift of one pixel. For such images, `crop` is the largest "
        "difference in features due to this shift. It is only reported.",
    )
    parser.add_argument("source", metavar="IN", help="a run's folder, a checkpoint, or a published name")
    parser.add_argument("target", metavar="OUT", help="folder to write")
    parser.add_argument(
        "--to", required=True, choices=forms.names(), help="library or format for which the folder is written"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace an earlier export once the new one is complete, but no other folder",
    )
    parser.add_argument(
        "--no-check", action="store_true", help="do not load the folder with its library; the model card says so"
    )
    parser.add_argument(
        "--allow", action="append", default=[], help="import path of your own class that the checkpoint may name"
    )
    parser.add_argument("--format", help="format of the checkpoint, or a module that reads it; detected by default")
    parser.add_argument(
        "--license",
        help="licence of the weights for the model card, by its identifier on the hub, such as mit or "
        "cc-by-nc-4.0; it is not checked",
    )
    parser.add_argument(
        "--push", metavar="USER/NAME", help="upload the checked folder to this repository of the Hugging Face hub"
    )
    parser.add_argument("--private", action="store_true", help="with --push, a new repository is private")
    add_choices(parser)
    return parser


def main(arguments: list[str]) -> int:
    """Write the folder, check it, and print the largest differences."""
    options = parser().parse_args(arguments)
    if options.push and options.no_check:
        raise UserError(
            f"--push {options.push} with --no-check: only a checked export is uploaded; leave out --no-check"
        )
    if options.private and not options.push:
        raise UserError("--private has no effect without --push USER/NAME: add it, or leave out --private")

    if options.push:
        from openslip.export.push import check_repository  # slow to import

        check_repository(options.push)
    prepare(Path(os.path.abspath(options.target)), options.source, force=options.force)
    with importing_pytorch():
        from openslip.export.export import export
        from openslip.export.push import push
    with progress("exporting"):
        deviations = export(
            options.source,
            options.target,
            options.to,
            allow=options.allow,
            format=options.format,
            check=not options.no_check,
            force=options.force,
            licence=options.license,
            **choices_of(options),
        )
    for name, value in (deviations or {}).items():
        say(f"{name:17} {'the same' if name == 'ids' else f'{value:.1e}'}")
    checked = "not checked" if deviations is None else "confirmed by its library"
    say(f"{options.source} -> {options.target} ({options.to}, {checked})")
    if options.push:
        say(f"uploaded in one commit: {push(Path(options.target), options.push, private=options.private)}")
    mention(f"next: {Path(options.target) / 'README.md'} shows how to load it")
    return 0
