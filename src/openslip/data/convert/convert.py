"""Records of a layout to tar shards: resumable, parallel, and the same bytes however often it was interrupted."""

import difflib
import fcntl
import functools
import importlib
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from openslip.data.convert import descriptions
from openslip.data.convert.keys import unique
from openslip.data.convert.manifest import Manifest, read
from openslip.data.convert.picture import PictureOptions
from openslip.data.convert.processes import write_shards
from openslip.data.convert.record import LeftOut, Record
from openslip.data.convert.shard import Entry, Task
from openslip.data.convert.totals import Totals
from openslip.errors import UserError

SAMPLES_PER_SHARD = 10_000  # img2dataset's
QUALITY = 95  # img2dataset's; photographs come back with their brightness right to 43 dB, at 90 to 40 dB


def convert(
    layout: str,
    root: Path,
    out: Path,
    *,
    options: dict[str, Any],
    samples_per_shard: int = SAMPLES_PER_SHARD,
    resize: int | None = None,
    quality: int = QUALITY,
    workers: int = 1,
    name: str = "shard",
    on_shard: Callable[[Entry, Totals], None],
) -> Totals:
    """Writes `out/NAME-000000.tar ...`, `out/manifest.json` and `out/left_out.jsonl`; goes on where a call was ended.

    Args:
        layout: one of `descriptions()`.
        root: folder of the collection.
        out: folder of the shards.
        options: the layout's own, by name; None and those that are absent leave it its default.
        samples_per_shard: records per shard, of which those left out are missing.
        resize: short side in pixels of pictures that are larger; None keeps every JPEG, PNG and WebP as it is.
        quality: JPEG quality of pictures that are encoded anew.
        workers: processes.
        name: of the shards.
        on_shard: called after each shard.

    Raises:
        UserError: an argument, the collection or `out` is not fit for it; nothing of the first shard could be used; or
            more than half of all records were left out, which is said at the end, with everything written.
    """
    for key, value, least in (("samples-per-shard", samples_per_shard, 1), ("workers", workers, 1)):
        if value < least:
            raise UserError(f"--{key} {value}: expected {least} or more")
    if resize is not None and resize < 1:
        raise UserError(f"--resize {resize}: expected the short side in pixels, such as 256")
    if not 1 <= quality <= 100:
        raise UserError(f"--quality {quality}: expected 1 to 100")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"--name {name!r}: expected letters, digits, - and _")
    root, out = root.resolve(), out.resolve()
    given = {key: value for key, value in options.items() if value is not None}
    batches = batched(unique(find_records(layout)(root, **given)), samples_per_shard)
    first = next(batches, None)  # before anything is written: most mistakes show here
    if first is None:
        raise UserError(f"{root}: no sample in it; is it a collection in the layout {layout}?")
    made_of = {
        "layout": layout,
        "root": str(root),
        "options": {key: plain(value) for key, value in sorted(given.items())},
        "samples_per_shard": samples_per_shard,
        "resize": resize,
        "quality": quality,
        "name": name,
    }
    with locked(out):
        manifest = prepare(out, made_of)
        tasks = (
            Task(out / f"{name}-{place:06}.tar", batch, PictureOptions(resize, quality), known)
            for place, batch in enumerate(chain([first], batches))
            for known in [manifest.shards[place] if place < len(manifest.shards) else None]
        )
        return write(tasks, manifest, out, workers, on_shard)


