"""DeCLIP and its relatives on a GPU: neither the loss nor the queue waits for it."""

from collections.abc import Iterator

import pytest
import torch
from declip_models import CONTEXT, CORRECT, FAITHFUL, VOCABULARY, declip, declip_slip, defilip
from fake_cuda import DEVICE, FakeCuda, NoWaits, fake_cuda
from fake_models import SMALL
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from openslip.models.dual_encoder import DualEncoder
from openslip.models.text_transformer import TextTransformer
from openslip.models.timm_tower import TimmTower
from openslip.training.microbatch import loss_in_micro_batches
from openslip.training.precision import autocast

OBJECTIVES = {
    "declip": lambda: declip(**CORRECT),
    "published declip": lambda: declip(**FAITHFUL),
    "declip_slip": declip_slip,
    "defilip": defilip,
}
BATCH = 6


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with fake_cuda() as mode:
        yield mode


def batch_of(cuda: FakeCuda) -> dict[str, Tensor]:
    views = ("image", "image2", "aug1", "aug2")
    batch = {view: torch.empty(BATCH, 3, 32, 32, device=DEVICE) for view in views}
    generator = torch.Generator().manual_seed(0)
    for name in ("text", "text2"):
        batch[name] = torch.empty(BATCH, CONTEXT, dtype=torch.long, device=DEVICE)
        batch[f"{name}_length"] = cuda.pin(torch.randint(2, CONTEXT + 1, (BATCH,), generator=generator))
    labels = torch.where(torch.rand(BATCH, CONTEXT, generator=generator) < 0.3, 5, -100)
    return batch | {"text_labels": cuda.pin(labels)}


@pytest.mark.parametrize("sizes", [[BATCH], [4, 2]])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_forward_pass_and_the_queue_never_wait(cuda: FakeCuda, name: str, sizes: list[int]):
    with _disable_current_modes(), torch.device("meta"):
        model = DualEncoder(
            image_tower=TimmTower(name="vit_base_patch16_224", image_size=32, arguments=SMALL),
            text_tower=TextTransformer(vocab_size=VOCABULARY, context_length=CONTEXT, width=128, depth=2, heads=2),
            embed_dim=64,
            logit_scale_init=2.6593,
            token_dim=10 if name == "defilip" else None,
        )
        objective = OBJECTIVES[name]()
        objective.prepare(model)
    model.to_empty(device=DEVICE)
    objective.to_empty(device=DEVICE)
    batch = batch_of(cuda)
    with NoWaits(), autocast(DEVICE, "bf16-mixed"):
        terms = loss_in_micro_batches(objective, model, batch, sizes)
        objective.after_step(model)
    for term in terms.values():
        assert (term.shape, term.dtype, term.device) == ((), torch.float32, DEVICE), name
