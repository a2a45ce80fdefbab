"""What a dataset holds, exactly: every sample is read once, in parallel, into a few numbers."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader

from openslip.data.check.contact_sheet import write_contact_sheet
from openslip.data.check.parts import CAPTION, SAMPLE, Parts
from openslip.data.check.report import caption_rows, image_rows, number, share
from openslip.data.source import Source
from openslip.durable import durable
from openslip.errors import UserError
from openslip.text.tokenizer import Tokenizer

SHOWN = 10  # of the unreadable samples
LABEL_WIDTH = 22


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
) -> list[str]:
    """Read the whole dataset, or `limit` evenly spaced samples of it; return the lines to print.

    Args:
        source: the dataset; 22 bytes are kept per sample, and 12 per caption.
        tokenizer: the one to be trained with; captions are counted in its tokens.
        expected_samples: of the published dataset.
        decode: decode every image as well, which takes most of the time.
        limit: None reads every sample.
        num_workers: processes that read; 0 reads in this one.
        contact_sheet: image file to draw images and captions in.
        unreadable_list: JSON lines file of all samples that cannot be read or, if `decode`, decoded.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit}: expected the number of samples to look at, at least 1")
    if contact_sheet is not None:  # first, so that a name which cannot be written costs no hours
        write_contact_sheet(source, contact_sheet)
    count = min(len(source), limit or len(source))
    places = np.arange(count) * len(source) // max(count, 1)
    samples, captions, start = np.zeros(len(places), SAMPLE), [np.empty(0, CAPTION)], 0
    reasons, words, first = Counter[str](), dict[str, str](), list[str]()
    with list_file(unreadable_list) as file:
        parts = DataLoader(Parts(source, tokenizer, places, decode), batch_size=None, num_workers=num_workers)
        for part in track(parts, "checking", console=Console(stderr=True), disable=not sys.stderr.isatty()):
            samples[start : start + len(part.samples)] = part.samples
            start += len(part.samples)
            captions.append(part.captions)
            for key, reason in part.unreadable:
                # Reasons that differ in their numbers alone are one, in the words of the first.
                reasons[words.setdefault(re.sub(r"\d+", "0", reason), reason)] += 1
                if len(first) < SHOWN:
                    first.append(f"{key}: {reason}")
                if file is not None:
                    file.write(json.dumps({"key": key, "reason": reason}).encode() + b"\n")
    rows = [("samples", number(len(source)))]
    if expected_samples is not None:
        whole = 100 * len(source) // expected_samples  # rounded down: 100 % is all of them
        rows = [("samples", f"{number(len(source))} of {number(expected_samples)} samples, {whole} %")]
    rows += [("left out", problem) for problem in source.problems]
    unreadable = share(reasons.total(), len(places))
    if not reasons and not decode:
        unreadable = "not known: the images were not decoded"
    note = f"  (of {number(len(places))} evenly spaced samples)" if len(places) < len(source) else ""
    rows += [
        (label, text + note)
        for label, text in (
            *caption_rows(source, places, samples, np.concatenate(captions), tokenizer.context_length),
            *image_rows(source, places, samples),
            ("unreadable", unreadable),
            *(("  reason", f"{number(times)} x {reason}") for reason, times in reasons.most_common()),
            *(("  first", text) for text in first),
        )
    ]
    return [f"{label:{LABEL_WIDTH}}{text}".rstrip() for label, text in rows]


@contextmanager
def list_file(path: Path | None) -> Iterator[IO[bytes] | None]:
    """A file that gets its name when it is complete, or None."""
    if path is None:
        yield None
        return
    try:
        with durable(path) as file:
            yield file
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another file") from error
