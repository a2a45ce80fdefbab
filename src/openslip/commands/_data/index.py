"""Index shards, so that training does not have to scan them at its start: openslip data index shards."""

import argparse

from openslip.commands._data._options import TARGET, add_quiet, add_requirement, open_source
from openslip.commands._imports import importing_pytorch
from openslip.terminal import be_quiet, say, say_wrapped


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("openslip data index", description=__doc__)
    parser.add_argument("target", nargs="+", help=TARGET)
    add_requirement(parser)
    add_quiet(parser)
    return parser


def main(arguments: list[str]) -> int:
    """Index the shards of a dataset and print how many samples they hold."""
    options = parser().parse_args(arguments)
    be_quiet(options.quiet)

    with importing_pytorch():
        from openslip.data.sources.shards import ShardSource

    source = open_source(options.target, options.require)
    for line in source.problems:
        say_wrapped(f"skipped: {line}")
    if isinstance(source, ShardSource):
        say(f"{len(source)} samples in {len(source.index.parts)} shards", f"index: {source.index.folder}")
    else:
        say(f"{len(source)} samples")
    return 0
