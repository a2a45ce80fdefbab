"""One training step, ours beside open_clip's and the published one: towers, loss, backward pass, AdamW, clamp.

Captions are as long as CC3M's: lognormal, 14 tokens in the mean, start and end included. On the CPU the figures are of
process time on one thread, and a ratio is the median over rounds in which the steps take turns. On a GPU each step has
the memory to itself; its peak and, with --peak-tflops, the model-FLOPs utilisation stand below its rate. Operations
are counted in one forward pass with plain attention, and are three times as many with the backward pass.
What training adds to our step for safety, above all the norm of the gradient, is not in it: under 1 %.

    python benchmarks/step.py --json step.json
    python benchmarks/step.py --device cuda --precision bf16 --batch-size 256 --peak-tflops 989
    python benchmarks/step.py --device cuda --precision bf16 --batch-size 256 --ours-only --compile --models slip_vitb16
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip.loss import ClipLoss
from published_step import PublishedModel
from rates import Rates, Row, Work, show
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from openslip.config.build import build, build_parts
from openslip.config.compose import compose_config
from openslip.models.attention import fused_is_fastest, varlen_is_possible
from openslip.optim import param_groups
from openslip.training.compiling import compile_parts
from openslip.training.microbatch import loss_in_micro_batches
from openslip.training.sizing.flops import TRAINING_OVER_FORWARD

TITLES = {
    "clip_vits16": "CLIP ViT-S/16",
    "clip_vitb16": "CLIP ViT-B/16",
    "slip_vits16": "SLIP ViT-S/16",
    "slip_vitb16": "SLIP ViT-B/16",
}
TINY = {"clip_tiny": "CLIP tiny", "slip_tiny": "SLIP tiny"}  # nothing is published to compare them with
MODELS = ("clip_vitb16", "slip_vits16", "slip_vitb16")  # those with a bar
# To be reached on the CPU in float32 at batch 8: against open_clip for CLIP, against the published step for SLIP.
BARS = {"clip_vitb16": 1.2, "slip_vits16": 1.2, "slip_vitb16": 1.1}
BACKBONES = {"vits16": ("vit_small_patch16_224", 12), "vitb16": ("vit_base_patch16_224", 12)}
LENGTH_MEAN, LENGTH_SIGMA, CONTEXT = 14.0, 0.36, 77


class Contestant(NamedTuple):
    """One step, and the forward pass in it."""

    step: Work
    loss: Callable[[], Tensor]


class Setting(argparse.Namespace):
    """The command line: where and how the steps run."""

    json: Path | None
    models: list[str]
    rounds: int
    device: str
    precision: str
    batch_size: int
    compile: bool
    ours_only: bool
    peak_tflops: float | None

    @property
    def dtype(self) -> torch.dtype:
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[self.precision]

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype, enabled=self.precision != "fp32", cache_enabled=False)


def caption_lengths(count: int) -> Tensor:
    """Evenly spaced quantiles of the distribution, so that few captions are as long as many."""
    mu = torch.tensor(LENGTH_MEAN).log().item() - LENGTH_SIGMA**2 / 2
    normal = NormalDist(mu, LENGTH_SIGMA)
    logs = torch.tensor([normal.inv_cdf((i + 0.5) / count) for i in range(count)])
    return logs.exp().round().long().clamp(3, CONTEXT)


def make_batch(size: int, device: str, image_size: int = 224) -> dict[str, Tensor]:
    """Noise as images, random words as captions padded to the context length."""
    generator = torch.Generator().manual_seed(0)
    shape = size, 3, image_size, image_size
    batch = {name: torch.randn(shape, generator=generator).to(device) for name in ("image", "aug1", "aug2")}
    lengths = caption_lengths(size)[torch.randperm(size, generator=generator)]
    text = torch.randint(1, 49000, (size, CONTEXT), generator=generator)
    text[:, 0] = 49406
    text[torch.arange(size), lengths - 1] = 49407
    text[torch.arange(CONTEXT) >= lengths[:, None]] = 0
    return {**batch, "text": text.to(device), "text_length": lengths}


def contestant(
    setting: Setting, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, clamp: Callable
) -> Contestant:
    """What every contestant does around its loss; nothing is read back from the device."""

    def step() -> int:
        with setting.autocast():
            total = loss()
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clamp()
        if setting.device == "cuda":
            torch.cuda.synchronize()
        return setting.batch_size

    return Contestant(step, loss)


def clamp_scale(scale: nn.Parameter) -> None:
    with torch.no_grad():
        scale.clamp_(0, 4.6052)


def composed(name: str) -> dict[str, Any]:
    """The config of `train.py model=NAME`."""
    return compose_config("train", [f"model={name}"])[0]


def ours(setting: Setting, name: str, batch: dict[str, Tensor]) -> Contestant:
    """The parts that `train.py model=NAME` trains, in one micro-batch; text is trimmed as the collate function does."""
    config = composed(name)
    parts = build_parts(config)
    if setting.compile:
        compile_parts(parts.model, parts.views)
    model, objective = parts.model, parts.objective
    objective.prepare(model)
    model.to(setting.device).train()
    objective.to(setting.device).train()
    optim = config["optim"]
    optimizer = build(optim["optimizer"])(param_groups([model, objective], optim["weight_decay"]))
    trimmed = batch | {"text": batch["text"][:, : int(batch["text_length"].max())].contiguous()}

    def loss() -> Tensor:
        return loss_in_micro_batches(objective, model, trimmed, [setting.batch_size])["loss"]

    return contestant(setting, loss, optimizer, lambda: objective.after_step(model))


def published(setting: Setting, name: str, batch: dict[str, Tensor], *, fused: bool) -> Contestant:
    """The published step; AdamW as torch gives it when nothing is asked for."""
    method, size = name.split("_")
    backbone, heads = BACKBONES[size]
    model = PublishedModel(backbone=backbone, heads=heads, fused_attention=fused, slip=method == "slip")
    model.to(setting.device).train()
    optimizer = torch.optim.AdamW(param_groups([model], 0.1), lr=1e-4, betas=(0.9, 0.98), eps=1e-8)
    inputs = [batch[key] for key in ("image", "text", "aug1", "aug2")]
    return contestant(setting, lambda: model(*inputs), optimizer, lambda: clamp_scale(model.logit_scale))


def open_clips(setting: Setting, batch: dict[str, Tensor]) -> Contestant:
    """open_clip's model, loss and parameter groups as its own training script makes them."""
    model: Any = open_clip.create_model("ViT-B-16").to(setting.device).train()
    loss_function = ClipLoss()
    groups = param_groups([model], 0.2)
    optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)

    def loss() -> Tensor:
        image, text, scale = model(batch["image"], batch["text"])
        total = loss_function(image, text, scale)
        assert isinstance(total, Tensor)
        return total

    return contestant(setting, loss, optimizer, lambda: clamp_scale(model.logit_scale))


