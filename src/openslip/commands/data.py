"""List, get, convert, index and check datasets: openslip data list | get | convert | index | check | vectors."""

import argparse
import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openslip.commands._imports import importing_pytorch
from openslip.progress import progress
from openslip.terminal import be_quiet, mention, say

COMMANDS = {
    "list": "list the datasets that data=NAME takes, and which of them are on disk: openslip data list",
    "get": "say how a dataset for evaluation is obtained, and fetch it if possible: openslip data get fashion_mnist",
    "convert": "convert a dataset of another layout to tar shards: openslip data convert table images.csv shards",
    "index": "index shards, so that training does not have to scan them at its start: openslip data index shards",
    "check": "read a dataset and print statistics: openslip data check shards --decode --contact-sheet sheet.png",
    "vectors": "make word vectors from a dataset's captions: openslip data vectors shards --output vectors.txt",
}
ASK_ABOVE = 1_000_000_000  # bytes: `get` asks before larger downloads, if a person can answer
TARGET = (
    "name of a data config (cc3m, yfcc15m, ...); overrides such as data.source.shards=... may follow it. Or: paths or "
    "addresses of shards"
)


def main(arguments: list[str]) -> int:
    """Run one of the data commands."""
    from openslip.errors import UserError

    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        purposes = (f"  {name:8} {purpose}" for name, purpose in COMMANDS.items())
        say("usage: openslip data COMMAND ...", "", *purposes, "", "openslip data COMMAND --help says more.")
        return 0
    commands = {
        "list": list_datasets,
        "get": get,
        "convert": convert,
        "index": index,
        "check": check,
        "vectors": vectors,
    }
    if command not in commands:
        raise UserError(f"unknown command data {command}; one of: {', '.join(COMMANDS)}")
    return commands[command](rest)


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each data command."""
    return {
        "list": list_parser(),
        "get": get_parser(),
        "convert": convert_parser({}),
        "index": index_parser(),
        "check": check_parser(),
        "vectors": vectors_parser(),
    }


def list_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("openslip data list", description=COMMANDS["list"])
    parser.add_argument("--config-dir", metavar="DIR", help="also list the datasets of your own folder of configs")
    return parser


def list_datasets(arguments: list[str]) -> int:
    """Print one line per data config: whether its shards are on disk, where they are looked for, and what it is."""
    list_parser().parse_args(arguments)

    from openslip.config.catalogue import datasets
    from openslip.config.folder import config_dirs, config_folder
    from openslip.config.help import columns

    rows = {}
    for dataset in datasets([config_folder(), *config_dirs(arguments)[0]]):
        needs = ", ".join(dataset.places) or "data.source.shards=..."
        rows[f"{dataset.name:11} {dataset.state()}"] = f"{needs}: {dataset.meaning}"
    say("datasets: openslip train data=NAME; OPENSLIP_DATA=DIR names another folder than data", *columns(rows, 26))
    say("", "docs/DATA.md says how to download and convert them")
    return 0


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("openslip data get", description=COMMANDS["get"])
    parser.add_argument("name", nargs="?", metavar="NAME", help="name of a dataset; without it, all are listed")
    parser.add_argument(
        "--to",
        type=Path,
        metavar="DIR",
        help="folder in which the dataset's folder is made; by default EVALUATION_DATA, or data/evaluation",
    )
    parser.add_argument("--yes", action="store_true", help="download more than 1 GB without asking")
    parser.add_argument("--config-dir", metavar="DIR", help="also read DIR/catalogue, in your own folder of configs")
    add_quiet(parser)
    return parser


def get(arguments: list[str]) -> int:
    """Print how a dataset is obtained, and make its folder if a public server has it; or list the catalogue."""
    options = get_parser().parse_args(arguments)
    be_quiet(options.quiet)

    from openslip.config.folder import config_dirs, config_folder
    from openslip.config.help import columns
    from openslip.config.obtain import data_folder, find, obtainable

    folders, root = [config_folder(), *config_dirs(arguments)[0]], options.to or data_folder()
    if options.name is None:
        entries = obtainable(folders)
        rows = {f"{entry.name:26} {entry.state(root)}": f"{entry.size}, {entry.meaning}" for entry in entries}
        say("openslip data get NAME says how a dataset is obtained, and fetches it:", *columns(rows, 37))
        return 0
    entry = find(options.name, folders)
    rows = {"content": entry.content, "licence": entry.licence, "owner's size": entry.size, "page": entry.page}
    if entry.evaluation:
        rows["evaluate it"] = f"openslip eval checkpoint=CHECKPOINT evaluation={entry.evaluation}"
    say(f"{entry.name}: {entry.meaning}", *columns(rows, 13))
    if entry.layouts:
        say(f"layouts below {root} (EVALUATION_DATA=DIR names another folder):", *(f"  {row}" for row in entry.layouts))
    if entry.folder is None:
        say("it is not fetched: download it by hand from the page, into one of the layouts")
        return 0
    folder = root / entry.folder
    if entry.state(root) == "present":
        say(f"present: {folder}")
        return 0
    with importing_pytorch():
        from openslip.config.build import build
        from openslip.data.get.folder import create

    def agree(num_bytes: int) -> None:
        """Say how much will be downloaded, and ask a person at a terminal about a large download."""
        from openslip.errors import UserError

        say(f"download: {num_bytes / 1e6:,.1f} MB into {folder}")
        is_asked = num_bytes > ASK_ABOVE and not options.yes and sys.stdin.isatty() and sys.stdout.isatty()
        if is_asked and input("download it? [y/N] ").strip().lower() not in ("y", "yes"):
            raise UserError("nothing was downloaded; --yes downloads without asking")

    create(build(entry.fetcher, f"catalogue.{entry.name}.fetcher"), folder, agree)
    say(f"fetched: {folder}")
    return 0


def convert_parser(extra: dict[str, tuple[type, bool, str]]) -> argparse.ArgumentParser:
    """Return the parser of `data convert` with the options of one layout, as `layout_options` returns them."""
    from openslip.data.convert import SAMPLES_PER_SHARD, descriptions

    purposes = "\n".join(f"  {name:13} {purpose}" for name, purpose in descriptions().items())
    parser = argparse.ArgumentParser(
        "openslip data convert",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"{COMMANDS['convert']}\n\n"
        f"layouts, each with its own options (openslip data convert LAYOUT --help):\n{purposes}",
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


def convert(arguments: list[str]) -> int:
    """Convert a dataset to shards; the same command resumes an interrupted conversion."""
    extra = layout_options(arguments[0]) if arguments and not arguments[0].startswith("-") else {}
    options = vars(convert_parser(extra).parse_args(arguments))
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
        say(f"left out: {totals.reasons()}: {options['out'] / 'left_out.jsonl'}")
    return 0


def count(text: str) -> int:
    """Parse a whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of at least 1")
    return int(text)


