"""Check a dataset: read every sample once, in parallel, and reduce it to a few numbers for a report."""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

from openslip.data.check.contact_sheet import write_contact_sheet
from openslip.data.check.report import caption_rows, image_rows, number, share
from openslip.data.image.decode import open_image
from openslip.data.source import Source
from openslip.errors import UserError
from openslip.progress import progress
from openslip.text.tokenizer import Tokenizer

SHOWN = 10  # number of unreadable samples that are listed
LABEL_WIDTH = 22
SAMPLES_PER_PART = 64

# Images and texts are hashed to 64 bits: among 15 million, a collision has a probability of 6 in a million.
SAMPLE = np.dtype([("image", "<u8"), ("bytes", "<u4"), ("captions", "<u2"), ("width", "<u4"), ("height", "<u4")])
CAPTION = np.dtype([("text", "<u8"), ("tokens", "<u4")])


def check(
    source: Source,
    tokenizer: Tokenizer,
    *,
    decode: bool,
    limit: int | None,
    num_workers: int,
    contact_sheet: Path | None,
) -> list[str]:
    """Read the whole dataset, or `limit` evenly spaced samples of it; return the lines to print.

    Args:
        source: the dataset; 22 bytes are kept per sample, and 12 per caption.
        tokenizer: tokenizer to train with; the lengths of captions are counted in its tokens.
        decode: whether to decode every image, too, which takes most of the time.
        limit: number of samples to read; None reads every sample.
        num_workers: worker processes that read; 0 reads in the calling process.
        contact_sheet: image file to which images with their captions are drawn; None draws none.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit}: expected the number of samples to look at, at least 1")
    if contact_sheet is not None:  # first, so that an unusable file name is found before hours of reading
        write_contact_sheet(source, contact_sheet)
    count = min(len(source), limit or len(source))
    places = np.arange(count) * len(source) // max(count, 1)
    samples, captions, start = np.zeros(len(places), SAMPLE), [np.empty(0, CAPTION)], 0
    reasons, words, first = Counter[str](), dict[str, str](), list[str]()
    parts = DataLoader(
        Parts(source, tokenizer, places, decode), batch_size=None, num_workers=num_workers, collate_fn=tuple
    )
    with progress("checking samples", total=len(places)) as advance:
        for numbers, of_captions, unreadable in parts:
            samples[start : start + len(numbers)] = numbers
            start += len(numbers)
            captions.append(of_captions)
            for key, reason in unreadable:
                # Reasons that differ only in numbers are counted as one, in the words of the first.
                reasons[words.setdefault(re.sub(r"\d+", "0", reason), reason)] += 1
                if len(first) < SHOWN:
                    first.append(f"{key}: {reason}")
            advance(len(numbers))
    rows = [("samples", number(len(source)))]
    if (expected := source.expected_samples) is not None:
        whole = 100 * len(source) // expected  # rounded down, so that 100 % means all
        rows = [("samples", f"{number(len(source))} of {number(expected)} samples, {whole} %")]
    rows += [("skipped", problem) for problem in source.problems]
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


@dataclass(frozen=True)
class Parts(Dataset):
    """Dataset of batches of the samples at `places`: arrays of SAMPLE and CAPTION, and (key, reason) if unreadable.

    In SAMPLE, image 0 means that the sample could not be read, and width 0 that the image was not decoded.
    """

    source: Source
    tokenizer: Tokenizer
    places: np.ndarray
    decode: bool

    def __len__(self) -> int:
        return -(-len(self.places) // SAMPLES_PER_PART)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]]]:
        places = self.places[index * SAMPLES_PER_PART : (index + 1) * SAMPLES_PER_PART].tolist()
        samples, captions, unreadable = np.zeros(len(places), SAMPLE), [], []
        for row, place in zip(samples, places, strict=True):
            try:
                sample = self.source[place]
            except UserError as error:
                unreadable.append((f"sample {place}", str(error)))
                continue
            row["image"] = digest(sample.image)
            row["bytes"] = len(sample.image)
            row["captions"] = len(sample.captions)
            for caption in sample.captions:
                text = digest(caption.encode("utf-8", "surrogatepass"))
                captions.append((text, self.tokenizer.num_tokens(caption)))
            if self.decode:
                try:
                    row["width"], row["height"] = open_image(sample.image, sample.key).size
                except UserError as error:
                    unreadable.append((sample.key, str(error).removeprefix(f"{sample.key}: ").partition(";")[0]))
        return samples, np.array(captions, CAPTION), unreadable


def digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
