"""Towers: the contract holds for vision transformers, windowed ones and convolutional ones."""

import pytest
import torch
from on_ranks import refuses_a_tower_that_mixes_samples
from ranks import Ranks

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
        assert tower.tokens(x).ndim == 3
        assert tower.tokens(x).shape[::2] == (2, tower.width)
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


def test_a_tower_that_mixes_samples_is_refused_on_two_ranks(two_ranks: Ranks):
    assert two_ranks(refuses_a_tower_that_mixes_samples) == [True, True]


def test_the_published_class_token_is_drawn_with_two_hundredths():
    torch.manual_seed(0)
    tower = TimmTower(name="vit_base_patch16_224", image_size=32, arguments={"depth": 1})
    assert 0.018 < tower.get_parameter("trunk.cls_token").std().item() < 0.022  # timm's own is 1e-6


def test_an_unknown_backbone_is_named_with_near_ones():
    with pytest.raises(UserError, match="vit_smal_patch16"):
        TimmTower(name="vit_smal_patch16", image_size=32, arguments={})
