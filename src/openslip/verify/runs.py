"""Rows of a recorded training run on one process."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from openslip.inference.formats import slip
from openslip.optim import param_groups
from openslip.verify.deviation import (
    TOLERANCES,
    TOO_COARSE,
    Part,
    Row,
    Tolerances,
    Trio,
    gradient_rows,
    norm,
    rate_part,
    relative,
    same_names,
    term_parts,
    worst,
)
from openslip.verify.recording import Driven, Run, Trajectory, build, find_driven, loss_rounding, read_run, train


def run_rows(folder: Path, name: str, device: str, dtype: str) -> list[Row]:
    """Rows of one step's outputs, losses and gradients, the trajectory, the state after it, the decayed names."""
    run = read_run(folder, name)
    return compare_run(run, repeat_run(run, device, dtype), TOLERANCES[dtype])


@dataclass(frozen=True)
class Repeated:
    """Our computation from a recorded run's dims, initial state and batches.

    Attributes:
        steps: the recorded steps.
        rounding: of float32 in each loss.
        driven: elements on the zero-gradient list.
        names: of decayed and of undecayed parameters.
    """

    steps: Trio[Trajectory]
    rounding: dict[str, float]
    driven: Driven
    names: tuple[list[str], list[str]]


def repeat_run(run: Run, device: str, dtype: str) -> Repeated:
    """Repeat the recorded computation."""
    on_cpu = {other: train(run, "cpu", other) for other in ("float32", "float64")}
    ours = on_cpu.get(dtype) if device == "cpu" else None
    steps = Trio(ours or train(run, device, dtype), on_cpu["float32"], on_cpu["float64"])
    names = decayed_names(*build(run, run.group("init/"), gather_with_grad=True))
    return Repeated(steps, loss_rounding(run), find_driven(run, steps.exact), names)


def compare_run(run: Run, repeated: Repeated, tolerances: Tolerances) -> list[Row]:
    """The recorded values against ours."""
    steps = repeated.steps
    gradients = Trio(steps.ours.gradients, steps.single.gradients, steps.exact.gradients)
    decay = decay_parts(repeated.names, run.decay, run.no_decay)
    return [
        _dims_row(run),
        *_first_step_rows(run, repeated, tolerances),
        *gradient_rows(run.name, run.group("grad/"), gradients, tolerances),
        *_trajectory_rows(run, steps, tolerances),
        *_state_rows(run, repeated, tolerances),
        worst(f"{run.name}: decayed and undecayed names", decay),
    ]


def _dims_row(run: Run) -> Row:
    init = {name: array.shape for name, array in run.group("init/").items()}
    patch = init["visual.patch_embed.proj.weight"]
    sizes = {
        "batch": run.batch_size,
        "image_size": round((init["visual.pos_embed"][1] - 1) ** 0.5) * patch[-1],
        "patch": patch[-1],
        "vision_width": patch[0],
        "vision_depth": _depth(init, "visual.blocks."),
    }
    if run.has_text:
        sizes |= {
            "embed_dim": init["image_projection"][1],
            "context": init["positional_embedding"][0],
            "vocab": init["token_embedding.weight"][0],
            "text_width": init["token_embedding.weight"][1],
            "text_layers": _depth(init, "transformer.resblocks."),
        }
    if run.has_head:
        sizes |= {
            "ssl_mlp": init["image_mlp.layer1.weight"][0],
            "ssl_emb": init["image_mlp.layer3.weight"][0],
        }
    parts = [
        Part(f"{key}={run.dims[key]}, arrays {value}", float(abs(run.dims[key] - value)), 0.0)
        for key, value in sizes.items()
        if key in run.dims
    ]
    return worst(f"{run.name}: dims of the arrays", parts)


def _depth(names: Iterable[str], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)})


def _first_step_rows(run: Run, repeated: Repeated, tolerances: Tolerances) -> list[Row]:
    trio = repeated.steps
    outputs = []
    for name, recorded in run.group("out/").items():
        noise = relative(trio.single.outputs[name], trio.exact.outputs[name])
        deviation = relative(trio.ours.outputs[name], recorded)
        outputs.append(Part(name, deviation, tolerances.allow(tolerances.output, noise)))
    recorded_terms = {name: float(value) for name, value in run.group("loss/").items()}
    losses, accuracies = term_parts(
        recorded_terms, _terms(trio, 0), tolerances, tolerances.loss, run.batch_size, noise=repeated.rounding
    )
    return [
        worst(f"{run.name}: outputs", outputs),
        worst(f"{run.name}: loss terms", losses),
        worst(f"{run.name}: accuracies (per cent)", accuracies),
    ]


def _terms(trio: Trio[Trajectory], step: int) -> Trio[dict[str, float]]:
    return Trio(trio.ours.terms[step], trio.single.terms[step], trio.exact.terms[step])


