"""Numerical precision of a run: what `trainer.precision=auto` selects, determinism, and TF32."""

import os

import torch

from openslip.errors import UserError

DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
PRECISIONS = ("auto", *DTYPES, "32-true")


def choose_precision(precision: str | int, accelerator: str) -> str:
    """Resolve `trainer.precision`; `auto` is bf16 if the device has instructions that make it fast, else float32.

    `16-mixed` is fp16 with a loss scaler. The scaler skips a step whenever it lowers its scale.

    Raises:
        UserError: the precision is unknown, or it is fp16 on a CPU, where Lightning would use bf16 instead.
    """
    if precision not in PRECISIONS:
        raise UserError(f"trainer.precision={precision}: expected one of {', '.join(PRECISIONS)}")
    if precision == "16-mixed" and not on_gpu(accelerator):
        raise UserError("trainer.precision=16-mixed needs a GPU: on the CPU use bf16-mixed, 32-true or auto")
    if precision != "auto":
        return str(precision)
    if on_gpu(accelerator):
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context of a training step.

    The weight cache of autocast is off. With the cache, all micro-batches would share one 16-bit copy of each weight,
    and the sum of their gradients would have only 16 bits.
    """
    return torch.autocast(device.type, DTYPES.get(precision), enabled=precision in DTYPES, cache_enabled=False)


def on_gpu(accelerator: str) -> bool:
    """Whether a run with this `trainer.accelerator` uses a GPU on this machine."""
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def choose_deterministic(wanted: bool | str) -> None:
    """Make GPU results reproducible in cases that PyTorch's deterministic mode misses; call it before CUDA starts.

    Lightning turns the deterministic mode on. In this mode, PyTorch's flash and memory-efficient attention sum in a
    fixed order. This includes attention over packed captions, because it uses flash attention.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cuda.enable_cudnn_sdp(False)  # cuDNN's backward pass does not sum in a fixed order


def choose_tf32(allowed: bool) -> None:
    """Set whether CUDA may round the inputs of float32 matrix products to TF32 (10 mantissa bits).

    The matrix products of losses are rounded too. Sums of 16-bit products stay in float32 in any case.

    Raises:
        UserError: TF32 is allowed, but there is no CUDA device.
    """
    if not torch.cuda.is_available():
        if allowed:
            raise UserError("tf32=true: TF32 is a format of CUDA devices, and this machine has none; set tf32=false")
        return
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    # If this were allowed, sums over many rows, as in weight gradients, could be split into parts that are added in
    # 16 bits.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
