"""Under bf16 autocast every weight gets a float32 gradient, and nothing is computed in float64."""

from typing import Any

import pytest
import torch
from fake_models import SIDE, model_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from openslip.training.gradients import marked
from openslip.training.microbatch import loss_in_micro_batches
from openslip.training.precision import autocast

CPU = torch.device("cpu")


class Dtypes(TorchDispatchMode):
    """Operations by the types of floating-point numbers that they make, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[torch.dtype, set[str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                self.made.setdefault(leaf.dtype, set()).add(str(func))
        return made


@pytest.mark.parametrize(("method", "sizes"), [("clip", [4]), ("simclr", [2, 2]), ("slip", [2, 2])])
def test_gradients_are_float32_and_nothing_is_float64(method: str, sizes: list[int]):
    model, objective = model_of(method)
    objective.prepare(model)
    size = sum(sizes)
    batch = {view: torch.randn(size, 3, SIDE, SIDE) for view in ("image", "aug1", "aug2")}
    batch |= {"text": torch.randint(9, (size, 20)), "text_length": torch.tensor([3, 20, 7, 12])}
    with Dtypes() as counted:
        with autocast(CPU, "bf16-mixed"):
            loss = marked(loss_in_micro_batches(objective, model, batch, sizes)["loss"])
        loss.backward()
    assert counted.made.keys() == {torch.float32, torch.bfloat16}, counted.made.get(torch.float64)
    assert "aten.mm.default" in counted.made[torch.bfloat16]
    for name, parameter in (*model.named_parameters(), *objective.named_parameters()):
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32, name
