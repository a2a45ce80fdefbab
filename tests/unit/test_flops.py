"""Operations and peaks against figures worked out by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from openslip.models.image_encoder import ImageEncoder
from openslip.models.timm_tower import TimmTower
from openslip.objectives.simclr import SimCLR
from openslip.training.sizing.flops import TRAINING_OVER_FORWARD, forward_flops, peak_tflops

TABLE = {"A100": {"tflops": 312}, "H100": {"tflops": 989}, "H200": {"tflops": 989}}


def test_training_takes_three_times_the_products_of_a_forward_pass():
    samples, inputs, outputs = 5, 7, 3
    x = torch.randn(samples, inputs, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        nn.Linear(inputs, outputs)(x).sum().backward()
    forward = 2 * samples * inputs * outputs
    assert counter.get_total_flops() == TRAINING_OVER_FORWARD * forward == 3 * forward


def test_counting_leaves_running_statistics_as_they_were():
    model = ImageEncoder(image_tower=TimmTower(name="resnet18", image_size=32, arguments={}))
    objective = SimCLR(head_hidden=20, head_output=8, ssl_temperature=0.1)
    objective.setup(model)
    views = {name: torch.randn(2, 3, 32, 32) for name in ("aug1", "aug2")}
    before: dict[str, Tensor] = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert model.training
    assert forward_flops(objective, model, views) > 0
    assert [name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])] == []
    assert {name.rpartition(".")[2] for name in before} == {"running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H200", 989),
        ("NVIDIA RTX A1000 Laptop GPU", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_peak_is_found_by_a_whole_word_of_the_device_name(
    name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_tflops(torch.device("cuda"), TABLE) == peak
