"""Which samples make which global batch: a pure function of (seed, epoch), whatever the ranks and workers."""

import zlib

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
        if global_batch_size < 1:
            raise UserError(f"global_batch_size={global_batch_size}: expected 1 or more")
        if global_batch_size > num_samples:
            raise UserError(
                f"global_batch_size={global_batch_size} is more than the collection's {num_samples} samples: lower it"
            )
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.steps_per_epoch, self.dropped = divmod(num_samples, global_batch_size)

    def local_batch_size(self, world_size: int) -> int:
        """Samples per step on each rank; raises UserError where the ranks do not divide the global batch."""
        local, rest = divmod(self.global_batch_size, world_size)
        if rest:
            raise UserError(
                f"global_batch_size={self.global_batch_size} cannot be divided among {world_size} ranks: "
                f"use {local * world_size or world_size} or other trainer.devices"
            )
        return local

    def permutation(self, epoch: int) -> Int64[np.ndarray, " samples"]:
        """All samples in the order of an epoch."""
        return np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(self.num_samples)

    def global_batch(self, epoch: int, step: int) -> Int64[np.ndarray, " global_batch"]:
        """The samples of a step of an epoch, in canonical order."""
        start = step * self.global_batch_size
        return self.permutation(epoch)[start : start + self.global_batch_size]

    def rank_batches(self, epoch: int, rank: int, world_size: int) -> Int64[np.ndarray, "steps local_batch"]:
        """One rank's contiguous part of every global batch of an epoch."""
        local = self.local_batch_size(world_size)
        batches = self.permutation(epoch)[: self.steps_per_epoch * self.global_batch_size]
        return batches.reshape(self.steps_per_epoch, world_size, local)[:, rank]


class Randomness:
    """Random numbers of one view of one sample in one epoch: the same in any process, rank or order of work.

    One generator, moved to where the numbers of a view begin, since making one takes five times as long. What a call
    returns is therefore valid until the next call.
    """

    def __init__(self, seed: int) -> None:
        self.generator = np.random.Generator(np.random.Philox(key=seed))
        self.state = self.generator.bit_generator.state

    def __call__(self, epoch: int, index: int, view: str) -> np.random.Generator:
        # The lowest word counts what is drawn.
        self.state["state"]["counter"][:] = 0, index, epoch, zlib.crc32(view.encode())
        self.generator.bit_generator.state = self.state
        return self.generator
