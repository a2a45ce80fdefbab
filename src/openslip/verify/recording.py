"""Reads a recorded run from its folder, and repeats its steps with our code."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openslip.inference.architecture import build_model
from openslip.inference.formats import slip
from openslip.models.dual_encoder import DualEncoder
from openslip.models.image_encoder import ImageEncoder
from openslip.objectives.clip import CLIP
from openslip.objectives.objective import Objective
from openslip.objectives.simclr import SimCLR
from openslip.objectives.slip import SLIP
from openslip.optim import WarmupCosine, param_groups
from openslip.training.precision import autocast
from openslip.verify.deviation import ZERO_GRADIENT, Arrays
from openslip.verify.files import read_arrays, read_json

Model = DualEncoder | ImageEncoder
_ROUNDING_SAMPLES = 8

# Values that the README of the recordings states in words; a run's `hyper` overrides them.
PUBLISHED_HYPER: dict[str, Any] = {"lr_start": 1e-6, "lr_end": 1e-5, "warmup_epochs": 1}
PUBLISHED_HYPER |= {"betas": (0.9, 0.98), "eps": 1e-8, "max_logit_scale": 4.6052}
# dtype of the weights in each format; bfloat16 computes under autocast.
DTYPES = {"float64": torch.float64, **dict.fromkeys(("float32", "tf32", "bfloat16"), torch.float32)}


@dataclass(frozen=True)
class Run:
    """The recording of one method: its entry of `meta.json` and the arrays of its file."""

    name: str
    dims: dict[str, Any]
    hyper: dict[str, Any]
    trajectory: list[dict[str, float]]
    decay: list[str]
    no_decay: list[str]
    arrays: Arrays

    def group(self, prefix: str) -> Arrays:
        """Return the arrays whose names start with a prefix such as `init/`, which is removed from their names."""
        return {key.removeprefix(prefix): array for key, array in self.arrays.items() if key.startswith(prefix)}

    @property
    def num_batches(self) -> int:
        return len({key.split("/")[0] for key in self.arrays if key.startswith("batch")})

    @property
    def batch_size(self) -> int:
        return len(next(iter(self.group("batch0/").values())))

    @property
    def has_text(self) -> bool:
        return "init/token_embedding.weight" in self.arrays

    @property
    def has_head(self) -> bool:
        return "init/image_mlp.layer1.weight" in self.arrays

    def schedule(self) -> WarmupCosine:
        """Return the learning-rate schedule; an epoch is one pass over the recorded batches."""
        return WarmupCosine(
            lr_start=self.hyper["lr_start"],
            lr=self.hyper["lr"],
            lr_end=self.hyper["lr_end"],
            warmup_steps=self.hyper["warmup_epochs"] * self.num_batches,
            max_steps=self.dims["epochs"] * self.num_batches,
        )


def read_run(folder: Path, name: str) -> Run:
    """Read the run `name`, such as `clip`, from a folder of recordings."""
    meta = read_json(folder / "meta.json")
    run = meta["runs"][name]
    return Run(
        name=name,
        dims=meta["dims"],
        hyper=PUBLISHED_HYPER | run["hyper"],
        trajectory=run["trajectory"],
        decay=run["decay"],
        no_decay=run["no_decay"],
        arrays=read_arrays(folder / f"{name}.npz"),
    )


def describe(run: Run, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the architecture of a model whose published arrays have these shapes."""
    text_heads = run.dims["text_heads"] if run.has_text else None
    return slip.read_architecture(shapes, image_heads=run.dims["vision_heads"], text_heads=text_heads)


def build(run: Run, state: Arrays, *, gather_with_grad: bool) -> tuple[Model, Objective]:
    """Build model and objective for the arrays `state`, load them, and set training mode."""
    model = build_model(describe(run, {name: array.shape for name, array in state.items()}))
    assert isinstance(model, DualEncoder | ImageEncoder)
    objective = _objective(run, gather_with_grad=gather_with_grad)
    objective.prepare(model)
    ours = slip.from_published({name: torch.from_numpy(array) for name, array in state.items()})
    for prefix, module in (("model.", model), ("objective.", objective)):
        part = {key.removeprefix(prefix): value for key, value in ours.items() if key.startswith(prefix)}
        module.load_state_dict(part)
    model.train()
    return model, objective.train()


