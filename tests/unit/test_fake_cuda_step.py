"""A training step on a GPU never waits for it, stays on it, and computes nothing there in float64."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from fake_cuda import DEVICE, FakeCuda, NoWaits, Waits, fake_cuda
from fake_models import fake_batch, fake_model, meta_model
from pretraining import Batches
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from views import MEAN, STD

from openslip.data.image.eval_transform import EvalTransform
from openslip.models.dual_encoder import DualEncoder
from openslip.objectives import clip
from openslip.optim import WarmupCosine
from openslip.training.callbacks.finite import Finite
from openslip.training.logging.late import LateMetrics
from openslip.training.microbatch import loss_in_micro_batches
from openslip.training.precision import autocast
from openslip.training.pretrainer import Pretrainer

BATCH = 6
MICRO_BATCHES = {"one micro-batch": [BATCH], "two micro-batches": [4, 2]}
TOWERS: dict[str, Callable[[DualEncoder], None]] = {
    "checkpointed image tower": lambda model: model.image_tower.checkpoint_blocks(),
    "checkpointed text tower": lambda model: model.text_tower.checkpoint_blocks(),
    "patch dropout": lambda model: model.image_tower.drop_patches(0.5),
    "locked image tower": lambda model: model.image_tower.lock(),
}


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with fake_cuda() as mode:
        yield mode


def loss(
    cuda: FakeCuda, method: str, sizes: list[int], towers: str | None = None, precision: str = "bf16-mixed"
) -> NoWaits:
    """The forward pass of a step, and what it ran."""
    model, objective = fake_model(method)
    if towers:
        TOWERS[towers](model)
    batch = fake_batch(cuda, method, sum(sizes))
    with NoWaits() as watched, autocast(DEVICE, precision):
        terms = loss_in_micro_batches(objective, model, batch, sizes)
    for name, term in terms.items():
        assert (term.shape, term.dtype, term.device) == ((), torch.float32, DEVICE), name
    assert terms["loss"].requires_grad
    return watched


@pytest.mark.parametrize("towers", TOWERS)
def test_the_loss_with_an_option_of_the_towers_never_waits(cuda: FakeCuda, towers: str):
    loss(cuda, "clip", MICRO_BATCHES["two micro-batches"], towers)


def test_the_loss_in_32_bits_never_waits(cuda: FakeCuda):
    loss(cuda, "clip", [BATCH], precision="32-true")  # captions are padded


@pytest.mark.parametrize("method", ["clip", "simclr"])
def test_the_loss_in_tiles_never_waits(cuda: FakeCuda, method: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("openslip.objectives.tiles.PLAIN_UP_TO", 0)
    monkeypatch.setattr("openslip.objectives.tiles.GPU_TILE", 4)
    loss(cuda, method, [BATCH])


def test_captions_are_attended_to_without_padding_in_16_bits(cuda: FakeCuda):
    assert "torch_attn._varlen_attn.default" in loss(cuda, "clip", [BATCH]).operations


def test_products_of_the_towers_run_in_16_bits(cuda: FakeCuda):
    model, objective = fake_model("slip")
    with autocast(DEVICE, "bf16-mixed"):
        features = objective.encode(model, fake_batch(cuda, "slip", BATCH))
    assert {name: feature.dtype for name, feature in features.items()} == {
        "image": torch.bfloat16,
        "text": torch.bfloat16,
        "aug1": torch.float32,  # of the last layer norm
        "aug2": torch.float32,
    }


def test_lengths_on_the_device_would_be_waited_for(cuda: FakeCuda):
    model, objective = fake_model("clip")
    batch = fake_batch(cuda, "clip", BATCH)
    batch["text_length"] = torch.ones(BATCH, dtype=torch.long, device=DEVICE)
    with pytest.raises(Waits, match=r"packing\.py"), NoWaits(), autocast(DEVICE, "bf16-mixed"):
        loss_in_micro_batches(objective, model, batch, [BATCH])


FAULTS = {
    "number read": (lambda value, accuracy: (value, accuracy + value.item() * 0), Waits, "_local_scalar_dense"),
    "float64": (
        lambda value, accuracy: (value * torch.ones((), dtype=torch.float64, device=DEVICE), accuracy),
        AssertionError,
        "float64",
    ),
    "other device": (lambda value, accuracy: (value + torch.ones(2), accuracy), RuntimeError, "two devices"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_loss_is_seen(cuda: FakeCuda, fault: str, monkeypatch: pytest.MonkeyPatch):
    changed, error, message = FAULTS[fault]
    whole = clip.info_nce
    monkeypatch.setattr(clip, "info_nce", lambda *inputs: changed(*whole(*inputs)))
    with pytest.raises(error, match=message):
        loss(cuda, "clip", [BATCH])


class NoLoop(pl.Trainer):
    """What a module asks its trainer for in a step."""

    precision_plugin: Any = MixedPrecision("bf16-mixed", "cuda")
    strategy: Any = None

    def __init__(self) -> None:
        self.datamodule = Batches(4, torch.float32)


class Step:
    """A pretrainer's step without Lightning's loop: its hooks in Lightning's order, gradients of no values."""

    def __init__(self, cuda: FakeCuda, method: str, sizes: list[int], **options: Any) -> None:
        settings: dict[str, Any] = {"layer_decay": None, "clip_norm": None, "ema_decay": None, **options}
        model, objective = meta_model(method)
        with _disable_current_modes(), torch.device("meta"):
            self.made = Pretrainer(
                model=model,
                objective=objective,
                optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), fused=True),
                weight_decay=0.1,
                schedule=WarmupCosine(lr_start=1e-3, lr=1e-3, lr_end=1e-4, warmup_steps=1, max_steps=4),
                architecture={},
                tokenizer=None,
                transform=EvalTransform(size=32, mean=MEAN, std=STD),
                **settings,
            )
        self.made.to_empty(device=DEVICE)
        self.made._device = DEVICE
        self.made.micro_batch_size = sizes[0]
        self.batch = fake_batch(cuda, method, sum(sizes))
        self.optimizer = self.made.configure_optimizers()
        self.finite = Finite(stop_after=5)
        self.trainer = self.made._trainer = NoLoop()
        self.trainer.strategy = SimpleNamespace(optimizers=[self.optimizer])
        self.finite.on_train_start(self.trainer, self.made)

    def backward(self) -> Tensor:
        with autocast(DEVICE, "bf16-mixed"):
            loss = self.made.training_step(self.batch, 0)
        for parameter in self.made.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)  # the engine asks for a real device
        self.finite.on_before_optimizer_step(self.trainer, self.made, self.optimizer)
        self.made.on_before_optimizer_step(self.optimizer)
        return loss

    def run(self) -> NoWaits:
        with NoWaits() as watched:
            self.finite.on_train_batch_start(self.trainer, self.made, self.batch, 0)
            self.made.on_train_batch_start(self.batch, 0)
            self.made.optimizer_step(0, 0, self.optimizer, self.backward)
            self.finite.on_train_batch_end(self.trainer, self.made, None, self.batch, 0)
        return watched


@pytest.mark.parametrize(
    ("method", "sizes"), [("clip", "one micro-batch"), ("simclr", "two micro-batches"), ("slip", "two micro-batches")]
)
def test_a_step_with_clipping_and_ema_never_waits(cuda: FakeCuda, method: str, sizes: str):
    step = Step(cuda, method, MICRO_BATCHES[sizes], clip_norm=1.0, ema_decay=0.99)
    for _ in range(2):
        assert "aten._fused_adamw_.default" in step.run().operations
    assert step.made.step == step.trainer.datamodule.consumed == 2
    assert {"gradient_norm", "skipped"} < step.made.terms.keys()


def test_metrics_leave_the_device_without_a_wait(cuda: FakeCuda):
    step = Step(cuda, "slip", [BATCH], clip_norm=1.0)
    step.run()
    with NoWaits(float64=True):
        metrics = LateMetrics(step.made.terms)
    assert metrics.read().keys() == step.made.terms.keys()
