"""Exact large-batch training: micro-batches are encoded one by one, and the loss sees the whole batch.

Non-reentrant checkpoints store no activations of a micro-batch and encode it again in the backward pass. Activation
memory then depends on the size of the micro-batch, but the update is computed from the whole batch.
Gao et al. 2021, arXiv:2101.06983 (gradient caching), section 3.3.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openslip.data.view import Batch
from openslip.distributed import world_size
from openslip.errors import UserError
from openslip.models.batch_norm import is_synchronised, mixes_samples
from openslip.objectives.objective import Objective
from openslip.training.locked_features import LockedFeatures


def loss_in_micro_batches(
    objective: Objective, model: nn.Module, batch: dict[str, Tensor], sizes: Sequence[int]
) -> dict[str, Tensor]:
    """Return the objective's loss terms on the whole local batch, encoded in micro-batches of the given sizes."""
    if len(sizes) > 1 or world_size() > 1:
        refuse_mixing_layers(model, len(sizes))
    if len(sizes) == 1:
        return objective.terms(model, objective.encode(model, batch))
    parts = split(batch, sizes)
    features = [encode_without_activations(objective, model, part) for part in parts]
    return objective.terms(model, {key: torch.cat([part[key] for part in features]) for key in features[0]})


def encode_without_activations(objective: Objective, model: nn.Module, part: dict[str, Tensor]) -> dict[str, Tensor]:
    """Run `objective.encode` without keeping activations; the backward pass runs it again with the same random state.

    Outputs of locked towers are kept: they need no graph, and computing them again would be most of the extra work.
    """
    locked = LockedFeatures(model)
    features: Any = checkpoint(
        objective.encode, model, part, use_reentrant=False, context_fn=lambda: (locked.kept(), locked.given_again())
    )
    return features


def split(batch: dict[str, Tensor], sizes: Sequence[int]) -> list[Batch]:
    """Split the batch's tensors along their first dimension."""
    columns = {key: value.split(list(sizes)) for key, value in batch.items()}
    return [Batch({key: column[i] for key, column in columns.items()}) for i in range(len(sizes))]


def micro_batch_sizes(batch_size: int, micro_batch_size: int | None) -> list[int]:
    """Return the sizes of the micro-batches; the last may be smaller. None gives one micro-batch, the whole batch."""
    if micro_batch_size is None:
        return [batch_size]
    full, rest = divmod(batch_size, micro_batch_size)
    return [micro_batch_size] * full + [rest] * (rest > 0)


def even_size(batch_size: int, micro_batches: int, multiple: int = 1) -> int:
    """Return the number of samples per micro-batch if a batch is split into parts of nearly equal size.

    Args:
        batch_size: samples of the local batch.
        micro_batches: number of micro-batches.
        multiple: the size is rounded up to a multiple of this number. A size below `multiple`, and the size of a single
            micro-batch, are not rounded.
    """
    size = -(-batch_size // micro_batches)
    return size if micro_batches == 1 or size < multiple else min(size + -size % multiple, batch_size)


def mixing_layers(model: nn.Module) -> list[str]:
    """Return the names of layers that mix the samples of a batch in their current mode, e.g. batch norm in training."""
    return [name for name, layer in model.named_modules() if mixes_samples(layer)]


def refuse_mixing_layers(model: nn.Module, micro_batches: int) -> None:
    """Refuse a model with layers that would mix the samples of only a micro-batch or rank, not of the global batch."""
    for name in mixing_layers(model):
        tower, layer = name.partition(".")[0], model.get_submodule(name)
        if micro_batches > 1:
            raise UserError(
                f"micro_batch_size splits the batch, but the batch norm of {tower} needs statistics of the whole "
                "batch: set micro_batch_size=null, or freeze the tower (towers.*.locked=true with towers.*.weights)"
            )
        if not is_synchronised(layer):
            raise UserError(
                f"trainer.devices splits the batch, and {name} ({type(layer).__name__}) mixes only the samples of "
                "each rank: set trainer.devices=1, or use PyTorch's BatchNorm or timm's BatchNormAct2d"
            )
