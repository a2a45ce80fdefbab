"""A save is written while its caller goes on; what becomes of it is told once, and nothing is lost by it."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from on_ranks import agree, patience, told_of_saves
from ranks import Ranks

from openslip.durable import Hashing, finish_writes
from openslip.errors import CheckpointError
from openslip.inference.files import read
from openslip.run.checkpoints import file_name, newest_whole
from openslip.training.checkpoint_io import DurableCheckpointIO
from openslip.training.lightning import wait_for_ranks


def begin(io: DurableCheckpointIO, folder: Path, step: int) -> torch.Tensor:
    """Begin to save weights that all equal the step; returns them."""
    weight = torch.full((1 << 20,), float(step))
    io.save_checkpoint({"openslip": {"step": step}, "state_dict": {"w": weight}}, folder / file_name(step))
    return weight


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Holds every write in the middle of its file until this is called."""
    go_on = threading.Event()
    write = Hashing.write

    def slow(self: Hashing, data: Any) -> int:
        while not go_on.wait(0.01):
            pass
        return write(self, data)

    monkeypatch.setattr(Hashing, "write", slow)
    yield go_on.set
    go_on.set()
    finish_writes()


def test_a_save_returns_before_it_is_written_and_keeps_what_was_there(tmp_path: Path, held: Callable[[], None]):
    io = DurableCheckpointIO()
    weight = begin(io, tmp_path, 4)
    assert not list(tmp_path.glob("*.ckpt"))
    assert not io.has_failed()
    weight.fill_(5.0)
    held()
    assert io.wait() is None
    assert read(newest_whole(tmp_path).path)["state_dict"]["w"].unique().tolist() == [4.0]


def test_the_next_save_waits_for_the_one_before(tmp_path: Path, held: Callable[[], None]):
    io = DurableCheckpointIO()
    begin(io, tmp_path, 4)
    threading.Timer(0.2, held).start()
    begin(io, tmp_path, 5)
    assert newest_whole(tmp_path).step >= 4
    assert io.wait() is None
    assert newest_whole(tmp_path).step == 5


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, MemoryError, ZeroDivisionError])
def test_whatever_ends_the_writer_is_a_failed_save_with_5_and_the_old_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
):
    io = DurableCheckpointIO()
    begin(io, tmp_path, 4)
    assert io.wait() is None
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def end_in_the_middle(content: Any, file: Hashing) -> None:
        file.write(bytes(1000))
        raise kind

    monkeypatch.setattr(torch, "save", end_in_the_middle)
    begin(io, tmp_path, 5)
    finish_writes()
    assert io.has_failed()
    with pytest.raises(CheckpointError, match=rf"step-000005\.ckpt could not be written \({kind.__name__}") as error:
        begin(io, tmp_path, 6)
    assert error.value.exit_code == 5
    assert not io.has_failed()  # it is told once
    assert io.wait() is None
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_save_is_due_when_its_minutes_are_over_by_the_first_ranks_clock_on_all_ranks(two_ranks: Ranks):
    # Rank 1's clock has passed long ago; rank 0's passes before the third agreement.
    assert two_ranks(told_of_saves, [0.0, 0.0, 16.0, 0.0], [99.0] * 4, None) == [[False, False, True, False]] * 2


def test_a_save_that_failed_is_known_to_all_ranks_with_the_next_agreement(two_ranks: Ranks):
    assert two_ranks(told_of_saves, [0.0] * 3, [0.0] * 3, 1) == [[False, True, True]] * 2


def test_a_second_flag_leaves_the_first_one_as_it_is(two_ranks: Ranks):
    assert two_ranks(agree, [True, False]) == [[False, True, False, True]] * 2


@pytest.mark.parametrize(("seconds", "expected"), [(14400.0, 14400.0), (1e30, 1e9)])
def test_agreements_beside_nccl_wait_as_long_as_they_are_told_to(two_ranks: Ranks, seconds: float, expected: float):
    assert two_ranks(patience, seconds) == [expected] * 2


def test_process_groups_wait_for_the_watchdogs_longest_limit_and_no_shorter_than_they_would():
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    wait_for_ranks(trainer, 14400.0)
    assert trainer.strategy._timeout == timedelta(hours=4)  # pyright: ignore[reportAttributeAccessIssue]
    wait_for_ranks(trainer, 60.0)
    assert trainer.strategy._timeout == timedelta(hours=4)  # pyright: ignore[reportAttributeAccessIssue]
    wait_for_ranks(pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False), 60.0)
