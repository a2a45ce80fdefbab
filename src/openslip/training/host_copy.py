"""A copy of a training state in host memory, so that it can be written while training changes the original."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


class HostCopy:
    """Copies nests of dicts and lists; the memory of one copy is used again for the next.

    Fresh memory would take several times as long, because each of its pages is mapped when it is first written, and
    page-locked memory, which a GPU copies into, longer still. A file made of the copy equals one made of the original,
    to the byte: tensors that share a storage share one in the copy.
    """

    def __init__(self) -> None:
        self.memory: list[Tensor] = []

    def of(self, content: Any) -> Any:
        """Return a copy with all tensors on the host, valid until the next call; waits for the device once."""
        copied: dict[int, Any] = {}  # by identity, as `copy.deepcopy` keeps what it has copied
        storages: dict[int, Tensor] = {}
        memory, self.memory = self.memory, []
        devices = set()
        for tensor in tree_leaves(content):
            if not is_plain(tensor):
                continue  # left to deepcopy, which knows more kinds
            storage = tensor.untyped_storage()
            if storage._cdata not in storages:
                place = len(self.memory)
                on_gpu = tensor.device.type == "cuda"
                kept = memory[place] if place < len(memory) else None
                if kept is None or kept.nbytes != storage.nbytes() or kept.is_pinned() != on_gpu:
                    kept = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=on_gpu)
                kept.copy_(torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage), non_blocking=on_gpu)
                self.memory.append(kept)
                storages[storage._cdata] = kept
                devices |= {tensor.device} if on_gpu else set()
            on_host = torch.empty(0, dtype=tensor.dtype)
            on_host.set_(
                storages[storage._cdata].untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
            )
            copied[id(tensor)] = on_host.requires_grad_(tensor.requires_grad)
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return copy.deepcopy(content, copied)


def is_plain(leaf: Any) -> bool:
    """Whether a tensor is its storage, offset, sizes and strides."""
    if type(leaf) is not Tensor or leaf.layout is not torch.strided or leaf.is_quantized:
        return False
    return not (leaf.is_conj() or leaf.is_neg())
