"""Pairs of an image and another sample's caption whose words all occur in the image's own captions: no true negatives.

A caption consists of randomly chosen words of a sample. With two images of birds in a batch, the caption `bird` of one
of them is also right for the other. Words are compared by the 63-bit keys of the view `DrawnWords`.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from openslip.distributed import gather
from openslip.objectives.equal_pairs import Roles


class ContainedWords:
    """Says which captions have only words of an image's own captions: such pairs are positives.

    A caption without words is a positive of its own image alone.

    The words of all ranks are gathered, so the constructor is a collective call on all ranks. Two float32 matrices hold
    one number for each sample of the global batch and each of the batch's different words.

    Args:
        words: keys of the distinct words of this rank's samples, 0 beyond the last.
        drawn: which of these words are in the sample's caption.
    """

    def __init__(self, words: Int[Tensor, "local places"], drawn: Bool[Tensor, "local places"]) -> None:
        words, drawn = gather(words, with_grad=False), gather(drawn, with_grad=False)
        different, ids = words.unique(return_inverse=True)
        empty = torch.zeros(len(words), len(different), device=words.device)
        # Rows of zeros and ones over the batch's words: `missing` is 1 for each word that a sample does not have.
        self.missing = 1 - empty.scatter(1, ids, 1.0)
        self.captions = empty.scatter_reduce(1, ids, drawn.float(), "amax")

    def roles(self, rows: slice, columns: slice) -> Roles:
        """Return the roles of the pairs of some images and captions, both given as ranges of the global batch."""
        with torch.autocast(self.missing.device.type, enabled=False):
            contained = self.missing[rows] @ self.captions[columns].T == 0
        places = torch.arange(len(self.captions), device=contained.device)
        own = places[rows, None] == places[columns]
        return Roles((contained & self.captions[columns].any(dim=1)) | own, None)
