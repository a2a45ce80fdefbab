"""What a run may ask of its towers: each option does its own thing, and the update stays what it should be."""

from typing import Any

import pytest
import torch
from on_ranks import ddp_gradients, step_gradients
from ranks import Ranks
from small_models import small_batch, small_model
from torch import Tensor, nn
from tower_options import options

from openslip.errors import UserError
from openslip.models.batch_norm import GlobalBatchNorm
from openslip.models.dual_encoder import DualEncoder
from openslip.models.image_encoder import ImageEncoder
from openslip.models.timm_tower import TimmTower
from openslip.optim import param_groups
from openslip.training.compiling import compile_parts
from openslip.training.microbatch import loss_in_micro_batches
from openslip.training.towers import prepare_towers

CHECKPOINTED = {"image.gradient_checkpointing": True, "text.gradient_checkpointing": True}
DROPPING = {"image.patch_dropout": 0.5}
LOCKED = {"image.locked": True, "image.weights": "runs/earlier"}
LOCKED_TEXT = {"text.locked": True, "text.weights": "runs/earlier"}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=1e-12, msg=f"{name} differs")


def test_the_defaults_leave_a_model_as_it_is():
    model, _ = small_model("slip")
    prepare_towers(model, options())
    assert all(parameter.requires_grad for parameter in model.parameters())
    prepare_towers(small_model("simclr")[0], options())  # which has no text tower


@pytest.mark.parametrize("sizes", [[12], [5, 1, 6]])
def test_checkpointed_blocks_give_the_same_update(sizes: list[int]):
    plain = step_gradients("slip", True, 12, [12])
    assert_equal(step_gradients("slip", True, 12, sizes, options(**CHECKPOINTED)), plain)


@pytest.mark.parametrize("towers", [{}, CHECKPOINTED])
def test_only_batch_norms_beside_checkpointed_blocks_run_again(towers: dict[str, Any]):
    """Compiled, one that runs again cannot see that it does, and would count each batch twice."""
    model, _ = small_model("clip", image="batch norm")
    prepare_towers(model, options(**towers))
    layers = [layer for layer in model.modules() if isinstance(layer, GlobalBatchNorm)]
    assert {layer.runs_again for layer in layers} == {bool(towers)}


def test_checkpointed_blocks_keep_fewer_activations():
    def kept(towers: dict) -> int:
        model, objective = small_model("clip")
        prepare_towers(model, towers)
        sizes = 0

        def pack(x: Tensor) -> Tensor:
            nonlocal sizes
            sizes += x.numel() if not isinstance(x, nn.Parameter) else 0
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            objective.encode(model, small_batch(8))
        return sizes

    assert kept(options(**CHECKPOINTED)) < 0.7 * kept(options())  # one of two blocks is checkpointed


@pytest.mark.parametrize("towers", [{}, CHECKPOINTED, LOCKED_TEXT], ids=["plain", "checkpointed", "locked"])
def test_two_ranks_of_ddp_equal_one_process(two_ranks: Ranks, towers: dict[str, Any]):
    whole = step_gradients("slip", True, 12, [12], options(**towers))
    for rank in two_ranks(ddp_gradients, "slip", 12, [2, 4], options(**towers)):
        assert_equal(rank, {name: value for name, value in whole.items() if name in rank})
        assert rank.keys() == {name for name in whole if name.startswith("gradient.")}


def test_a_locked_tower_gets_no_gradient_and_the_rest_its_own():
    whole = step_gradients("clip", True, 6, [6])
    locked = step_gradients("clip", True, 6, [2, 4], options(**LOCKED))
    assert not any(name.startswith("gradient.model.image_tower") for name in locked)
    assert_equal(locked, {name: value for name, value in whole.items() if name in locked})
    assert "gradient.model.image_projection" in locked


def test_a_locked_tower_builds_no_graph_and_stays_in_eval_mode():
    model, objective = small_model("clip")
    prepare_towers(model, options(**LOCKED, **LOCKED_TEXT))
    model.train()
    assert not model.get_submodule("image_tower").training
    assert not model.get_submodule("text_tower.blocks.0").training
    batch = small_batch(3)
    tower = model.get_submodule("image_tower")
    assert not tower(batch["image"]).requires_grad
    trained = [p for group in param_groups([model, objective], 0.1) for p in group["params"]]
    assert {id(p) for p in trained} == {
        id(dict(model.named_parameters())[name]) for name in ("image_projection", "text_projection", "logit_scale")
    }


@pytest.mark.parametrize("method", ["clip", "slip"])
def test_a_locked_tower_runs_once_for_a_micro_batch_that_is_encoded_twice(method: str):
    model, objective = small_model(method)
    prepare_towers(model, options(**LOCKED))
    assert isinstance(model, DualEncoder)
    passes = {"image": 0, "text": 0}
    for kind, inner in (
        ("image", model.image_tower.get_submodule("trunk.blocks.0")),
        ("text", model.text_tower.get_submodule("ln_final")),
    ):
        inner.register_forward_hook(lambda *_, kind=kind: passes.update({kind: passes[kind] + 1}))
    loss_in_micro_batches(objective, model, small_batch(6), [4, 2])["loss"].backward()
    assert passes == {"image": 2, "text": 4}
    assert "forward" not in vars(model.image_tower)


