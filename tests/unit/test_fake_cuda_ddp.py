"""DDP hands a batch to the module as the data module made it: lengths on the CPU."""

from collections.abc import Iterator

import pytest
import torch
from fake_cuda import DEVICE, FakeCuda, fake_cuda
from fake_models import fake_batch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from torch.distributed.utils import _to_kwargs

from openslip.config.build import build
from openslip.config.compose import compose_config


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with fake_cuda() as mode:
        yield mode


def handed_on(strategy: DDPStrategy, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the module gets on a GPU: DDP moves all tensors to its device, if it was given one."""
    strategy.parallel_devices = [DEVICE]
    device_ids = strategy.determine_ddp_device_ids()
    if not device_ids:
        return batch
    inputs, _ = _to_kwargs((batch,), {}, torch.device("cuda", device_ids[0]), False)
    return inputs[0][0]


@pytest.mark.parametrize("trainer", ["ddp", "slurm"])
def test_lengths_of_captions_stay_on_the_cpu(cuda: FakeCuda, trainer: str):
    config = compose_config("train", [f"trainer={trainer}"])[0]
    batch = fake_batch(cuda, "clip", 4)
    handed = handed_on(build(config["trainer"]["strategy"]), batch)
    assert {key: value.device.type for key, value in handed.items()} == {
        "image": "cuda",
        "text": "cuda",
        "text_length": "cpu",
    }


def test_lightnings_own_strategy_moves_them(cuda: FakeCuda):
    assert handed_on(DDPStrategy(), fake_batch(cuda, "clip", 4))["text_length"].is_cuda
