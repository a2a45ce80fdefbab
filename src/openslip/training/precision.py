"""Which precision `auto` means on this device."""

import torch


def choose_precision(precision: str, accelerator: str) -> str:
    """`auto` is bf16 on GPUs and on CPUs with bf16 matrix instructions, where it is faster, else float32."""
    if precision != "auto":
        return precision
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if on_gpu:
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"