def find_records(layout: str) -> Callable[..., Iterator[Record | LeftOut]]:
    """A layout's generator of records; its options are checked by name, and files it cannot read are told by theirs."""
    known = descriptions()
    if layout not in known:
        near = difflib.get_close_matches(layout, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        raise UserError(f"layout {layout}: there is none of this name; {hint}")
    records = importlib.import_module(f"openslip.data.convert.layouts.{layout}").records
    allowed = [key for key in inspect.signature(records).parameters if key != "root"]

    @functools.wraps(records)
    def checked(root: Path, **options: Any) -> Iterator[Record | LeftOut]:
        for key in options:
            if key not in allowed:
                raise UserError(f"layout {layout} has no option {key}; it has {', '.join(allowed) or 'none'}")
        try:
            yield from records(root, **options)
        except OSError as error:
            raise UserError(
                f"{error.filename or root}: {error.strerror}; see to it, then the same command works"
            ) from error

    return checked


def batched(records: Iterable[Record | LeftOut], size: int) -> Iterator[list[Record | LeftOut]]:
    rest = iter(records)
    while batch := list(islice(rest, size)):
        yield batch


def plain(value: Any) -> Any:
    """As JSON gives it back."""
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, (list, tuple)) else value


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Nobody else writes to the folder; the system frees it when this process ends, however that happens."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError as error:
        raise UserError(f"{out}: another conversion is writing here; wait for it") from error
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written to ({error.strerror}); free space or choose another folder"
        ) from error


def prepare(out: Path, made_of: dict[str, Any]) -> Manifest:
    """The manifest to go on with, after what an ended call left behind was swept away."""
    path = out / "manifest.json"
    manifest = read(path, made_of.keys())
    if manifest is None:
        if any(out.glob("*.tar")):
            raise UserError(f"{out} holds tar files but no manifest.json, so they are not ours: choose another folder")
        manifest = Manifest(made_of)
    if manifest.shards:
        manifest.refuse_others(made_of, out)
    whole = {entry.name for entry in manifest.shards}
    for stale in chain(out.glob(".*.tar.*.tmp"), out.glob(".manifest.json.*.tmp"), out.glob("*.tar")):
        name, _, number = stale.stem.rpartition("-")
        if stale.suffix == ".tmp" or (
            name == manifest.made_of["name"] and number.isdigit() and stale.name not in whole
        ):
            stale.unlink(missing_ok=True)
    manifest.made_of = made_of
    with (out / "left_out.jsonl").open("ab") as file:
        if file.tell() < manifest.left_out_bytes:
            raise UserError(f"{out}/left_out.jsonl has lost lines: delete {path.name} and the shards to begin anew")
        file.truncate(manifest.left_out_bytes)
    manifest.save(path)
    return manifest


def write(
    tasks: Iterable[Task],
    manifest: Manifest,
    out: Path,
    workers: int,
    on_shard: Callable[[Entry, Totals], None],
) -> Totals:
    totals = Totals()
    for entry, left_out in write_shards(tasks, workers):
        totals.add(entry)
        if totals.shards > len(manifest.shards):
            if not totals.samples:
                (out / entry.name).unlink(missing_ok=True)
                raise UserError(
                    f"{out}: none of the first {sum(entry.left_out.values()):,} records could be used "
                    f"({totals.reasons()}), such as {left_out[0]}; nothing was kept"
                )
            record(manifest, out, entry, left_out)
        elif entry != manifest.shards[totals.shards - 1]:
            raise UserError(f"{out / entry.name} was damaged, and its pictures have changed since: use a new folder")
        on_shard(entry, totals)
    if totals.shards < len(manifest.shards):
        raise UserError(f"{out} holds more shards than the collection now gives: it has changed; use a new folder")
    manifest.is_complete = True
    manifest.save(out / "manifest.json")
    if (num_left_out := totals.left_out.total()) > totals.samples:
        raise UserError(
            f"{out}: all is written, but {num_left_out:,} of {num_left_out + totals.samples:,} records were left out "
            f"({totals.reasons()}): see left_out.jsonl there before you train on the rest"
        )
    return totals


def record(manifest: Manifest, out: Path, entry: Entry, left_out: list[str]) -> None:
    """The list first: lines beyond what the manifest counts are cut off by the next call."""
    with (out / "left_out.jsonl").open("ab") as file:
        file.writelines(f"{line}\n".encode() for line in left_out)
        file.flush()
        os.fsync(file.fileno())
        manifest.left_out_bytes = file.tell()
    manifest.shards.append(entry)
    manifest.save(out / "manifest.json")
