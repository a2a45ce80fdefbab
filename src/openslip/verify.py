"""Our numbers against recorded ones: a folder of what the published code computed. What equal means: docs/NUMERICS.md#equal."""

import copy
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from openslip.checkpoint import build_model
from openslip.data.views import EvalTransform
from openslip.errors import UserError
from openslip.evaluation.prompts import class_embeddings
from openslip.models.dual_encoder import DualEncoder
from openslip.objectives.clip import CLIP, unit_length
from openslip.objectives.objective import Objective
from openslip.objectives.simclr import SimCLR
from openslip.objectives.slip import SLIP
from openslip.optim import WarmupCosine, param_groups
from openslip.tokenizer import Tokenizer, text_lengths
from openslip.weights import slip

Arrays = dict[str, np.ndarray]

# The format's README gives these in words; a folder's `hyper` may name others.
_PUBLISHED = {
    "lr_start": 1e-6,
    "lr_end": 1e-5,
    "warmup_epochs": 1,
    "betas": (0.9, 0.98),
    "eps": 1e-8,
    "max_logit_scale": 4.6052,
}
_ZERO_GRADIENT = 1e-10
_EXACT = 0.0
_LEARNING_RATE = 1e-9
# A gradient far smaller than the model's carries rounding of the model's size, so it is measured against this share of it.
_GRADIENT_FLOOR = 1e-4
_TOO_COARSE = "too coarse a format to compare after AdamW; float32 does"


@dataclass(frozen=True)
class Tolerances:
    """Largest relative deviation from the recordings, per kind of quantity.

    A float32 recording is itself off the truth, by as much as our own float32 run is off our float64 run of the very
    same quantity. Where four times that distance is more than the stated tolerance, nobody can meet the tolerance and
    the distance counts instead, up to a limit; coarser formats scale it by their rounding.

    Attributes:
        loss, gradient, output: after one step.
        trajectory, weight: along all steps; None: not compared.
        accuracy_samples: how many samples of a batch may change sides.
        rounding: of the format, in units of float32's.
        limit: what rounding may excuse at most.
    """

    output: float
    loss: float
    gradient: float
    trajectory: float | None
    weight: float | None
    accuracy_samples: int
    rounding: float
    limit: float

    def allow(self, tolerance: float, noise: float) -> float:
        return max(tolerance, min(_NOISE_FACTOR * noise * self.rounding, self.limit))


def _coarse(bits: int) -> Tolerances:
    # A pass rounds an activation some ten times on its way, and errors of random sign add up to a few units. Twenty
    # steps of AdamW, which divides by the gradient's size, carry that to the size of the updates: nothing to compare.
    u = 2.0**-bits
    return Tolerances(
        output=8 * u,
        loss=8 * u,
        gradient=8 * u,
        trajectory=None,
        weight=None,
        accuracy_samples=2,
        rounding=u / 2.0**-24,
        limit=0.25,
    )


_NOISE_FACTOR = 4.0
# Below a tenth of 1 %, so that an error of 1 % is always seen. The recordings are float32: float64 comes no closer to them.
_FLOAT32 = Tolerances(
    output=1e-5,
    loss=1e-6,
    gradient=1e-5,
    trajectory=1e-4,
    weight=1e-5,
    accuracy_samples=0,
    rounding=1.0,
    limit=1e-3,
)
TOLERANCES = {"float64": _FLOAT32, "float32": _FLOAT32, "tf32": _coarse(bits=11), "bf16": _coarse(bits=8)}
_DTYPES = {"float64": torch.float64, "float32": torch.float32, "tf32": torch.float32, "bf16": torch.float32}


@dataclass(frozen=True)
class Row:
    """One line of the table; without a deviation, what it would compare is absent."""

    quantity: str
    deviation: float | None
    tolerance: float
    note: str

    @property
    def ok(self) -> bool:
        return self.deviation is None or self.deviation <= self.tolerance


def verify(folder: Path, device: str, dtype: str) -> int:
    """Print one line per quantity; 0 when all are within tolerance, else 1.

    Raises:
        UserError: no such folder, device or dtype, or a folder with none of the recordings.
    """
    rows = compare(folder, device, dtype)
    console = Console()
    width = max(len(row.quantity) for row in rows)
    for row in rows:
        console.print(
            _line(row, width), style=None if row.ok else "red", soft_wrap=True, markup=False, highlight=False
        )
    failed = sum(not row.ok for row in rows)
    compared = sum(row.deviation is not None for row in rows)
    console.print(
        f"{compared - failed} of {compared} quantities within tolerance ({device}, {dtype}; {folder})"
    )
    return 1 if failed else 0


def _line(row: Row, width: int) -> str:
    if row.deviation is None:
        return f"{row.quantity:<{width}}  {'':9}  {'':9}  skipped  {row.note}"
    outcome = "ok" if row.ok else "OUT"
    return f"{row.quantity:<{width}}  {row.deviation:9.2e}  {row.tolerance:9.2e}  {outcome:7}  {row.note}".rstrip()


