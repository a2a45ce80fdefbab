"""The SSL head on two ranks: how often they exchange statistics, and that it equals the head in one process."""

from unittest import mock

import pytest
import torch
import torch.distributed as dist
from ranks import Ranks
from small_models import small_batch, small_model
from torch import Tensor

from openslip import distributed
from openslip.objectives.heads import ProjectionHead, projection_head

VIEWS = ("aug1", "aug2")
GLOBAL_BATCH = 6


def head_and_views() -> tuple[ProjectionHead, dict[str, Tensor]]:
    """A head with weights of its own in float64, and two views that differ in mean and spread."""
    torch.manual_seed(0)
    head = projection_head(5, 7, 4).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    aug1, aug2 = torch.randn(2, GLOBAL_BATCH, 5, dtype=torch.float64)
    return head, {"aug1": aug1 + 2, "aug2": 3 * aug2 - 1}


def passes(sizes: list[int]) -> dict[str, Tensor]:
    """Outputs, running statistics and gradients of this rank's samples, `sizes` of each rank; of all in one process."""
    head, views = head_and_views()
    rank = distributed.rank()
    x = {name: view.split(sizes)[rank].clone().requires_grad_() for name, view in views.items()}
    outputs = dict(zip(VIEWS, head.views(*x.values()), strict=True))
    factors = torch.linspace(-1, 2, 4, dtype=torch.float64)
    sum(((factors * output).sin()).sum() for output in outputs.values()).backward()  # pyright: ignore
    found = {name: output.detach() for name, output in outputs.items()}
    for name, view in x.items():
        assert view.grad is not None
        found[f"gradient of {name}"] = view.grad
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None
        if dist.is_initialized():
            dist.all_reduce(parameter.grad)
        found[name] = parameter.grad
    return found | {name: buffer.clone() for name, buffer in head.named_buffers()}


@pytest.mark.parametrize("sizes", [[3, 3], [5, 1]])
def test_two_ranks_equal_one_process(two_ranks: Ranks, sizes: list[int]):
    expected = passes([GLOBAL_BATCH])
    first, second = two_ranks(passes, sizes)
    for name, value in expected.items():
        of_samples = name.endswith(VIEWS)
        for found in [torch.cat([first[name], second[name]])] if of_samples else [first[name], second[name]]:
            torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12, msg=f"{name} differs")


def exchanges(method: str) -> list[dict[str, int]]:
    """How often a rank exchanges tensors with the other one in a loss's forward and in its backward pass."""
    model, objective = small_model(method)
    features = objective.encode(model, {key: value.chunk(2)[dist.get_rank()] for key, value in small_batch(6).items()})
    counted = []
    with (
        mock.patch.object(distributed, "_all_gather", wraps=distributed._all_gather) as gathered,
        mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reduced,
    ):

        def count() -> None:
            counted.append({"gathered": gathered.call_count, "reduced": reduced.call_count})
            gathered.reset_mock()
            reduced.reset_mock()

        loss = objective.loss(model, features)["loss"]
        count()
        loss.backward()
        count()
    return counted


# The head's two batch norms, once each for both views; and the features that a loss compares.
@pytest.mark.parametrize(("method", "number"), [("simclr", 2 + 2), ("slip", 2 + 4)])
def test_ranks_exchange_statistics_once_a_layer_and_pass_for_both_views(two_ranks: Ranks, method: str, number: int):
    for forward, backward in two_ranks(exchanges, method):
        assert forward == {"gathered": number, "reduced": 0}
        assert backward == {"gathered": 0, "reduced": number}
