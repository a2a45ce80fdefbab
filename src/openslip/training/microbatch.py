"""The batch-exact step: slices of a batch are encoded one by one, the loss sees them whole.

Non-reentrant checkpoints store no activations of a slice and re-encode it in the backward pass, so memory falls with
the slice and the update stays that of the whole batch.
Gao et al. 2021, arXiv:2101.06983 (cached gradients), section 3.2.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openslip.distributed import world_size
from openslip.errors import UserError
from openslip.models.batch_norm import is_synchronised, mixes_samples
from openslip.objectives.objective import Objective
from openslip.training.locked_features import LockedFeatures


def loss_in_slices(
    objective: Objective, model: nn.Module, batch: dict[str, Tensor], slice_sizes: Sequence[int]
) -> dict[str, Tensor]:
    """The objective's terms on the whole local batch, encoded in slices of the given sizes."""
    if len(slice_sizes) > 1 or world_size() > 1:
        refuse_mixing_layers(model, len(slice_sizes))
    if len(slice_sizes) == 1:
        return objective.loss(model, objective.encode(model, batch))
    parts = split(batch, slice_sizes)
    features = [encode_without_activations(objective, model, part) for part in parts]
    return objective.loss(model, {key: torch.cat([part[key] for part in features]) for key in features[0]})


def encode_without_activations(objective: Objective, model: nn.Module, part: dict[str, Tensor]) -> dict[str, Tensor]:
    """`objective.encode`, run again when the backward pass needs it; random states are replayed.

    What locked towers gave is kept: it needs no graph, and a second pass would be most of their work.
    """
    locked = LockedFeatures(model)
    features: Any = checkpoint(
        objective.encode, model, part, use_reentrant=False, context_fn=lambda: (locked.kept(), locked.given_again())
    )
    return features


def split(batch: dict[str, Tensor], slice_sizes: Sequence[int]) -> list[dict[str, Tensor]]:
    """The batch's tensors cut along their first dimension."""
    columns = {key: value.split(list(slice_sizes)) for key, value in batch.items()}
    return [{key: column[i] for key, column in columns.items()} for i in range(len(slice_sizes))]


def even_slices(batch_size: int, micro_batch_size: int | None) -> list[int]:
    """Slices of `micro_batch_size`, the last one shorter; one slice where it is None."""
    if micro_batch_size is None:
        return [batch_size]
    full, rest = divmod(batch_size, micro_batch_size)
    return [micro_batch_size] * full + [rest] * (rest > 0)


def slice_size(batch_size: int, slices: int) -> int:
    """Samples per slice where a batch is cut into so many slices, as even as can be."""
    return -(-batch_size // slices)


def mixing_layers(model: nn.Module) -> list[str]:
    """Names of the layers that mix the samples of a batch as they are: batch norm in training mode."""
    return [name for name, layer in model.named_modules() if mixes_samples(layer)]


def refuse_mixing_layers(model: nn.Module, slices: int) -> None:
    """Batch norm would see the statistics of each micro-batch, or of each rank, instead of the global batch's."""
    for name in mixing_layers(model):
        tower, layer = name.partition(".")[0], model.get_submodule(name)
        if slices > 1:
            raise UserError(
                f"micro_batch_size splits the batch, whose statistics the batch norm of {tower} needs: set "
                "micro_batch_size=null, or freeze the tower (towers.*.locked=true with towers.*.weights)"
            )
        if not is_synchronised(layer):
            raise UserError(
                f"trainer.devices splits the batch, and {name} ({type(layer).__name__}) mixes the samples of each "
                "rank alone: set trainer.devices=1, or use PyTorch's BatchNorm or timm's BatchNormAct2d"
            )
