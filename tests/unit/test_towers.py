"""Towers: the contract holds for vision transformers, windowed ones and convolutional ones."""

import pytest
import torch
from on_ranks import refuses_a_tower_that_mixes_samples
from ranks import Ranks
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from openslip.errors import UserError
from openslip.models.timm_tower import TimmTower

TOWERS = {
    "vit_small_patch16_224": {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 2]},
    "resnet18": {},
}


@pytest.mark.parametrize("name", TOWERS)
def test_tokens_and_pooled_feature_have_the_contracts_shapes(name: str):
    tower = TimmTower(name=name, image_size=56, arguments=TOWERS[name]).eval()
    x = torch.rand(2, 3, 56, 56)
    with torch.no_grad():
        features, mask = tower.tokens(x)
        assert features.ndim == 3
        assert features.shape[::2] == (2, tower.token_width)
        assert mask.shape == features.shape[:2]
        assert mask.all()
        assert tower(x).shape == (2, tower.width)


def test_views_in_one_pass_equal_views_one_by_one():
    tower = TimmTower(name="vit_small_patch16_224", image_size=56, arguments=TOWERS["vit_small_patch16_224"]).eval()
    views = torch.rand(3, 2, 3, 56, 56)
    with torch.no_grad():
        together = tower.views(*views)
        for view, feature in zip(views, together, strict=True):
            torch.testing.assert_close(feature, tower(view), rtol=1e-5, atol=1e-6)


def test_views_of_a_tower_with_batch_norm_keep_their_own_statistics():
    tower = TimmTower(name="resnet18", image_size=56, arguments={})
    assert tower.mixes_samples
    views = torch.rand(2, 4, 3, 56, 56)
    with torch.no_grad():
        first, _ = tower.views(*views)
        torch.testing.assert_close(first, tower(views[0]), rtol=1e-4, atol=1e-5)


# What timm's own blocks can have; `class_token` is none of the rest.
CLASS_TOKEN = {
    "as published": {},
    "no biases": {"qkv_bias": False},
    "layer scale and norms": {"init_values": 0.1, "qk_norm": True, "scale_attn_norm": False, "pre_norm": True},
    "registers": {"reg_tokens": 2, "no_embed_class": True},
}
OTHERS = {
    "average": {"global_pool": "avg"},
    "attention pooling": {"global_pool": "map", "class_token": False},
    "normed attention": {"scale_attn_norm": True},
    "attention dropout": {"attn_drop_rate": 0.1},
}


def vision_transformer(arguments: dict, dtype: torch.dtype = torch.float32) -> TimmTower:
    torch.manual_seed(0)
    sizes = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
    return TimmTower(name="vit_small_patch16_224", image_size=32, arguments=sizes | arguments).to(dtype)


def with_gradients(tower: TimmTower, features: Tensor) -> list[Tensor]:
    weights = torch.randn(features.shape, dtype=features.dtype, generator=torch.Generator().manual_seed(1))
    return [features, *torch.autograd.grad((features * weights).sum(), list(tower.parameters()))]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("kind", CLASS_TOKEN)
def test_the_class_token_alone_equals_timms_own_forward(kind: str, dtype: torch.dtype, tolerance: float):
    tower = vision_transformer(CLASS_TOKEN[kind], dtype)
    assert tower.last_block is not None
    x = torch.rand(4, 3, 32, 32, dtype=dtype)
    found, expected = with_gradients(tower, tower(x)), with_gradients(tower, tower.trunk(x))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= tolerance * max(theirs.abs().max().item(), 1.0)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_poolings_and_blocks_take_timms_own_forward(kind: str):
    tower = vision_transformer(OTHERS[kind]).eval()
    assert tower.last_block is None
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(tower(x), tower.trunk(x))


def test_the_last_block_costs_keys_and_values_alone():
    tower = vision_transformer({})

    def flops(forward: torch.nn.Module) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            forward(torch.rand(2, 3, 32, 32))
        return counter.get_total_flops()

    assert flops(tower) < 0.8 * flops(tower.trunk)  # three blocks; a third less 2 of its 12 parts


def test_tokens_are_still_all_of_them():
    tower = vision_transformer({}).eval()
    x = torch.rand(2, 3, 32, 32)
    features = tower.tokens(x).features
    assert features.shape == (2, 17, 24)
    torch.testing.assert_close(features[:, 0], tower(x), rtol=1e-5, atol=1e-6)


def test_a_tower_that_mixes_samples_is_refused_on_two_ranks(two_ranks: Ranks):
    assert two_ranks(refuses_a_tower_that_mixes_samples) == [True, True]


def test_the_published_class_token_is_drawn_with_two_hundredths():
    torch.manual_seed(0)
    tower = TimmTower(name="vit_base_patch16_224", image_size=32, arguments={"depth": 1})
    assert 0.018 < tower.get_parameter("trunk.cls_token").std().item() < 0.022  # timm's own is 1e-6


def test_an_unknown_backbone_is_named_with_near_ones():
    with pytest.raises(UserError, match="vit_smal_patch16"):
        TimmTower(name="vit_smal_patch16", image_size=32, arguments={})
