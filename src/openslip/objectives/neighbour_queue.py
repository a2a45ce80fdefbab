"""A queue of text features, in which texts find their nearest neighbours. Li et al. 2021, arXiv:2110.05208 (DeCLIP)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from openslip.errors import UserError
from openslip.objectives.similarity import unit_length

MOST_COSINES = 2**24  # elements of a matrix of cosines that exists at a time; 64 MiB in float32


class NeighbourQueue(nn.Module):
    """A ring of unit features, stored as float32; it begins with random ones and is part of every checkpoint.

    Args:
        size: number of features.
        width: width of a feature.
        wraps: whether features that do not fit at the end of the ring are written to its beginning. If not, they are
            dropped and the next features begin at 0, as published: docs/NUMERICS.md#declip.

    Attributes:
        features: the stored features.
        place: index at which the next feature is written.
    """

    features: Float[Tensor, "size width"]
    place: Tensor

    def __init__(self, *, size: int, width: int, wraps: bool) -> None:
        super().__init__()
        self.wraps = wraps
        self.register_buffer("features", unit_length(torch.randn(size, width)))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def nearest(self, queries: Float[Tensor, "rows width"], epsilon: float) -> Float[Tensor, "rows width"]:
        """Return the stored feature with the largest cosine to each query, as a unit feature without gradient.

        Args:
            queries: unit features.
            epsilon: as in `unit_length`.
        """
        return unit_length(self.features.index_select(0, self.nearest_places(queries)).to(queries.dtype), epsilon)

    @torch.no_grad()
    def nearest_places(self, queries: Float[Tensor, "rows width"]) -> Int[Tensor, " rows"]:
        """Return the index of the stored feature with the largest cosine to each query."""
        stored = self.features.to(queries.dtype)
        chunks = queries.split(max(1, MOST_COSINES // len(stored)))
        return torch.cat([(chunk @ stored.T).argmax(dim=1) for chunk in chunks])

    @torch.no_grad()
    def push(self, rows: Float[Tensor, "rows width"], skipped: Tensor) -> None:
        """Write rows over the oldest features; on the device, without synchronisation.

        Args:
            rows: unit features, in the order of the batch.
            skipped: whether nothing is written, as a bool scalar on the device: the queue is too large for the
                framework to restore it after a skipped step.

        Raises:
            UserError: there are more rows than the queue has.
        """
        size, count = len(self.features), len(rows)
        if count > size:
            raise UserError(f"queue_size={size}: expected at least {count}, the captions of one view in a step")
        places = self.place + torch.arange(count, device=rows.device)
        kept = skipped if self.wraps else skipped | (places >= size)
        after = self.place + count
        after = after % size if self.wraps else torch.where(after >= size, 0, after)
        places = places % size
        before = self.features.index_select(0, places)
        rows = rows.float().to(before.dtype)  # rounded to float32 even if the run is in float64
        self.features.index_copy_(0, places, torch.where(kept.expand(count)[:, None], before, rows))
        self.place.copy_(torch.where(skipped, self.place, after))
