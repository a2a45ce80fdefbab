"""Small float64 models with a bag of tokens, and their steps on any split; importable, because ranks run them."""

import torch
from on_ranks import mean_over_ranks, rank_slice
from small_models import IMAGE_TOWERS, small_batch
from torch import Tensor

from openslip.models.bag_of_tokens import BagOfTokens
from openslip.models.dual_encoder import DualEncoder
from openslip.models.timm_tower import TimmTower
from openslip.objectives.devise import DeViSE
from openslip.objectives.objective import Objective
from openslip.objectives.superclass import SuperClass
from openslip.training.microbatch import loss_in_micro_batches
from openslip.verify.splits import in_tiles

BATCH = 30  # of 3 ranks with 5 micro-batches each
METHODS = ("devise", "devise locked", "superclass")


def word_model(method: str) -> tuple[DualEncoder, Objective]:
    """The same weights for the same method, in float64."""
    torch.manual_seed(0)
    name, arguments = IMAGE_TOWERS["vit"]
    model = DualEncoder(
        image_tower=TimmTower(name=name, image_size=16, arguments=arguments),
        text_tower=BagOfTokens(vocab_size=50, width=12),
        embed_dim=12,
        logit_scale_init=2.6593,
        projects_text=False,
    )
    objective: Objective = SuperClass(max_logit_scale=4.6052) if method == "superclass" else DeViSE(margin=0.1)
    if method == "devise locked":
        model.text_tower.lock()
    objective.setup(model)
    return model.double(), objective.double()


def word_batch(step: int) -> dict[str, Tensor]:
    """Other captions and images at every step; some captions have a token twice."""
    batch = small_batch(2 * BATCH)
    return {key: value[step : step + BATCH] for key, value in batch.items()}


def word_steps(num_steps: int, tile: int | None, method: str, sizes: list[int]) -> dict[str, Tensor]:
    """Loss and gradients of every step of plain gradient descent, then weights and statistics."""
    model, objective = word_model(method)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    found = {}
    with in_tiles(tile):
        for step in range(num_steps):
            optimizer.zero_grad()
            batch = {key: rank_slice(value) for key, value in word_batch(step).items()}
            terms = loss_in_micro_batches(objective, model, batch, sizes)
            terms["loss"].backward()
            found |= {f"{step}.{name}": mean_over_ranks(term.detach().clone()) for name, term in terms.items()}
            for name, parameter in parameters.items():
                assert parameter.grad is not None, name
                mean_over_ranks(parameter.grad)
                found[f"{step}.gradient.{name}"] = parameter.grad.clone()
            optimizer.step()
            objective.after_step(model)
    state = {**model.state_dict(prefix="model."), **objective.state_dict(prefix="objective.")}
    return {**found, **{name: tensor.clone() for name, tensor in state.items()}}
