"""What a person sees of a real run on a terminal."""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
from pathlib import Path
from typing import NamedTuple

import pytest
from forked import fork
from noisy import PRINTED, WARNING
from screens import HEIGHT, Screen
from trainings import EVALUATED, SMALL

from openslip.__main__ import run
from openslip.commands import train

WIDTH = 80
STEPS = 14
RUN = [
    *("train", *SMALL, *EVALUATED, "data.source.shards=0.tar", f"trainer.max_steps={STEPS}", "name=seen"),
    *("callbacks.save.every_n_steps=4", "micro_batch_size=null", "+callbacks.noisy._target_=noisy.Noisy"),
]


class Seen(NamedTuple):
    """What a run wrote, the screen's rows after each part of it, and at the end."""

    written: str
    moments: list[list[str]]
    last: list[str]


def train_on(terminal: str, folder: str) -> None:
    os.chdir(folder)
    os.environ |= {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        os.environ.pop(name, None)
    for stream in (0, 1, 2):
        os.dup2(os.open(terminal, os.O_RDWR | os.O_NOCTTY), stream)
    train.write_report = Path
    sys.exit(run(RUN))


@pytest.fixture(scope="module")
def seen(place: Path) -> Seen:
    """A whole run on a terminal."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    process = fork(train_on, os.ttyname(slave), str(place))
    screen, written, moments = Screen(WIDTH), b"", []
    while process.is_alive() or readable(master):
        if readable(master):
            written += (part := os.read(master, 1 << 16))
            screen.feed(part)
            moments.append(screen.rows())
    process.join(60)
    os.close(slave)
    os.close(master)
    assert process.exitcode == 0, screen.rows()
    return Seen(written.decode(), moments, screen.rows())


def readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0.05)[0])


def test_only_whole_lines_and_the_last_state_of_training_stay(seen: Seen):
    rows = seen.last
    expected = [
        "data: 100 samples",
        "data: 4 of 100 samples fill no global batch and are dropped",
        *(WARNING[start : start + WIDTH].rstrip() for start in range(0, len(WARNING), WIDTH)),
        PRINTED,
    ]
    assert rows[: len(expected)] == expected
    assert re.match(rf"step {STEPS}/{STEPS}  loss [\d.]+  ETA 0:00  \d+ samples/s", rows[len(expected)])
    assert rows[len(expected) + 1].startswith("sum ")
    assert rows[-5:] == [
        "next commands:",
        '  openslip predict IMAGE --checkpoint runs/seen --labels "a cat,a dog"',
        "  openslip eval checkpoint=runs/seen evaluation=NAME",
        "  openslip report runs/seen",
        "",
    ]


def test_at_every_moment_one_line_that_fits_is_below_lines_that_stay(seen: Seen):
    for *above, bottom in filter(None, seen.moments):
        assert above == seen.last[: len(above)]
        assert re.match(rf"step \d+/{STEPS}  loss|[-\\|/] |$", bottom)
        assert len(bottom) <= WIDTH - 2
    for phase in ("importing PyTorch", "composing the config", "opening the dataset", "starting training"):
        assert f"- {phase}" in seen.written
    for text in (*(f"step {step}/{STEPS}  loss" for step in range(1, STEPS + 1)), "evaluating long: images"):
        assert text in seen.written