def compare(folder: Path, device: str, dtype: str) -> list[Row]:
    """Every quantity that the folder records; nothing about its models, batches and figures is assumed."""
    if dtype not in TOLERANCES:
        raise UserError(f"dtype={dtype!r}: expected one of {', '.join(TOLERANCES)}")
    if not device.startswith("cpu") and not torch.cuda.is_available():
        raise UserError(f"device={device!r}: this machine has no CUDA device; use cpu")
    if dtype == "tf32" and device.startswith("cpu"):
        raise UserError("dtype='tf32': a format of CUDA devices; use float32 on the cpu")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected the recorded figures of the published code")
    rows: list[Row] = []
    meta = folder / "meta.json"
    if meta.is_file():
        runs = _attempt("meta.json", lambda: json.loads(meta.read_text())["runs"], rows) or {}
        for name in runs:
            _section(
                rows, folder, f"{name}.npz", name, lambda name=name: _run_rows(folder, name, device, dtype)
            )
        _section(rows, folder, "two_ranks.npz", "two ranks", lambda: _two_rank_rows(folder, dtype))
        _section(rows, folder, "zero_shot.npz", "zero-shot", lambda: _zero_shot_rows(folder, device, dtype))
    else:
        rows.append(Row("training runs, two ranks, zero-shot", None, 0.0, "no meta.json"))
    for file, quantity, function in (
        ("lr_schedules.json", "learning-rate tables", _schedule_rows),
        ("official_models.json", "official models", _official_rows),
        ("tokenizer.json", "token ids", _tokenizer_rows),
    ):
        _section(rows, folder, file, quantity, lambda file=file, function=function: function(folder / file))
    if all(row.deviation is None for row in rows):
        raise UserError(
            f"{folder}: none of the recorded figures is here; expected meta.json, *.npz, tokenizer.json, ..."
        )
    return rows


def _section(
    rows: list[Row], folder: Path, file: str, quantity: str, function: Callable[[], list[Row]]
) -> None:
    if (folder / file).is_file():
        rows.extend(_attempt(quantity, function, rows) or [])
    else:
        rows.append(Row(quantity, None, 0.0, f"no {file}"))


def _attempt(quantity: str, function: Callable[[], Any], rows: list[Row]) -> Any:
    # A folder that does not fit together (a shape, a missing array, a head count) is a finding like any other.
    try:
        return function()
    except Exception as error:
        rows.append(
            Row(
                quantity,
                math.inf,
                0.0,
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            )
        )
        return None


# ---- what a deviation is


@dataclass(frozen=True)
class _Part:
    label: str
    deviation: float
    tolerance: float

    @property
    def excess(self) -> float:
        if math.isnan(self.deviation):
            return math.inf
        if self.tolerance == 0:
            return math.inf if self.deviation else 0.0
        return self.deviation / self.tolerance


def _worst(quantity: str, parts: Iterable[_Part], note: str = "") -> Row:
    parts = list(parts)
    if not parts:
        return Row(quantity, None, 0.0, "none recorded")
    worst = max(parts, key=lambda part: part.excess)
    deviation = math.inf if math.isnan(worst.deviation) else worst.deviation
    notes = [f"worst of {len(parts)}: {worst.label}" if len(parts) > 1 else worst.label, note]
    return Row(quantity, deviation, worst.tolerance, "; ".join(filter(None, notes)))


def _norm(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x, dtype=np.float64).sum()))


def _relative(ours: np.ndarray, recorded: np.ndarray, floor: float = 0.0) -> float:
    if ours.shape != recorded.shape:
        return math.inf
    difference, scale = _norm(ours - recorded.astype(np.float64)), max(_norm(recorded), floor)
    return difference / scale if scale else math.inf if difference else 0.0


def _named(quantity: str, ours: Iterable[str], recorded: Iterable[str]) -> _Part:
    difference = sorted(set(ours) ^ set(recorded))
    return _Part(f"{quantity}: {', '.join(difference[:3]) or 'the same names'}", len(difference), _EXACT)


# ---- one recorded run


@dataclass(frozen=True)
class _Run:
    name: str
    dims: dict[str, Any]
    hyper: dict[str, Any]
    trajectory: list[dict[str, float]]
    decay: list[str]
    no_decay: list[str]
    arrays: Arrays

    def group(self, prefix: str) -> Arrays:
        return {
            key.removeprefix(prefix): array for key, array in self.arrays.items() if key.startswith(prefix)
        }

    @property
    def num_batches(self) -> int:
        return len({key.split("/")[0] for key in self.arrays if key.startswith("batch")})

    @property
    def has_text(self) -> bool:
        return "init/token_embedding.weight" in self.arrays

    @property
    def has_head(self) -> bool:
        return "init/image_mlp.layer1.weight" in self.arrays


