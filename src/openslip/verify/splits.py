"""Checks that with a given config every split of a batch over micro-batches, ranks and tiles gives the same update.

Everything runs in float64 on this machine's CPU; tolerances: docs/NUMERICS.md#equal.
"""

import copy
import dataclasses
import json
import math
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from openslip.distributed import all_sum, world_size
from openslip.errors import UserError
from openslip.objectives import tiles
from openslip.objectives.objective import Objective
from openslip.optim import param_groups
from openslip.training.microbatch import loss_in_micro_batches, mixing_layers, refuse_mixing_layers
from openslip.verify.deviation import ZERO_GRADIENT, Row
from openslip.verify.processes import run_on_ranks

Batch = dict[str, Tensor]


RANKS = 2
GLOBAL_BATCH = 12  # the smallest batch that each of two ranks can split into five uneven micro-batches
TILE = 5  # divides neither the rows of one process nor those of a rank
TOLERANCE = 1e-7
# A tensor whose true gradient is zero has rounding errors on the scale of the whole model's gradient, so its deviation
# is divided by at least this fraction of the model's gradient norm.
_GRADIENT_FLOOR = 1e-4

COVERED = (
    "covered: micro-batches, ranks under DDP and losses in tiles against the whole batch in one process, and one step "
    "of the config's optimizer at its full learning rate\n"
    "not covered: autocast, torch.compile, other devices, gradient clipping, the schedule, EMA weights"
)


@dataclass(frozen=True)
class StepParts:
    """The parts of a training step, with the meaning they have in `Pretrainer`; no step changes them."""

    model: nn.Module
    objective: Objective
    optimizer: Callable[[list[dict]], torch.optim.Optimizer]
    weight_decay: float
    layer_decay: float | None


@dataclass(frozen=True)
class Split:
    """A split of the global batch over ranks and micro-batches, and the tile size of losses."""

    ranks: int  # number of ranks; 1 is this process
    sizes: tuple[int, ...]  # samples of each micro-batch, on every rank
    tile: int | None = None  # rows and columns of the losses' tiles; None for losses without tiles

    def __str__(self) -> str:
        where = "1 process" if self.ranks == 1 else f"{self.ranks} ranks"
        count = f"{len(self.sizes)} micro-batch{'es' * (len(self.sizes) > 1)} ({'+'.join(map(str, self.sizes))})"
        return f"{where} x {count}" + (f" in tiles of {self.tile}" if self.tile else "")


WHOLE = Split(1, (12,))
IN_ONE_PROCESS = (
    *(Split(1, (5, 7)), Split(1, (3, 1, 2, 2, 4))),
    *(Split(1, (12,), TILE), Split(1, (3, 1, 2, 2, 4), TILE)),
)
ON_RANKS = (
    *(Split(RANKS, (6,)), Split(RANKS, (2, 4)), Split(RANKS, (1, 2, 1, 1, 1))),
    *(Split(RANKS, (6,), TILE), Split(RANKS, (1, 2, 1, 1, 1), TILE)),
)


class Quantity(NamedTuple):
    """An array of a step; it shares the step's memory, so use it before the iterator yields the next one."""

    kind: str
    name: str
    array: np.ndarray


class Float64Copy(nn.Module):
    """Copies of model and objective in float64 and training mode, with the forward pass that DDP wraps."""

    def __init__(self, parts: StepParts) -> None:
        super().__init__()
        # Copied together, because they may share modules.
        self.model, self.objective = copy.deepcopy((parts.model, parts.objective))
        self.double().train()

    def forward(self, batch: Batch, sizes: Sequence[int]) -> dict[str, Tensor]:
        return loss_in_micro_batches(self.objective, self.model, batch, sizes)


def quantities(parts: StepParts, batch: Batch, sizes: Sequence[int], tile: int | None) -> Iterator[Quantity]:
    """Yield loss terms and gradients as means over ranks, then statistics and weights after the optimizer's step.

    Args:
        parts: parts of the step, which are copied.
        batch: batch of this rank, in float64.
        sizes: samples of each micro-batch.
        tile: rows and columns of the losses' tiles; None for losses without tiles.
    """
    copied = Float64Copy(parts)
    forward = copied
    if dist.is_initialized():  # options as in configs/trainer/ddp.yaml
        forward = DistributedDataParallel(copied, broadcast_buffers=False, gradient_as_bucket_view=True)
    optimizer = parts.optimizer(param_groups([copied.model, copied.objective], parts.weight_decay, parts.layer_decay))
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_scale"]
    with in_tiles(tile):
        terms = forward(batch, sizes)
        terms["loss"].backward()
    for name, term in terms.items():
        yield Quantity("loss terms", name, (all_sum(term.detach()) / world_size()).numpy())
    for name, parameter in copied.named_parameters():
        if parameter.grad is not None:
            yield Quantity("gradients", name, parameter.grad.numpy())
    optimizer.step()
    copied.objective.after_step(copied.model)
    for name, buffer in copied.named_buffers():
        if buffer.is_floating_point():
            yield Quantity("statistics", name, buffer.numpy())
    for name, parameter in copied.named_parameters():
        yield Quantity("weights", name, parameter.detach().numpy())


@contextmanager
def in_tiles(size: int | None) -> Iterator[None]:
    """Compute losses inside the context in tiles of `size` rows and columns, or without tiles if None."""
    before = tiles.PLAIN_UP_TO, tiles.CPU_TILE, tiles.GPU_TILE
    tiles.PLAIN_UP_TO, tiles.CPU_TILE, tiles.GPU_TILE = (1 << 62, 0, 0) if size is None else (0, size, size)
    try:
        yield
    finally:
        tiles.PLAIN_UP_TO, tiles.CPU_TILE, tiles.GPU_TILE = before


