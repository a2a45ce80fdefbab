"""`micro_batch_size` of a run: all samples at once, a given number, or the most that fit (`auto`)."""

# pyright: reportIncompatibleMethodOverride=false

import gc
import json
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from openslip.data.image.crop import SAMPLES_AT_A_TIME
from openslip.distributed import from_first_rank, is_main_process, of_all_ranks
from openslip.durable import needed, write_text
from openslip.terminal import say
from openslip.training.microbatch import even_size, mixing_layers
from openslip.training.pretrainer import Pretrainer
from openslip.training.sizing.activations import activation_bytes, differentiate, trial
from openslip.training.sizing.layout import (
    GPU_MULTIPLE,
    BlockSettings,
    Layout,
    applied,
    are_checkpointed,
    as_arguments,
    block_settings,
    fastest_layout,
    fewest_micro_batches,
)
from openslip.training.sizing.memory import available_memory, return_freed_memory

# Left free: for the loss, which is not tried because it waits for other ranks, and for fragments. Views are augmented
# before activations take memory, at most 1.3 GB beside the finished ones at 224 pixels.
HEADROOM = 0.1
# Holes in the heap of a CPU, the most that were seen (docs/LOG.md): times what is counted, and in bytes. A whole batch
# is given them, since freed memory is returned, which takes time, only where there are several micro-batches.
HOLES, MOST_HOLES = 3, 1.5e9
CHAIN = 4  # times the images that it takes, the most that augmentation holds on a GPU
# How PyTorch, CUDA, cuBLAS and cuDNN say that they want memory: what fails for another reason fails again in the step
# itself. Handles that are NOT_INITIALIZED had no memory to be made in. PyTorch tries all engines of a convolution,
# ignores why each of them fails, and ends with the last of these messages.
WANTS_MEMORY = (
    *("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_NOT_INITIALIZED"),
    *("CUDNN_STATUS_ALLOC_FAILED", "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    *("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", "unable to find an engine to execute this computation"),
)


class MicroBatchSize(pl.Callback):
    """Sets how many samples the pretrainer encodes at a time, before the first step and the same on all ranks.

    For `auto` a GPU tries micro-batches, forward and backward, and a CPU compares what small ones take with the memory
    that is left.

    Args:
        setting: a number, `auto`, or None for the whole batch of a rank.
        file: keeps what `auto` chose, so that a resumed run with the same batch and device takes it again.
        longest: number of samples to what takes the place of the batch's captions, so that no later ones take more.
    """

    def __init__(self, setting: int | str | None, *, file: Path, longest: Callable[[int], dict[str, Tensor]]) -> None:
        self.setting = setting
        self.file = file
        self.longest = longest

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Pretrainer, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        if pl_module.micro_batch_size is not None:
            return
        local = len(next(iter(batch.values())))
        if isinstance(self.setting, str):
            pl_module.micro_batch_size = self.most(trainer, pl_module, batch, local)
        else:
            pl_module.micro_batch_size = self.setting or local

    def most(self, trainer: pl.Trainer, pl_module: Pretrainer, batch: dict[str, Tensor], local: int) -> int:
        """The largest even micro-batch that fits on every rank."""
        device = pl_module.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        # The first rank's file decides for all, since the others may not see its folder.
        size = from_first_rank(self.kept(local, name) if is_main_process() else 0)
        if size == 0:
            # On a CPU the size is not rounded, so that float32 sums stay what they were.
            multiple = GPU_MULTIPLE if device.type == "cuda" else 1
            is_mixing = bool(mixing_layers(pl_module.model))
            count, advice = (1, "") if is_mixing else self.count(trainer, pl_module, batch, local, multiple)
            size = even_size(local, max(of_all_ranks(count)), multiple)
            if is_main_process():
                self.keep(size, local, name)
                if advice:
                    say(f"micro_batch_size=auto: {advice}")
        if device.type == "cpu" and size < local:
            return_freed_memory()
        return size

    def kept(self, local: int, device: str) -> int:
        """What an earlier process of the run chose for this batch on this device, or 0."""
        try:
            stored = json.loads(self.file.read_bytes())
            is_same = (stored["local_batch_size"], stored["device"]) == (local, device)
            size = stored["micro_batch_size"] if is_same else 0
        except (OSError, ValueError, KeyError, TypeError):  # none, or a damaged one: it is measured again
            return 0
        return size if isinstance(size, int) and 1 <= size <= local else 0

    def keep(self, size: int, local: int, device: str) -> None:
        choice = {"micro_batch_size": size, "local_batch_size": local, "device": device}
        with needed(self.file):
            write_text(self.file, json.dumps(choice, indent=1) + "\n")
        say(f"micro_batch_size=auto: {size} of {local} samples at a time ({device}), kept in {self.file}")

    def count(
        self, trainer: pl.Trainer, pl_module: Pretrainer, batch: dict[str, Tensor], local: int, multiple: int
    ) -> tuple[int, str]:
        """The fewest micro-batches that fit, and on the first rank what would be faster.

        Weights, gradients, statistics and random states stay as they are.
        """
        longest = {key: column.to(batch[key].device) for key, column in self.longest(local).items() if key in batch}
        batch = batch | longest
        settings, checkpointed = block_settings(pl_module.model), are_checkpointed(pl_module.model)

        @cache
        def fitting(checkpointed: bool) -> Callable[[int], bool]:
            if pl_module.device.type == "cuda":
                return cache(lambda size: fits_on_gpu(pl_module, batch, size))
            return fits_in_memory(pl_module, batch, local, trainer.num_devices)

        def fits(size: int, checkpointed: bool) -> bool:
            if checkpointed not in settings:
                return False
            with applied(settings[checkpointed]):
                return fitting(checkpointed)(size)

        advice = ""
        with trial((pl_module,), batch), trainer.precision_plugin.forward_context():
            count = fewest_micro_batches(local, lambda size: fits(size, checkpointed), multiple)
            if is_main_process() and (count > 1 or checkpointed):
                advice = faster(fastest_layout(local, fits, multiple), pl_module, settings, checkpointed)
            if pl_module.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(pl_module.device)  # the run's own peak is what is told
        return count, advice


def faster(
    layout: Layout | None, pl_module: Pretrainer, settings: dict[bool, BlockSettings], checkpointed: bool
) -> str:
    """What to set where the fastest layout is one with other blocks."""
    if layout is None or layout.checkpointed == checkpointed:
        return ""
    arguments = as_arguments(pl_module.model, settings[layout.checkpointed])
    if layout.checkpointed:
        return f"{layout} would fit and be faster: {arguments}"
    return f"checkpointed blocks are not needed, {layout} would fit and be faster: {arguments}"


def fits_on_gpu(pl_module: Pretrainer, batch: dict[str, Tensor], size: int) -> bool:
    """Whether one micro-batch can be encoded and differentiated beside all that a step holds: tried."""
    device = pl_module.device
    weights = sum(p.numel() * p.element_size() for p in pl_module.parameters() if p.requires_grad)
    optimizer = pl_module.optimizers(use_pl_optimizer=False)
    assert isinstance(optimizer, torch.optim.Optimizer)
    held = weights * (1 if optimizer.state else 3)  # gradients, and AdamW's two moments before its first step
    held += made_ahead(batch)
    reserve = int(HEADROOM * torch.cuda.get_device_properties(device).total_memory)
    ballast: Tensor | None = None
    try:
        ballast = torch.empty(held + reserve, dtype=torch.uint8, device=device)
        differentiate(pl_module.objective, pl_module.model, {key: column[:size] for key, column in batch.items()})
        return True
    except RuntimeError as error:
        if not wants_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold activations
        return False
    finally:
        del ballast
        gc.collect()  # what checkpoints keep refers to itself, and would be in the way of the next trial
        torch.cuda.empty_cache()


def made_ahead(batch: dict[str, Tensor]) -> int:
    """Bytes of the next batch, made while a step is computed: its columns, their 8-bit form and what a view takes."""
    columns = [column for column in batch.values() if not column.is_cpu]
    finished = sum(column.nbytes for column in columns)
    in_the_making = max((column[:SAMPLES_AT_A_TIME].nbytes for column in columns), default=0)
    return finished + finished // 4 + CHAIN * in_the_making


def wants_memory(error: RuntimeError) -> bool:
    return any(words in str(error) for words in WANTS_MEMORY)


def checkpoint_bytes(pl_module: Pretrainer) -> int:
    """Bytes of a checkpoint: weights, EMA weights and statistics, and AdamW's two moments."""
    moments = sum(2 * p.nbytes for p in pl_module.parameters() if p.requires_grad)
    return moments + sum(tensor.nbytes for tensor in (*pl_module.parameters(), *pl_module.buffers()))


def fits_in_memory(
    pl_module: Pretrainer, batch: dict[str, Tensor], local: int, processes: int
) -> Callable[[int], bool]:
    """Whether a micro-batch of a size fits into what the machine has left, from the memory that few samples take."""
    left = available_memory()
    if left is None:
        return lambda size: True
    sample = activation_bytes(pl_module.objective, pl_module.model, batch)
    weights = sum(p.numel() * p.element_size() for p in pl_module.parameters() if p.requires_grad)
    # The first save takes a checkpoint more, on the first rank, which keeps it: docs/ARCHITECTURE.md, "A save".
    room = ((1 - HEADROOM) * left - checkpoint_bytes(pl_module)) / processes - 3 * weights

    def fits(size: int) -> bool:
        needed = size * sample
        return needed + (min(HOLES * needed, MOST_HOLES) if size == local else 0) <= room

    return fits