def _read_run(folder: Path, name: str) -> _Run:
    meta = json.loads((folder / "meta.json").read_text())
    run = meta["runs"][name]
    return _Run(
        name=name,
        dims=meta["dims"],
        hyper=_PUBLISHED | run["hyper"],
        trajectory=run["trajectory"],
        decay=run["decay"],
        no_decay=run["no_decay"],
        arrays=_read_arrays(folder / f"{name}.npz"),
    )


def _read_arrays(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def _objective(run: _Run, *, gather_with_grad: bool) -> Objective:
    clip = {"gather_with_grad": gather_with_grad, "max_logit_scale": run.hyper["max_logit_scale"]}
    if not run.has_head:
        return CLIP(**clip)
    ssl = {
        "head_hidden": run.dims["ssl_mlp"],
        "head_output": run.dims["ssl_emb"],
        "ssl_temperature": run.dims["ssl_temp"],
    }
    return SLIP(**clip, **ssl, ssl_scale=run.dims["ssl_scale"]) if run.has_text else SimCLR(**ssl)


def _build(run: _Run, state: Arrays, *, gather_with_grad: bool) -> tuple[nn.Module, Objective]:
    shapes = {name: array.shape for name, array in state.items()}
    text_heads = run.dims["text_heads"] if run.has_text else None
    model = build_model(
        slip.read_architecture(shapes, image_heads=run.dims["vision_heads"], text_heads=text_heads)
    )
    objective = _objective(run, gather_with_grad=gather_with_grad)
    objective.setup(model)
    ours = slip.from_published({name: torch.from_numpy(array) for name, array in state.items()})
    for prefix, module in (("model.", model), ("objective.", objective)):
        module.load_state_dict(
            {key.removeprefix(prefix): value for key, value in ours.items() if key.startswith(prefix)}
        )
    return model.train(), objective.train()


def _batch(run: _Run, index: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    batch: dict[str, Tensor] = {}
    for key, array in run.group(f"batch{index}/").items():
        tensor = torch.from_numpy(array).to(device)
        if key == "text":
            batch["text_length"] = text_lengths(tensor)
            batch["text"] = tensor[:, : int(batch["text_length"].max())]  # as the loader cuts it
        else:
            batch[key] = tensor.to(dtype)
    return batch


@contextmanager
def _precision(device: str, dtype: str) -> Iterator[None]:
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    try:
        with torch.autocast(torch.device(device).type, torch.bfloat16) if dtype == "bf16" else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy().copy()


@dataclass
class _Trajectory:
    outputs: Arrays
    gradients: Arrays  # of the first step
    largest_gradient: Arrays  # over all steps, element by element
    terms: list[dict[str, float]]
    final: Arrays


def _train(run: _Run, device: str, dtype: str, nudge: Arrays | None = None) -> _Trajectory:
    """The recorded steps in this precision, from the recorded initial state (plus `nudge`)."""
    init = run.group("init/")
    for name, change in (nudge or {}).items():
        init[name] = init[name] + change
    model, objective = _build(run, init, gather_with_grad=True)
    model.to(device, _DTYPES[dtype])
    objective.to(device, _DTYPES[dtype])
    parameters = slip.to_published(model, objective)
    optimizer = torch.optim.AdamW(
        param_groups([model, objective], run.hyper["wd"]),
        lr=run.hyper["lr"],
        betas=tuple(run.hyper["betas"]),
        eps=run.hyper["eps"],
    )
    batches = [_batch(run, index, device, _DTYPES[dtype]) for index in range(run.num_batches)]
    schedule = _schedule(run)
    outputs: Arrays = {}
    gradients: Arrays = {}
    largest: Arrays = {}
    steps: list[dict[str, float]] = []
    for step in range(max(len(run.trajectory), 1)):
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        optimizer.zero_grad()
        with _precision(device, dtype):
            features = objective.encode(model, batches[step % len(batches)])
            if step == 0:
                outputs = _outputs(run, model, objective, features)
            terms = objective.loss(model, features)
            terms["loss"].backward()
        magnitudes = {name: _numpy(p.grad.abs()) for name, p in parameters.items() if p.grad is not None}
        largest = {
            name: np.maximum(magnitude, largest.get(name, 0.0)) for name, magnitude in magnitudes.items()
        }
        if step == 0:
            gradients = {name: _numpy(p.grad) for name, p in parameters.items() if p.grad is not None}
        optimizer.step()
        objective.after_step(model)
        figures = {name: float(value.detach()) for name, value in terms.items()} | {"lr": schedule(step)}
        if isinstance(model, DualEncoder):
            figures["logit_scale"] = float(model.logit_scale.detach().double().exp())
        steps.append(figures)
    return _Trajectory(
        outputs, gradients, largest, steps, {name: _numpy(p) for name, p in parameters.items()}
    )


def _schedule(run: _Run) -> WarmupCosine:
    return WarmupCosine(
        lr_start=run.hyper["lr_start"],
        lr=run.hyper["lr"],
        lr_end=run.hyper["lr_end"],
        warmup_steps=run.hyper["warmup_epochs"] * run.num_batches,
        total_steps=run.dims["epochs"] * run.num_batches,
    )


@torch.no_grad()
def _outputs(run: _Run, model: nn.Module, objective: Objective, features: dict[str, Tensor]) -> Arrays:
    outputs = {}
    if isinstance(model, DualEncoder):
        outputs |= {"image_embed": features["image"], "text_embed": features["text"]}
        outputs |= {"logit_scale": model.logit_scale.exp()}
    if run.has_head:
        assert isinstance(objective, SimCLR | SLIP)
        head = copy.deepcopy(objective.head)  # the step's own pass updates the running statistics
        outputs |= {"aug1_embed": head(features["aug1"]), "aug2_embed": head(features["aug2"])}
    return {name: _numpy(tensor) for name, tensor in outputs.items()}


# ---- what rounding alone does: DESIGN's zero-gradient list, derived


@dataclass(frozen=True)
class _Driven:
    """Where AdamW turns rounding into steps of the learning rate, since the true gradient is zero.

    Attributes:
        zero: per weight, elements whose gradient in float64 is below 1e-10 at every step, and yet not exactly zero.
        reach: how far such an element can be from another run's, and how far that carries what follows from it: the
            running mean of a batch norm whose input's bias it is. Zero where nothing is driven.
    """

    zero: Arrays
    reach: Arrays


def _driven(run: _Run, exact: _Trajectory) -> _Driven:
    zero = {
        name: (0 < largest) & (largest < _ZERO_GRADIENT) for name, largest in exact.largest_gradient.items()
    }
    schedule = _schedule(run)
    steps = range(len(run.trajectory))
    distance = 2 * sum(schedule(step) * _adamw_stride(step + 1, *run.hyper["betas"]) for step in steps)
    signs = np.random.default_rng(0)
    nudge = {
        name: distance * mask * signs.choice([-1.0, 1.0], mask.shape)
        for name, mask in zero.items()
        if mask.any()
    }
    moved = _train(run, "cpu", "float64", nudge)
    reach = {}
    for name, final in exact.final.items():
        if name in zero:
            reach[name] = np.where(zero[name], distance, 0.0)
        else:
            movement = np.abs(moved.final[name] - final)
            reach[name] = movement if (movement > 1e-3 * distance).any() else np.zeros_like(movement)
    return _Driven(zero, reach)


def _adamw_stride(step: int, beta1: float, beta2: float) -> float:
    """Largest |m| / sqrt(v) at this step for any gradients, by Cauchy-Schwarz; times the learning rate, the longest step."""
    ages = np.arange(step)
    m = (1 - beta1) * beta1**ages / (1 - beta1**step)
    v = (1 - beta2) * beta2**ages / (1 - beta2**step)
    return float(np.sqrt((m**2 / v).sum()))


# ---- rows of a run


def _run_rows(folder: Path, name: str, device: str, dtype: str) -> list[Row]:
    run = _read_run(folder, name)
    tolerances = TOLERANCES[dtype]
    exact = _train(run, "cpu", "float64")
    single = _train(run, "cpu", "float32")
    same = {("cpu", "float32"): single, ("cpu", "float64"): exact}
    ours = same.get((device, dtype)) or _train(run, device, dtype)
    return [
        _dims_row(run),
        _output_row(run, ours, single, exact, tolerances),
        *_loss_rows(run, ours, single, exact, tolerances),
        *_gradient_rows(
            name, run.group("grad/"), ours.gradients, single.gradients, exact.gradients, tolerances
        ),
        *_trajectory_rows(run, ours, single, exact, tolerances),
        *_weight_rows(run, ours, single, exact, _driven(run, exact), tolerances),
        _decay_row(run),
    ]


def _dims_row(run: _Run) -> Row:
    init = {name: array.shape for name, array in run.group("init/").items()}
    patch = init["visual.patch_embed.proj.weight"]
    found = {
        "batch": next(iter(run.group("batch0/").values())).shape[0],
        "image_size": round((init["visual.pos_embed"][1] - 1) ** 0.5) * patch[-1],
        "patch": patch[-1],
        "vision_width": patch[0],
        "vision_depth": _depth(init, "visual.blocks."),
    }
    if run.has_text:
        found |= {
            "embed_dim": init["image_projection"][1],
            "context": init["positional_embedding"][0],
            "vocab": init["token_embedding.weight"][0],
            "text_width": init["token_embedding.weight"][1],
            "text_layers": _depth(init, "transformer.resblocks."),
        }
    if run.has_head:
        found |= {
            "ssl_mlp": init["image_mlp.layer1.weight"][0],
            "ssl_emb": init["image_mlp.layer3.weight"][0],
        }
    parts = [
        _Part(f"{key}={run.dims[key]}, arrays have {value}", abs(run.dims[key] - value), _EXACT)
        for key, value in found.items()
        if key in run.dims
    ]
    return _worst(f"{run.name}: dims of the arrays", parts)


def _depth(names: Iterable[str], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)})


