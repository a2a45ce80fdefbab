"""Conversions as tests call them, and their shards as webdataset reads them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from webdataset.tariterators import group_by_keys, tar_file_iterator

from openslip.data.convert.convert import convert
from openslip.data.convert.manifest import Entry, Totals

Samples = dict[str, dict[str, bytes]]  # by key, then suffix


def run(
    layout: str,
    root: Path,
    out: Path,
    *,
    samples_per_shard: int = 3,
    resize: int | None = None,
    transparency: str = "white",
    workers: int = 1,
    on_shard: Callable[[Entry, Totals], None] = lambda entry, totals: None,
    **options: Any,
) -> Totals:
    return convert(
        layout,
        root,
        out,
        options=options,
        samples_per_shard=samples_per_shard,
        resize=resize,
        transparency=transparency,
        workers=workers,
        on_shard=on_shard,
    )


def samples_of(out: Path) -> Samples:
    found: Samples = {}
    for path in sorted(out.glob("*.tar")):
        with path.open("rb") as file:
            for sample in group_by_keys(
                {**member, "__url__": str(path)} for member in tar_file_iterator(cast(Any, file))
            ):
                key = sample["__key__"]
                assert key not in found
                found[key] = {suffix: data for suffix, data in sample.items() if not suffix.startswith("__")}
    return found


def left_out(out: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines()]
    return {line["key"]: line["reason"] for line in lines}


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}
