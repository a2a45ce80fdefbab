"""What all tests share."""

from collections.abc import Iterator

import pytest
import torch
from ranks import Ranks

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()
