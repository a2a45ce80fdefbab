"""Compares a batch split over ranks, which are gloo processes on this machine's CPU, with recordings."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from openslip.inference.formats import slip
from openslip.verify.deviation import TOLERANCES, Arrays, Row, Trio, gradient_rows, term_parts, term_rows
from openslip.verify.files import read_arrays
from openslip.verify.processes import run_on_ranks
from openslip.verify.recording import DTYPES, Run, as_array, build, loss_rounding, precision, read_batch, read_run


def rank_rows(folder: Path, dtype: str) -> list[Row]:
    """Return rows of losses per rank and the mean gradient, both as published (keys detached) and as in one process."""
    recorded = read_arrays(folder / "two_ranks.npz")
    runs = [read_run(folder, name) for name in dict.fromkeys(key.split("/")[0] for key in recorded)]
    world = 1 + max(int(key.split("/")[1].removeprefix("rank")) for key in recorded if "/rank" in key)
    ranks = repeat_on_ranks(folder, runs, world, dtype)
    return compare_ranks(recorded, runs, ranks, {run.name: loss_rounding(run) for run in runs}, dtype)


def repeat_on_ranks(folder: Path, runs: Sequence[Run], world: int, dtype: str) -> list[Arrays]:
    """Repeat the recorded step on `world` ranks; return each rank's losses and gradients by `dtype/mode/run/...`."""
    names = [run.name for run in runs]
    dtypes = list(dict.fromkeys(_dtypes(dtype)))
    with tempfile.TemporaryDirectory() as scratch:
        run_on_ranks(_rank_main, world, world, str(folder), names, dtypes, scratch)
        return [read_arrays(Path(scratch) / f"rank{rank}.npz") for rank in range(world)]


def _dtypes(dtype: str) -> tuple[str, str, str]:
    # These processes run on the CPU, which has no TF32.
    return "float32" if dtype == "tf32" else dtype, "float32", "float64"


def compare_ranks(
    recorded: Arrays, runs: Sequence[Run], ranks: list[Arrays], rounding: dict[str, dict[str, float]], dtype: str
) -> list[Row]:
    """Compare recorded losses and gradients with ours; `rounding` has the float32 error of each run's losses."""
    tolerances, dtypes = TOLERANCES[dtype], Trio(*_dtypes(dtype))
    rows = []
    for run in runs:
        label, batch = f"{run.name}, {len(ranks)} ranks", run.batch_size // len(ranks)
        published, with_grad = (
            dtypes.each(lambda dtype, under=f"{mode}/{run.name}/grad/": _under(ranks[0], f"{dtype}/{under}"))
            for mode in ("published", "with_grad")
        )
        # A rank's loss is the mean over fewer samples, so its rounding is larger.
        noise = {name: math.sqrt(len(ranks)) * value for name, value in rounding[run.name].items()}
        parts = []
        for rank, ours in enumerate(ranks):
            under = f"published/{run.name}/loss/"
            terms = dtypes.each(lambda dtype, ours=ours, under=under: _floats(ours, f"{dtype}/{under}"))
            losses = _floats(recorded, f"{run.name}/rank{rank}/loss/")
            options = {"noise": noise, "where": f" on rank {rank}"}
            parts += term_parts(losses, terms, tolerances, tolerances.loss, batch, **options)
        rows += term_rows(label, parts)
        rows += gradient_rows(label, _under(recorded, f"{run.name}/grad/"), published, tolerances)
        rows += gradient_rows(f"{label}, gather_with_grad", run.group("grad/"), with_grad, tolerances)
    return rows


def _under(arrays: Arrays, prefix: str) -> Arrays:
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}


def _floats(arrays: Arrays, prefix: str) -> dict[str, float]:
    return {key: float(value) for key, value in _under(arrays, prefix).items()}


def _rank_main(rank: int, world: int, folder: str, names: Sequence[str], dtypes: Sequence[str], scratch: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{scratch}/rendezvous", rank=rank, world_size=world)
    arrays: Arrays = {}
    for name in names:
        run = read_run(Path(folder), name)
        for dtype in dtypes:
            for mode in ("published", "with_grad"):
                prefix = f"{dtype}/{mode}/{name}"
                terms, gradients = _step(run, rank, world, dtype, gather_with_grad=mode == "with_grad")
                arrays |= {f"{prefix}/loss/{key}": value for key, value in terms.items()}
                arrays |= {f"{prefix}/grad/{key}": value for key, value in gradients.items()}
    np.savez(Path(scratch) / f"rank{rank}.npz", allow_pickle=False, **arrays)
    dist.destroy_process_group()


def _step(run: Run, rank: int, world: int, dtype: str, *, gather_with_grad: bool) -> tuple[Arrays, Arrays]:
    model, objective = build(run, run.group("init/"), gather_with_grad=gather_with_grad)
    model.to(DTYPES[dtype])
    objective.to(DTYPES[dtype])
    batch = {key: rows.chunk(world)[rank] for key, rows in read_batch(run, 0, "cpu", DTYPES[dtype]).items()}
    with precision("cpu", dtype):
        terms = objective.terms(model, objective.encode(model, batch))
        terms["loss"].backward()
    gradients = {}
    for name, tensor in slip.to_published(model, objective).items():
        if tensor.grad is not None:
            dist.all_reduce(tensor.grad)
            gradients[name] = as_array(tensor.grad / world)
    return {name: as_array(value) for name, value in terms.items()}, gradients
