"""What a collection holds, exactly: every sample is read once, in parallel, into a few numbers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from openslip.data.check.contact_sheet import write_contact_sheet
from openslip.data.check.figures import caption_figures, duplicate_figures, picture_figures
from openslip.data.check.parts import CAPTION, SAMPLE, Part, Parts
from openslip.data.check.report import Report
from openslip.data.check.unreadable import Unreadable, line, list_file
from openslip.data.source import Source
from openslip.errors import UserError
from openslip.text.tokenizer import Tokenizer


def check(
    source: Source,
    tokenizer: Tokenizer,
    *,
    expected_samples: int | None,
    decode: bool,
    limit: int | None,
    num_workers: int,
    contact_sheet: Path | None,
    unreadable_list: Path | None,
) -> Report:
    """Looks at the whole collection, or at `limit` evenly spaced samples of it; keeps 22 bytes per sample.

    Args:
        source: the collection.
        tokenizer: the one to be trained with; captions are counted in its tokens.
        expected_samples: of the published collection.
        decode: decode every picture as well, which takes most of the time.
        limit: None looks at every sample.
        num_workers: processes that read; 0 reads in this one.
        contact_sheet: picture file to draw pictures and captions in.
        unreadable_list: JSON lines file of all samples that cannot be read or decoded.

    Raises:
        UserError: an argument has no meaning, or a file cannot be written.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit}: expected the number of samples to look at, at least 1")
    if contact_sheet is not None:  # first, so that a name which cannot be written costs no hours
        write_contact_sheet(source, contact_sheet)
    places = evenly_spaced(len(source), len(source) if limit is None else limit)
    samples, captions, unreadable, start = np.zeros(len(places), SAMPLE), [np.empty(0, CAPTION)], Unreadable(), 0
    with list_file(unreadable_list) as file:
        for part in read_parts(Parts(source, tokenizer, places, decode), num_workers):
            samples[start : start + len(part.samples)] = part.samples
            start += len(part.samples)
            captions.append(part.captions)
            for key, reason in part.unreadable:
                unreadable.add(key, reason)
                if file is not None:
                    file.write(line(key, reason))
    return Report(
        samples=len(source),
        looked_at=len(places),
        expected_samples=expected_samples,
        left_out=source.problems,
        captions=caption_figures(source, places, samples, np.concatenate(captions), tokenizer.context_length),
        duplicates=duplicate_figures(source, places, samples),
        pictures=picture_figures(samples),
        decoded=decode,
        unreadable=unreadable,
    )


def evenly_spaced(num_samples: int, wanted: int) -> np.ndarray:
    """Places of at most `wanted` samples."""
    wanted = min(wanted, num_samples)
    return np.arange(wanted) * num_samples // max(wanted, 1)


def read_parts(parts: Parts, num_workers: int) -> Iterator[Part]:
    """In order; on a terminal with a bar that counts samples."""
    console = Console(stderr=True)
    columns = (TextColumn("checking"), BarColumn(), MofNCompleteColumn(), TextColumn("samples"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("checking", total=len(parts.places))
        for part in DataLoader(parts, batch_size=None, num_workers=num_workers):
            progress.advance(task, len(part.samples))
            yield part
