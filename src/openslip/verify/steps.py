"""Checks of a training step on the device: a skipped one changes nothing, and micro-batches keep the gradient."""

import math

import torch
from torch import Tensor, nn

from openslip.models.dual_encoder import DualEncoder
from openslip.models.text_transformer import TextTransformer
from openslip.models.timm_tower import TimmTower
from openslip.objectives.objective import Objective
from openslip.objectives.slip import SLIP
from openslip.optim import param_groups
from openslip.training.gradients import gradient_norm, marked
from openslip.training.microbatch import loss_in_micro_batches
from openslip.verify.deviation import Arrays, Part, Row, exactly, norm, worst
from openslip.verify.recording import DTYPES, as_array, precision

BATCH, MICRO_BATCHES = 32, 16
# The deviation of micro-batches from float64 may be this factor times that of the whole batch, and is always allowed up
# to the format's value in LEAST.
RATIO = 1.05
LEAST = {"float64": 1e-7, "float32": 2e-6, "tf32": 2.0**-11, "bfloat16": 2.0**-9}

Batch = dict[str, Tensor]


def make_parts(method: type[SLIP], device: str, dtype: torch.dtype) -> tuple[DualEncoder, Objective]:
    """Build a small SLIP with attention heads of size 64 and the same weights in every call."""
    torch.manual_seed(5)
    arguments = {"patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
    image = TimmTower(name="vit_small_patch16_224", image_size=16, arguments=arguments)
    text = TextTransformer(vocab_size=50, context_length=9, width=128, depth=2, heads=2)
    model = DualEncoder(image_tower=image, text_tower=text, embed_dim=64, logit_scale_init=2.6593)
    objective = method(
        head_hidden=128,
        head_output=64,
        ssl_scale=1.0,
        ssl_temperature=0.1,
        gather_with_grad=True,
        max_logit_scale=4.6052,
    )
    objective.prepare(model)
    return model.to(device, dtype).train(), objective.to(device, dtype).train()


def make_batch(device: str, dtype: torch.dtype) -> Batch:
    """Make a batch of noise images and random captions of 2 to 9 tokens; lengths stay on the CPU as in training."""
    generator = torch.Generator().manual_seed(6)
    lengths = torch.randint(2, 10, (BATCH,), generator=generator)
    batch = {name: torch.randn(BATCH, 3, 16, 16, generator=generator) for name in ("image", "aug1", "aug2")}
    batch = {name: images.to(device, dtype) for name, images in batch.items()}
    text = torch.randint(50, (BATCH, 9), generator=generator)
    return {**batch, "text": text.to(device), "text_length": lengths}


def skipped_step_rows(device: str, dtype: str) -> list[Row]:
    """Count the weights and optimizer states that a step with a non-finite loss changes: none with fused AdamW."""
    model, objective = make_parts(SLIP, device, DTYPES[dtype])
    optimizer = torch.optim.AdamW(param_groups([model, objective], 0.1), lr=1e-3, betas=(0.9, 0.98), fused=True)
    good = make_batch(device, DTYPES[dtype])
    bad = {**good, "image": good["image"].clone()}
    bad["image"][0, 0, 0, 0] = torch.inf

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        with precision(device, dtype):
            loss = marked(loss_in_micro_batches(objective, model, batch, [BATCH])["loss"])
            loss.backward()
        # As in training/callbacks/finite.py, without a host synchronisation
        optimizer.found_inf = (~gradient_norm(optimizer).isfinite()).float()  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()

    step(good)
    before = state_of(model, objective, optimizer)
    step(bad)
    after = state_of(model, objective, optimizer)
    step(good)
    resumed = state_of(model, objective, optimizer)
    parts = [exactly(name, int((after[name] != x).sum())) for name, x in before.items()]
    stuck = all(torch.equal(resumed[name], x) for name, x in after.items())
    parts.append(exactly("a step after it that changes nothing", int(stuck)))
    return [worst(f"skipped step, {dtype}: values that it changes", parts)]


def state_of(model: nn.Module, objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copy weights and optimizer state."""
    state = {}
    for module in (model, objective):
        for name, parameter in module.named_parameters():
            state[name] = parameter.detach().clone()
            state |= {f"{name}, {key}": value.clone() for key, value in optimizer.state[parameter].items()}
    return state


def micro_batch_rows(device: str, dtype: str) -> list[Row]:
    """Check that the gradients of 16 micro-batches are about as close to float64 as those of the whole batch."""
    exact = gradients_of(1, "cpu", "float64")
    whole, split = (deviation(gradients_of(count, device, dtype), exact) for count in (1, MICRO_BATCHES))
    part = Part(f"of one: {whole:.2e}", split, max(RATIO * whole, LEAST[dtype]))
    return [worst(f"{MICRO_BATCHES} micro-batches, {dtype}: gradients", [part])]


def deviation(gradients: Arrays, exact: Arrays) -> float:
    """Return the relative deviation of all gradients as one vector."""
    distances = [norm(gradients[name] - x) for name, x in exact.items()]
    return math.hypot(*distances) / math.hypot(*map(norm, exact.values()))


class Weighed(SLIP):
    """A loss that sums features with fixed weights; unlike a contrastive loss, it does not amplify their rounding."""

    def loss(self, model: DualEncoder, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(7)
        weights = {name: torch.randn(x.shape, generator=generator).to(x) for name, x in features.items()}
        return {"loss": torch.stack([(x * weights[name]).mean() for name, x in features.items()]).sum()}


def gradients_of(micro_batches: int, device: str, dtype: str) -> Arrays:
    """Return the gradients of the batch, encoded in `micro_batches` micro-batches of equal size."""
    model, objective = make_parts(Weighed, device, DTYPES[dtype])
    sizes = [BATCH // micro_batches] * micro_batches
    with precision(device, dtype):
        loss_in_micro_batches(objective, model, make_batch(device, DTYPES[dtype]), sizes)["loss"].backward()
    named = (*model.named_parameters(), *objective.named_parameters())
    return {name: as_array(parameter.grad) for name, parameter in named if parameter.grad is not None}
