"""Convert a dataset to tar shards: resumable, parallel, and with the same bytes however often it is interrupted."""

import importlib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from openslip.data.convert import SAMPLES_PER_SHARD, layout_file
from openslip.data.convert.image import QUALITY
from openslip.data.convert.manifest import RESUMES, Entry, Manifest, Totals, read
from openslip.data.convert.processes import write_shards
from openslip.data.convert.record import LeftOut, Record, with_unique_keys
from openslip.data.convert.shard import Task
from openslip.durable import needed, sweep
from openslip.errors import UserError
from openslip.locks import locked


def convert(
    layout: str,
    root: Path,
    out: Path,
    *,
    options: dict[str, Any],
    samples_per_shard: int = SAMPLES_PER_SHARD,
    resize: int | None = None,
    transparency: str = "white",
    workers: int = 1,
    on_shard: Callable[[Entry, Totals], None],
) -> Totals:
    """Write `out/shard-000000.tar ...`, `out/manifest.json` and `out/left_out.jsonl`; resume an interrupted call.

    Args:
        layout: name of a layout, one of `descriptions()`.
        root: folder of the dataset.
        out: folder for the shards.
        options: options of the layout by name; None selects an option's default.
        samples_per_shard: records per shard, including records that are left out.
        resize: short side in pixels to which larger images are scaled; None keeps every JPEG, PNG and WebP as it is.
        transparency: for images that become JPEGs: `white` composites them on white, `ignore` drops the transparency as
            the published loaders do.
        workers: number of processes that write shards.
        on_shard: called after each shard with its entry and the totals so far.

    Raises:
        UserError: an argument, the dataset or `out` cannot be used; or no record of the first shard could be used; or
            more than half of all records were left out (raised at the end, with all shards written).
    """
    root, out = root.resolve(), out.resolve()
    walks_folders = "metadata" not in inspect.signature(find_records(layout)).parameters
    if walks_folders and out.is_relative_to(root):
        raise UserError(f"{out} lies in {root}, all of which the layout {layout} reads: choose an OUT elsewhere")
    given = {key: value for key, value in options.items() if value is not None}
    records = with_unique_keys(read_records(layout, root, given))
    batches = iter(lambda: list(islice(records, samples_per_shard)), [])
    first = next(batches, None)  # before anything is written, because most errors show here
    if first is None:
        raise UserError(f"{root}: no sample in it; is it a dataset in the layout {layout}?")
    made_of = {
        "layout": layout,
        "root": str(root),
        "options": json.loads(json.dumps(given, default=str, sort_keys=True)),
        "samples_per_shard": samples_per_shard,
        "resize": resize,
        "quality": QUALITY,
        "transparency": transparency,
    }
    with alone_in(out):
        manifest = prepare(out, made_of)
        tasks = (
            Task(out / f"shard-{place:06}.tar", batch, resize, transparency, known)
            for place, batch in enumerate(chain([first], batches))
            for known in [manifest.shards[place] if place < len(manifest.shards) else None]
        )
        return write(tasks, manifest, out, workers, on_shard)


def find_records(layout: str) -> Callable[..., Iterator[Record | LeftOut]]:
    """Find the function `records` of a layout."""
    return importlib.import_module(f"openslip.data.convert.layouts.{layout_file(layout).stem}").records


def read_records(layout: str, root: Path, options: dict[str, Any]) -> Iterator[Record | LeftOut]:
    try:
        yield from find_records(layout)(root, **options)
    except OSError as error:
        raise UserError(
            f"{error.filename or root}: {error.strerror}; correct that and give the same command again"
        ) from error


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Create the folder, and lock it against other conversions."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / ".lock", wait=0.0):
            yield
    except BlockingIOError as error:
        raise UserError(f"{out}: another conversion is writing here; wait for it") from error
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); free space or name another folder") from error


def prepare(out: Path, made_of: dict[str, Any]) -> Manifest:
    """Read or create the manifest to resume from, and remove the leftovers of an interrupted call.

    Args:
        out: folder for the shards.
        made_of: layout, root and options, which must equal those of the shards that exist already.
    """
    path = out / "manifest.json"
    if path.exists():
        manifest = read(path, made_of.keys())
    elif any(out.glob("*.tar")):
        raise UserError(f"{out} holds tar files but no manifest.json, so they are not ours: choose another folder")
    else:
        manifest = Manifest(made_of)
    for key, value in made_of.items():
        if manifest.shards and manifest.made_of[key] != value:
            raise UserError(
                f"{out} holds shards made with {key}={manifest.made_of[key]!r}, this command has {key}={value!r}: "
                "give the same again to resume, or another folder"
            )
    complete = {entry.name for entry in manifest.shards}
    sweep(out, "*.tar")
    for stale in out.glob("*.tar"):
        if re.fullmatch(r"shard-\d+\.tar", stale.name) and stale.name not in complete:
            stale.unlink()
    manifest.made_of = made_of
    lines = out / "left_out.jsonl"
    with needed(lines, refusal=UserError, advice=RESUMES), lines.open("ab") as file:
        if file.tell() < manifest.left_out_bytes:
            raise UserError(f"{out}/left_out.jsonl has lost lines: delete {path.name} and the shards to start again")
        file.truncate(manifest.left_out_bytes)
    manifest.save(path)
    return manifest


def write(
    tasks: Iterable[Task], manifest: Manifest, out: Path, workers: int, on_shard: Callable[[Entry, Totals], None]
) -> Totals:
    totals = Totals()
    for entry, left_out in write_shards(tasks, workers):
        totals.add(entry)
        if totals.shards > len(manifest.shards):
            if not totals.samples:
                (out / entry.name).unlink(missing_ok=True)
                (out / "manifest.json").unlink(missing_ok=True)  # so that the folder can be used for another dataset
                raise UserError(
                    f"{out}: none of the first {sum(entry.left_out.values()):,} records could be used "
                    f"({totals.reasons()}), such as {left_out[0]}; nothing was kept"
                )
            lines = out / "left_out.jsonl"  # written before the manifest, which states how many bytes are valid
            with needed(lines, refusal=UserError, advice=RESUMES), lines.open("ab") as file:
                file.writelines(f"{line}\n".encode() for line in left_out)
                file.flush()
                os.fsync(file.fileno())
                manifest.left_out_bytes = file.tell()
            manifest.shards.append(entry)
            manifest.save(out / "manifest.json")
        elif entry != manifest.shards[totals.shards - 1]:
            raise UserError(f"{out / entry.name} was damaged, and its images have changed since: use a new folder")
        on_shard(entry, totals)
    if totals.shards < len(manifest.shards):
        raise UserError(f"{out} holds more shards than the dataset now gives: it has changed; use a new folder")
    manifest.is_complete = True
    manifest.save(out / "manifest.json")
    if (num_left_out := totals.left_out.total()) > totals.samples:
        raise UserError(
            f"{out}: all is written, but {num_left_out:,} of {num_left_out + totals.samples:,} records were left out "
            f"({totals.reasons()}): see left_out.jsonl there before you train on the rest"
        )
    return totals
