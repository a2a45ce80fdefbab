"""Which samples make which global batch: a pure function of (seed, epoch), whatever the ranks and workers."""

import numpy as np
from jaxtyping import Int64

from openslip.errors import UserError


class Order:
    """Global batches of constant size; the tail that fills none is dropped.

    Args:
        num_samples: of the collection.
        global_batch_size: samples per step over all ranks.
        seed: of the run.
    """

    def __init__(self, *, num_samples: int, global_batch_size: int, seed: int) -> None:
        if global_batch_size > num_samples:
            raise UserError(
                f"global_batch_size={global_batch_size} is more than the collection's {num_samples} samples: lower it"
            )
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.steps_per_epoch, self.dropped = divmod(num_samples, global_batch_size)

    def permutation(self, epoch: int) -> Int64[np.ndarray, " samples"]:
        """All samples in the order of an epoch."""
        return np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(self.num_samples)

    def global_batch(self, epoch: int, step: int) -> Int64[np.ndarray, " global_batch"]:
        """The samples of a step of an epoch, in canonical order."""
        start = step * self.global_batch_size
        return self.permutation(epoch)[start : start + self.global_batch_size]

    def rank_batches(self, epoch: int, rank: int, world_size: int) -> Int64[np.ndarray, "steps local_batch"]:
        """One rank's contiguous part of every global batch of an epoch."""
        if self.global_batch_size % world_size:
            raise UserError(
                f"global_batch_size={self.global_batch_size} cannot be divided among {world_size} ranks: "
                f"use {self.global_batch_size // world_size * world_size or world_size} or other trainer.devices"
            )
        local = self.global_batch_size // world_size
        batches = self.permutation(epoch)[: self.steps_per_epoch * self.global_batch_size]
        return batches.reshape(self.steps_per_epoch, world_size, local)[:, rank]