def kernel(setting: Setting) -> str:
    """Which attention ours takes here, image and text."""
    device = torch.device(setting.device)
    image = "fused" if fused_is_fastest(device, setting.dtype) else "plain"
    text = "varlen" if varlen_is_possible(device, setting.dtype, 64) else f"{image} in buckets"
    return f"{image}, text {text}{', compiled' * setting.compile}"


def flops_per_sample(setting: Setting, loss: Callable[[], Tensor]) -> float:
    """Of the forward pass, two per multiplication and addition."""
    with (
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
        sdpa_kernel(SDPBackend.MATH),  # the counter knows plain products on every device, fused kernels on some
        setting.autocast(),
        FlopCounterMode(display=False) as counter,
    ):
        loss()
    return counter.get_total_flops() / setting.batch_size


def measure(setting: Setting, name: str) -> Iterator[Row]:
    """One model's rows, ours last."""
    torch.manual_seed(0)
    batch = make_batch(setting.batch_size, setting.device, composed(name)["image_size"])
    title = (TITLES | TINY)[name]
    made: dict[str, Callable[[], Contestant]] = {
        f"{title}, ours ({kernel(setting)})": lambda: ours(setting, name, batch)
    }
    if setting.ours_only:
        yield from one_by_one(setting, made)
        return
    if name == "clip_vitb16":
        made[f"{title}, open_clip (fused)"] = lambda: open_clips(setting, batch)
    made[f"{title}, published (fused)"] = lambda: published(setting, name, batch, fused=True)
    made[f"{title}, published (plain, text fused)"] = lambda: published(setting, name, batch, fused=False)
    mine, *others = made
    if setting.device == "cuda":
        yield from one_by_one(setting, made)
        return
    contestants = {key: make() for key, make in made.items()}
    flops = {key: flops_per_sample(setting, each.loss) for key, each in contestants.items()}
    rates = Rates({key: each.step for key, each in contestants.items()}, setting.rounds)
    for other in others:
        yield Row(f"{other}, forward", flops[other] / 1e9, "GFLOP/sample")
    for other in others:
        yield Row(f"{mine}, forward", flops[mine] / 1e9, "GFLOP/sample", other, flops[other] / flops[mine])
    for other in others:
        yield rates.row(other, "samples/s")
    judged = setting.precision == "fp32" and setting.batch_size == 8
    for other in others:
        bar = BARS.get(name) if judged and other == others[0] else None
        yield rates.row(mine, "samples/s", other, bar)


def one_by_one(setting: Setting, made: dict[str, Callable[[], Contestant]]) -> Iterator[Row]:
    """Rows of steps that have the memory to themselves, as on a GPU; ours is the baseline of ratios."""
    on_gpu = setting.device == "cuda"
    mine = next(iter(made))
    ours_per_second = 0.0
    for key, make in made.items():
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        each = make()
        flops = flops_per_sample(setting, each.loss)
        started = time.perf_counter()
        each.step()
        yield Row(f"{key}, first step", time.perf_counter() - started, "s")  # compilation included
        row = Rates({key: each.step}, setting.rounds, time.perf_counter if on_gpu else None).row(key, "samples/s")
        del each
        ours_per_second = ours_per_second or row.value
        yield row._replace(baseline=mine, ratio=row.value / ours_per_second)
        if on_gpu:
            yield Row(f"{key}, peak memory", torch.cuda.max_memory_allocated() / 1e9, "GB")
        if setting.peak_tflops is not None:
            used = TRAINING_OVER_FORWARD * flops * row.value / (1e12 * setting.peak_tflops)
            yield Row(f"{key}, utilisation", 100 * used, "% of peak")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=TITLES | TINY)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--compile", action="store_true", help="our towers by torch.compile, the others as they are")
    parser.add_argument("--ours-only", action="store_true", help="without the others' steps")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU, in the precision that is measured")
    setting = parser.parse_args(namespace=Setting())
    if not setting.ours_only and (tiny := TINY.keys() & set(setting.models)):
        parser.error(f"{', '.join(sorted(tiny))}: nothing to compare with; add --ours-only")
    torch.set_num_threads(1)
    print(f"{setting.device}, {setting.precision}, batch {setting.batch_size}, {setting.rounds} rounds")
    show(*(measure(setting, name) for name in setting.models), file=setting.json)


if __name__ == "__main__":
    main()
