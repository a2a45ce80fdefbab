"""Upload and finish a batch on its own CUDA stream, while the GPU still computes the previous step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Upload:
    """Second CUDA stream, on which the next batch is uploaded; does nothing on other devices.

    Nothing is prefetched here. The host runs ahead of the GPU, so it has the next batch while the GPU still computes
    the previous step. At most one batch is uploaded ahead, which bounds the extra GPU memory to one batch.
    """

    def __init__(self) -> None:
        self.stream: Any = None
        self.handed_over: Any = None  # event of the computing stream: reached when it begins with the last batch

    @contextmanager
    def beside(self, device: torch.device) -> Iterator[None]:
        """Run the body on the upload stream; it may use only tensors that were made on that stream."""
        if device.type != "cuda":
            yield
            return
        if self.stream is None:
            self.stream = torch.cuda.Stream(device)
        if self.handed_over is not None:
            self.handed_over.synchronize()
        with torch.cuda.stream(self.stream):
            yield

    def hand_over(self, batch: dict[str, Tensor], device: torch.device) -> None:
        """Let the computing stream wait for the batch, and keep its memory until that stream has finished with it."""
        if device.type == "cuda":
            computing = torch.cuda.current_stream(device)
            computing.wait_stream(self.stream)
            for column in batch.values():
                if column.is_cuda:
                    column.record_stream(computing)
            self.handed_over = computing.record_event()
