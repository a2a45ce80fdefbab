"""Towers: the contract holds for vision transformers, windowed ones and convolutional ones."""

import pytest
import timm
import torch
from on_ranks import refuses_a_tower_that_mixes_samples
from ranks import Ranks
from timm.models.convnext import ConvNeXt
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from versions import OLD_TORCH

from openslip.errors import UserError
from openslip.models import timm_tower
from openslip.models.dual_encoder import DualEncoder
from openslip.models.timm_tower import TimmTower
from openslip.objectives.heads import projection_head

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


# One small member of each family, at the size timm has it for.
FAMILIES = """
    vit_tiny_patch16_224 vit_base_patch16_siglip_224 vit_small_patch14_reg4_dinov2 vit_medium_patch16_gap_256
    vit_small_patch16_dinov3 deit_tiny_distilled_patch16_224 samvit_base_patch16 beit_base_patch16_224
    eva02_tiny_patch14_224 naflexvit_base_patch16_gap convit_tiny levit_128s pit_ti_224 coat_lite_tiny pvt_v2_b0
    hiera_tiny_224 swin_tiny_patch4_window7_224 davit_tiny coatnet_nano_rw_224 focalnet_tiny_srf nest_tiny mixer_s16_224
    poolformer_s12 caformer_s18 efficientformer_l1 edgenext_xx_small mobilevitv2_050 tiny_vit_5m_224 mambaout_femto
    convnext_atto inception_next_atto convmixer_768_32 resnet18 resnet50_clip resnetv2_18 resnest14d skresnet18
    regnety_002 halonet26t efficientnet_b0 mobilenetv3_small_050 mobilenetv4_conv_small_035 efficientvit_b0
    efficientvit_m0 ghostnet_050 mixnet_s dla34 vgg11 cs3darknet_focus_s ese_vovnet19b_dw nf_resnet26 hgnet_tiny
    lcnet_035 fasternet_t0 visformer_tiny
"""
# Whose head widens what it pools
WIDENED = {
    *("inception_next_atto", "mobilenetv3_small_050", "mobilenetv4_conv_small_035", "efficientvit_b0", "ghostnet_050"),
    *("vgg11", "hgnet_tiny", "lcnet_035", "fasternet_t0", "mambaout_femto"),
}


@pytest.mark.parametrize("name", FAMILIES.split())
def test_widths_are_those_of_the_features(name: str, monkeypatch: pytest.MonkeyPatch):
    if OLD_TORCH and name in ("inception_next_atto", "regnety_002", "efficientvit_b0"):
        pytest.skip("its meta device lacks an operation of this backbone")
    monkeypatch.setattr(timm_tower, "compute_dtype", lambda x: x.dtype)  # autocast knows no meta device
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    size = config.input_size[-1]
    with torch.device("meta"), torch.no_grad():
        tower = TimmTower(name=name, image_size=size, arguments={})
        images = torch.empty(2, 3, size, size)
        pooled, (features, mask) = tower.pooled_and_tokens(images)
        assert tower(images).shape == pooled.shape == (2, tower.width)
        assert features.shape == (*mask.shape, tower.token_width) == tower.tokens(images).features.shape
        assert mask.dtype == torch.bool
    assert (tower.width != tower.token_width) == (name in WIDENED)


def test_channels_before_and_after_height_and_width_are_told_apart():
    # As many channels as there are rows and columns
    arguments = {"embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 4}
    for tower in (
        TimmTower(name="swin_tiny_patch4_window7_224", image_size=32, arguments=arguments),
        TimmTower(name="convnext_atto", image_size=32, arguments={"dims": [1, 1, 1, 8], "depths": [1, 1, 1, 1]}),
        TimmTower(name="resnet18", image_size=64, arguments={}),
    ):
        pooled, (features, _) = tower.eval().pooled_and_tokens(torch.rand(2, 3, 32, 32))
        average = features.mean(dim=1)
        if isinstance(tower.trunk, ConvNeXt):
            average = tower.trunk.head.norm(average[:, :, None, None]).flatten(1)  # pyright: ignore
        torch.testing.assert_close(average, pooled, rtol=1e-5, atol=1e-6)


def test_a_widened_feature_is_projected():
    tower = TimmTower(name="mobilenetv3_small_050", image_size=32, arguments={})
    model = DualEncoder(image_tower=tower, text_tower=tower, embed_dim=5, logit_scale_init=1.0)
    assert model.encode_image(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    head = projection_head(tower.width, 4, 3)
    assert head(tower(torch.rand(2, 3, 32, 32))).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "size", "arguments", "message"),
    [
        ("resnet18", 32, {"global_pool": ""}, "tower resnet18 does not pool its tokens: leave global_pool"),
        ("inception_v4", 32, {}, "tower inception_v4 does not take images of 32 pixels"),
    ],
)
def test_a_backbone_that_gives_no_vector_per_image_is_refused(name: str, size: int, arguments: dict, message: str):
    with pytest.raises(UserError, match=message):
        TimmTower(name=name, image_size=size, arguments=arguments)


def test_the_pooled_width_follows_the_arguments():
    assert TimmTower(name="resnet18", image_size=32, arguments={"global_pool": "catavgmax"}).width == 1024


def test_several_sequences_of_tokens_are_refused():
    tower = TimmTower(name="crossvit_tiny_240", image_size=240, arguments={"depth": [[1, 1, 0]]})
    images = torch.rand(1, 3, 240, 240)
    assert tower(images).shape == (1, tower.width)
    with pytest.raises(UserError, match="CrossVit has no single sequence of tokens"):
        tower.tokens(images)


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


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_a_new_tower_is_in_training_mode(name: str):
    """As new modules of PyTorch are: Lightning leaves each module in its mode."""
    tower = TimmTower(name=name, image_size=32, arguments={})
    assert all(module.training for module in tower.modules())
