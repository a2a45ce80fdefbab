"""DDP in which lengths and other small columns of a batch stay on the CPU."""

from pytorch_lightning.strategies import DDPStrategy


class DDP(DDPStrategy):
    """Lightning's, with a batch that stays where the data module has put it.

    With device ids, which Lightning gives on GPUs, DDP moves every tensor of a batch to the GPU. The text tower reads
    lengths on the CPU, so in every micro-batch it would wait for the GPU to give them back.
    """

    def determine_ddp_device_ids(self) -> None:
        """None: the weights say which device it is, and so does the process group."""
        return
