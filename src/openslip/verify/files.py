"""Files of recordings; those of the published code ship with the package."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from openslip.verify.deviation import Arrays

RECORDINGS = Path(__file__).parent / "recordings"


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_bytes())


def read_arrays(path: Path) -> Arrays:
    """All arrays of an npz file."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
