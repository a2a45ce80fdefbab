"""Copies a training state to host memory, so that it can be written while training changes the original."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from openslip.data.pinned import aligned, pinned_memory

STAGING_BYTES = 256 * 2**20  # a power of two, because torch rounds pinned memory up to a power of two


class Staging:
    """A pinned buffer of fixed size, through which bytes are copied from a GPU to pageable memory.

    If the whole copy were pinned, it could not be swapped out, and torch would round the size of each storage up to a
    power of two. If the system cannot pin memory, the buffer is pageable too.

    Args:
        size: size of the buffer in bytes, a multiple of 64.
    """

    def __init__(self, size: int = STAGING_BYTES) -> None:
        self.size = size
        self.memory: Tensor | None = None
        self.used = 0
        self.staged: list[tuple[Tensor, Tensor]] = []  # pairs of target in pageable memory and source in the buffer
        self.devices: set[torch.device] = set()

    def copy(self, to: Tensor, source: Tensor) -> None:
        """Begin to copy bytes from a GPU into the host tensor `to`; the copy is complete only after `finish`."""
        if self.memory is None:
            try:
                self.memory = pinned_memory(self.size)
            except RuntimeError:  # the system limits pinned memory
                self.memory = torch.empty(self.size, dtype=torch.uint8)
        start = 0
        while start < len(source):
            if self.used == self.size:
                self.finish()
            end = min(len(source), start + self.size - self.used)
            piece = self.memory[self.used : self.used + end - start]
            piece.copy_(source[start:end], non_blocking=True)
            self.staged.append((to[start:end], piece))
            self.devices.add(source.device)
            self.used += aligned(end - start)
            start = end

    def finish(self) -> None:
        """Synchronise with the devices, and move the copied bytes from the buffer to their targets."""
        for device in self.devices:
            torch.cuda.current_stream(device).synchronize()
        for to, piece in self.staged:
            to.copy_(piece)
        self.used = 0
        self.staged.clear()
        self.devices.clear()


class HostCopy:
    """Copies nested dicts and lists with their tensors, and reuses the memory of one copy for the next.

    New memory would be several times slower, because each page is mapped when it is first written. For a state on the
    CPU, a file saved from the copy is byte for byte identical to one saved from the original. `torch.save` writes whole
    storages, so each storage is copied as a whole. Tensors that share a storage also share a storage in the copy.
    """

    def __init__(self) -> None:
        self.memory: list[Tensor] = []
        self.staging = Staging()

    def of(self, content: Any) -> Any:
        """Return a copy with all tensors on the host; the next call overwrites it. Synchronises with the device."""
        copied: dict[int, Any] = {}  # by id(), as `copy.deepcopy` expects its memo
        storages: dict[int, Tensor] = {}
        memory, self.memory = self.memory, []
        for tensor in tree_leaves(content):
            if not is_plain(tensor):
                continue  # `copy.deepcopy` below handles the other kinds of tensors
            storage = tensor.untyped_storage()
            if storage._cdata not in storages:
                place = len(self.memory)
                kept = memory[place] if place < len(memory) else None
                if kept is None or kept.nbytes != storage.nbytes():
                    kept = torch.empty(storage.nbytes(), dtype=torch.uint8)
                source = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
                if is_on_gpu(tensor):
                    self.staging.copy(kept, source)
                else:
                    kept.copy_(source)
                self.memory.append(kept)
                storages[storage._cdata] = kept
            on_host = torch.empty(0, dtype=tensor.dtype)
            on_host.set_(
                storages[storage._cdata].untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
            )
            copied[id(tensor)] = on_host.requires_grad_(tensor.requires_grad)
        self.staging.finish()
        return copy.deepcopy(content, copied)


def is_on_gpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


def is_plain(leaf: Any) -> bool:
    """Whether a leaf is a tensor that is completely described by its storage, offset, sizes and strides."""
    if type(leaf) is not Tensor or leaf.layout is not torch.strided or leaf.is_quantized:
        return False
    return not (leaf.is_conj() or leaf.is_neg())
