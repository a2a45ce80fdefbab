"""torch.compile in a run: whether `compile=auto` turns it on, and which modules are compiled."""

from collections.abc import Mapping
from importlib.util import find_spec

import torch
from torch import nn

from openslip.data.view import View
from openslip.distributed import is_main_process
from openslip.models.tower import Tower
from openslip.terminal import inform
from openslip.training.c_compiler import why_no_launcher
from openslip.training.precision import on_gpu

OLDEST = (7, 0)  # lowest compute capability that Triton supports


def choose_compile(setting: bool | str, accelerator: str) -> bool:
    """Resolve `compile`: `auto` is on for a GPU that this machine can compile for; on a GPU, the choice is printed."""
    if isinstance(setting, bool) or not on_gpu(accelerator):
        return setting is True
    missing = why_not()
    if is_main_process():
        inform("compile=auto: on" if missing is None else f"compile=auto: off, because {missing}")
    return missing is None


def why_not() -> str | None:
    """Return why this machine cannot compile for its GPU, or None if it can."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if (missing := why_no_launcher()) is not None:
        return missing
    if (capability := torch.cuda.get_device_capability()) < OLDEST:
        needed, present = (".".join(map(str, version)) for version in (OLDEST, capability))
        return f"Triton needs compute capability {needed}, and this GPU has {present}"
    return None


def compile_parts(model: nn.Module, views: Mapping[str, View]) -> None:
    """Compile the blocks of a model's towers and the parts of views that run on a GPU, all in place."""
    for child in model.children():
        if isinstance(child, Tower):
            child.compile_blocks()
    for view in views.values():
        view.compile()
