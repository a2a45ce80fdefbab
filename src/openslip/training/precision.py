"""Number types of a run: which precision `auto` means on this device, and whether products may use TF32."""

import os

import torch

from openslip.errors import UserError

DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
PRECISIONS = ("auto", *DTYPES, "32-true")


def choose_precision(precision: str | int, accelerator: str) -> str:
    """`auto` is bf16 on GPUs and on CPUs with bf16 matrix instructions, where it is faster, else float32.

    `16-mixed` is fp16 with a loss scaler, whose backing off skips a step.

    Raises:
        UserError: not one of the names, or fp16 on a CPU, where Lightning would silently take bf16.
    """
    if precision not in PRECISIONS:
        raise UserError(f"trainer.precision={precision}: expected one of {', '.join(PRECISIONS)}")
    if precision == "16-mixed" and not on_gpu(accelerator):
        raise UserError("trainer.precision=16-mixed needs a GPU: on the CPU take bf16-mixed, 32-true or auto")
    if precision != "auto":
        return str(precision)
    if on_gpu(accelerator):
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast as in a step. With its cache on, all micro-batches' gradients would add up in one 16-bit weight."""
    return torch.autocast(device.type, DTYPES.get(precision), enabled=precision in DTYPES, cache_enabled=False)


def on_gpu(accelerator: str) -> bool:
    """Whether a run with this `trainer.accelerator` uses one here."""
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def choose_deterministic(wanted: bool | str) -> None:
    """What makes a GPU repeat its numbers, beside PyTorch's switch, which Lightning turns; before CUDA starts.

    PyTorch's flash and memory-efficient attention, and so that of packed captions, then add in a fixed order.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cuda.enable_cudnn_sdp(False)  # its backward pass has no such order


def choose_tf32(allowed: bool) -> None:
    """Whether CUDA may round the factors of float32 products to 11 bits; the losses' are among them.

    Sums of 16-bit products stay in float32 in any case.

    Raises:
        UserError: asked for where there is no CUDA device.
    """
    if not torch.cuda.is_available():
        if allowed:
            raise UserError("tf32=true: TF32 is a format of CUDA devices, and there is none here; set tf32=false")
        return
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    # Else sums over many rows, as in weight gradients, may be split up and added in 16 bits.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
