"""The contract of towers: what is asked of a tower holds for its pooled feature and its tokens alike."""

import copy
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from versions import OLD_TORCH

from openslip.errors import UserError
from openslip.models.text_transformer import TextTransformer
from openslip.models.timm_tower import TimmTower
from openslip.models.tower import Tokens, Tower, unpadded
from openslip.training.locked_features import LockedFeatures

ENTRIES = ("forward", "tokens", "pooled_and_tokens")


class Own(Tower):
    """A tower of a user's: no more than the contract asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 6
        self.patches = nn.Conv2d(3, 6, kernel_size=4, stride=4)
        self.mix = nn.ModuleList(nn.Sequential(nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 6)) for _ in range(2))

    def tokens(self, images: Tensor, /) -> Tokens:
        x = self.patches(images).flatten(2).transpose(1, 2)
        for layer in self.mix:
            x = x + layer(x)
        return unpadded(x)

    def forward(self, images: Tensor, /) -> Tensor:
        return self.tokens(images).features.mean(dim=1)


class OwnWithBlocks(Own):
    """Likewise, and it names its blocks."""

    def repeated_blocks(self) -> Sequence[nn.Module]:
        return list(self.mix)

    def tokens(self, images: Tensor, /) -> Tokens:
        x = self.patches(images).flatten(2).transpose(1, 2)
        for block in self.repeated_blocks():
            x = x + self.run(block, x)
        return unpadded(x)


class OwnWithManyLayers(Own):
    """More layers, all different, than torch's cache of compiled forms holds by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.ModuleList(
            nn.Sequential(nn.Linear(6, hidden), nn.GELU(), nn.Linear(hidden, 6)) for hidden in range(3, 15)
        )


def timm_tower(name: str, arguments: dict[str, Any]) -> TimmTower:
    return TimmTower(name=name, image_size=32, arguments=arguments)


