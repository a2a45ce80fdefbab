"""Passes over a batch that are no part of the training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def trial(modules: Sequence[nn.Module], batch: dict[str, Tensor]) -> Iterator[None]:
    """Inside nothing is compiled, and afterwards random states and the statistics of batch norm are as before."""
    devices = list({value.device for value in batch.values() if value.device.type == "cuda"})
    buffers = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)
