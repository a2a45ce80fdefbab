"""Compares a recorded training run with its repetition in one process."""

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
    array_parts,
    exactly,
    gradient_rows,
    norm,
    rate_part,
    relative,
    same_names,
    same_shapes,
    term_parts,
    term_rows,
    worst,
)
from openslip.verify.recording import (
    Driven,
    Run,
    Trajectory,
    build,
    describe,
    find_driven,
    loss_rounding,
    read_run,
    train,
)


def run_rows(folder: Path, name: str, device: str, dtype: str) -> list[Row]:
    """Return rows of one step's outputs, losses and gradients, of the trajectory, the final state and decayed names."""
    run = read_run(folder, name)
    return compare_run(run, repeat_run(run, device, dtype), TOLERANCES[dtype])


@dataclass(frozen=True)
class Repeated:
    """Results of our code from a recorded run's dims, initial state and batches."""

    steps: Trio[Trajectory]  # repetitions of the recorded steps
    rounding: dict[str, float]  # float32 rounding error of each loss
    driven: Driven  # elements on the zero-gradient list
    names: tuple[list[str], list[str]]  # names of decayed and of undecayed parameters


def repeat_run(run: Run, device: str, dtype: str) -> Repeated:
    """Repeat a recorded run in this format on this device, and in float32 and float64 on the CPU."""
    on_cpu = {other: train(run, "cpu", other) for other in ("float32", "float64")}
    ours = on_cpu.get(dtype) if device == "cpu" else None
    steps = Trio(ours or train(run, device, dtype), on_cpu["float32"], on_cpu["float64"])
    names = decayed_names(*build(run, run.group("init/"), gather_with_grad=True))
    return Repeated(steps, loss_rounding(run), find_driven(run, steps.exact), names)


def compare_run(run: Run, repeated: Repeated, tolerances: Tolerances) -> list[Row]:
    """Return rows that compare the recorded values with ours."""
    steps = repeated.steps
    gradients = steps.each(lambda trajectory: trajectory.gradients)
    outputs = []
    for name, recorded in run.group("out/").items():
        trio = steps.each(lambda trajectory, name=name: trajectory.outputs[name])
        tolerance = tolerances.allow(tolerances.output, relative(trio.single, trio.exact))
        outputs.append(Part(name, relative(trio.ours, recorded), tolerance))
    terms = term_parts(
        {name: float(value) for name, value in run.group("loss/").items()},
        steps.each(lambda trajectory: trajectory.terms[0]),
        tolerances,
        tolerances.loss,
        run.batch_size,
        noise=repeated.rounding,
    )
    return [
        _dims_row(run),
        worst(f"{run.name}: outputs", outputs),
        *term_rows(run.name, terms),
        *gradient_rows(run.name, run.group("grad/"), gradients, tolerances),
        *_trajectory_rows(run, steps, tolerances),
        *_state_rows(run, repeated, tolerances),
        worst(f"{run.name}: decayed and undecayed names", decay_parts(repeated.names, run.decay, run.no_decay)),
    ]


def _dims_row(run: Run) -> Row:
    init = {name: array.shape for name, array in run.group("init/").items()}
    description = describe(run, init)
    image = description["image_tower"]["arguments"]
    sizes = {"batch": run.batch_size, "image_size": description["image_tower"]["image_size"]}
    sizes |= {"patch": image["patch_size"], "vision_width": image["embed_dim"], "vision_depth": image["depth"]}
    if text := description.get("text_tower"):
        sizes |= {"embed_dim": description["embed_dim"], "context": text["context_length"], "vocab": text["vocab_size"]}
        sizes |= {"text_width": text["width"], "text_layers": text["depth"]}
    if run.has_head:
        sizes |= {"ssl_mlp": init["image_mlp.layer1.weight"][0], "ssl_emb": init["image_mlp.layer3.weight"][0]}
    parts = [
        exactly(f"{key}={run.dims[key]}, arrays {value}", abs(run.dims[key] - value))
        for key, value in sizes.items()
        if key in run.dims
    ]
    return worst(f"{run.name}: dims of the arrays", parts)


