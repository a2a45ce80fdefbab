"""Read a dataset and print statistics: openslip data check shards --decode --contact-sheet sheet.png."""

import argparse
from pathlib import Path

from openslip.commands._data._options import TARGET, add_quiet, add_requirement, open_source
from openslip.commands._imports import importing_pytorch
from openslip.terminal import be_quiet, say_wrapped


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("openslip data check", description=__doc__)
    parser.add_argument("target", nargs="+", help=TARGET)
    add_requirement(parser)
    parser.add_argument("--decode", action="store_true", help="decode every image, and list the images that fail")
    parser.add_argument("--limit", type=int, metavar="N", help="read only N evenly spaced samples")
    parser.add_argument(
        "--contact-sheet", type=Path, metavar="FILE", help="draw 24 images with their captions into a .png or .jpg file"
    )
    parser.add_argument("--workers", type=int, default=2, help="number of processes that read and decode, 2 by default")
    add_quiet(parser)
    return parser


def main(arguments: list[str]) -> int:
    """Read every sample of a dataset and print statistics."""
    options = parser().parse_args(arguments)
    be_quiet(options.quiet)

    with importing_pytorch():
        from openslip.config.build import build
        from openslip.config.compose import compose_config
        from openslip.data.check import check as check_source

    source = open_source(options.target, options.require)
    lines = check_source(
        source,
        build(compose_config("train", [])[0]["tokenizer"], "tokenizer"),
        decode=options.decode,
        limit=options.limit,
        num_workers=options.workers,
        contact_sheet=options.contact_sheet,
    )
    say_wrapped(*lines, indent=22)
    if options.contact_sheet:
        say_wrapped(f"{'written':22}{options.contact_sheet}", indent=22)
    return 0
