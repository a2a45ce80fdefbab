"""Contrastive losses, forward and backward, in tiles and beside forms that hold all logits: seconds and memory.

    python benchmarks/loss.py [--json FILE]

float32 on one CPU thread, processor time. Forms that are compared take turns in one process; memory, and the seconds of
what is too large to repeat, are those of a process of its own: its highest resident size above that with its inputs
made. Of the large batches only tiles are run: the plain form would hold several matrices of 4 GiB.
"""

import argparse
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from rates import Rates, Row, cpu_seconds, show
from torch import Tensor

from openslip.objectives import clip, simclr, tiles
from openslip.objectives.similarity import Features

BOUND_MB = 1000.0
SCALE = 1 / 0.07
TEMPERATURE = 0.1


class Case(NamedTuple):
    """A loss and the features it is given."""

    loss: str
    rows: int
    dim: int

    def __str__(self) -> str:
        return f"{self.loss} {self.rows} x {self.dim}"


class Measured(NamedTuple):
    seconds: float
    megabytes: float


def info_nce(image: Tensor, text: Tensor) -> Tensor:
    scale = torch.tensor(SCALE, requires_grad=True)
    images, texts = (Features(x, gather_with_grad=True) for x in (image, text))
    return clip.info_nce(images, texts, scale)[0]


def open_clip_loss(image: Tensor, text: Tensor) -> Tensor:
    scale = torch.tensor(SCALE, requires_grad=True)
    loss = ClipLoss()(F.normalize(image, dim=-1), F.normalize(text, dim=-1), scale)
    assert isinstance(loss, Tensor)
    return loss


def simclr_loss(z1: Tensor, z2: Tensor) -> Tensor:
    view1, view2 = (Features(z, gather_with_grad=True) for z in (z1, z2))
    return simclr.nt_xent(view1, view2, TEMPERATURE)[0]


LOSSES = {"InfoNCE": info_nce, "NT-Xent": simclr_loss}


def work(case: Case, form: str) -> Callable[[], int]:
    """One forward and backward pass; inputs are made here."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(case.rows, case.dim, generator=generator, requires_grad=True) for _ in range(2))
    loss = open_clip_loss if form == "open_clip" else LOSSES[case.loss]

    def run() -> int:
        tiles.PLAIN_UP_TO = 0 if form == "tiles" else 1 << 62
        loss(first, second).backward()
        first.grad = second.grad = None
        return case.rows

    return run


def resident_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def measure(case: Case, form: str) -> Measured:
    torch.set_num_threads(1)
    run = work(case, form)
    before, start = resident_kib("VmRSS:"), cpu_seconds()
    run()
    return Measured(cpu_seconds() - start, (resident_kib("VmHWM:") - before) * 1024 / 1e6)


def alone(case: Case, form: str) -> Measured:
    """Measured in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, case, form).result()


def beside_others(case: Case, others: list[str], bars: dict[str, float], rounds: int) -> Iterator[Row]:
    rates = Rates({form: work(case, form) for form in ["tiles", *others]}, rounds)
    seconds = {form: case.rows / rates.row(form, "").value for form in ["tiles", *others]}
    megabytes = {form: alone(case, form).megabytes for form in ["tiles", *others]}
    for form in others:
        yield Row(f"{case}, {form}", seconds[form], "s")
    for form in others:
        ratio = rates.row("tiles", "", form).ratio
        yield Row(f"{case}, tiles", seconds["tiles"], "s", form, ratio, bars.get(form))
    for form in others:
        yield Row(f"{case}, {form}, memory", megabytes[form], "MB")
    for form in others:
        ratio = megabytes[form] / megabytes["tiles"]
        yield Row(f"{case}, tiles, memory", megabytes["tiles"], "MB", form, ratio)


def large(case: Case) -> Iterator[Row]:
    measured = alone(case, "tiles")
    yield Row(f"{case}, tiles", measured.seconds, "s")
    ratio = BOUND_MB / measured.megabytes
    yield Row(f"{case}, tiles, memory", measured.megabytes, "MB", "1 GB, how often it fits", ratio, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    show(
        beside_others(Case("InfoNCE", 8192, 512), ["plain", "open_clip"], {"open_clip": 1.2}, rounds=3),
        beside_others(Case("NT-Xent", 8192, 256), ["plain"], {}, rounds=2),
        large(Case("InfoNCE", 32768, 512)),
        large(Case("NT-Xent", 16384, 256)),
        file=options.json,
    )


if __name__ == "__main__":
    main()
