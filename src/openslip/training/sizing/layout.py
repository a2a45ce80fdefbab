"""Layouts in which a device can encode its samples of a step, and the choice of the fastest one that fits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from openslip.models.tower import Tower
from openslip.training.microbatch import even_size
from openslip.training.sizing.flops import TRAINING_OVER_FORWARD

# On a GPU, micro-batch sizes are multiples of this number, because 16-bit matrix products are fastest for multiples of
# eight.
GPU_MULTIPLE = 8
# Fraction of a forward pass that checkpointed blocks compute again. They skip the last matrix product of each block,
# because the backward pass does not need its result. The operations of ViT-S/16, ViT-B/16 and ViT-L/16 were counted.
REPEATED_IN_BLOCKS = 0.67

BlockSettings = dict[Tower, bool]  # whether each tower's blocks are checkpointed


@dataclass(frozen=True)
class Layout:
    """The split of a device's samples into micro-batches, and whether blocks are checkpointed."""

    micro_batches: int
    micro_batch_size: int
    checkpointed: bool

    @property
    def passes(self) -> float:
        """Cost of a step, including recomputation, as a multiple of the cost of a forward pass."""
        return TRAINING_OVER_FORWARD + REPEATED_IN_BLOCKS * self.checkpointed + (self.micro_batches > 1)

    def __str__(self) -> str:
        several = f"{self.micro_batches} micro-batches of {self.micro_batch_size}"
        return (
            several if self.micro_batches > 1 else "the whole batch"
        ) + self.checkpointed * " with checkpointed blocks"


def fastest_layout(local: int, fits: Callable[[int, bool], bool], multiple: int) -> Layout | None:
    """Return the layout with the least recomputation that fits, or None if not even one sample fits.

    The layouts are tried in this order: the whole batch; the whole batch with checkpointed blocks; the fewest
    micro-batches; micro-batches with checkpointed blocks. Checkpointed blocks come before micro-batches, because they
    recompute less. Both are used together only if a single sample does not fit otherwise.

    Args:
        local: samples of a step on this device.
        fits: function that returns whether memory suffices; its arguments are the number of samples, and whether blocks
            are checkpointed.
        multiple: the size of micro-batches is rounded up to a multiple of this number, as in `even_size`.
    """
    for checkpointed in (False, True):
        if fits(local, checkpointed):
            return Layout(1, local, checkpointed)
    for checkpointed in (False, True):
        count = fewest_micro_batches(local, lambda size, checkpointed=checkpointed: fits(size, checkpointed), multiple)
        size = even_size(local, count, multiple)
        if fits(size, checkpointed):
            return Layout(count, size, checkpointed)
    return None


def fewest_micro_batches(local: int, fits: Callable[[int], bool], multiple: int = 1) -> int:
    """Find by bisection the smallest number of nearly equal micro-batches such that one of them fits into memory."""
    too_few, enough = 0, 1
    while enough < local and not fits(even_size(local, enough, multiple)):
        too_few, enough = enough, min(2 * enough, local)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if fits(even_size(local, middle, multiple)):
            enough = middle
        else:
            too_few = middle
    return enough


def are_checkpointed(model: nn.Module) -> bool:
    """Whether the blocks of any trained tower are checkpointed."""
    return any(tower.gradient_checkpointing for tower in trained_towers(model))


def block_settings(model: nn.Module) -> dict[bool, BlockSettings]:
    """Return the current checkpointing settings of the trained towers and, if possible, the opposite ones.

    A key of the dict tells whether blocks are checkpointed, its value holds the setting of each trained tower. A tower
    without `repeated_blocks`, such as a backbone that checkpoints its blocks itself, has no opposite setting.
    """
    towers, checkpointed = trained_towers(model), are_checkpointed(model)
    opposite = {tower: not checkpointed for tower in towers if tower.repeated_blocks()}
    settings = {checkpointed: {tower: tower.gradient_checkpointing for tower in towers}}
    if opposite and all(tower in opposite for tower in towers if tower.gradient_checkpointing):
        settings[not checkpointed] = opposite
    return settings


def trained_towers(model: nn.Module) -> list[Tower]:
    return [module for module in model.children() if isinstance(module, Tower) and not module.locked]


@contextmanager
def applied(settings: BlockSettings) -> Iterator[None]:
    """Apply these settings of gradient checkpointing to the towers inside this context."""
    before = {tower: tower.gradient_checkpointing for tower in settings}
    try:
        for tower, is_on in settings.items():
            tower.gradient_checkpointing = is_on
        yield
    finally:
        for tower, is_on in before.items():
            tower.gradient_checkpointing = is_on


def as_arguments(model: nn.Module, settings: BlockSettings) -> str:
    """Format settings as arguments of the command line."""
    kinds = {tower: name.removesuffix("_tower") for name, tower in model.named_children()}
    return " ".join(f"towers.{kinds[tower]}.gradient_checkpointing={str(on).lower()}" for tower, on in settings.items())
