"""The sigmoid loss, forward and backward, beside open_clip's and with equal captions: seconds and memory.

    python benchmarks/siglip.py [--json FILE]

float32 on one CPU thread, processor time. Forms that are compared take turns in one process; memory, and the seconds of
what is too large to repeat, are those of a process of its own: its highest resident size above that with its inputs
made. Of the largest batch only ours is run: open_clip's would hold several matrices of 4 GiB.
"""

import argparse
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from loss import resident_kib
from open_clip.loss import SigLipLoss
from rates import Rates, Row, cpu_seconds, show
from torch import Tensor

from openslip.objectives.clip import info_nce
from openslip.objectives.equal_pairs import EqualPairs
from openslip.objectives.siglip import sigmoid_loss
from openslip.objectives.similarity import Features

BOUND_MB = 600.0
ROWS, LARGE, DIM = 8192, 32768, 512
SAMPLES_PER_CAPTION = 4


class Measured(NamedTuple):
    seconds: float
    megabytes: float


def loss(form: str, image: Tensor, text: Tensor, captions: Tensor) -> Tensor:
    """The loss of one form; `positive` and `ignore` are roles of equal captions in ours."""
    scale, bias = (torch.tensor(x, requires_grad=True) for x in (10.0, -10.0))
    if form == "open_clip":
        value = SigLipLoss()(F.normalize(image, dim=-1), F.normalize(text, dim=-1), scale, bias)
        assert isinstance(value, Tensor)
        return value
    images, texts = (Features(x, gather_with_grad=True) for x in (image, text))
    if form in ("InfoNCE", "UniCL"):
        return info_nce(images, texts, scale, EqualPairs(captions, role="positive") if form == "UniCL" else None)[0]
    equal = None if form == "ours" else EqualPairs(captions, role=form)
    return sigmoid_loss(images, texts, scale, bias, equal)[0]


def work(form: str, rows: int) -> Callable[[], int]:
    """One forward and backward pass; inputs are made here."""
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(rows, DIM, generator=generator, requires_grad=True) for _ in range(2))
    captions = torch.randint(rows // SAMPLES_PER_CAPTION, (rows, 1), generator=generator).repeat(1, 2)

    def run() -> int:
        loss(form, image, text, captions).backward()
        image.grad = text.grad = None
        return rows

    return run


def measure(form: str, rows: int) -> Measured:
    torch.set_num_threads(1)
    run = work(form, rows)
    before, start = resident_kib("VmRSS:"), cpu_seconds()
    run()
    return Measured(cpu_seconds() - start, (resident_kib("VmHWM:") - before) * 1024 / 1e6)


def alone(form: str, rows: int) -> Measured:
    """Measured in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, form, rows).result()


def beside_open_clip() -> Iterator[Row]:
    rates = Rates({form: work(form, ROWS) for form in ("ours", "open_clip")}, rounds=2)
    name = f"sigmoid {ROWS} x {DIM}"
    yield Row(f"{name}, open_clip", ROWS / rates.row("open_clip", "").value, "s")
    ratio = rates.row("ours", "", "open_clip").ratio
    yield Row(name, ROWS / rates.row("ours", "").value, "s", "open_clip", ratio, 1.0)


def equal_captions() -> Iterator[Row]:
    """Losses with equal captions beside those that count them as negatives."""
    works = {form: work(form, ROWS) for form in ("ours", "positive", "ignore", "InfoNCE", "UniCL")}
    rates = Rates(works, rounds=1)
    name = f"{ROWS} x {DIM}"
    for form in ("positive", "ignore"):
        label = f"sigmoid {name}, same_caption={form}"
        yield Row(label, ROWS / rates.row(form, "").value, "s", "negative", rates.row(form, "", "ours").ratio)
    yield Row(f"InfoNCE {name}", ROWS / rates.row("InfoNCE", "").value, "s")
    ratio = rates.row("UniCL", "", "InfoNCE").ratio
    yield Row(f"UniCL {name}", ROWS / rates.row("UniCL", "").value, "s", "InfoNCE", ratio)


def memory() -> Iterator[Row]:
    name = f"{ROWS} x {DIM}"
    theirs, ours = alone("open_clip", ROWS), alone("ours", ROWS)
    yield Row(f"sigmoid {name}, open_clip, memory", theirs.megabytes, "MB")
    ratio = theirs.megabytes / ours.megabytes
    yield Row(f"sigmoid {name}, memory", ours.megabytes, "MB", "open_clip, how often ours fits", ratio)


def large() -> Iterator[Row]:
    name, measured = f"sigmoid {LARGE} x {DIM}", alone("ours", LARGE)
    yield Row(name, measured.seconds, "s")
    ratio = BOUND_MB / measured.megabytes
    yield Row(f"{name}, memory", measured.megabytes, "MB", "0.6 GB, how often it fits", ratio, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    show(beside_open_clip(), large(), memory(), equal_captions(), file=options.json)


if __name__ == "__main__":
    main()
