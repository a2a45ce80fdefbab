"""Batch norm of towers: torch's on one process, the same function of the global batch on several, counted once."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Ranks
from timm.layers.evo_norm import EvoNorm2dB0
from timm.layers.norm_act import BatchNormAct2d, FrozenBatchNormAct2d
from timm.layers.split_batchnorm import SplitBatchNorm2d
from timm.models._manipulate import checkpoint as timm_checkpoint
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FrozenBatchNorm2d

from openslip.errors import UserError
from openslip.models.batch_norm import is_synchronised, mixes_samples, synchronise
from openslip.training.microbatch import mixing_layers, refuse_mixing_layers

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (partial(nn.BatchNorm1d, 3), (6, 3)),
    "1d of sequences": (partial(nn.BatchNorm1d, 3, momentum=0.3), (6, 3, 5)),
    "2d": (partial(nn.BatchNorm2d, 3), (6, 3, 4, 5)),
    "3d": (partial(nn.BatchNorm3d, 3, eps=0.1), (6, 3, 2, 3, 2)),
    "without weights": (partial(nn.BatchNorm2d, 3, affine=False), (6, 3, 4, 5)),
    "without momentum": (partial(nn.BatchNorm1d, 3, momentum=None), (6, 3)),
    "without running statistics": (partial(nn.BatchNorm1d, 3, track_running_stats=False), (6, 3)),
    "with an activation": (
        partial(BatchNormAct2d, 3, act_layer=nn.PReLU, drop_layer=partial(nn.Dropout, 0.0)),
        (6, 3, 4, 5),
    ),
}


def made(kind: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A layer of PyTorch's or timm's with weights of its own, and a batch far from zero."""
    torch.manual_seed(0)
    layer = LAYERS[kind][0]().to(dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer, (3 * torch.randn(LAYERS[kind][1], dtype=torch.float64) + 50).to(dtype)


def step(layer: nn.Module, x: Tensor, times: int = 2) -> dict[str, Tensor]:
    """Two passes: the last output, gradients of a sum that weighs each number differently, and the buffers."""
    x = x.clone().requires_grad_()
    y = x
    for _ in range(times):
        y = layer(x)
    weights = torch.linspace(-1, 2, y.shape[1:].numel(), dtype=y.dtype).view(y.shape[1:]) * y.detach().sin()
    (y * weights).sum().backward()
    assert x.grad is not None
    found = {"output": y.detach(), "input": x.grad}
    found |= {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return found | {name: buffer.clone() for name, buffer in layer.named_buffers()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        message = f"{name} differs"
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance, msg=message)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_one_process_runs_torchs_kernel(kind: str, training: bool, dtype: torch.dtype):
    plain, x = made(kind, dtype)
    plain(x)
    converted = copy.deepcopy(plain)
    synchronise(converted, runs_again=False)
    assert list(converted.state_dict()) == list(plain.state_dict())
    assert {id(p) for p in plain.parameters()}.isdisjoint({id(p) for p in converted.parameters()})
    for layer in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert_equal(step(layer.train(training), x), step(copy.deepcopy(plain).train(training), x), 0)


def on_ranks(kind: str, sizes: list[int]) -> dict[str, Tensor]:
    """What `step` finds on this rank of batches of different sizes; the output and its input's gradient are parts."""
    layer, x = made(kind)
    synchronise(layer, runs_again=False)
    found = step(layer, x.split(sizes)[dist.get_rank()])
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        found[name] = parameter.grad
    return found


@pytest.mark.parametrize("sizes", [[3, 3], [5, 1], [1, 5]])
@pytest.mark.parametrize("kind", LAYERS)
def test_two_ranks_equal_torch_on_the_whole_batch(two_ranks: Ranks, kind: str, sizes: list[int]):
    expected = step(*made(kind))
    found = two_ranks(on_ranks, kind, sizes)
    for name in ("output", "input"):
        whole = {name: torch.cat([rank.pop(name) for rank in found])}
        assert_equal(whole, {name: expected.pop(name)}, 1e-9)
    for rank in found:
        assert_equal(rank, expected, 1e-9)


def on_ranks_in_16_bits() -> tuple[Tensor, torch.dtype, Tensor]:
    layer, x = made("2d", torch.float32)
    synchronise(layer, runs_again=False)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.chunk(2)[dist.get_rank()].bfloat16())
    assert isinstance(layer.running_mean, Tensor)
    return y.detach(), y.dtype, layer.running_mean


def test_16_bits_have_statistics_in_float32_on_two_ranks(two_ranks: Ranks):
    layer, x = made("2d")
    expected = layer(x.bfloat16().double())
    found = two_ranks(on_ranks_in_16_bits)
    plain, x = made("2d", torch.float32)
    for (y, dtype, mean), part in zip(found, expected.chunk(2), strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            assert dtype == plain(x.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(y.double(), part.detach(), rtol=2**-8, atol=1e-3)
        torch.testing.assert_close(mean.double(), layer.running_mean, rtol=1e-6, atol=0)


def far_from_zero() -> Tensor:
    layer = nn.BatchNorm1d(1)
    synchronise(layer, runs_again=False)
    return layer(4096 + torch.tensor([[0.0], [1.0], [2.0], [3.0]]).chunk(2)[dist.get_rank()]).detach()


def test_the_variance_is_centred(two_ranks: Ranks):
    found = torch.cat(two_ranks(far_from_zero)).flatten()
    expected = torch.tensor([-3.0, -1.0, 1.0, 3.0]) / 5**0.5
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)  # E[x^2] - E[x]^2 is zero or two in float32


@pytest.mark.parametrize("run", [partial(checkpoint, use_reentrant=False), timm_checkpoint], ids=["torch's", "timm's"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_that_is_checkpointed_counts_a_batch_once(kind: str, run: Callable):
    plain, x = made(kind)
    expected = step(copy.deepcopy(plain), x)
    converted = copy.deepcopy(plain)
    synchronise(converted, runs_again=True)

    class Checkpointed(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Any:
            return run(self.layer, x)

    def named(found: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix("layer."): value for name, value in found.items()}

    assert_equal(named(step(Checkpointed(converted), x)), expected, 1e-12)
    if "num_batches_tracked" in expected:
        assert expected["num_batches_tracked"] == 2
        assert named(step(Checkpointed(plain), x))["num_batches_tracked"] == 3  # what it is about


def checkpointed_on_ranks() -> dict[str, Tensor]:
    layer, x = made("2d")
    synchronise(layer, runs_again=True)
    checkpoint(layer, x.chunk(2)[dist.get_rank()].requires_grad_(), use_reentrant=False).sum().backward()  # pyright: ignore
    return {name: buffer.clone() for name, buffer in layer.named_buffers()}


def test_ranks_count_a_checkpointed_batch_once(two_ranks: Ranks):
    layer, x = made("2d")
    layer(x)
    for found in two_ranks(checkpointed_on_ranks):
        assert_equal(found, dict(layer.named_buffers()), 1e-12)


@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
@pytest.mark.parametrize("runs_again", [False, True])
def test_a_compiled_layer_counts_a_batch_once(runs_again: bool):
    plain, x = made("2d")
    network = nn.Sequential(nn.Conv2d(3, 3, 1), plain, nn.ReLU()).double()
    compiled = copy.deepcopy(network)
    synchronise(compiled, runs_again=runs_again)
    graphs = 0

    def counting(graph: torch.fx.GraphModule, _: Any) -> Callable:
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch._dynamo.reset()  # earlier tests may have filled the cache of compiled forms
    compiled.compile(backend=counting)
    run = partial(checkpoint, compiled, use_reentrant=False) if runs_again else compiled
    for _ in range(2):
        run(x.requires_grad_()).square().sum().backward()  # pyright: ignore[reportAttributeAccessIssue]
        network(x).square().sum().backward()
    assert runs_again or graphs == 1  # the layer is in it
    assert_equal(dict(compiled.named_buffers()), dict(network.named_buffers()), 1e-12)
    for ours, theirs in zip(compiled.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("layer", "training", "frozen"),
    [
        (nn.BatchNorm1d(3), True, False),
        (nn.BatchNorm1d(3, track_running_stats=False), True, True),
        (BatchNormAct2d(3), True, False),
        (EvoNorm2dB0(3), True, False),
        (SplitBatchNorm2d(4), True, False),
        (FrozenBatchNormAct2d(3), False, False),
        (FrozenBatchNorm2d(3), False, False),
        (nn.LayerNorm(3), False, False),
        (nn.InstanceNorm2d(3), False, False),
    ],
)
def test_layers_that_mix_samples_are_known(layer: nn.Module, training: bool, frozen: bool):
    assert mixes_samples(layer.train()) == training
    assert mixes_samples(layer.eval()) == frozen


def test_a_layer_that_is_not_synchronised_is_named_on_ranks():
    model = nn.ModuleDict({"image_tower": nn.Sequential(nn.BatchNorm2d(3), EvoNorm2dB0(3))})
    synchronise(model, runs_again=False)
    assert mixing_layers(model) == ["image_tower.0", "image_tower.1"]
    assert is_synchronised(model.get_submodule("image_tower.0"))
    with pytest.raises(UserError, match=r"trainer\.devices splits .* image_tower\.1 \(EvoNorm2dB0\)"):
        refuse_mixing_layers(model, 1)
    with pytest.raises(UserError, match=r"micro_batch_size splits .* the batch norm of image_tower"):
        refuse_mixing_layers(model, 2)
    refuse_mixing_layers(model.eval(), 2)


def test_a_global_batch_of_one_value_is_refused():
    layer = nn.BatchNorm1d(3)
    synchronise(layer, runs_again=False)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(torch.rand(1, 3))
