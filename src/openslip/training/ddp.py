"""DDP that does not move batches to another device, so that caption lengths stay on the CPU."""

from pytorch_lightning.strategies import DDPStrategy


class DDP(DDPStrategy):
    """Lightning's DDP strategy, except that tensors of a batch stay on the devices that the data module chose.

    On GPUs, Lightning passes device ids to DDP, and DDP then moves every tensor of a batch to the GPU. The text tower
    reads caption lengths on the CPU, so every micro-batch would synchronise with the GPU to copy the lengths back.
    """

    def determine_ddp_device_ids(self) -> None:
        """Return None: DDP takes the device from the weights and the process group."""
        return
