"""The software and hardware that computed a run's metrics."""

import platform
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Return versions and devices, so that a metric can be traced to what computed it."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cpu_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_on_cpu": torch.cpu._is_avx512_bf16_supported(),
    }