def layout_options(layout: str) -> dict[str, tuple[type, bool, str]]:
    """Return the keyword parameters of a layout's `records`: type, whether it may be repeated, and purpose."""
    from openslip.data.convert import keyword_parameters

    annotations, docstring = keyword_parameters(layout)
    purposes = dict(re.findall(r"^    (\w+): (.+)$", docstring, re.MULTILINE))
    return {
        name: (Path if "Path" in written else str, "Sequence" in written, purposes.get(name, ""))
        for name, written in annotations.items()
    }


def index_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("openslip data index", description=COMMANDS["index"])
    parser.add_argument("target", nargs="+", help=TARGET)
    add_requirement(parser)
    add_quiet(parser)
    return parser


def index(arguments: list[str]) -> int:
    """Index the shards of a dataset and print how many samples they hold."""
    options = index_parser().parse_args(arguments)
    be_quiet(options.quiet)

    with importing_pytorch():
        from openslip.data.sources.shards import ShardSource

    source = open_source(options.target, options.require)
    for line in source.problems:
        say(f"skipped: {line}")
    if isinstance(source, ShardSource):
        say(f"{len(source)} samples in {len(source.index.parts)} shards", f"index: {source.index.folder}")
    else:
        say(f"{len(source)} samples")
    return 0


def check_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("openslip data check", description=COMMANDS["check"])
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


def check(arguments: list[str]) -> int:
    """Read every sample of a dataset and print statistics."""
    options = check_parser().parse_args(arguments)
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
    say(*lines)
    if options.contact_sheet:
        say(f"{'written':22}{options.contact_sheet}")
    return 0


def vectors_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("openslip data vectors", description=COMMANDS["vectors"])
    parser.add_argument("target", nargs="+", help=TARGET)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="text file to write, as GloVe's")
    parser.add_argument(
        "--width", type=count, default=64, metavar="N", help="numbers per vector, the model's embed_dim; 64 by default"
    )
    parser.add_argument(
        "--min-count", type=count, default=1, metavar="N", help="words of fewer captions get no vector; 1 by default"
    )
    parser.add_argument(
        "--max-words", type=count, default=5000, metavar="N", help="most frequent words to take, 5000 by default"
    )
    add_quiet(parser)
    return parser


def vectors(arguments: list[str]) -> int:
    """Write word vectors that are learned from all captions of a dataset."""
    options = vectors_parser().parse_args(arguments)
    be_quiet(options.quiet)

    with importing_pytorch():
        from openslip.text.ppmi import learn
        from openslip.text.word_vectors import write_vectors

    source = open_source(options.target, "caption")
    with progress("captions", total=len(source)) as advance:

        def captions() -> Iterator[str]:
            for index in range(len(source)):
                yield from source[index].captions
                advance(1)

        made = learn(captions(), width=options.width, min_count=options.min_count, max_words=options.max_words)
    write_vectors(options.output, made)
    used = int(made.vectors.any(axis=0).sum())
    say(f"{len(made.words)} words, {used} of {options.width} columns not zero: {options.output}")
    mention(f"next: openslip train model=devise_tiny tokenizer.vectors={options.output}")
    return 0


def add_requirement(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--require",
        choices=("caption", "label", "null"),
        default="caption",
        help="skip samples without a caption (default) or without a label; null: skip no samples. Ignored if the "
        "target is a data config, which has its own setting",
    )


def add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="print only results, warnings and errors")


def open_source(target: list[str], require: str) -> Any:
    """Open the source of a data config, or of shards.

    Args:
        target: name of a data config followed by overrides, or paths and addresses of shards.
        require: what a sample of shards must have: `caption`, `label` or `null`; a data config sets its own.
    """
    from openslip.config.build import build
    from openslip.config.compose import compose_config
    from openslip.config.folder import config_folder
    from openslip.data.sources.shards import ShardSource
    from openslip.errors import UserError

    first, *more = target
    known = [path.stem for path in (config_folder() / "data").glob("*.yaml")]
    if first not in known and not Path(first).exists() and (near := difflib.get_close_matches(first, known, n=1)):
        raise UserError(f"{first}: neither a path nor a data config; did you mean {near[0]}?")
    config, _ = compose_config("train", [f"data={first}", *more] if first in known else [])
    if first in known:
        return build(config["data"]["source"], "data.source")
    required = None if require == "null" else require
    return ShardSource(shards=target, require=required, cache=build(config["shard_cache"], "shard_cache"))  # pyright: ignore[reportArgumentType]
