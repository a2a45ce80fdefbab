"""Small models of the methods that classify or measure pairs with labels, and their steps; ranks import it too."""

from typing import Any

import torch
from on_ranks import mean_over_ranks, rank_slice
from small_models import IMAGE_TOWERS, small_batch
from torch import Tensor, nn

from openslip.models.bag_of_tokens import BagOfTokens
from openslip.models.dual_encoder import DualEncoder
from openslip.models.projected_image_encoder import ProjectedImageEncoder
from openslip.models.siamese import Siamese
from openslip.models.timm_tower import TimmTower
from openslip.objectives.hadsell import Hadsell
from openslip.objectives.objective import Objective
from openslip.objectives.siamese import SiamesePairs
from openslip.objectives.zero_data import ZeroData
from openslip.training.microbatch import loss_in_micro_batches
from openslip.verify.splits import in_tiles

LABELLED_METHODS = ("hadsell", "siamese", "zero_data")
MARGIN = 1.5
Step = dict[str, Tensor]


def labelled_model(method: str) -> tuple[Any, Objective]:
    """The same weights for the same method, in float64."""
    torch.manual_seed(0)
    name, arguments = IMAGE_TOWERS["vit"]
    tower = TimmTower(name=name, image_size=16, arguments=arguments)
    model: nn.Module
    if method == "hadsell":
        model, objective = ProjectedImageEncoder(image_tower=tower, embed_dim=2), Hadsell(margin=MARGIN)
    elif method == "siamese":
        model, objective = Siamese(image_tower=tower, embed_dim=10), SiamesePairs()
        nn.init.normal_(model.l1_weight, std=2)  # of both signs
        nn.init.normal_(model.image_projection.weight, std=2)
        nn.init.constant_(model.l1_bias, 0.3)
    else:
        text = BagOfTokens(vocab_size=50, width=16)
        model = DualEncoder(
            image_tower=tower, text_tower=text, embed_dim=12, logit_scale_init=2.0, logit_bias_init=-1.0
        )
        objective = ZeroData(max_logit_scale=4.6052)
    objective.prepare(model)
    return model.double(), objective.double()


def labelled_batch(size: int) -> dict[str, Tensor]:
    """A batch with labels, of which some occur once and some several times, and with samples that have none."""
    label = torch.randint(0, size // 2, (size,), generator=torch.Generator().manual_seed(3))
    label[::5] = -1  # at equal places of two and of three ranks
    return {**small_batch(size), "label": label}


def labelled_step(tile: int | None, method: str, global_batch: int, sizes: list[int]) -> Step:
    """Loss terms and gradients of one step, averaged over ranks as DDP does."""
    model, objective = labelled_model(method)
    batch = {key: rank_slice(value) for key, value in labelled_batch(global_batch).items()}
    with in_tiles(tile):
        terms = loss_in_micro_batches(objective, model, batch, sizes)
        terms["loss"].backward()
    found = {f"term.{name}": mean_over_ranks(term.detach().clone()) for name, term in terms.items()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[name] = mean_over_ranks(parameter.grad)
    return found


def labelled_weights(tile: int | None, method: str, global_batch: int, sizes: list[int], num_steps: int) -> Step:
    """Weights after some steps of AdamW."""
    model, objective = labelled_model(method)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1)
    batch = {key: rank_slice(value) for key, value in labelled_batch(global_batch).items()}
    with in_tiles(tile):
        for _ in range(num_steps):
            optimizer.zero_grad()
            loss_in_micro_batches(objective, model, batch, sizes)["loss"].backward()
            for parameter in model.parameters():
                assert parameter.grad is not None
                mean_over_ranks(parameter.grad)
            optimizer.step()
            objective.after_step(model)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
