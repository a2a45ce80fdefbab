"""Which torch the tests run with: `make test-minimum` installs the oldest one that pyproject.toml admits."""

import torch

OLD_TORCH = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)