def _output_row(
    run: _Run, ours: _Trajectory, single: _Trajectory, exact: _Trajectory, tolerances: Tolerances
) -> Row:
    parts = []
    for name, recorded in run.group("out/").items():
        noise = _relative(single.outputs[name], exact.outputs[name])
        parts.append(
            _Part(name, _relative(ours.outputs[name], recorded), tolerances.allow(tolerances.output, noise))
        )
    return _worst(f"{run.name}: outputs", parts)


def _loss_rows(
    run: _Run, ours: _Trajectory, single: _Trajectory, exact: _Trajectory, tolerances: Tolerances
) -> list[Row]:
    recorded = {name: float(value) for name, value in run.group("loss/").items()}
    losses, accuracies = _term_parts(
        recorded,
        ours.terms[0],
        single.terms[0],
        exact.terms[0],
        tolerances,
        tolerances.loss,
        _sample(run, tolerances),
    )
    return [
        _worst(f"{run.name}: loss terms", losses),
        _worst(f"{run.name}: accuracies (per cent)", accuracies),
    ]


def _term_parts(
    recorded: Mapping[str, float],
    ours: Mapping[str, float],
    single: Mapping[str, float],
    exact: Mapping[str, float],
    tolerances: Tolerances,
    tolerance: float,
    accuracy_tolerance: float,
    scales: Mapping[str, float] | None = None,
    suffix: str = "",
) -> tuple[list[_Part], list[_Part]]:
    losses, accuracies = [], []
    for name, value in recorded.items():
        if name == "lr":
            continue
        deviation = abs(ours[name] - value)
        noise = abs(single[name] - exact[name])
        if name.endswith("_acc"):
            # Rounding changes sides only where two candidates tie, and then our two precisions may differ as well.
            accuracies.append(_Part(name + suffix, deviation, accuracy_tolerance + noise))
        else:
            scale = max(abs(value), scales[name] if scales else 0.0) or 1.0
            losses.append(_Part(name + suffix, deviation / scale, tolerances.allow(tolerance, noise / scale)))
    return losses, accuracies


