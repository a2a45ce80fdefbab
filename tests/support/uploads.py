"""Stand-ins for pinned memory and for the uploads from it."""

import torch


class Upload:
    """Stands in for a CUDA event."""

    def __init__(self, *, is_done: bool) -> None:
        self.is_done = is_done
        self.was_waited_for = False

    def query(self) -> bool:
        return self.is_done

    def synchronize(self) -> None:
        self.is_done = self.was_waited_for = True


def ordinary(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8)