MAKERS: dict[str, Callable[[], Tower]] = {
    "class token": partial(
        timm_tower, "vit_small_patch16_224", {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
    ),
    "map pooling": partial(
        timm_tower, "vit_base_patch16_siglip_224", {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    ),
    "windows": partial(
        timm_tower,
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "drop_path_rate": 0.0},
    ),
    "convolutions": partial(timm_tower, "convnext_atto", {"dims": [8, 8, 8, 8], "depths": [1, 1, 2, 1]}),
    "text": lambda: TextTransformer(vocab_size=40, context_length=9, width=16, depth=3, heads=2),
    "own": OwnWithBlocks,
}


def made(kind: str) -> tuple[Tower, tuple[Tensor, ...]]:
    """A tower in float64, and what it is called with."""
    torch.manual_seed(0)
    tower = MAKERS[kind]().double()
    if kind == "text":
        return tower, (torch.randint(0, 40, (3, 9)), torch.tensor([9, 2, 5]))
    return tower, (torch.rand(3, 3, 32, 32, dtype=torch.float64),)


def features(found: Any) -> Tensor:
    """All that an entry returned, as one vector."""
    parts = found if isinstance(found, tuple) else (found,)
    return torch.cat([features(part) if isinstance(part, tuple) else part.flatten().double() for part in parts])


def gradients(tower: Tower, entry: str, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    found = features(getattr(tower, entry)(*inputs))
    weights = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(1))
    return [found.detach(), *torch.autograd.grad((found * weights).sum(), list(tower.parameters()), allow_unused=True)]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def passes(tower: Tower, call: Callable[[], Any]) -> int:
    """How often the tower's first block, or layer, ran."""
    (first, *_) = [*tower.repeated_blocks(), *(module for module in tower.modules() if not [*module.children()])]
    count = 0

    def hook(*_: Any) -> None:
        nonlocal count
        count += 1

    handle = first.register_forward_hook(hook)
    call()
    handle.remove()
    return count


@pytest.mark.parametrize("kind", MAKERS)
def test_pooled_and_tokens_are_what_each_alone_is(kind: str):
    tower, inputs = made(kind)
    pooled, (tokens, mask) = tower.pooled_and_tokens(*inputs)
    alone = tower.tokens(*inputs)
    torch.testing.assert_close(pooled, tower(*inputs), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(tokens, alone.features, rtol=1e-9, atol=1e-12)
    assert torch.equal(mask, alone.mask)
    assert pooled.shape == (3, tower.width)
    assert tokens.shape == (*mask.shape, tower.token_width)
    assert passes(tower, lambda: tower.pooled_and_tokens(*inputs)) == (2 if kind == "own" else 1)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", MAKERS)
def test_checkpointing_keeps_fewer_activations_and_changes_no_gradient(kind: str, entry: str):
    tower, inputs = made(kind)
    expected = gradients(tower, entry, inputs)

    def kept() -> int:
        sizes = 0

        def pack(x: Tensor) -> Tensor:
            nonlocal sizes
            sizes += x.numel() if not isinstance(x, nn.Parameter) else 0
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            getattr(tower, entry)(*inputs)
        return sizes

    plain = kept()
    tower.checkpoint_blocks()
    assert kept() < 0.75 * plain
    assert_equal(gradients(tower, entry, inputs), expected)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", MAKERS)
def test_a_locked_tower_runs_once_whatever_is_asked_of_it(kind: str, entry: str):
    tower, inputs = made(kind)
    trained = nn.Parameter(torch.ones((), dtype=torch.float64))
    tower.lock()
    model = nn.ModuleList([tower])
    seen: list[Tensor] = []

    def encode() -> Tensor:
        both = [getattr(tower, entry)(*inputs), tower(*(x.flip(0) for x in inputs))]
        seen.append(torch.cat([features(part) for part in both]))
        return (trained * seen[-1]).square()

    def twice() -> None:
        locked = LockedFeatures(model)
        encoded: Any = checkpoint(encode, use_reentrant=False, context_fn=lambda: (locked.kept(), locked.given_again()))
        encoded.sum().backward()

    once = passes(tower, lambda: (getattr(tower, entry)(*inputs), tower(*inputs)))
    assert passes(tower, twice) == once
    assert len(seen) == 2
    assert torch.equal(*seen)
    assert not set(ENTRIES) & set(vars(tower))


@pytest.mark.skipif(OLD_TORCH, reason="its compiler does not take the tests' type checker")
@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
@pytest.mark.parametrize("kind", ["class token", "windows", "text", "own", "own without blocks", "many layers"])
def test_compiling_reaches_every_entry_and_no_copy(kind: str, monkeypatch: pytest.MonkeyPatch):
    runs = 0

    def counting(graph: torch.fx.GraphModule, _: Any) -> Callable:
        def call(*inputs: Any) -> Any:
            nonlocal runs
            runs += 1
            return graph(*inputs)

        return call

    monkeypatch.setitem(MAKERS, "own without blocks", Own)
    monkeypatch.setitem(MAKERS, "many layers", OwnWithManyLayers)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    tower, inputs = made(kind)
    names = list(tower.state_dict())
    torch._dynamo.reset()  # earlier tests may have filled the cache of compiled forms
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=8):
        expected = {entry: features(getattr(tower, entry)(*inputs)) for entry in ENTRIES}
        tower.compile_blocks()
        assert list(tower.state_dict()) == names
        for entry, value in expected.items():
            before = runs
            torch.testing.assert_close(features(getattr(tower, entry)(*inputs)), value, rtol=1e-9, atol=1e-12)
            assert runs >= before + (13 if kind == "many layers" else 1), entry
        before = runs
        copied = copy.deepcopy(tower)
        for parameter in tower.parameters():
            parameter.fill_(torch.nan)
        for entry, value in expected.items():
            torch.testing.assert_close(features(getattr(copied, entry)(*inputs)), value, rtol=1e-9, atol=1e-12)
        assert runs == before


@pytest.mark.parametrize("kind", MAKERS)
def test_a_copy_runs_its_own_weights(kind: str):
    tower, inputs = made(kind)
    tower.checkpoint_blocks()
    tower.lock()
    expected = [features(getattr(tower, entry)(*inputs)) for entry in ENTRIES]
    copies = [copy.deepcopy(tower), pickle.loads(pickle.dumps(tower))]
    for parameter in tower.parameters():
        parameter.fill_(torch.nan)
    for one in copies:
        assert not one.train().training
        for entry, value in zip(ENTRIES, expected, strict=True):
            torch.testing.assert_close(features(getattr(one, entry)(*inputs)), value, rtol=1e-9, atol=1e-12)


def test_a_tower_without_blocks_cannot_checkpoint_them():
    with pytest.raises(UserError, match="gradient_checkpointing=true: Own has no blocks to checkpoint"):
        Own().checkpoint_blocks()
