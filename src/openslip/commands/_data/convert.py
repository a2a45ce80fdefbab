"""Convert a dataset of another layout to tar shards: openslip data convert table images.csv shards."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from openslip.commands._data._options import add_quiet, count
from openslip.progress import progress
from openslip.terminal import be_quiet, mention, say, say_wrapped, width, wrapped


def parser(extra: Mapping[str, tuple[type, bool, str]] = MappingProxyType({})) -> argparse.ArgumentParser:
    """Return the parser of `data convert` with the options of one layout, as `layout_options` returns them."""
    from openslip.config.help import columns
    from openslip.data.convert import SAMPLES_PER_SHARD, descriptions

    title = "layouts, each with its own options (openslip data convert LAYOUT --help):"
    purpose = wrapped(__doc__, width(), indent=0)
    parser = argparse.ArgumentParser(
        "openslip data convert",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="\n".join([*purpose, "", *wrapped(title, width(), indent=0), *columns(descriptions(), 13)]),
    )
    parser.add_argument("layout", metavar="LAYOUT", help="one of the layouts above")
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder or table of the dataset")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the shards")
    parser.add_argument(
        "--resize", type=count, metavar="SIDE", help="resize larger images to a short side of SIDE pixels, e.g. 256"
    )
    parser.add_argument(
        "--samples-per-shard",
        type=count,
        default=SAMPLES_PER_SHARD,
        metavar="N",
        help=f"samples per shard, {SAMPLES_PER_SHARD} by default",
    )
    parser.add_argument(
        "--transparency",
        choices=("white", "ignore"),
        default="white",
        help="how to treat a transparent image that becomes a JPEG (with --resize, or because of its format): white "
        "(default) puts it on a white background; ignore keeps the stored colours of transparent pixels",
    )
    parser.add_argument("--workers", type=count, default=2, help="number of processes that write shards, 2 by default")
    for name, (kind, many, purpose) in extra.items():
        flag = "--" + (name.removesuffix("s") if many else name).replace("_", "-")
        parser.add_argument(
            flag,
            dest=name,
            type=kind,
            metavar="PATH" if kind is Path else "TEXT",
            action="append" if many else "store",
            help=purpose,
        )
    add_quiet(parser)
    return parser


def main(arguments: list[str]) -> int:
    """Convert a dataset to shards; the same command resumes an interrupted conversion."""
    extra = layout_options(arguments[0]) if arguments and not arguments[0].startswith("-") else {}
    options = vars(parser(extra).parse_args(arguments))
    be_quiet(options["quiet"])

    from openslip.data.convert.convert import convert as write_shards
    from openslip.data.convert.manifest import Entry, Totals

    with progress("converting") as advance:

        def on_shard(entry: Entry, totals: Totals) -> None:
            advance(entry.samples)
            mention(f"{entry.name}: {entry.samples:,} samples; {totals}")

        totals = write_shards(
            options["layout"],
            options["root"],
            options["out"],
            options={name: options[name] for name in extra},
            samples_per_shard=options["samples_per_shard"],
            resize=options["resize"],
            transparency=options["transparency"],
            workers=options["workers"],
            on_shard=on_shard,
        )
    say(f"{totals.samples} samples in {totals.shards} shards: {options['out']}")
    if totals.left_out:
        say_wrapped(f"left out: {totals.reasons()}: {options['out'] / 'left_out.jsonl'}")
    return 0


def layout_options(layout: str) -> dict[str, tuple[type, bool, str]]:
    """Return the keyword parameters of a layout's `records`: type, whether it may be repeated, and purpose."""
    from openslip.data.convert import keyword_parameters

    annotations, docstring = keyword_parameters(layout)
    # An entry of `Args:` may continue on lines that are indented further.
    purposes = dict(re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)$", docstring, re.MULTILINE))
    return {
        name: (Path if "Path" in written else str, "Sequence" in written, " ".join(purposes.get(name, "").split()))
        for name, written in annotations.items()
    }
