"""Compares our DeCLIP and its relatives with recordings of DeCLIP's repository (Sense-GVT/DeCLIP), in float64.

A folder holds `meta.json` (weights of the loss terms) and files `METHOD_N_rank(s).npz` of recorded steps. It may hold
`logit_scale.json` and `tiny_towers.npz`. All sizes are those of the recorded arrays.
"""

import itertools
import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from openslip.errors import first_line
from openslip.verify.declip_comparison import compared
from openslip.verify.declip_steps import Recorded, Repeat, repeat, repeat_declip, repeat_slip
from openslip.verify.declip_towers import TOWERS, tower_model_rows
from openslip.verify.deviation import Arrays, Row
from openslip.verify.files import read_arrays, read_json
from openslip.verify.filip_steps import repeat_defilip, repeat_defilip_of_all_pairs, repeat_filip
from openslip.verify.logit_scales import LOGIT_SCALES, logit_scale_rows
from openslip.verify.processes import run_on_ranks

# By the beginning of a file's name; a method without an entry is reported as not compared.
METHODS: dict[str, Callable[[Recorded], Repeat]] = {
    **{"declip": repeat_declip, "slip": repeat_slip, "filip": repeat_filip, "defilip": repeat_defilip},
    "defilip_aug": repeat_defilip_of_all_pairs,
}


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

    on_ranks: dict[int, dict[Path, str]] = defaultdict(dict)
    for path, method in recordings_in(folder).items():
        if method in METHODS:
            try:
                on_ranks[read_recorded(path, method).num_ranks][path] = method
            except Exception as error:
                rows.append(Row(path.stem, math.inf, 0.0, f"{type(error).__name__}: {first_line(error)}"))
        else:
            rows.append(Row.skipped(path.stem, "OpenSLIP has no such method"))
    for ranks, recordings in on_ranks.items():
        add(", ".join(path.stem for path in recordings), partial(step_rows, recordings, ranks))
    for file, rows_of in ((LOGIT_SCALES, logit_scale_rows), (TOWERS, tower_model_rows)):
        if (folder / file).is_file():
            add(file, lambda rows_of=rows_of: rows_of(folder))
        else:
            rows.append(Row.skipped(file, f"no {file}"))
    return rows


def read_recorded(path: Path, method: str) -> Recorded:
    """Read a file of recorded steps; the weights of its loss terms are in the folder's `meta.json`."""
    return Recorded(read_arrays(path), read_json(path.with_name("meta.json"))["weights"][method])


def step_rows(recordings: dict[Path, str], ranks: int) -> list[Row]:
    """Repeat recorded steps on as many ranks as recorded, and compare all results."""
    if ranks == 1:
        ours = {path: repeat(read_recorded(path, method), METHODS[method]) for path, method in recordings.items()}
    else:
        ours = repeat_on_ranks(recordings, ranks)
    return [row for path in recordings for row in compared(path.stem, read_arrays(path), ours[path])]


def repeat_on_ranks(recordings: dict[Path, str], ranks: int) -> dict[Path, Arrays]:
    """Repeat recorded steps on gloo ranks of this machine, and return the results of all ranks by file."""
    with tempfile.TemporaryDirectory() as scratch:
        run_on_ranks(_rank_main, ranks, ranks, recordings, scratch)
        ours: dict[Path, Arrays] = {path: {} for path in recordings}
        for path, rank in itertools.product(recordings, range(ranks)):
            ours[path] |= read_arrays(Path(scratch) / f"{path.stem}-{rank}.npz")
        return ours


def _rank_main(rank: int, world: int, recordings: dict[Path, str], scratch: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{scratch}/rendezvous", rank=rank, world_size=world)
    for path, method in recordings.items():
        arrays = repeat(read_recorded(path, method), METHODS[method])
        np.savez(Path(scratch) / f"{path.stem}-{rank}.npz", allow_pickle=False, **arrays)
    dist.destroy_process_group()
