"""Which layout of a step is the fastest that fits, and how a model's towers are told to take it."""

from collections.abc import Callable

import pytest
import torch
from small_models import small_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from openslip.models.timm_tower import TimmTower
from openslip.training.microbatch import even_size, micro_batch_sizes
from openslip.training.sizing.layout import (
    Layout,
    applied,
    are_checkpointed,
    as_arguments,
    block_settings,
    fastest_layout,
    fewest_micro_batches,
)


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("local", [1, 2, 7, 12, 100, 4096])
@pytest.mark.parametrize("room", [1, 2, 3, 5, 8, 11, 64, 1000, 5000])
def test_the_fewest_micro_batches_that_fit_are_found(local: int, room: int, multiple: int):
    truth = next(count for count in range(1, local + 1) if even_size(local, count, multiple) <= room)
    assert fewest_micro_batches(local, lambda size: size <= room, multiple) == truth
    sizes = micro_batch_sizes(local, even_size(local, truth, multiple))
    assert sum(sizes) == local
    assert max(sizes) <= room


def test_where_nothing_fits_micro_batches_are_of_one_sample():
    assert fewest_micro_batches(12, lambda size: False) == 12


@pytest.mark.parametrize(
    ("local", "count", "size"),
    [(4096, 1, 4096), (4096, 3, 1368), (1023, 1, 1023), (1023, 2, 512), (100, 3, 40), (10, 2, 5), (9, 2, 5)],
)
def test_several_micro_batches_are_rounded_up_to_a_multiple(local: int, count: int, size: int):
    assert even_size(local, count, 8) == size
    assert sum(micro_batch_sizes(local, size)) == local


def room(plain: float, checkpointed: float) -> Callable[[int, bool], bool]:
    """A device with room for so many samples at a time."""
    return lambda size, is_checkpointed: size <= (checkpointed if is_checkpointed else plain)


@pytest.mark.parametrize(
    ("fits", "expected", "told"),
    [
        (room(512, 9999), Layout(1, 512, False), "the whole batch"),
        (room(500, 9999), Layout(1, 512, True), "the whole batch with checkpointed blocks"),
        (room(500, 511), Layout(2, 256, False), "2 micro-batches of 256"),
        (room(200, 511), Layout(3, 176, False), "3 micro-batches of 176"),
        (room(1, 511), Layout(512, 1, False), "512 micro-batches of 1"),
        (room(0, 511), Layout(2, 256, True), "2 micro-batches of 256 with checkpointed blocks"),
    ],
)
def test_the_least_recomputation_that_fits_is_the_fastest(
    fits: Callable[[int, bool], bool], expected: Layout, told: str
):
    assert fastest_layout(512, fits, 8) == expected
    assert str(expected) == told


def test_no_layout_is_found_where_not_even_one_sample_fits():
    assert fastest_layout(12, room(0, 0), 8) is None


def test_passes_are_what_the_layouts_were_counted_to_compute(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TimmTower, "choose_kernel", lambda *_: None)  # none is chosen for the meta device
    with torch.device("meta"):
        tower = TimmTower(name="vit_base_patch16_224", image_size=224, arguments={})
        images = torch.empty(2, 3, 224, 224)
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        tower(images)
    for layout in (Layout(1, 2, False), Layout(1, 2, True), Layout(2, 1, False), Layout(2, 1, True)):
        tower.gradient_checkpointing = layout.checkpointed
        with FlopCounterMode(display=False) as counter:
            split = layout.micro_batches > 1
            features = checkpoint(tower, images, use_reentrant=False) if split else tower(images)
            features.sum().backward()
        assert counter.get_total_flops() / forward.get_total_flops() == pytest.approx(layout.passes, rel=0.01)


def test_blocks_of_trained_towers_are_checkpointed_or_not_and_put_back():
    model, _ = small_model("slip")
    image, text = model.get_submodule("image_tower"), model.get_submodule("text_tower")
    settings = block_settings(model)
    assert settings == {False: {image: False, text: False}, True: {image: True, text: True}}
    assert as_arguments(model, settings[True]) == (
        "towers.image.gradient_checkpointing=true towers.text.gradient_checkpointing=true"
    )
    with applied(settings[True]):
        assert (image.gradient_checkpointing, text.gradient_checkpointing) == (True, True)
    assert (image.gradient_checkpointing, text.gradient_checkpointing) == (False, False)


def test_what_is_configured_is_one_of_the_settings_and_its_opposite_is_plain():
    model, _ = small_model("slip")
    image, text = model.get_submodule("image_tower"), model.get_submodule("text_tower")
    assert isinstance(image, TimmTower)
    image.checkpoint_blocks()
    assert are_checkpointed(model)
    assert block_settings(model) == {True: {image: True, text: False}, False: {image: False, text: False}}


def test_towers_that_are_locked_or_checkpoint_themselves_have_no_choice():
    model, _ = small_model("slip", image="batch norm")
    image, text = model.get_submodule("image_tower"), model.get_submodule("text_tower")
    assert isinstance(image, TimmTower)
    image.checkpoint_blocks()
    assert block_settings(model) == {True: {image: True, text: False}}
    image.lock()
    assert block_settings(model) == {False: {text: False}, True: {text: True}}
    assert block_settings(nn.Sequential()) == {False: {}}