def _sample(run: _Run, tolerances: Tolerances) -> float:
    # An accuracy is a whole number of samples; 1e-3 per cent is its float32 rounding.
    return 1e-3 + tolerances.accuracy_samples * 100 / next(iter(run.group("batch0/").values())).shape[0]


def _gradient_rows(
    name: str, recorded: Arrays, ours: Arrays, single: Arrays, exact: Arrays, tolerances: Tolerances
) -> list[Row]:
    if not recorded:
        return [Row(f"{name}: gradients", None, 0.0, "none recorded")]
    names = _named("gradients", ours, recorded)
    if names.deviation:
        return [_worst(f"{name}: gradients", [names])]
    total = _norm(np.concatenate([array.ravel() for array in recorded.values()]).astype(np.float64))
    whole, noise = (
        _norm(np.concatenate([(a[key] - b[key]).ravel() for key in recorded])) / total
        for a, b in ((ours, recorded), (single, exact))
    )
    model = _Part(f"norm {total:.4g}", whole, tolerances.allow(tolerances.gradient, noise))
    tensors, zeros = [], []
    num_zero = 0
    for key, array in recorded.items():
        zero = np.abs(exact[key]) < _ZERO_GRADIENT
        kept, floor = np.where(zero, 0.0, array), max(_norm(array), _GRADIENT_FLOOR * total)
        noise = _norm(np.where(zero, 0.0, single[key] - exact[key])) / floor
        deviation = _relative(np.where(zero, 0.0, ours[key]), kept, floor)
        tensors.append(_Part(key, deviation, tolerances.allow(tolerances.gradient, noise)))
        if zero.any():
            num_zero += int(zero.sum())
            zeros.append(
                _Part(key, _norm(np.where(zero, ours[key] - array, 0.0)) / total, tolerances.gradient)
            )
    return [
        _worst(f"{name}: gradient of the model", [model]),
        _worst(f"{name}: gradients by tensor", tensors),
        _worst(
            f"{name}: zero gradients, against the model's",
            zeros,
            f"{num_zero} elements below 1e-10 in float64: rounding, or unused",
        ),
    ]


def _trajectory_rows(
    run: _Run, ours: _Trajectory, single: _Trajectory, exact: _Trajectory, tolerances: Tolerances
) -> list[Row]:
    losses, accuracies, scales, rates = [], [], [], []
    keys = set().union(*run.trajectory)
    # A loss is a difference of logits: its rounding does not shrink with it, so it is measured against its usual size.
    mean = {
        key: float(np.mean([abs(entry[key]) for entry in run.trajectory if key in entry])) for key in keys
    }
    for step, entry in enumerate(run.trajectory):
        loss, accuracy = _term_parts(
            entry,
            ours.terms[step],
            single.terms[step],
            exact.terms[step],
            tolerances,
            tolerances.trajectory or 0.0,
            _sample(run, tolerances),
            mean,
            f" at step {step}",
        )
        losses += [part for part in loss if not part.label.startswith("logit_scale")]
        scales += [part for part in loss if part.label.startswith("logit_scale")]
        accuracies += accuracy
        if "lr" in entry:
            deviation = abs(ours.terms[step]["lr"] - entry["lr"]) / max(abs(entry["lr"]), 1e-30)
            rates.append(_Part(f"step {step}", deviation, _LEARNING_RATE))
    label = f"{run.name}, {len(run.trajectory)} steps"
    rate = _worst(f"{label}: learning rate", rates)
    if tolerances.trajectory is None:
        return [rate, Row(f"{label}: loss terms", None, 0.0, _TOO_COARSE)]
    rows = [_worst(f"{label}: loss terms", losses), _worst(f"{label}: accuracies (per cent)", accuracies)]
    rows += [_worst(f"{label}: logit scale", scales)] if run.has_text else []
    return [*rows, rate]


