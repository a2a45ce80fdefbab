"""Under DDP a batch stays where the data module has put it."""

from typing import Any

import pytest
import torch
from pytorch_lightning.strategies import DDPStrategy, ddp
from torch import nn

from openslip.config.build import build
from openslip.config.compose import compose_config


def strategy(*arguments: str) -> DDPStrategy:
    made = build(compose_config("train", [*arguments])[0]["trainer"]["strategy"], "trainer.strategy")
    made.parallel_devices = [torch.device("cuda", 0)]
    made.cluster_environment = type("Environment", (), {"local_rank": lambda _: 0})()
    return made


@pytest.mark.parametrize("trainer", ["ddp", "slurm"])
def test_lengths_stay_on_the_cpu_beside_a_gpu(trainer: str, monkeypatch: pytest.MonkeyPatch):
    given: dict[str, Any] = {}
    monkeypatch.setattr(ddp, "DistributedDataParallel", lambda **options: given.update(options))
    made = strategy(f"trainer={trainer}")
    assert made.root_device.type == "cuda"
    made._setup_model(nn.Linear(1, 1))
    # Else its forward moves every tensor of the batch there, by `_to_kwargs`.
    assert given["device_ids"] is None
    assert given["bucket_cap_mb"] == 100


def test_a_config_may_name_lightnings_own():
    config = compose_config("train", ["trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true"])[0]
    config["trainer"]["strategy"]["_target_"] = "pytorch_lightning.strategies.DDPStrategy"
    assert type(build(config["trainer"], "trainer", max_epochs=1).strategy) is DDPStrategy
