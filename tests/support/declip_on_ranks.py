"""What tests of DeCLIP run on several ranks."""

from collections.abc import Callable
from typing import Any

import torch
from declip_models import declip_batch, declip_model
from on_ranks import mean_over_ranks, rank_slice
from torch import Tensor
from views import MEAN, STD

from openslip.data.image.eval_transform import EvalTransform
from openslip.distributed import from_first_rank, rank
from openslip.objectives.masked_words import masked_word_loss
from openslip.optim import WarmupCosine
from openslip.training.microbatch import loss_in_micro_batches
from openslip.training.pretrainer import Pretrainer
from openslip.verify import declip_steps
from openslip.verify.declip_steps import Recorded, Repeat, repeat
from openslip.verify.deviation import Arrays
from openslip.verify.splits import in_tiles


def state_of_steps(
    num_steps: int, method: str, global_batch: int, sizes: list[int], tile: int | None = None, **switches: Any
) -> dict[str, Tensor]:
    """Loss terms and gradients of every step, then weights, statistics and queue; gradients as DDP averages them."""
    model, objective = declip_model(method, **switches)
    named = {**dict(model.named_parameters()), **dict(objective.named_parameters())}
    optimizer = torch.optim.SGD(named.values(), lr=0.1)  # unlike AdamW, it does not turn rounding into steps
    batch = {key: rank_slice(value) for key, value in declip_batch(global_batch).items()}
    found: dict[str, Tensor] = {}
    for step in range(num_steps):
        optimizer.zero_grad()
        with in_tiles(tile):
            terms = loss_in_micro_batches(objective, model, batch, sizes)
        terms["loss"].backward()
        found |= {f"{step}.term.{name}": mean_over_ranks(term.detach().clone()) for name, term in terms.items()}
        for name, parameter in named.items():
            assert parameter.grad is not None, name
            found[f"{step}.gradient.{name}"] = mean_over_ranks(parameter.grad).clone()
        optimizer.step()
        objective.after_step(model)
    state = {**model.state_dict(prefix="model."), **objective.state_dict(prefix="objective.")}
    return found | {name: tensor.clone() for name, tensor in state.items()}


def steps_of_a_run(first: int, last: int, checkpoint: dict[str, Any] | None, **switches: Any) -> dict[str, Any]:
    """Train some steps of SGD from a checkpoint, or from the beginning; return rank 0's checkpoint, as a file has it.

    Under `own`, it has this rank's buffers, whatever the file keeps.
    """
    model, objective = declip_model("declip", **switches)
    module = Pretrainer(
        model=model,
        objective=objective,
        optimizer=torch.optim.SGD,
        schedule=WarmupCosine(lr_start=0.1, lr=0.1, lr_end=0.1, warmup_steps=1, max_steps=9),
        architecture={},
        tokenizer=None,
        transform=EvalTransform(size=16, mean=MEAN, std=STD),
        **{"weight_decay": 0.0, "layer_decay": None, "clip_norm": None, "ema_decay": None},
    ).double()
    if checkpoint is not None:
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
    for buffer in module.buffers():  # as DDP does when it is set up
        buffer.copy_(from_first_rank(buffer))
    module.on_train_start()
    batches = declip_batch(36)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(first, last):
        optimizer.zero_grad()
        batch = {key: rank_slice(value[12 * step : 12 * (step + 1)]) for key, value in batches.items()}
        loss_in_micro_batches(objective, model, batch, [len(batch["image"])])["loss"].backward()
        for parameter in module.parameters():
            assert parameter.grad is not None
            mean_over_ranks(parameter.grad)
        optimizer.step()
        objective.after_step(model)
    saved: dict[str, Any] = {"state_dict": {name: x.clone() for name, x in module.state_dict().items()}}
    module.on_save_checkpoint(saved)
    own = {name: x.clone() for name, x in objective.rank_buffers().items()}
    return {**from_first_rank(saved), "own": own}


def repeated_with(recorded: Recorded, make: Callable[[Recorded], Repeat], switches: dict[str, Any]) -> Arrays:
    """Results of a recording, with other values of some switches of DeCLIP."""
    published = declip_steps.DeCLIP

    def changed(**arguments: Any) -> Any:
        return published(**arguments | switches)

    declip_steps.DeCLIP = changed  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return repeat(recorded, make)
    finally:
        declip_steps.DeCLIP = published  # pyright: ignore[reportAttributeAccessIssue]


def masked_loss_on_rank(of_each_rank: bool) -> float:
    """This rank's masked-token loss; the first rank has three masked tokens, the second one has one."""
    sums, counts = (
        (torch.tensor([3.0, 3.0]), torch.tensor([2, 1]))
        if rank() == 0
        else (torch.tensor([10.0, 0.0]), torch.tensor([1, 0]))
    )
    return float(masked_word_loss(sums.double(), counts, of_each_rank=of_each_rank))
