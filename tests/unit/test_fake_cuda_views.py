"""Augmentation on a GPU: uploads that do not wait, and a peak that does not grow with the batch."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from data_modules import data_module
from fake_cuda import DEVICE, FakeCuda, NoWaits, Waits, fake_cuda
from shard_files import write_pairs
from torch.utils._pytree import tree_map_only
from views import crop_view

from openslip.data.image.augment import SimCLRAugment
from openslip.data.image.crop import RandomResizedCrop
from openslip.data.sources.shards import ShardSource
from openslip.data.view import Columns
from openslip.training.sizing.activations import LiveBytes

SIDE = 224


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with fake_cuda() as mode:
        yield mode


def views() -> dict[str, RandomResizedCrop]:
    strong = SimCLRAugment(
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        jitter_probability=0.8,
        grayscale_probability=0.2,
        blur_probability=0.5,
        blur_sigma=[0.1, 2.0],
        flip_probability=0.5,
    )
    return {"weak": crop_view(SIDE, (0.5, 1.0)), "strong": crop_view(SIDE, (0.08, 1.0), strong)}


def drawn(view: RandomResizedCrop, size: int) -> Columns:
    """A batch as it comes to the device: pixels there, parameters on the CPU."""
    columns = {"": torch.empty(size, 3, SIDE, SIDE, dtype=torch.uint8, device=DEVICE)}
    if view.augment is not None:
        rng = np.random.default_rng(0)
        columns["parameters"] = torch.from_numpy(np.stack([view.augment.draw(rng) for _ in range(size)]))
    return columns


@pytest.mark.parametrize("name", views())
def test_a_view_is_finished_without_waiting_for_the_device(cuda: FakeCuda, name: str):
    view = views()[name]
    columns = drawn(view, 64)
    with NoWaits() as watched:
        finished = view.finish(columns)[""]
    assert (finished.shape, finished.dtype, finished.device) == ((64, 3, SIDE, SIDE), torch.float32, DEVICE)
    assert watched.operations


def test_an_upload_from_pageable_memory_is_seen(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch):
    view = views()["strong"]
    columns = drawn(view, 8)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    with pytest.raises(Waits, match=r"memory that is not pinned: augment_batch\.py"), NoWaits():
        view.finish(columns)


def test_the_data_module_keeps_lengths_and_parameters_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_pairs(tmp_path / "0.tar", 12)
    data = data_module(ShardSource(shards=str(tmp_path), require="caption"))
    batch = next(iter(data.train_dataloader()))
    monkeypatch.setattr(data.upload, "beside", lambda _: nullcontext())
    with fake_cuda() as mode, NoWaits():
        moved = data.transfer_batch_to_device(tree_map_only(torch.Tensor, mode.pin, batch), DEVICE, 0)
    on_cpu = {f"{name} {suffix}" for name in data.views for suffix, x in moved[name].items() if x.is_cpu}
    assert on_cpu == {"aug1 parameters", "text length", "text truncated"}


def beside_output(size: int) -> int:
    """Bytes that a strong view of so many samples takes at most, without the view itself."""
    view = views()["strong"]
    columns = drawn(view, size)
    with LiveBytes() as counter:
        finished = view.finish(columns)[""]
    assert counter.live == finished.nbytes
    return max(counter.history) - finished.nbytes


def test_a_strong_view_of_512_samples_takes_little_beside_its_output(cuda: FakeCuda):
    assert beside_output(512) < 1.3e9


def test_what_a_strong_view_takes_beside_its_output_does_not_grow_with_the_batch(cuda: FakeCuda):
    assert beside_output(2048) < 1.3e9
