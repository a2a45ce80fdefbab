"""Compares our DeCLIP and its relatives with recordings of DeCLIP's repository (Sense-GVT/DeCLIP), in float64.

A folder holds `meta.json` (weights of the loss terms) and files `METHOD_N_rank(s).npz` of recorded steps. It may hold
`logit_scale.json` and `tiny_towers.npz`. All sizes are those of the recorded arrays.
"""

import math
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from openslip.errors import first_line
from openslip.verify.declip_comparison import compared
from openslip.verify.declip_steps import METHODS, Recorded, repeat
from openslip.verify.declip_towers import TOWERS, tower_model_rows
from openslip.verify.deviation import Arrays, Row
from openslip.verify.files import read_arrays, read_json
from openslip.verify.logit_scales import LOGIT_SCALES, logit_scale_rows


def recordings_in(folder: Path) -> dict[Path, str]:
    """Return the files of recorded steps with the names of their methods."""
    named = {path: re.fullmatch(r"(.+)_[^_]+_ranks?", path.stem) for path in sorted(folder.glob("*.npz"))}
    return {path: match[1] for path, match in named.items() if match}


def has_recordings(folder: Path) -> bool:
    """Whether a folder holds recordings of DeCLIP's repository."""
    return bool(recordings_in(folder)) or (folder / TOWERS).is_file()


def declip_rows(folder: Path, device: str, dtype: str) -> list[Row]:
    """Return rows for all recordings of DeCLIP's repository in a folder; all are computed in float64 on the CPU."""
    rows: list[Row] = []

    def add(label: str, make: Callable[[], list[Row]]) -> None:
        try:
            rows.extend(make())
        except Exception as error:  # recordings that contradict each other give a row out of tolerance, not a crash
            rows.append(Row(label, math.inf, 0.0, f"{type(error).__name__}: {first_line(error)}"))

    for path, method in recordings_in(folder).items():
        if method in METHODS:
            add(path.stem, lambda path=path, method=method: step_rows(path, method))
        else:
            rows.append(Row.skipped(path.stem, "OpenSLIP has no such method"))
    for file, rows_of in ((LOGIT_SCALES, logit_scale_rows), (TOWERS, tower_model_rows)):
        if (folder / file).is_file():
            add(file, lambda rows_of=rows_of: rows_of(folder))
        else:
            rows.append(Row.skipped(file, f"no {file}"))
    return rows


def read_recorded(path: Path, method: str) -> Recorded:
    """Read a file of recorded steps; the weights of its loss terms are in the folder's `meta.json`."""
    return Recorded(read_arrays(path), read_json(path.with_name("meta.json"))["weights"][method])


def step_rows(path: Path, method: str) -> list[Row]:
    """Repeat the recorded steps on as many ranks as recorded, and compare all results."""
    recorded = read_recorded(path, method)
    if recorded.num_ranks == 1:
        return compared(path.stem, recorded.arrays, repeat(recorded, method))
    with tempfile.TemporaryDirectory() as scratch:
        spawn(_rank_main, (recorded.num_ranks, str(path), method, scratch), nprocs=recorded.num_ranks)
        ours: Arrays = {}
        for rank in range(recorded.num_ranks):
            ours |= read_arrays(Path(scratch) / f"rank{rank}.npz")
    return compared(path.stem, recorded.arrays, ours)


def _rank_main(rank: int, world: int, path: str, method: str, scratch: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{scratch}/rendezvous", rank=rank, world_size=world)
    arrays = repeat(read_recorded(Path(path), method), method)
    np.savez(Path(scratch) / f"rank{rank}.npz", allow_pickle=False, **arrays)
    dist.destroy_process_group()
