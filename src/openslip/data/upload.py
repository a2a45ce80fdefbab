"""On a GPU a batch is uploaded and finished on a stream of its own, while the step before is still computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Upload:
    """The stream beside the computing one; on other devices than CUDA's it does nothing.

    Nothing is fetched early. The host is ahead of the GPU: where it has a batch in hand, the GPU computes the step
    before. At most one batch is made ahead, so that the memory for a second one bounds what is held.
    """

    def __init__(self) -> None:
        self.stream: Any = None
        self.handed_over: Any = None  # an event of the computing stream: it has come to the last batch

    @contextmanager
    def beside(self, device: torch.device) -> Iterator[None]:
        """What is launched in the body runs beside what the device computes; it may use only what was made so."""
        if device.type != "cuda":
            yield
            return
        if self.stream is None:
            self.stream = torch.cuda.Stream(device)
        if self.handed_over is not None:
            self.handed_over.synchronize()
        with torch.cuda.stream(self.stream):
            yield

    def hand_over(self, batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """The batch, for which the computing stream waits, and whose memory stays until that stream is done with it."""
        if device.type == "cuda":
            computing = torch.cuda.current_stream(device)
            computing.wait_stream(self.stream)
            for column in batch.values():
                if column.is_cuda:
                    column.record_stream(computing)
            self.handed_over = computing.record_event()
        return batch
