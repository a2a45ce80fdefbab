"""Which micro-batches fit into a CPU's memory: activations beside what a step and the first save take."""

import pytest
import torch
from pretraining import fit, pretrainer
from small_models import small_batch

from openslip.training.host_copy import HostCopy
from openslip.training.sizing import micro_batch_size as sizing
from openslip.training.sizing.micro_batch_size import checkpoint_bytes, fits_in_memory

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]
SAMPLE = 1e6


@pytest.mark.parametrize("ema_decay", [None, 0.9], ids=["no EMA", "EMA"])
def test_a_checkpoint_has_the_bytes_that_its_copy_takes(ema_decay: float | None):
    made = pretrainer("slip", steps=1, ema_decay=ema_decay)
    trainer = fit(made, 1)
    optimizer = trainer.optimizers[0].state_dict()
    moments = [[state["exp_avg"], state["exp_avg_sq"]] for state in optimizer["state"].values()]
    copy = HostCopy()
    copy.of([made.state_dict(), moments])
    unsaved = made.objective.skipped.nbytes
    assert checkpoint_bytes(made) == sum(memory.nbytes for memory in copy.memory) + unsaved


def test_locked_weights_have_no_moments():
    made = pretrainer("slip", steps=1)
    before = checkpoint_bytes(made)
    weight = next(made.model.parameters())
    weight.requires_grad_(False)
    assert checkpoint_bytes(made) == before - 2 * weight.nbytes


@pytest.mark.parametrize("processes", [1, 2])
def test_one_checkpoint_is_left_free_whatever_the_number_of_processes(processes: int, monkeypatch: pytest.MonkeyPatch):
    made = pretrainer("slip", steps=1, ema_decay=0.9)
    trained = sum(weight.nbytes for weight in made.parameters() if weight.requires_grad)
    held = processes * 3 * trained + checkpoint_bytes(made)
    monkeypatch.setattr(sizing, "activation_bytes", lambda *_: SAMPLE)
    monkeypatch.setattr(sizing, "available_memory", lambda: (held + processes * 5 * SAMPLE) / 0.9 + 10)
    fits = fits_in_memory(made, small_batch(12), 12, processes)
    assert fits(5)
    assert not fits(6)
    # a checkpoint that is a sample larger leaves room for one fewer in each process
    made.register_buffer("queue", torch.zeros(int(processes * SAMPLE), dtype=torch.uint8))
    fits = fits_in_memory(made, small_batch(12), 12, processes)
    assert fits(4)
    assert not fits(5)