def _trajectory_rows(run: Run, steps: Trio[Trajectory], tolerances: Tolerances) -> list[Row]:
    label = f"{run.name}, {len(run.trajectory)} steps"
    rates = [
        rate_part(f"step {step}", steps.ours.terms[step]["lr"], entry["lr"])
        for step, entry in enumerate(run.trajectory)
        if "lr" in entry
    ]
    rate_row = worst(f"{label}: learning rate", rates)
    if tolerances.trajectory is None:
        return [rate_row, Row.skipped(f"{label}: loss terms", TOO_COARSE)]
    entries = [{key: value for key, value in entry.items() if key != "lr"} for entry in run.trajectory]
    # A loss is a difference of logits, whose rounding does not shrink when the loss does. So the deviation is divided
    # by the loss's mean size over all steps.
    usual = {
        key: float(np.mean([abs(entry[key]) for entry in entries if key in entry]))
        for key in set[str]().union(*entries)
    }
    parts = []
    noise: dict[str, float] = {}  # the largest so far, because the effect of rounding on the weights remains
    for step, entry in enumerate(entries):
        terms = steps.each(lambda trajectory, step=step: trajectory.terms[step])
        for key in entry:
            noise[key] = max(noise.get(key, 0.0), abs(terms.single[key] - terms.exact[key]))
        options = {"noise": noise, "where": f" at step {step}", "scales": usual}
        parts += term_parts(entry, terms, tolerances, tolerances.trajectory, run.batch_size, **options)
    return [rate_row, *term_rows(label, parts, "loss terms, logit scale")]


def _state_rows(run: Run, repeated: Repeated, tolerances: Tolerances) -> list[Row]:
    driven, label = repeated.driven, f"{run.name}, {len(run.trajectory)} steps"
    recorded = run.group("final/")
    if not recorded or tolerances.weight is None:
        return [Row.skipped(f"{label}: final state", TOO_COARSE if recorded else "none recorded")]
    trio = repeated.steps.each(lambda trajectory: trajectory.final)
    if (names := same_shapes("state", trio.ours, recorded)).deviation:
        return [worst(f"{label}: final state", [names])]
    free = {name: driven.reach[name] == 0 for name in recorded}
    # The vector consists of the weights, without the statistics.
    whole, tensors = array_parts(recorded, trio, free, tolerances, tolerances.weight, counted=driven.zero)
    drifts = [
        Part(name, norm(np.where(free[name], 0.0, trio.ours[name] - array)) / norm(driven.reach[name]), 1.0)
        for name, array in recorded.items()
        if not free[name].all()
    ]
    num_zeros = sum(int(mask.sum()) for mask in driven.zero.values())
    note = f"{num_zeros} weights with |g| < 1e-10 in float64, and the running means that they shift"
    return [
        worst(f"{label}: final weights as one vector", [whole], "outside the zero-gradient list"),
        worst(f"{label}: final state by tensor", tensors, "outside the zero-gradient list"),
        worst(f"{label}: zero-gradient list, drift over reach", drifts, note),
    ]


def decayed_names(model: nn.Module, objective: nn.Module) -> tuple[list[str], list[str]]:
    """Return the published names of the decayed and of the undecayed parameters in our optimizer."""
    names = {id(tensor): name for name, tensor in slip.to_published(model, objective).items()}
    by_decay: dict[bool, list[str]] = {True: [], False: []}
    for group in param_groups([model, objective], weight_decay=1.0):
        by_decay[group["weight_decay"] > 0] += [names[id(parameter)] for parameter in group["params"]]
    return by_decay[True], by_decay[False]


def decay_parts(ours: tuple[list[str], list[str]], decay: list[str], no_decay: list[str]) -> list[Part]:
    """Return comparisons of decayed and undecayed names with the recorded ones."""
    return [same_names("decayed", ours[0], decay), same_names("undecayed", ours[1], no_decay)]
