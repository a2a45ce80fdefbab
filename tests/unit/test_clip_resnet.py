"""CLIP's ResNet and the towers of CoCa as towers: training, tokens and gradient checkpointing."""

from typing import Any

import pytest
import torch

from openslip.errors import UserError
from openslip.models.attentional_pooling import AttentionalPooling
from openslip.models.clip_resnet import ClipResNet
from openslip.models.coca_text import CocaText
from openslip.models.timm_tower import TimmTower
from openslip.models.tower import Tower

SIZES: dict[str, Any] = {"image_size": 64, "depths": [1, 2, 1, 1], "channels": 4, "width": 6, "heads": 2}
IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[3, 5, 9, 0, 0], [3, 9, 0, 0, 0], [3, 4, 5, 6, 9]])
LENGTHS = torch.tensor([3, 2, 5])


def towers() -> dict[str, tuple[Tower, tuple[torch.Tensor, ...]]]:
    torch.manual_seed(0)
    vit: dict[str, Any] = {"patch_size": 16, "embed_dim": 8, "depth": 2, "num_heads": 2, "final_norm": False}
    tower = TimmTower(name="vit_base_patch16_clip_224", image_size=64, arguments=vit, norm_eps=1e-5)
    words: dict[str, Any] = {"vocab_size": 10, "context_length": 5, "width": 8, "depth": 2, "heads": 2}
    return {
        "resnet": (ClipResNet(**SIZES), (IMAGES,)),
        "pooling": (AttentionalPooling(tower=tower, queries=3, heads=2, width=6, norm_eps=1e-5), (IMAGES,)),
        "text": (CocaText(**words, activation="gelu", norm_eps=1e-5, mlp_width=32), (IDS, LENGTHS)),
    }


@pytest.mark.parametrize("name", list(towers()))
def test_features_tokens_and_gradients_with_checkpointing_are_the_same(name: str):
    tower, inputs = towers()[name]
    tower.eval()
    pooled = tower(*inputs)
    assert pooled.shape == (3, tower.width)
    both = tower.pooled_and_tokens(*inputs)
    torch.testing.assert_close(both[0], pooled)
    assert both[1].features.shape[2] == tower.token_width
    assert both[1].features.shape[:2] == both[1].mask.shape
    pooled.square().sum().backward()
    gradients = {key: p.grad for key, p in tower.named_parameters() if p.grad is not None}
    tower.zero_grad()
    tower.checkpoint_blocks()
    tower(*inputs).square().sum().backward()
    assert len(gradients) > 10
    for key, gradient in gradients.items():
        torch.testing.assert_close(tower.get_parameter(key).grad, gradient, msg=key)


def test_a_new_resnets_blocks_are_their_shortcuts():
    tower = ClipResNet(**SIZES)
    assert all(not block.get_parameter("bn3.weight").any() for block in tower.repeated_blocks())
    assert tower.mixes_samples


def test_attention_pooling_starts_as_published():
    """openai/CLIP draws its weights and position embeddings with the inverse root of its width as deviation."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = SIZES | {"channels": 16, "image_size": 128}
    pool = ClipResNet(**sizes).pool  # of 512 channels
    for name, parameter in pool.named_parameters():
        if not name.endswith("bias"):
            assert float(parameter.detach().std()) == pytest.approx(512**-0.5, rel=0.05), name


def test_norms_have_the_epsilon_that_is_asked_for():
    vit: dict[str, Any] = {"patch_size": 16, "embed_dim": 8, "depth": 1, "num_heads": 2}
    for eps, expected in ((1e-3, {1e-3}), (None, {1e-6})):
        tower = TimmTower(name="vit_base_patch16_224", image_size=32, arguments=vit, norm_eps=eps)
        assert {layer.eps for layer in tower.modules() if isinstance(layer, torch.nn.LayerNorm)} == expected


@pytest.mark.parametrize("wrong", [{"image_size": 60}, {"depths": [1, 1, 1]}, {"channels": 5}, {"heads": 3}])
def test_sizes_that_contradict_each_other_are_refused(wrong: dict[str, Any]):
    with pytest.raises(UserError, match="ClipResNet"):
        ClipResNet(**SIZES | wrong)
