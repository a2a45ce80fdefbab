"""What all tests share."""

import os
from collections.abc import Iterator

import pytest
import torch
from ranks import Ranks

# More threads than free cores wait for each other in busy loops; subprocesses inherit the variable.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()
