"""Finds, once and before the first step, the fewest slices of the batch that fit into memory; the run is unchanged."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from openslip.distributed import from_first_rank, of_all_ranks
from openslip.durable import write_text
from openslip.training.microbatch import mixing_layers, slice_size
from openslip.training.pretrainer import Pretrainer
from openslip.training.sizing.activations import activation_bytes, differentiate
from openslip.training.sizing.memory import available_memory, return_freed_memory
from openslip.training.sizing.trial import trial

# Left free: for the loss, which is not tried because it waits for other ranks, and for fragments.
HEADROOM = 0.1
# Holes in the heap of a CPU, the most that were seen (docs/LOG.md): times what is counted, and in bytes. A whole batch
# is given them, since freed memory is returned, which takes time, only where the batch is sliced.
HOLES, MOST_HOLES = 3, 1.5e9
# How PyTorch, CUDA, cuBLAS and cuDNN say that they want memory, the last two also by other words: what fails for
# another reason fails again in the step itself.
WANTS_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_")


@dataclass(frozen=True)
class Choice:
    """What was found, and what it holds for."""

    micro_batch_size: int
    local_batch_size: int
    device: str


class ChooseSlices(pl.Callback):
    """`micro_batch_size: auto`: sets the pretrainer's slice from its first batch, the same on all ranks.

    On a GPU slices are tried, forward and backward; on a CPU small slices are measured and compared with the memory
    that is left.

    Args:
        file: keeps the choice, so that a run that goes on with the same batch and device takes it again.
        longest: number of samples to what takes the place of the batch's captions, so that no later ones take more.
    """

    def __init__(self, file: Path, longest: Callable[[int], dict[str, Tensor]]) -> None:
        self.file = file
        self.longest = longest
        self.chosen = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        if self.chosen:
            return
        self.chosen = True
        assert isinstance(pl_module, Pretrainer)
        local = len(next(iter(batch.values())))
        device = pl_module.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        choice = self.kept(local, name) if trainer.is_global_zero else None
        # The first rank's file decides for all, since the others may not see its folder.
        size = from_first_rank(0 if choice is None else choice.micro_batch_size)
        found_now = size == 0
        if found_now:
            slices = 1 if mixing_layers(pl_module.model) else self.count(trainer, pl_module, batch, local)
            size = slice_size(local, max(of_all_ranks(slices)))
        pl_module.micro_batch_size = size
        if device.type == "cpu" and size < local:
            return_freed_memory()
        if trainer.is_global_zero and found_now:
            self.keep(Choice(size, local, name))

    def kept(self, local: int, device: str) -> Choice | None:
        """What an earlier part of the run found for this batch on this device."""
        if not self.file.exists():
            return None
        choice = Choice(**json.loads(self.file.read_text()))
        return choice if (choice.local_batch_size, choice.device) == (local, device) else None

    def keep(self, choice: Choice) -> None:
        write_text(self.file, json.dumps(asdict(choice), indent=1) + "\n")
        sys.stdout.write(
            f"micro_batch_size=auto: {choice.micro_batch_size} of {choice.local_batch_size} samples at a time "
            f"({choice.device}), kept in {self.file}\n"
        )
        sys.stdout.flush()

    def count(self, trainer: pl.Trainer, pl_module: Pretrainer, batch: dict[str, Tensor], local: int) -> int:
        """The fewest slices that fit; weights, gradients, statistics and random states stay as they are."""
        longest = {key: column.to(batch[key].device) for key, column in self.longest(local).items() if key in batch}
        batch = batch | longest
        with trial((pl_module,), batch), trainer.precision_plugin.forward_context():
            if pl_module.device.type == "cuda":
                slices = fewest_slices(local, lambda size: fits_on_gpu(pl_module, batch, size))
                torch.cuda.reset_peak_memory_stats(pl_module.device)  # the run's own peak is what is told
            else:
                slices = fewest_slices(local, fits_in_memory(pl_module, batch, local, trainer.num_devices))
        return slices


def fewest_slices(local: int, fits: Callable[[int], bool]) -> int:
    """The smallest number of even slices that fit, by doubling and bisection, one sample a slice at worst."""
    too_few, enough = 0, 1
    while enough < local and not fits(slice_size(local, enough)):
        too_few, enough = enough, min(2 * enough, local)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if fits(slice_size(local, middle)):
            enough = middle
        else:
            too_few = middle
    return enough


def fits_on_gpu(pl_module: Pretrainer, batch: dict[str, Tensor], size: int) -> bool:
    """Whether one slice can be encoded and differentiated beside all that a step holds: tried."""
    device = pl_module.device
    weights = sum(p.numel() * p.element_size() for p in pl_module.parameters() if p.requires_grad)
    optimizer = pl_module.optimizers(use_pl_optimizer=False)
    assert isinstance(optimizer, torch.optim.Optimizer)
    held = weights * (1 if optimizer.state else 3)  # gradients, and AdamW's two moments before its first step
    reserve = int(HEADROOM * torch.cuda.get_device_properties(device).total_memory)
    ballast: Tensor | None = None
    try:
        ballast = torch.empty(held + reserve, dtype=torch.uint8, device=device)
        differentiate(pl_module.objective, pl_module.model, {key: column[:size] for key, column in batch.items()})
        return True
    except RuntimeError as error:
        if not wants_memory(error):
            raise
        return False
    finally:
        del ballast
        torch.cuda.empty_cache()


def wants_memory(error: RuntimeError) -> bool:
    return any(words in str(error) for words in WANTS_MEMORY)


def fits_in_memory(
    pl_module: Pretrainer, batch: dict[str, Tensor], local: int, processes: int
) -> Callable[[int], bool]:
    """Whether a slice of a size fits into what the machine has left, from the memory that few samples take."""
    left = available_memory()
    if left is None:
        return lambda size: True
    sample = activation_bytes(pl_module.objective, pl_module.model, batch)
    weights = sum(p.numel() * p.element_size() for p in pl_module.parameters() if p.requires_grad)
    room = (1 - HEADROOM) * left / processes - 3 * weights

    def fits(size: int) -> bool:
        needed = size * sample
        return needed + (min(HOLES * needed, MOST_HOLES) if size == local else 0) <= room

    return fits