def _weight_rows(
    run: _Run,
    ours: _Trajectory,
    single: _Trajectory,
    exact: _Trajectory,
    driven: _Driven,
    tolerances: Tolerances,
) -> list[Row]:
    label = f"{run.name}, {len(run.trajectory)} steps"
    recorded = run.group("final/")
    if not recorded:
        return [Row(f"{label}: final state", None, 0.0, "none recorded")]
    if tolerances.weight is None:
        return [Row(f"{label}: final state", None, 0.0, _TOO_COARSE)]
    names = _named("state", ours.final, recorded)
    if names.deviation:
        return [_worst(f"{label}: final state", [names])]
    kept, excluded = [], []
    total, difference = 0.0, 0.0
    num_zero = sum(int(mask.sum()) for mask in driven.zero.values())
    for name, array in recorded.items():
        if array.shape != ours.final[name].shape:
            kept.append(_Part(name, math.inf, tolerances.weight))
            continue
        free = driven.reach[name] == 0
        if free.any():
            truth = np.where(free, array, 0.0)
            deviation = _norm(np.where(free, ours.final[name] - array, 0.0))
            scale = _norm(truth) or 1.0
            noise = _norm(np.where(free, single.final[name] - exact.final[name], 0.0)) / scale
            kept.append(_Part(name, deviation / scale, tolerances.allow(tolerances.weight, noise)))
            if name in driven.zero:
                total, difference = total + _norm(truth) ** 2, difference + deviation**2
        if not free.all():
            drift = _norm(np.where(free, 0.0, ours.final[name] - array))
            excluded.append(_Part(name, drift / _norm(driven.reach[name]), 1.0))
    whole = _Part(
        "outside the zero-gradient list", math.sqrt(difference / total) if total else 0.0, tolerances.weight
    )
    return [
        _worst(f"{label}: final weights as a whole", [whole]),
        _worst(f"{label}: final state by tensor", kept),
        _worst(
            f"{label}: zero-gradient list, drift over reach",
            excluded,
            f"{num_zero} weights with |g| < 1e-10 in float64, and the running means they shift",
        ),
    ]


def _decay_row(run: _Run) -> Row:
    model, objective = _build(run, run.group("init/"), gather_with_grad=True)
    return _worst(
        f"{run.name}: decayed and undecayed names", _decay_parts(model, objective, run.decay, run.no_decay)
    )


def _decay_parts(
    model: nn.Module, objective: nn.Module, decay: list[str], no_decay: list[str]
) -> list[_Part]:
    names = {id(tensor): name for name, tensor in slip.to_published(model, objective).items()}
    groups = param_groups([model, objective], weight_decay=1.0)
    found: dict[bool, list[str]] = {True: [], False: []}
    for group in groups:
        found[group["weight_decay"] > 0] += [names[id(parameter)] for parameter in group["params"]]
    return [_named("decayed", found[True], decay), _named("undecayed", found[False], no_decay)]


# ---- two ranks


def _two_rank_rows(folder: Path, dtype: str) -> list[Row]:
    recorded = _read_arrays(folder / "two_ranks.npz")
    names = list(dict.fromkeys(key.split("/")[0] for key in recorded))
    world = 1 + max(int(key.split("/")[1].removeprefix("rank")) for key in recorded if "/rank" in key)
    tolerances = TOLERANCES[dtype]
    dtypes = list(dict.fromkeys([dtype if dtype != "tf32" else "float32", "float32", "float64"]))
    with tempfile.TemporaryDirectory() as scratch:
        torch.multiprocessing.spawn(_rank_main, (world, str(folder), names, dtypes, scratch), nprocs=world)
        ranks = [_read_arrays(Path(scratch) / f"rank{rank}.npz") for rank in range(world)]

    def part(rank: int, dtype: str, mode: str, name: str, kind: str) -> Arrays:
        prefix = f"{dtype}/{mode}/{name}/{kind}/"
        return {
            key.removeprefix(prefix): array for key, array in ranks[rank].items() if key.startswith(prefix)
        }

    rows = []
    for name in names:
        run = _read_run(folder, name)
        losses, accuracies = [], []
        for rank in range(world):
            figures = {
                key.split("/")[-1]: float(value)
                for key, value in recorded.items()
                if key.startswith(f"{name}/rank{rank}/")
            }
            ours, single, exact = (
                {key: float(value) for key, value in part(rank, d, "published", name, "loss").items()}
                for d in (dtypes[0], "float32", "float64")
            )
            sample = 1e-3 + (_sample(run, tolerances) - 1e-3) * world
            found = _term_parts(
                figures, ours, single, exact, tolerances, tolerances.loss, sample, suffix=f" on rank {rank}"
            )
            losses += found[0]
            accuracies += found[1]
        rows += [
            _worst(f"{name}, {world} ranks: loss terms", losses),
            _worst(f"{name}, {world} ranks: accuracies (per cent)", accuracies),
        ]
        gradient = {
            key.removeprefix(f"{name}/grad/"): array
            for key, array in recorded.items()
            if key.startswith(f"{name}/grad/")
        }
        for mode, label, truth in (
            ("published", f"{name}, {world} ranks", gradient),
            ("with_grad", f"{name}, {world} ranks, gather_with_grad", run.group("grad/")),
        ):
            ours, single, exact = (part(0, d, mode, name, "grad") for d in (dtypes[0], "float32", "float64"))
            rows += _gradient_rows(label, truth, ours, single, exact, tolerances)
    return rows