def _trajectory_rows(run: Run, trio: Trio[Trajectory], tolerances: Tolerances) -> list[Row]:
    label = f"{run.name}, {len(run.trajectory)} steps"
    rates = [
        rate_part(f"step {step}", trio.ours.terms[step]["lr"], entry["lr"])
        for step, entry in enumerate(run.trajectory)
        if "lr" in entry
    ]
    rate_row = worst(f"{label}: learning rate", rates)
    if tolerances.trajectory is None:
        return [rate_row, Row.skipped(f"{label}: loss terms", TOO_COARSE)]
    entries = [{key: value for key, value in entry.items() if key != "lr"} for entry in run.trajectory]
    # A loss is a difference of logits, whose rounding does not shrink with it: its usual size is the measure.
    usual = {
        key: float(np.mean([abs(entry[key]) for entry in entries if key in entry]))
        for key in set[str]().union(*entries)
    }
    losses, accuracies = [], []
    noise: dict[str, float] = {}  # the largest so far: what rounding has done to the weights stays
    for step, entry in enumerate(entries):
        terms = _terms(trio, step)
        for key in entry:
            noise[key] = max(noise.get(key, 0.0), abs(terms.single[key] - terms.exact[key]))
        new_losses, new_accuracies = term_parts(
            entry,
            terms,
            tolerances,
            tolerances.trajectory,
            run.batch_size,
            noise=noise,
            where=f" at step {step}",
            scales=usual,
        )
        losses += new_losses
        accuracies += new_accuracies
    return [
        rate_row,
        worst(f"{label}: loss terms, logit scale", losses),
        worst(f"{label}: accuracies (per cent)", accuracies),
    ]


def _state_rows(run: Run, repeated: Repeated, tolerances: Tolerances) -> list[Row]:
    trio, driven = repeated.steps, repeated.driven
    label = f"{run.name}, {len(run.trajectory)} steps"
    recorded = run.group("final/")
    if not recorded:
        return [Row.skipped(f"{label}: final state", "none recorded")]
    if tolerances.weight is None:
        return [Row.skipped(f"{label}: final state", TOO_COARSE)]
    ours, single, exact = trio.ours.final, trio.single.final, trio.exact.final
    names = same_names("state", ours, recorded)
    if names.deviation:
        return [worst(f"{label}: final state", [names])]
    tensors, drifts = [], []
    size, difference, rounding = 0.0, 0.0, 0.0
    for name, array in recorded.items():
        if array.shape != ours[name].shape:
            tensors.append(Part(f"shape of {name}", math.inf, tolerances.weight))
            continue
        free = driven.reach[name] == 0
        if free.any():
            scale = norm(np.where(free, array, 0.0)) or 1.0
            deviation = norm(np.where(free, ours[name] - array, 0.0))
            noise = norm(np.where(free, single[name] - exact[name], 0.0))
            tensors.append(Part(name, deviation / scale, tolerances.allow(tolerances.weight, noise / scale)))
            if name in driven.zero:  # weights, not statistics
                size, difference, rounding = size + scale**2, difference + deviation**2, rounding + noise**2
        if not free.all():
            drift = norm(np.where(free, 0.0, ours[name] - array))
            drifts.append(Part(name, drift / norm(driven.reach[name]), 1.0))
    num_zeros = sum(int(mask.sum()) for mask in driven.zero.values())
    tolerance = tolerances.allow(tolerances.weight, math.sqrt(rounding / (size or 1.0)))
    whole = Part("", math.sqrt(difference / (size or 1.0)), tolerance)
    note = f"{num_zeros} weights with |g| < 1e-10 in float64, and the running means that they shift"
    return [
        worst(f"{label}: final weights as one vector", [whole], "outside the zero-gradient list"),
        worst(f"{label}: final state by tensor", tensors, "outside the zero-gradient list"),
        worst(f"{label}: zero-gradient list, drift over reach", drifts, note),
    ]


def decayed_names(model: nn.Module, objective: nn.Module) -> tuple[list[str], list[str]]:
    """Names of decayed and of undecayed parameters in our optimizer, as published code names them."""
    names = {id(tensor): name for name, tensor in slip.to_published(model, objective).items()}
    by_decay: dict[bool, list[str]] = {True: [], False: []}
    for group in param_groups([model, objective], weight_decay=1.0):
        by_decay[group["weight_decay"] > 0] += [names[id(parameter)] for parameter in group["params"]]
    return by_decay[True], by_decay[False]


def decay_parts(ours: tuple[list[str], list[str]], decay: list[str], no_decay: list[str]) -> list[Part]:
    """Comparisons of decayed and undecayed names with the recorded ones."""
    return [same_names("decayed", ours[0], decay), same_names("undecayed", ours[1], no_decay)]
