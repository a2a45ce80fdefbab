"""What the forward pass of SLIP ViT-B/16 holds on a GPU, by shapes alone."""

from collections.abc import Iterator

import pytest
from fake_cuda import DEVICE, FakeCuda, fake_cuda
from fake_models import fake_batch, fake_model

from openslip.training.microbatch import loss_in_micro_batches
from openslip.training.precision import autocast
from openslip.training.sizing.activations import LiveBytes


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with fake_cuda() as mode:
        yield mode


def held(cuda: FakeCuda, sizes: list[int], *, depth: int, checkpointed: bool = False) -> tuple[int, int]:
    """Bytes that ViT-B/16's forward pass has made for the backward pass, and its peak."""
    image = {"depth": depth}
    model, objective = fake_model("slip", side=224, image=image, text=512, depth=depth)
    if checkpointed:
        model.image_tower.checkpoint_blocks()
        model.text_tower.checkpoint_blocks()
    batch = fake_batch(cuda, "slip", sum(sizes), side=224, length=40)
    with LiveBytes() as counter, autocast(DEVICE, "bf16-mixed"):
        terms = loss_in_micro_batches(objective, model, batch, sizes)
    assert terms["loss"].requires_grad
    return counter.live, max(counter.history)


def test_slip_vit_b16_holds_190_mb_a_sample(cuda: FakeCuda):
    live, peak = held(cuda, [256], depth=12)
    assert 180e6 < live / 256 < 200e6
    assert peak < 1.05 * live