def _objective(run: Run, *, gather_with_grad: bool) -> Objective:
    clip = {"gather_with_grad": gather_with_grad, "max_logit_scale": run.hyper["max_logit_scale"]}
    if not run.has_head:
        return CLIP(**clip, same_caption="negative")
    dims = run.dims
    ssl = {"head_hidden": dims["ssl_mlp"], "head_output": dims["ssl_emb"], "ssl_temperature": dims["ssl_temp"]}
    return SLIP(**clip, **ssl, ssl_scale=dims["ssl_scale"]) if run.has_text else SimCLR(**ssl)


def read_batch(run: Run, index: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Read a recorded batch in the form our data module yields, with captions truncated to the longest one."""
    batch: dict[str, Tensor] = {}
    for key, array in run.group(f"batch{index}/").items():
        tensor = torch.from_numpy(array).to(device)
        if key == "text":
            batch["text_length"] = tensor.argmax(dim=1) + 1  # the published code pools the largest id
            batch["text"] = tensor[:, : int(batch["text_length"].max())]
        else:
            batch[key] = tensor.to(dtype)
    return batch


@contextmanager
def precision(device: str, dtype: str) -> Iterator[None]:
    """Compute in this format inside the context: TF32 for `tf32` only, autocast for `bfloat16`."""
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    half = autocast(torch.device(device), "bf16-mixed" if dtype == "bfloat16" else "32-true")
    try:
        with half:
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


def as_array(tensor: Tensor) -> np.ndarray:
    """Copy a tensor to a float64 array."""
    return tensor.detach().double().cpu().numpy().copy()


@dataclass(frozen=True)
class Trajectory:
    """Results of repeating the recorded steps.

    Attributes:
        outputs: model outputs of the first step.
        gradients: gradients of the first step.
        largest_gradient: largest absolute gradient over all steps, element by element.
        terms: for each step its losses, accuracies, learning rate, and the logit scale after it.
        final: weights and statistics after the last step.
    """

    outputs: Arrays
    gradients: Arrays
    largest_gradient: Arrays
    terms: list[dict[str, float]]
    final: Arrays


def train(run: Run, device: str, dtype: str, nudge: Arrays | None = None) -> Trajectory:
    """Repeat the recorded steps in this format, from the recorded initial state plus `nudge`."""
    init = run.group("init/")
    for name, change in (nudge or {}).items():
        init[name] = np.asarray(init[name] + change)
    model, objective = build(run, init, gather_with_grad=True)
    model.to(device, DTYPES[dtype])
    objective.to(device, DTYPES[dtype])
    state = slip.to_published(model, objective)
    optimizer = torch.optim.AdamW(
        param_groups([model, objective], run.hyper["wd"]),
        lr=run.hyper["lr"],
        betas=tuple(run.hyper["betas"]),
        eps=run.hyper["eps"],
    )
    batches = [read_batch(run, index, device, DTYPES[dtype]) for index in range(run.num_batches)]
    schedule = run.schedule()
    outputs: Arrays = {}
    first: Arrays = {}
    largest: Arrays = {}
    steps: list[dict[str, float]] = []
    for step in range(max(len(run.trajectory), 1)):
        rate = schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        with precision(device, dtype):
            features = objective.encode(model, batches[step % len(batches)])
            outputs = outputs or _outputs(model, objective, features)
            terms = objective.terms(model, features)
            terms["loss"].backward()
        gradients = {name: as_array(tensor.grad) for name, tensor in state.items() if tensor.grad is not None}
        first = first or gradients
        largest = {name: np.asarray(np.maximum(abs(g), largest.get(name, 0.0))) for name, g in gradients.items()}
        optimizer.step()
        objective.after_step(model)
        values = {name: float(value.detach()) for name, value in terms.items()} | {"lr": rate}
        if isinstance(model, DualEncoder):
            values["logit_scale"] = float(model.logit_scale.detach().double().exp())
        steps.append(values)
    return Trajectory(outputs, first, largest, steps, {name: as_array(tensor) for name, tensor in state.items()})


@torch.no_grad()
def loss_rounding(run: Run) -> dict[str, float]:
    """Return the root-mean-square float32 rounding error of each loss of batch 0, over perturbed initial weights."""
    rng = np.random.default_rng(0)
    squares: dict[str, list[float]] = {}
    for _ in range(_ROUNDING_SAMPLES):
        init = run.group("init/")
        for name, array in init.items():
            if array.dtype.kind == "f":
                moved = array * (1 + 1e-3 * rng.standard_normal(array.shape))
                init[name] = np.asarray(moved, dtype=array.dtype)
        losses: list[dict[str, float]] = []
        for dtype in (torch.float32, torch.float64):
            model, objective = build(run, init, gather_with_grad=True)
            model.to(dtype)
            objective.to(dtype)
            terms = objective.terms(model, objective.encode(model, read_batch(run, 0, "cpu", dtype)))
            losses.append({name: float(value) for name, value in terms.items()})
        for name, value in losses[0].items():
            squares.setdefault(name, []).append((value - losses[1][name]) ** 2)
    return {name: math.sqrt(sum(values) / len(values)) for name, values in squares.items()}


@torch.no_grad()
def _outputs(model: Model, objective: Objective, features: dict[str, Tensor]) -> Arrays:
    outputs = {}
    if isinstance(model, DualEncoder):
        outputs |= {"image_embed": features["image"], "text_embed": features["text"]}
        outputs |= {"logit_scale": model.logit_scale.exp()}
    if isinstance(objective, SimCLR | SLIP):
        head = copy.deepcopy(objective.head)  # a copy, because a pass updates running statistics
        outputs |= {"aug1_embed": head(features["aug1"]), "aug2_embed": head(features["aug2"])}
    return {name: as_array(tensor) for name, tensor in outputs.items()}


@dataclass(frozen=True)
class Driven:
    """Elements whose true gradient is zero, so that AdamW turns rounding into steps as large as the learning rate.

    Attributes:
        zero: masks by weight, true for elements whose float64 gradient is below 1e-10 at every step but not exactly 0.
        reach: largest distance by array between such an element in two runs, and of what depends on it (a bias before
            a batch norm shifts its running mean); zero for all other elements.
    """

    zero: Arrays
    reach: Arrays


def find_driven(run: Run, exact: Trajectory) -> Driven:
    """Find zero-gradient elements in the float64 run, and what else moves if they are moved as far as possible."""
    zero = {name: np.asarray((g > 0) & (g < ZERO_GRADIENT)) for name, g in exact.largest_gradient.items()}
    schedule = run.schedule()
    strides = [schedule(step) * _adamw_stride(step + 1, *run.hyper["betas"]) for step in range(len(run.trajectory))]
    distance = 2 * sum(strides)
    signs = np.random.default_rng(0)
    nudge = {name: distance * mask * signs.choice([-1.0, 1.0], mask.shape) for name, mask in zero.items() if mask.any()}
    moved = train(run, "cpu", "float64", nudge)
    reach = {}
    for name, final in exact.final.items():
        movement = np.abs(moved.final[name] - final)
        if name in zero:
            reach[name] = np.where(zero[name], distance, 0.0)
        else:
            reach[name] = np.asarray(movement * np.any(movement > 1e-3 * distance))
    return Driven(zero, reach)


def _adamw_stride(step: int, beta1: float, beta2: float) -> float:
    """Return the largest |m| / sqrt(v) that any gradients can give at this step, by the Cauchy-Schwarz inequality."""
    ages = np.arange(step)
    m = (1 - beta1) * beta1**ages / (1 - beta1**step)
    v = (1 - beta2) * beta2**ages / (1 - beta2**step)
    return float(np.sqrt((m**2 / v).sum()))
