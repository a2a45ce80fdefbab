"""Where a step's time goes on the device: the 40 kernels that take most of it, and how long no kernel runs.

The step is that of step.py: towers, loss, backward pass, AdamW, clamp. On the CPU operators take the place of kernels.

    python benchmarks/profile_step.py --device cuda --precision bf16 --batch-size 256 --model slip_vitb16
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import torch
from step import TINY, TITLES, Setting, composed, make_batch, ours
from torch.profiler import ProfilerActivity, profile

STEPS, ROWS = 3, 40
GAP = 10e-6  # seconds; a shorter one is how kernels follow each other

Span = tuple[float, float]  # start and end in seconds


class Profiled(Setting):
    """The command line."""

    model: str
    output: Path | None


def idle(spans: Iterable[Span]) -> list[float]:
    """Seconds of each gap in which none of the spans lasts."""
    gaps, reached = [], None
    for start, end in sorted(spans):
        if reached is not None and start > reached:
            gaps.append(start - reached)
        reached = end if reached is None else max(reached, end)
    return gaps


def summary(spans: list[Span], names: list[str]) -> list[str]:
    """Lines of a table: shares of the time from the first start to the last end, most first."""
    begin, end = min(start for start, _ in spans), max(end for _, end in spans)
    total = end - begin
    gaps = idle(spans)
    seconds: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for (start, stop), name in zip(spans, names, strict=True):
        seconds[name] += stop - start
        counts[name] += 1
    lines = [
        f"{1e3 * total / STEPS:.2f} ms a step, {len(spans) // STEPS} kernels, idle {100 * sum(gaps) / total:.1f} %",
        f"gaps over {1e6 * GAP:.0f} us: {sum(gap > GAP for gap in gaps) // STEPS} a step, "
        f"the longest {1e3 * max(gaps, default=0.0):.3f} ms",
        f"{'share':>7}{'ms/step':>10}{'calls/step':>12}  kernel",
    ]
    for name in sorted(seconds, key=lambda name: -seconds[name])[:ROWS]:
        share, each = 100 * seconds[name] / total, 1e3 * seconds[name] / STEPS
        lines.append(f"{share:6.1f}%{each:10.3f}{counts[name] / STEPS:12.1f}  {name[:110]}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="slip_vitb16", choices=TITLES | TINY)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--compile", action="store_true", help="our towers by torch.compile")
    parser.add_argument(
        "--output", type=Path, help="file for the table, of which the first lines are printed; none: all"
    )
    setting = parser.parse_args(namespace=Profiled())
    torch.manual_seed(0)
    batch = make_batch(setting.batch_size, setting.device, composed(setting.model)["image_size"])
    contestant = ours(setting, setting.model, batch)
    for _ in range(2):
        contestant.step()
    on_gpu = setting.device == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as profiler:
        started = time.perf_counter()
        for _ in range(STEPS):
            contestant.step()
        seconds = time.perf_counter() - started
    kind = "CUDA" if on_gpu else "CPU"
    # A kernel, or an operator of the CPU that calls no other; annotations lie around kernels and are none.
    events = [
        event
        for event in profiler.events() or ()
        if event.device_type.name == kind and not event.is_user_annotation and (on_gpu or not event.cpu_children)
    ]
    spans = [(1e-6 * event.time_range.start, 1e-6 * event.time_range.end) for event in events]
    lines = [
        f"{setting.model}, {setting.device}, {setting.precision}, batch {setting.batch_size}",
        f"{STEPS * setting.batch_size / seconds:.1f} samples/s under the profiler",
        *summary(spans, [event.name for event in events]),
    ]
    if setting.output is not None:
        setting.output.write_text("\n".join([*lines, ""]))
    print("\n".join(lines if setting.output is None else lines[:4]))


if __name__ == "__main__":
    main()