def split_rows(parts: StepParts, batch: Batch) -> list[Row]:
    """Compare each split with the whole batch in one process: loss terms, gradients, and the state after a step.

    Args:
        parts: parts of the step, in any precision, with an objective after its `setup`; every step runs on a copy.
        batch: batch of `GLOBAL_BATCH` samples.

    Raises:
        UserError: the model is random in training, or a layer mixes only the samples of one rank.
    """
    batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    refuse_randomness(parts, batch)
    model = Float64Copy(parts).model
    refuse_mixing_layers(model, micro_batches=1)
    mixing = mixing_layers(model)
    in_one_process, on_ranks = (  # as in training, no micro-batches if layers of the model mix samples
        [split for split in splits if not mixing or len(split.sizes) == 1] for splits in (IN_ONE_PROCESS, ON_RANKS)
    )
    with tempfile.TemporaryDirectory() as scratch:
        expected = Path(scratch) / "expected"
        record(quantities(parts, batch, WHOLE.sizes, WHOLE.tile), expected)
        rows = []
        for split in in_one_process:
            rows += compared(split, quantities(parts, batch, split.sizes, split.tile), expected)
        rows += rows_on_ranks(parts, batch, on_ranks, Path(scratch))
    if mixing:
        tower = mixing[0].partition(".")[0]
        rows.append(Row.skipped("micro-batches", f"training refuses them: {tower} has batch norm that is not frozen"))
    return rows


def refuse_randomness(parts: StepParts, batch: Batch) -> None:
    """Refuse a model whose features of the same samples depend on the random state, because splits could not agree."""
    some = {key: value[:2] for key, value in batch.items()}
    copied = Float64Copy(parts)
    passes = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with torch.no_grad():
            passes.append(copied.objective.encode(copied.model, some))
    changed = [name for name in passes[0] if not torch.equal(passes[0][name], passes[1][name])]
    if changed:
        raise UserError(
            f"features {', '.join(changed)} are random in training, so that splits cannot agree: for this comparison "
            "set every dropout rate to 0, such as towers.image.patch_dropout, or drop_path_rate, "
            "proj_drop_rate, attn_drop_rate and pos_drop_rate of model.image_tower.arguments"
        )


def record(arrays: Iterable[Quantity], folder: Path) -> None:
    """Write each quantity to its own file, so that no process holds the arrays of two splits in memory."""
    for kind, name, array in arrays:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        np.save(folder / kind / f"{name}.npy", array, allow_pickle=False)


def compared(split: Split, computed: Iterable[Quantity], expected: Path) -> list[Row]:
    """Return a row for each kind of quantity, with the largest relative deviation and the tensor that has it."""
    files = {str(path.relative_to(expected)) for path in expected.glob("*/*.npy")}
    apart: dict[str, dict[str, float]] = defaultdict(dict)
    sizes: dict[str, dict[str, float]] = defaultdict(dict)
    unmatched = set(files)
    for kind, name, array in computed:
        file = f"{kind}/{name}.npy"
        unmatched ^= {file}
        if file in files:
            truth = np.load(expected / file, allow_pickle=False)
            difference = array - truth
            if kind == "weights" and f"gradients/{name}.npy" in files:
                # Where the true gradient is zero, an optimizer that divides by its size turns rounding into a step.
                gradient = np.load(expected / "gradients" / f"{name}.npy", allow_pickle=False)
                difference = np.where(np.abs(gradient) < ZERO_GRADIENT, 0.0, difference)
            apart[kind][name] = float(np.linalg.norm(difference))
            sizes[kind][name] = float(np.linalg.norm(truth))
    if unmatched:
        return [Row(str(split), math.inf, TOLERANCE, f"other tensors: {', '.join(sorted(unmatched))}")]
    rows = []
    for kind, distances in apart.items():
        floor = _GRADIENT_FLOOR * math.hypot(*sizes[kind].values()) if kind == "gradients" else 0.0
        deviations = {name: distance / (max(sizes[kind][name], floor) or 1.0) for name, distance in distances.items()}
        deviations = {name: math.inf if math.isnan(value) else value for name, value in deviations.items()}
        worst = max(deviations, key=lambda name: deviations[name])
        rows.append(Row(f"{split}: {kind}", deviations[worst], TOLERANCE, worst))
    return rows


def rows_on_ranks(parts: StepParts, batch: Batch, splits: list[Split], scratch: Path) -> list[Row]:
    """Return rows of splits over ranks, which run as gloo processes; each row is that of the worst rank."""
    run_on_ranks(_rank_main, RANKS, parts, batch, splits, max(1, torch.get_num_threads() // RANKS), scratch)
    of_ranks: dict[str, list[Row]] = defaultdict(list)
    for rank in range(RANKS):
        for row in json.loads((scratch / f"rank{rank}.json").read_text()):
            of_ranks[row["quantity"]].append(Row(**row))
    return [max(rows, key=lambda row: row.deviation or 0.0) for rows in of_ranks.values()]


def _rank_main(rank: int, parts: StepParts, batch: Batch, splits: list[Split], threads: int, scratch: Path) -> None:
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", category=FutureWarning)  # torch warns about names kept for its older versions
    dist.init_process_group("gloo", init_method=f"file://{scratch}/rendezvous", rank=rank, world_size=RANKS)
    local = {key: value.chunk(RANKS)[rank] for key, value in batch.items()}
    rows = []
    for split in splits:
        rows += compared(split, quantities(parts, local, split.sizes, split.tile), scratch / "expected")
    (scratch / f"rank{rank}.json").write_text(json.dumps([dataclasses.asdict(row) for row in rows]))
    dist.barrier()
    dist.destroy_process_group()
