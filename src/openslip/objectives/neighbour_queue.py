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
        if size < 1:
            raise UserError(f"text_queue={size}: expected at least 1 (65536 in DeCLIP)")
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
        """
        size, count = len(self.features), len(rows)
        after = self.place + count
        after = after % size if self.wraps else torch.where(after >= size, 0, after)
        # If there are more rows than places, a ring that wraps keeps the last rows; any other ring keeps the first.
        first = max(count - size, 0) if self.wraps else 0
        rows = rows[first : first + size].float()  # rounded to float32, also in a run in float64
        places = self.place + first + torch.arange(len(rows), device=rows.device)
        kept = skipped if self.wraps else skipped | (places >= size)
        places = places % size
        before = self.features.index_select(0, places)
        after_rows = torch.where(kept.expand(len(rows))[:, None], before, rows.to(before.dtype))
        self.features.index_copy_(0, places, after_rows)
        self.place.copy_(torch.where(skipped, self.place, after))
