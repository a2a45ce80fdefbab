"""Choice of `micro_batch_size`: all samples at once, a given number, or the most that fit in memory (`auto`)."""

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
from openslip.terminal import inform
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

# Fraction of memory to leave free, for fragmentation and for the loss. The loss is not tried, because it communicates
# with other ranks. On a GPU, the memory for preparing the next batch is counted separately, in `made_ahead`.
HEADROOM = 0.1
# Largest measured fragmentation of a CPU's heap (docs/LOG.md): as a multiple of the counted bytes, and in bytes. It is
# added for a whole batch only. With several micro-batches, freed memory is returned to the system, which prevents
# fragmentation but takes time.
HOLES, MOST_HOLES = 3, 1.5e9
CHAIN = 4  # peak memory of augmentation on a GPU, as a multiple of the images that it processes at a time
# Messages by which PyTorch, CUDA, cuBLAS and cuDNN report a lack of memory. Any other error would also occur in the
# step itself. A handle is NOT_INITIALIZED if there was no memory to create it. For a convolution, PyTorch tries all
# engines and ignores the reasons for their failures. If all engines fail, it reports the last of these messages.
WANTS_MEMORY = (
    *("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_NOT_INITIALIZED"),
    *("CUDNN_STATUS_ALLOC_FAILED", "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    *("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", "unable to find an engine to execute this computation"),
)


class MicroBatchSize(pl.Callback):
    """Sets the pretrainer's `micro_batch_size` before the first step, to the same value on all ranks.

    With `auto` on a GPU, micro-batches are tried, forward and backward. With `auto` on a CPU, the memory of a few
    samples is measured and compared with the available memory.

    Args:
        setting: samples per micro-batch, `auto`, or None for the whole batch of a rank.
        file: file in which the choice of `auto` is stored, so that a resumed run with the same batch and device
            makes the same choice.
        longest: function from a number of samples to captions of the largest possible length. They replace the captions
            of the batch, so that no later batch needs more memory.
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
        """Return the stored size; if there is none, that of the fewest micro-batches that fit on every rank."""
        device = pl_module.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        # Rank 0's file decides for all ranks, because the other ranks may not see its folder.
        size = from_first_rank(self.kept(local, name) if is_main_process() else 0)
        if size == 0:
            # On a CPU the size is not rounded, so that float32 results equal those of earlier versions.
            multiple = GPU_MULTIPLE if device.type == "cuda" else 1
            is_mixing = bool(mixing_layers(pl_module.model))
            count, advice = (1, "") if is_mixing else self.count(trainer, pl_module, batch, local, multiple)
            size = even_size(local, max(of_all_ranks(count)), multiple)
            if is_main_process():
                self.keep(size, local, name)
                if advice:
                    inform(f"micro_batch_size=auto: {advice}")
        if device.type == "cpu" and size < local:
            return_freed_memory()
        return size

    def kept(self, local: int, device: str) -> int:
        """Return the size that an earlier process of the run chose for this batch and device, or 0 if there is none."""
        try:
            stored = json.loads(self.file.read_bytes())
            is_same = (stored["local_batch_size"], stored["device"]) == (local, device)
            size = stored["micro_batch_size"] if is_same else 0
        except (OSError, ValueError, KeyError, TypeError):  # no file, or a damaged one: measure again
            return 0
        return size if isinstance(size, int) and 1 <= size <= local else 0

    def keep(self, size: int, local: int, device: str) -> None:
        choice = {"micro_batch_size": size, "local_batch_size": local, "device": device}
        with needed(self.file):
            write_text(self.file, json.dumps(choice, indent=1) + "\n")
        inform(f"micro_batch_size=auto: {size} of {local} samples at a time ({device})", f"  kept in {self.file}")

    def count(
        self, trainer: pl.Trainer, pl_module: Pretrainer, batch: dict[str, Tensor], local: int, multiple: int
    ) -> tuple[int, str]:
        """Return the smallest number of micro-batches such that each one fits; on rank 0, also advice on the layout.

        Weights, gradients, statistics and random states are unchanged.
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
                torch.cuda.reset_peak_memory_stats(pl_module.device)  # the trials must not count in the run's peak
        return count, advice


def faster(
    layout: Layout | None, pl_module: Pretrainer, settings: dict[bool, BlockSettings], checkpointed: bool
) -> str:
    """Return advice on gradient checkpointing if the fastest layout needs another setting, else an empty string."""
    if layout is None or layout.checkpointed == checkpointed:
        return ""
    arguments = as_arguments(pl_module.model, settings[layout.checkpointed])
    if layout.checkpointed:
        return f"{layout} would fit and be faster: {arguments}"
    return f"checkpointed blocks are not needed; {layout} would fit and be faster: {arguments}"


def fits_on_gpu(pl_module: Pretrainer, batch: dict[str, Tensor], size: int) -> bool:
    """Try whether memory suffices for a micro-batch, forward and backward, and for everything else in a step."""
    device = pl_module.device
    weights = sum(p.numel() * p.element_size() for p in pl_module.parameters() if p.requires_grad)
    optimizer = pl_module.optimizers(use_pl_optimizer=False)
    assert isinstance(optimizer, torch.optim.Optimizer)
    held = weights * (1 if optimizer.state else 3)  # gradients and, before AdamW's first step, its two future moments
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
        traceback.clear_frames(error.__traceback__)  # the frames hold activations
        return False
    finally:
        del ballast
        gc.collect()  # checkpoints leave reference cycles; the next trial needs their memory
        torch.cuda.empty_cache()


def made_ahead(batch: dict[str, Tensor]) -> int:
    """Return the bytes for preparing the next batch during a step: its columns, their uint8 form, augmentation."""
    columns = [column for column in batch.values() if not column.is_cpu]
    finished = sum(column.nbytes for column in columns)
    in_the_making = max((column[:SAMPLES_AT_A_TIME].nbytes for column in columns), default=0)
    return finished + finished // 4 + CHAIN * in_the_making


def wants_memory(error: RuntimeError) -> bool:
    return any(words in str(error) for words in WANTS_MEMORY)


def checkpoint_bytes(pl_module: Pretrainer) -> int:
    """Return the bytes of a checkpoint: weights, EMA weights, statistics, and AdamW's two moments."""
    moments = sum(2 * p.nbytes for p in pl_module.parameters() if p.requires_grad)
    return moments + sum(tensor.nbytes for tensor in (*pl_module.parameters(), *pl_module.buffers()))


def fits_in_memory(
    pl_module: Pretrainer, batch: dict[str, Tensor], local: int, processes: int
) -> Callable[[int], bool]:
    """Return a function that tells whether a micro-batch of a given size fits in the available memory of the machine.

    Args:
        pl_module: the pretrainer; its memory per sample is measured on a few samples.
        batch: batch to measure.
        local: number of samples of the whole local batch.
        processes: number of ranks that share the machine's memory.
    """
    left = available_memory()
    if left is None:
        return lambda size: True
    sample = activation_bytes(pl_module.objective, pl_module.model, batch)
    weights = sum(p.numel() * p.element_size() for p in pl_module.parameters() if p.requires_grad)
    # The first save copies a checkpoint to host memory, on rank 0, and keeps it: docs/ARCHITECTURE.md, "A save".
    room = ((1 - HEADROOM) * left - checkpoint_bytes(pl_module)) / processes - 3 * weights

    def fits(size: int) -> bool:
        needed = size * sample
        return needed + (min(HOLES * needed, MOST_HOLES) if size == local else 0) <= room

    return fits
