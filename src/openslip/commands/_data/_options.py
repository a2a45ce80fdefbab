"""Options that several data commands take, and the dataset that their arguments name."""

import argparse
import difflib
from pathlib import Path
from typing import Any

TARGET = (
    "name of a data config (cc3m, yfcc15m, ...); overrides such as data.source.shards=... may follow it. Or: paths or "
    "addresses of shards"
)


def count(text: str) -> int:
    """Parse a whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of at least 1")
    return int(text)


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
