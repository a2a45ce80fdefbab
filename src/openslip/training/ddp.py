"""DDP that leaves a batch where it is, so that caption lengths stay on the CPU."""

from pytorch_lightning.strategies import DDPStrategy


class DDP(DDPStrategy):
    """Lightning's DDP strategy, except that it does not move the batch from where the data module has put it.

    With device ids, which Lightning sets on GPUs, DDP moves every tensor of a batch to the GPU. The text tower reads
    lengths on the CPU, so every micro-batch would synchronise with the GPU to copy them back.
    """

    def determine_ddp_device_ids(self) -> None:
        """Return None; the device follows from the weights and the process group."""
        return
