"""Whether any split of a batch, over slices and ranks, makes the same update: proved for a model of your own.

Everything runs in float64 on this machine's CPU; what equal means: docs/NUMERICS.md#equal.
"""

import copy
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from openslip.errors import UserError
from openslip.objectives.objective import Objective
from openslip.training.microbatch import loss_in_slices
from openslip.verify.deviation import Arrays, Row
from openslip.verify.recording import as_array

RANKS = 2
GLOBAL_BATCH = 12  # the smallest that two ranks can both cut into five uneven slices
SLICES = {12: ([12], [5, 7], [3, 1, 2, 2, 4]), 6: ([6], [2, 4], [1, 2, 1, 1, 1])}
TOLERANCE = 1e-7
# A tensor whose true gradient is zero holds rounding of the model's size: a share of that is the least to measure by.
_GRADIENT_FLOOR = 1e-4

Batch = dict[str, Tensor]


def split_rows(model: nn.Module, objective: Objective, batch: Batch) -> list[Row]:
    """Each split against the whole batch in one process: loss terms, gradients, statistics.

    Args:
        model: in any precision; it is not changed.
        objective: set up for the model.
        batch: of `GLOBAL_BATCH` samples, with views in float32.

    Raises:
        UserError: the model draws at random while it trains, or mixes the samples of a slice.
    """
    batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    model, objective = model.double().train(), objective.double().train()
    refuse_randomness(model, objective, batch)
    state = {part: module.state_dict() for part, module in (("model", model), ("objective", objective))}
    kept = {part: {name: tensor.clone() for name, tensor in tensors.items()} for part, tensors in state.items()}
    whole, *others = SLICES[GLOBAL_BATCH]
    found = {}
    for slices in (whole, *others):
        model.load_state_dict(kept["model"])
        objective.load_state_dict(kept["objective"])
        found[name_of(1, slices)] = step(model, objective, batch, slices)
    model.load_state_dict(kept["model"])
    objective.load_state_dict(kept["objective"])
    found |= on_ranks(model, objective, batch)
    expected = found.pop(name_of(1, whole))
    return [row for name, arrays in found.items() for row in compared(name, arrays, expected)]


def name_of(ranks: int, slices: Sequence[int]) -> str:
    where = "1 process" if ranks == 1 else f"{ranks} ranks"
    return f"{where} x {len(slices)} slice{'s' * (len(slices) > 1)} ({'+'.join(map(str, slices))})"


def refuse_randomness(model: nn.Module, objective: Objective, batch: Batch) -> None:
    """Two passes over two samples from different random states must agree, else no split could."""
    some = {key: value[:2] for key, value in batch.items()}
    passes = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with torch.no_grad():
            passes.append(objective.encode(model, some))
    changed = [name for name in passes[0] if not torch.equal(passes[0][name], passes[1][name])]
    if changed:
        raise UserError(
            f"features {', '.join(changed)} are drawn at random in training (dropout, drop path, patch dropout), which "
            "another split draws otherwise: set them to 0 for this comparison"
        )


def step(model: nn.Module, objective: Objective, batch: Batch, slices: Sequence[int]) -> Arrays:
    """Terms, gradients as DDP averages them, and statistics of one step of this rank."""
    model.zero_grad(set_to_none=True)
    objective.zero_grad(set_to_none=True)
    terms = loss_in_slices(objective, model, batch, slices)
    terms["loss"].backward()
    found = {f"term/{name}": as_array(mean_over_ranks(term.detach().clone())) for name, term in terms.items()}
    for part, module in (("model", model), ("objective", objective)):
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                found[f"gradient/{part}.{name}"] = as_array(mean_over_ranks(parameter.grad))
        for name, buffer in module.named_buffers():
            if buffer.is_floating_point():
                found[f"statistic/{part}.{name}"] = as_array(buffer)
    return found


def mean_over_ranks(x: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(x)
        x /= dist.get_world_size()
    return x


def on_ranks(model: nn.Module, objective: Objective, batch: Batch) -> dict[str, Arrays]:
    """The same step by gloo processes of our own, for every cut of their part of the batch."""
    threads = max(1, torch.get_num_threads() // RANKS)
    with tempfile.TemporaryDirectory() as scratch:
        spawn(_rank_main, (model, objective, batch, threads, scratch), nprocs=RANKS)
        found = {}
        for number, slices in enumerate(SLICES[GLOBAL_BATCH // RANKS]):
            with np.load(Path(scratch) / f"{number}.npz", allow_pickle=False) as arrays:
                found[name_of(RANKS, slices)] = dict(arrays)
    return found


def _rank_main(rank: int, model: nn.Module, objective: Objective, batch: Batch, threads: int, scratch: str) -> None:
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", init_method=f"file://{scratch}/rendezvous", rank=rank, world_size=RANKS)
    model, objective = copy.deepcopy((model, objective))  # processes are given the same memory, statistics included
    dist.barrier()
    local = {key: value.chunk(RANKS)[rank] for key, value in batch.items()}
    buffers = [(buffer, buffer.clone()) for module in (model, objective) for buffer in module.buffers()]
    for number, slices in enumerate(SLICES[GLOBAL_BATCH // RANKS]):
        for buffer, before in buffers:
            buffer.copy_(before)
        found = step(model, objective, local, slices)
        if rank == 0:
            np.savez(Path(scratch) / f"{number}.npz", allow_pickle=False, **found)
        dist.barrier()
    dist.destroy_process_group()


def compared(split: str, found: Arrays, expected: Arrays) -> list[Row]:
    """The largest relative deviation of each kind of quantity, and the tensor that has it."""
    if found.keys() != expected.keys():
        return [Row(split, math.inf, TOLERANCE, f"other tensors: {', '.join(sorted(found.keys() ^ expected.keys()))}")]
    rows = []
    for kind, quantity in (("term", "loss terms"), ("gradient", "gradients"), ("statistic", "statistics")):
        names = [name for name in expected if name.startswith(f"{kind}/")]
        if not names:
            continue
        whole = math.sqrt(sum(float(np.square(expected[name]).sum()) for name in names))
        floor = _GRADIENT_FLOOR * whole if kind == "gradient" else 0.0
        deviations = {
            name: float(np.linalg.norm(found[name] - expected[name]))
            / (max(float(np.linalg.norm(expected[name])), floor) or 1.0)
            for name in names
        }
        worst = max(names, key=lambda name: math.inf if math.isnan(deviations[name]) else deviations[name])
        rows.append(Row(f"{split}: {quantity}", deviations[worst], TOLERANCE, worst.partition("/")[2]))
    return rows
