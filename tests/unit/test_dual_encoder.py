"""The dual encoder: any two towers, optional biases, and the parameters of before where there are none."""

from typing import Any

import pytest
import torch
from torch import Tensor

from openslip.errors import UserError
from openslip.models.dual_encoder import DualEncoder
from openslip.models.tower import Tokens, Tower, unpadded
from openslip.optim import param_groups


class Linear(Tower):
    """One linear map, for images as well as for texts."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.map = torch.nn.Linear(inputs, width)

    def tokens(self, x: Tensor, lengths: Tensor | None = None, /) -> Tokens:
        return unpadded(self.map(x.flatten(1).float())[:, None])

    def forward(self, x: Tensor, lengths: Tensor | None = None, /) -> Tensor:
        return self.tokens(x).features[:, 0]


def dual_encoder(**arguments: Any) -> DualEncoder:
    torch.manual_seed(0)
    image_tower, text_tower = Linear(12, 5), Linear(4, 7)
    return DualEncoder(image_tower=image_tower, text_tower=text_tower, embed_dim=3, logit_scale_init=2.0, **arguments)


IMAGES, TEXTS, LENGTHS = torch.rand(6, 3, 2, 2), torch.randint(0, 9, (6, 4)), torch.full((6,), 4)


def test_without_options_the_parameters_are_those_of_the_published_model():
    model = dual_encoder()
    names = [name for name, _ in model.named_parameters() if "tower" not in name]
    assert names == ["image_projection", "text_projection", "logit_scale"]
    assert model.logit_bias is None
    assert [name for name in model.state_dict() if "tower" not in name] == names


def test_projections_start_with_the_published_standard_deviations():
    # facebookresearch/SLIP, models.py, CLIP.initialize_parameters: width^-0.5 of each tower
    torch.manual_seed(0)
    image_tower, text_tower = Linear(12, 64), Linear(4, 25)
    model = DualEncoder(image_tower=image_tower, text_tower=text_tower, embed_dim=400, logit_scale_init=2.0)
    for projection, std in ((model.image_projection, 0.125), (model.text_projection, 0.2)):
        assert projection is not None
        assert float(projection.detach().std()) == pytest.approx(std, rel=0.03)


def test_options_add_parameters_and_draw_no_random_numbers():
    plain, model = dual_encoder(), dual_encoder(projection_bias=True, logit_bias_init=-10.0)
    drawn = torch.rand(3)
    dual_encoder()
    assert torch.equal(torch.rand(3), drawn)
    added = {"image_projection_bias", "text_projection_bias", "logit_bias"}
    assert model.state_dict().keys() - plain.state_dict().keys() == added
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert model.logit_bias is not None
    assert model.logit_bias.item() == -10
    assert model.logit_bias.shape == ()
    assert torch.equal(model.encode_image(IMAGES), plain.encode_image(IMAGES))
    undecayed = param_groups([model], 0.1)[1]
    assert undecayed["weight_decay"] == 0
    ids = {id(parameter) for parameter in undecayed["params"]}
    assert all(id(model.get_parameter(name)) in ids for name in added)


def test_the_temperature_of_tokens_starts_as_that_of_the_joint_space():
    model = dual_encoder(token_dim=2)
    assert model.token_logit_scale.item() == model.logit_scale.item() == 2
    assert model.token_logit_scale is not model.logit_scale


@pytest.mark.parametrize("bias", [False, True])
def test_a_projection_is_a_linear_layer(bias: bool):
    model = dual_encoder(projection_bias=bias)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    for kind, found in (("image", model.encode_image(IMAGES)), ("text", model.encode_text(TEXTS, LENGTHS))):
        tower, inputs = (model.image_tower, (IMAGES,)) if kind == "image" else (model.text_tower, (TEXTS, LENGTHS))
        layer = torch.nn.Linear(tower.width, 3, bias=bias)
        layer.weight = torch.nn.Parameter(model.get_parameter(f"{kind}_projection").T)
        if bias:
            layer.bias = model.get_parameter(f"{kind}_projection_bias")
        features = tower(*inputs)
        torch.testing.assert_close(found, layer(features), rtol=1e-5, atol=1e-6)
        project = model.project_image if kind == "image" else model.project_text
        assert torch.equal(found, project(features))


def test_the_text_projection_alone_may_have_a_bias_and_the_image_projection_may_be_missing():
    model = dual_encoder(projection_bias="text")
    added = model.state_dict().keys() - dual_encoder().state_dict().keys()
    assert added == {"text_projection_bias"}
    torch.manual_seed(0)
    towers: dict[str, Any] = {"image_tower": Linear(12, 5), "text_tower": Linear(4, 7)}
    plain = DualEncoder(**towers, embed_dim=5, logit_scale_init=2.0, projects_image=False, projection_bias="text")
    assert "image_projection" not in plain.state_dict()
    assert torch.equal(plain.encode_image(IMAGES), plain.image_tower(IMAGES))
    assert plain.encode_text(TEXTS, LENGTHS).shape == (6, 5)
    for wrong in ({"embed_dim": 3, "projection_bias": False}, {"embed_dim": 5, "projection_bias": True}):
        with pytest.raises(UserError, match=r"projects_image=false with .* image tower of width 5"):
            DualEncoder(**towers, logit_scale_init=2.0, projects_image=False, **wrong)
    with pytest.raises(UserError, match="projection_bias=image: expected true, false or text"):
        dual_encoder(projection_bias="image")