def test_patches_are_left_out_in_training_alone():
    tower = small_model("simclr")[0].get_submodule("image_tower")
    assert isinstance(tower, TimmTower)
    seen: list[int] = []
    block: Any = tower.trunk.get_submodule("blocks.0")
    block.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[1]))
    tower.drop_patches(0.5)
    x = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    tower(x)
    tower.eval()
    assert torch.equal(tower(x), tower(x))
    assert seen == [1 + 2, 1 + 4, 1 + 4]


@pytest.mark.parametrize(("arguments", "kept"), [({}, 1 + 32), ({"class_token": False, "global_pool": "avg"}, 32)])
def test_any_patch_may_be_left_out_but_no_class_token(arguments: dict[str, Any], kept: int):
    vit: dict[str, Any] = {"patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 1}
    tower = TimmTower(name="vit_small_patch16_224", image_size=32, arguments=vit | arguments)
    tower.drop_patches(0.5)
    first: list[Tensor] = []
    block: Any = tower.trunk.get_submodule("blocks.0")
    block.register_forward_hook(lambda _module, inputs, _output: first.append(inputs[0]))
    tower(torch.zeros(1, 3, 32, 32).expand(20, -1, -1, -1))
    assert first[0].shape[1] == kept
    num_first = len(first[0][:, 0].unique(dim=0))  # of the tokens that come first in 20 samples
    assert num_first == 1 if kept == 33 else num_first > 3


def test_each_picture_loses_its_own_patches():
    tower = small_model("simclr")[0].get_submodule("image_tower")
    assert isinstance(tower, TimmTower)
    tower.drop_patches(0.5)
    torch.manual_seed(0)
    features = tower(torch.rand(1, 3, 16, 16, dtype=torch.float64).expand(16, -1, -1, -1))
    assert 3 < len({round(row[0].item(), 9) for row in features}) <= 6  # two of four patches stay


@pytest.mark.parametrize("inner", [{}, CHECKPOINTED], ids=["micro-batches", "micro-batches of checkpointed blocks"])
def test_the_same_patches_are_left_out_when_a_micro_batch_is_encoded_again(inner: dict[str, Any]):
    batch, sizes = small_batch(6), [4, 2]

    def gradients(towers: dict, *, stored: bool) -> list[Tensor]:
        model, objective = small_model("slip")
        prepare_towers(model, towers)
        torch.manual_seed(3)
        if stored:  # nothing is encoded again
            parts = [{k: v.split(sizes)[i] for k, v in batch.items()} for i in range(len(sizes))]
            features = [objective.encode(model, part) for part in parts]
            terms = objective.loss(model, {key: torch.cat([part[key] for part in features]) for key in features[0]})
        else:
            terms = loss_in_micro_batches(objective, model, batch, sizes)
        return list(torch.autograd.grad(terms["loss"], list(model.parameters())))

    expected = gradients(options(**DROPPING), stored=True)
    for ours, theirs in zip(gradients(options(**DROPPING, **inner), stored=False), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sizes", [[12], [5, 1, 6]])
def test_micro_batches_in_16_bits_agree_with_the_whole_batch_as_16_bits_can(sizes: list[int]):
    def gradient(sizes: list[int], *, half: bool) -> Tensor:
        model, objective = small_model("slip")
        batch = {k: v.float() if v.is_floating_point() else v for k, v in small_batch(12).items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = loss_in_micro_batches(objective.float(), model.float(), batch, sizes)["loss"]
        loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    exact, whole, split = gradient([12], half=False), gradient([12], half=True), gradient(sizes, half=True)
    assert 0 < (whole - exact).norm() < 0.3 * exact.norm()
    assert (split - whole).norm() <= (whole - exact).norm()


@pytest.mark.slow  # a C++ compiler runs
@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
@pytest.mark.parametrize("inner", [{}, CHECKPOINTED], ids=["blocks", "checkpointed blocks"])
def test_compiled_towers_give_the_same_update(inner: dict[str, Any]):
    plain = step_gradients("slip", True, 12, [12])
    for sizes in ([12], [5, 1, 6]):
        assert_equal(step_gradients("slip", True, 12, sizes, options(**inner), compiled=True), plain, rtol=1e-7)


def test_options_change_no_name_of_the_state():
    model, _ = small_model("slip")
    names = list(model.state_dict())
    prepare_towers(model, options(**CHECKPOINTED, **DROPPING))
    compile_parts(model, {})
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    ("method", "changed", "message"),
    [
        (
            "simclr",
            {"text.gradient_checkpointing": True},
            "towers.text.gradient_checkpointing: ImageEncoder has no text tower",
        ),
        ("slip", {"image.locked": True}, "towers.image.locked=true would keep random weights as they are"),
        ("slip", {"image.patch_dropout": 0.5, **LOCKED}, "a locked tower drops no patches"),
    ],
)
def test_unfit_options_are_named(method: str, changed: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        prepare_towers(small_model(method)[0], options(**changed))


def test_a_backbone_without_patches_refuses_to_drop_them():
    model = ImageEncoder(image_tower=TimmTower(name="resnet18", image_size=32, arguments={}))
    with pytest.raises(UserError, match=r"towers.image.patch_dropout=0.5: TimmTower has no patches"):
        prepare_towers(model, options(**DROPPING))
