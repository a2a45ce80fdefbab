"""What all tests share."""

import os
from collections.abc import Iterator

import pytest
import torch
from ranks import Ranks
from torch.utils.data import _utils

# More threads than free cores wait for each other in busy loops; subprocesses inherit the variable.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# Seconds that PyTorch waits for each worker of a loader that a test leaves in the middle of an epoch; its own is 5.
_utils.MP_STATUS_CHECK_INTERVAL = 1.0


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()
