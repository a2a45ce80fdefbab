"""SigLIP's parameters and its inference: the bias of the model, the clamp, and sigmoid probabilities."""

import math
from typing import Any

import pytest
import torch
from small_models import small_batch, small_model

from openslip.config.build import build_parts
from openslip.config.compose import compose_config
from openslip.errors import UserError
from openslip.objectives.siglip import SigLIP


def test_the_model_has_the_published_initial_scale_and_bias():
    model = build_parts(compose_config("train", ["model=siglip_tiny"])[0]).model
    assert model.get_parameter("logit_scale").item() == pytest.approx(math.log(10))
    assert model.get_parameter("logit_bias").item() == -10.0


def test_a_model_without_a_bias_is_refused():
    model, _ = small_model("clip")
    objective: Any = SigLIP(same_caption="negative", max_logit_scale=None)
    with pytest.raises(UserError, match=r"model\.logit_bias_init=null: SigLIP needs a logit bias"):
        objective.prepare(model)


def test_the_scale_is_clamped_only_if_the_config_says_so():
    model: Any = small_model("siglip")[0]
    for maximum, expected in ((None, 7.0), (4.0, 4.0)):
        model.logit_scale.data.fill_(7.0)
        SigLIP(same_caption="negative", max_logit_scale=maximum).after_step(model)
        assert model.logit_scale.item() == expected


def test_the_loss_of_an_untrained_model_is_that_of_its_positives():
    # With bias -10 the negatives cost almost nothing and each positive about 10: SigLIP section 3.2.
    model, objective = small_model("siglip")
    model.get_parameter("logit_scale").data.fill_(math.log(10))
    loss = objective.terms(model, objective.encode(model, small_batch(12, has_equal_captions=True)))[
        "siglip_loss"
    ].item()
    assert 5 < loss < 15


def test_the_caption_keys_of_equal_captions_reach_the_loss():
    _, negative = small_model("siglip")
    model, ignore = small_model("siglip ignore")
    batch = small_batch(12, has_equal_captions=True)
    with torch.no_grad():
        assert "caption" not in negative.encode(model, batch)
        keys = ignore.encode(model, batch)["caption"].tolist()
    captions = [tuple(ids[:length]) for ids, length in zip(batch["text"].tolist(), batch["text_length"], strict=True)]
    assert captions[1] == captions[7] == captions[9]
    assert [keys.index(key) for key in keys] == [captions.index(caption) for caption in captions]
