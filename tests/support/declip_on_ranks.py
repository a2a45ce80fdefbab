"""What tests of DeCLIP run on several ranks."""

from collections.abc import Callable
from typing import Any

import torch
from declip_models import declip_batch, declip_model
from on_ranks import mean_over_ranks, rank_slice
from torch import Tensor

from openslip.distributed import rank
from openslip.objectives.masked_words import masked_word_loss
from openslip.training.microbatch import loss_in_micro_batches
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