def _rank_main(
    rank: int, world: int, folder: str, names: Sequence[str], dtypes: Sequence[str], scratch: str
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{scratch}/rendezvous", rank=rank, world_size=world)
    found: Arrays = {}
    for name in names:
        run = _read_run(Path(folder), name)
        for dtype in dtypes:
            for mode in ("published", "with_grad"):
                prefix = f"{dtype}/{mode}/{name}"
                terms, gradients = _rank_step(run, rank, world, dtype, gather_with_grad=mode == "with_grad")
                found |= {f"{prefix}/loss/{key}": value for key, value in terms.items()}
                found |= {f"{prefix}/grad/{key}": value for key, value in gradients.items()}
    np.savez(Path(scratch) / f"rank{rank}.npz", allow_pickle=False, **found)
    dist.destroy_process_group()


def _rank_step(
    run: _Run, rank: int, world: int, dtype: str, *, gather_with_grad: bool
) -> tuple[Arrays, Arrays]:
    model, objective = _build(run, run.group("init/"), gather_with_grad=gather_with_grad)
    model.to(_DTYPES[dtype])
    objective.to(_DTYPES[dtype])
    batch = {key: tensor.chunk(world)[rank] for key, tensor in _batch(run, 0, "cpu", _DTYPES[dtype]).items()}
    with _precision("cpu", dtype):
        terms = objective.loss(model, objective.encode(model, batch))
        terms["loss"].backward()
    gradients = {}
    for name, parameter in slip.to_published(model, objective).items():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            gradients[name] = _numpy(parameter.grad / world)
    return {name: _numpy(value) for name, value in terms.items()}, gradients


# ---- zero-shot


class _RecordedTokens(Tokenizer):
    """Stands in for the tokenizer: prompt `{class}/{template}` has the recorded ids, whatever vocabulary they are of."""

    def __init__(self, text: Tensor) -> None:
        super().__init__(context_length=text.shape[-1], truncation="drop_end", special_text="token")
        self.text = text

    def __call__(self, captions: str | Sequence[str]) -> Tensor:
        captions = [captions] if isinstance(captions, str) else captions
        places = [tuple(int(number) for number in caption.split("/")) for caption in captions]
        return torch.stack([self.text[place] for place in places])


def _zero_shot_rows(folder: Path, device: str, dtype: str) -> list[Row]:
    recorded = _read_arrays(folder / "zero_shot.npz")
    tolerances = TOLERANCES[dtype]
    rows = []
    if "text" in recorded and (folder / "clip.npz").is_file():
        run = _read_run(folder, "clip")
        single, exact = (_zero_shot(run, recorded, "cpu", other) for other in ("float32", "float64"))
        ours = {"float32": single, "float64": exact}.get(dtype) if device == "cpu" else None
        ours = ours or _zero_shot(run, recorded, device, dtype)
        for key, values in ours.items():
            noise = _relative(single[key], exact[key])
            part = _Part("", _relative(values, recorded[key]), tolerances.allow(tolerances.output, noise))
            rows.append(_worst(f"zero-shot: {key.replace('_', ' ')}", [part]))
    else:
        rows.append(Row("zero-shot", None, 0.0, "no text in zero_shot.npz, or no clip.npz"))
    return [*rows, _transform_row(recorded)]


@torch.no_grad()
def _zero_shot(run: _Run, recorded: Arrays, device: str, dtype: str) -> Arrays:
    model, _ = _build(run, run.group("final/"), gather_with_grad=True)
    assert isinstance(model, DualEncoder)
    model.to(device, _DTYPES[dtype]).eval()
    text = torch.from_numpy(recorded["text"])
    num_classes, num_templates = text.shape[:2]
    with _precision(device, dtype):
        classes = class_embeddings(
            model,
            _RecordedTokens(text),
            [str(number) for number in range(num_classes)],
            [f"{{}}/{number}" for number in range(num_templates)],
            torch.device(device),
            batch_size=4,
        )
        images = unit_length(
            model.encode_image(torch.from_numpy(recorded["images"]).to(device, _DTYPES[dtype]))
        )
    logits = images.double() @ classes.double().T
    probabilities = (model.logit_scale.double().exp() * logits).softmax(dim=-1)
    found = {"class_embeddings": classes, "logits": logits, "probabilities": probabilities}
    return {key: _numpy(value) for key, value in found.items() if key in recorded}


def _transform_row(recorded: Arrays) -> Row:
    expected = {key: array for key, array in recorded.items() if key.startswith("eval_transform_")}
    y, x = np.mgrid[0:301, 0:402].astype(np.float64)  # the picture that the format describes
    red, green = x * 255 / 401, y * 255 / 300
    blue = 127 + 127 * np.sin(x / 9) * np.cos(y / 7)
    picture = Image.fromarray(np.stack([red, green, blue], axis=-1).round().astype(np.uint8))
    pixels = _numpy(EvalTransform(**slip.PUBLISHED_TRANSFORM)(picture))
    found = {
        "eval_transform_mean": pixels.mean(axis=(1, 2)),
        "eval_transform_std": pixels.std(axis=(1, 2), ddof=1),
        "eval_transform_rows": pixels[:, ::37, ::29],
    }
    parts = [_Part(key, _relative(found[key], array), _FLOAT32.output) for key, array in expected.items()]
    return _worst("evaluation transform", parts)


# ---- tables


def _schedule_rows(path: Path) -> list[Row]:
    parts = []
    for name, table in json.loads(path.read_text()).items():
        schedule = WarmupCosine(
            lr_start=table["lr_start"],
            lr=table["lr"],
            lr_end=table["lr_end"],
            warmup_steps=table["warmup_epochs"] * table["steps_per_epoch"],
            total_steps=table["epochs"] * table["steps_per_epoch"],
        )
        for step, rate in table["points"].items():
            deviation = abs(schedule(int(step)) - rate) / max(abs(rate), 1e-30)
            parts.append(_Part(f"{name} at step {step}", deviation, _LEARNING_RATE))
    return [_worst("learning-rate tables", parts)]


def _official_rows(path: Path) -> list[Row]:
    counts, shapes, decays, heads = [], [], [], []
    for name, recorded in json.loads(path.read_text()).items():
        state = recorded["state"]
        size = name.rsplit("_", 1)[-1]
        # Elsewhere than in the published sizes the head count is nowhere in the weights, and the folder's word is taken.
        num_heads = slip.image_heads(state, name) if size in slip.PUBLISHED_IMAGE_HEADS else recorded["heads"]
        heads.append(_Part(f"{name}: {num_heads}", abs(num_heads - recorded["heads"]), _EXACT))
        with torch.device("meta"):
            model, objective = _official(state, num_heads)
        ours = slip.to_published(model, objective)
        count = sum(parameter.numel() for module in (model, objective) for parameter in module.parameters())
        counts.append(_Part(f"{name}: {count}", abs(count - recorded["parameters"]), _EXACT))
        found = {f"{key} {list(tensor.shape)}" for key, tensor in ours.items()}
        shapes.append(_named(name, found, (f"{key} {list(shape)}" for key, shape in state.items())))
        for part in _decay_parts(model, objective, recorded["decay"], recorded["no_decay"]):
            decays.append(_Part(f"{name}, {part.label}", part.deviation, part.tolerance))
    return [
        _worst("official models: parameters", counts),
        _worst("official models: names and shapes", shapes),
        _worst("official models: decayed and undecayed names", decays),
        _worst("official models: attention heads", heads),
    ]


def _official(state: dict[str, list[int]], num_heads: int) -> tuple[nn.Module, Objective]:
    model = build_model(slip.read_architecture(state, image_heads=num_heads, text_heads=None))
    objective: Objective = CLIP(gather_with_grad=True, max_logit_scale=_PUBLISHED["max_logit_scale"])
    if "image_mlp.layer1.weight" in state:
        objective = SimCLR(
            head_hidden=state["image_mlp.layer1.weight"][0],
            head_output=state["image_mlp.layer3.weight"][0],
            ssl_temperature=1.0,
        )
    objective.setup(model)
    return model, objective


def _tokenizer_rows(path: Path) -> list[Row]:
    recorded = json.loads(path.read_text())
    tokenizer = Tokenizer(context_length=recorded["context_length"], **slip.PUBLISHED_TOKENIZER)
    parts = []
    for caption, ids in zip(recorded["captions"], recorded["ids"], strict=True):
        ours = tokenizer(caption)[0].tolist()
        differing = sum(a != b for a, b in zip(ours, ids, strict=False)) + abs(len(ours) - len(ids))
        parts.append(_Part(f"ids of {caption[:30]!r}", differing, _EXACT))
    return [_worst("token ids", parts)]
