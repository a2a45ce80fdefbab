"""What a GPU machine is: versions, device, measured peaks; then OpenSLIP's kernels against float64 on the CPU.

python benchmarks/gpu_environment.py --device cuda --peak-file peak.txt
"""

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.cuda import nccl

from openslip.models.attention import VARLEN, varlen_is_possible
from openslip.training.compiling import why_not
from openslip.verify import show
from openslip.verify.kernels import kernel_rows

PACKAGES = ("torch", "triton", "pytorch-lightning", "timm", "numpy")
TIMED = 10


def versions() -> Iterator[str]:
    yield f"python {platform.python_version()}, {platform.platform()}, {os.cpu_count()} CPUs"
    for name in PACKAGES:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{name}: not installed"
    if Path("/dev/shm").is_dir():
        yield f"/dev/shm: {shutil.disk_usage('/dev/shm').free / 1e9:.1f} GB free"


def device_lines(device: torch.device) -> Iterator[str]:
    if device.type != "cuda":
        yield "device: cpu"
        return
    gpu = torch.cuda.get_device_properties(device)
    yield f"device: {gpu.name}, {gpu.total_memory / 1e9:.0f} GB, compute capability {gpu.major}.{gpu.minor}"
    yield f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, NCCL {nccl.version()}"
    query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
    if shutil.which("nvidia-smi"):
        yield f"driver, power limit, clock: {subprocess.run(query, capture_output=True, text=True).stdout.strip()}"
    varlen = varlen_is_possible(device, torch.bfloat16, 64)
    yield f"torch.compile: {'yes' if (reason := why_not()) is None else f'no, because {reason}'}"
    yield f"varlen attention: {'yes' if varlen else 'no, captions in buckets'} (in this PyTorch: {VARLEN})"


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the mean over some after the first."""

    def finish() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    work()
    started = finish()
    for _ in range(TIMED):
        work()
    return (finish() - started) / TIMED


def peaks(device: torch.device) -> Iterator[tuple[str, float, str]]:
    """Rates that the device reaches by itself, to compare a step with."""
    side, numbers = (8192, 1 << 28) if device.type == "cuda" else (256, 1 << 16)
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        a, b = torch.randn(2, side, side, device=device).to(dtype)
        yield f"matrix product, {name}, {side}", 2e-12 * side**3 / seconds_of(lambda a=a, b=b: a @ b, device), "TFLOP/s"
    x, y = torch.ones(2, numbers, device=device)
    yield "copy on the device", 8e-9 * numbers / seconds_of(lambda: y.copy_(x), device), "GB/s read and written"
    if device.type == "cuda":
        host = torch.ones(numbers // 4, pin_memory=True)
        part = x[: numbers // 4]
        yield "copy from pinned memory", 1e-9 * numbers / seconds_of(lambda: part.copy_(host, True), device), "GB/s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--peak-file", type=Path, help="file for the rate of bf16 products in TFLOP/s")
    options = parser.parse_args()
    device = torch.device(options.device)
    print(*versions(), *device_lines(device), sep="\n", flush=True)
    rates = list(peaks(device))
    for name, rate, unit in rates:
        print(f"{name}: {rate:.4g} {unit}", flush=True)
    if options.peak_file is not None:
        options.peak_file.write_text(f"{rates[0][1]:.4g}\n")
    torch.set_num_threads(1)  # as in `openslip verify`
    return show(kernel_rows(options.device, "float32"), options.device)


if __name__ == "__main__":
    sys.exit(main())
