"""Each operation against torchvision's on PIL pictures, which the published recipe uses, at the same parameters."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageFilter
from published import simclr_augment
from torch import Tensor
from torchvision.transforms import functional

from openslip.data.image.augment import SimCLRAugment, normalise
from openslip.data.image.augment_batch import augment_batch, box_matrix
from openslip.data.image.augment_image import ORDERS
from openslip.errors import UserError

LEVEL = 1 / 255
F: Any = functional  # its types know of tensors only
T: Any = torchvision.transforms
NOTHING = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
NAMES = ("brightness", "contrast", "saturation", "hue", "order", "grayscale", "sigma", "flip")


def parameters(**changes: float) -> tuple[float, ...]:
    return tuple(changes.get(name, value) for name, value in zip(NAMES, NOTHING, strict=True))


def picture(seed: int, width: int = 48, height: int = 32) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def apply(images: list[Image.Image], rows: list[tuple[float, ...]]) -> Tensor:
    return simclr_augment()(torch.stack([pixels(image) for image in images]), torch.tensor(rows))


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.1, 1.4])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("seed", [0, 1])
def test_colour_factors_are_torchvisions_but_for_rounding(name: str, factor: float, seed: int):
    image = picture(seed)
    expected = pixels(getattr(F, f"adjust_{name}")(image, factor))
    difference = (apply([image], [parameters(**{name: factor})])[0] - expected).abs()
    assert difference.mean() < LEVEL  # Pillow cuts the fraction off, and for contrast rounds the mean as well
    assert difference.max() < 1.5 * LEVEL


@pytest.mark.parametrize("shift", [-0.1, -0.03, 0.02, 0.1])
@pytest.mark.parametrize("seed", [0, 1])
def test_hue_is_torchvisions_on_floats_and_near_its_8_bit_one(shift: float, seed: int):
    image = picture(seed)
    ours = apply([image], [parameters(hue=shift)])[0]
    torch.testing.assert_close(ours, F.adjust_hue(pixels(image), shift), atol=5e-6, rtol=0)
    # Pillow keeps hue, saturation and value in 8 bits each: a level of hue is 1.4 degrees.
    assert (ours - pixels(F.adjust_hue(image, shift))).abs().mean() < 2 * LEVEL


@pytest.mark.parametrize("shift", [-0.5, -0.25, 0.25, 0.5])
def test_large_hue_shifts_turn_the_whole_circle(shift: float):
    image = pixels(picture(0))
    ours = simclr_augment()(image[None], torch.tensor([parameters(hue=shift)]))[0]
    torch.testing.assert_close(ours, F.adjust_hue(image, shift), atol=5e-6, rtol=0)


def test_hue_leaves_grey_black_white_and_keeps_pure_colours_pure():
    colours = torch.tensor(
        [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1]]
    )
    image = colours.float().T.reshape(1, 3, 2, 4)
    turned = simclr_augment()(image, torch.tensor([parameters(hue=1 / 3)])).reshape(3, 8).T
    expected = torch.tensor(
        [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 1], [1, 0, 1]]
    )
    torch.testing.assert_close(turned, expected.float(), atol=1e-5, rtol=0)


def test_grayscale_and_flip_are_torchvisions():
    image = picture(0)
    gray = (apply([image], [parameters(grayscale=1)])[0] - pixels(F.rgb_to_grayscale(image, 3))).abs()
    assert gray.max() < 0.51 * LEVEL
    torch.testing.assert_close(apply([image], [parameters(flip=1)])[0], pixels(F.hflip(image)), atol=0, rtol=0)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.7, 1.0, 1.4, 1.8, 2.0, 5.0])
def test_blur_is_pillows_but_for_rounding(sigma: float):
    image = picture(0)
    expected = pixels(image.filter(ImageFilter.GaussianBlur(sigma)))
    difference = (apply([image], [parameters(sigma=sigma)])[0] - expected).abs()
    # Pillow rounds after each of its six passes.
    assert difference.mean() < LEVEL
    assert difference.max() < 4 * LEVEL


def test_every_order_is_the_order_of_torchvisions_functions():
    image = pixels(picture(3))
    functions = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    values = (1.35, 0.65, 1.4, 0.08)
    results = simclr_augment()(
        image.expand(len(ORDERS), -1, -1, -1), torch.tensor([(*values, float(order), 0, 0, 0) for order in range(24)])
    )
    for order, result in zip(ORDERS, results, strict=True):
        expected = image
        for operation in order:
            expected = functions[operation](expected, values[operation])
        # torchvision's luma has four digits on tensors (0.2989), three on pictures (0.299)
        torch.testing.assert_close(result, expected, atol=1e-3, rtol=0)
    assert len({tuple(result.flatten()[:50].tolist()) for result in results}) > 6  # the order matters


def test_the_whole_chain_is_the_published_one_but_for_rounding():
    augment, rng = simclr_augment(), np.random.default_rng(0)
    images = [picture(seed) for seed in range(64)]
    drawn = [augment.draw(rng) for _ in images]
    results = augment(torch.stack([pixels(image) for image in images]), torch.from_numpy(np.stack(drawn)))
    functions = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for image, values, result in zip(images, drawn, results, strict=True):
        brightness, contrast, saturation, hue, order, gray, sigma, flip = values.tolist()
        expected = image
        if (brightness, contrast, saturation, hue) != (1, 1, 1, 0):
            for operation in ORDERS[int(order)]:
                expected = functions[operation](expected, (brightness, contrast, saturation, hue)[operation])
        expected = F.rgb_to_grayscale(expected, 3) if gray else expected
        expected = expected.filter(ImageFilter.GaussianBlur(sigma)) if sigma else expected
        expected = F.hflip(expected) if flip else expected
        assert (result - pixels(expected)).abs().mean() < 3 * LEVEL


def test_a_sample_does_not_depend_on_its_batch():
    augment, rng = simclr_augment(), np.random.default_rng(1)
    images = torch.stack([pixels(picture(seed)) for seed in range(20)])
    drawn = torch.from_numpy(np.stack([augment.draw(rng) for _ in images]))
    before = images.clone()
    together = augment(images, drawn)
    assert torch.equal(images, before)
    for place in range(len(images)):
        torch.testing.assert_close(
            augment(images[place, None], drawn[place, None])[0], together[place], atol=1e-6, rtol=0
        )
    shuffled = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(augment(images[shuffled], drawn[shuffled]), together[shuffled], atol=1e-6, rtol=0)
    strided = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(augment(strided, drawn), together, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(32, 48), (33, 41), (5, 7), (1, 1), (112, 96)])
@pytest.mark.parametrize("hue", [0.1, 0.5])
def test_the_batched_chain_is_the_chain_on_each_picture(shape: tuple[int, int], hue: float):
    augment = SimCLRAugment(**(vars(simclr_augment()) | {"hue": hue, "blur_sigma": [0.1, 6.0]}))
    rng = np.random.default_rng(2)
    images = torch.rand(40, 3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = torch.from_numpy(np.stack([augment.draw(rng) for _ in images]))
    # The batched chain's factors are float32 in any case.
    torch.testing.assert_close(augment_batch(images, drawn.numpy()), augment(images, drawn), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        augment_batch(images.float(), drawn.numpy()), augment(images.float(), drawn), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_the_blur_adds_taps_beyond_an_edge_in_their_order(size: int):
    taps = np.random.default_rng(size).random((3, 7)).astype(np.float32)
    once = np.zeros((3, size, size), np.float32)
    for row, tap in itertools.product(range(size), range(7)):
        once[:, row, min(max(row + tap - 3, 0), size - 1)] += taps[:, tap]
    found = box_matrix(taps, size, torch.zeros(()))
    assert torch.equal(found, torch.from_numpy(once) @ torch.from_numpy(once) @ torch.from_numpy(once))


def test_not_a_bit_of_a_sample_depends_on_its_batch():
    augment, rng = simclr_augment(), np.random.default_rng(1)
    images = torch.stack([pixels(picture(seed)) for seed in range(64)])
    drawn = torch.from_numpy(np.stack([augment.draw(rng) for _ in images]))
    together = augment(images, drawn)
    halves = [augment(images[half], drawn[half]) for half in (slice(32), slice(32, 64))]
    assert torch.equal(torch.cat(halves), together)
    assert torch.equal(
        torch.cat([augment(*pair) for pair in zip(images.split(1), drawn.split(1), strict=True)]), together
    )


def test_5000_draws_have_the_statistics_of_torchvisions_random_transforms():
    number, rng = 5000, np.random.default_rng(0)
    # Orange, brighter to the right, and noise: every operation moves something.
    orange = np.array([170, 110, 60]) + np.linspace(-40, 40, 32)[:, None]
    image = Image.fromarray((orange + rng.normal(0, 12, (32, 32, 1))).clip(0, 255).astype(np.uint8))
    augment = simclr_augment()
    drawn = torch.from_numpy(np.stack([augment.draw(rng) for _ in range(number)]))
    ours = torch.cat([augment(pixels(image).expand(len(part), -1, -1, -1), part) for part in drawn.split(250)])

    torchvisions = T.Compose(
        [
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([T.Lambda(lambda x: x.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0))))], 0.5),
            T.RandomHorizontalFlip(),
        ]
    )
    torch.manual_seed(0)
    theirs = torch.stack([pixels(torchvisions(image)) for _ in range(number)])

    for (name, a), b in zip(figures(ours).items(), figures(theirs).values(), strict=True):
        # Torchvision cuts the fraction off up to three times, which darkens; differences of pixels lose nothing by it.
        rounding = 1.5 * LEVEL if name in ("red", "green", "blue") else 0.25 * LEVEL
        error = np.sqrt((a.var() + b.var()) / number)
        assert abs(a.mean() - b.mean()) < 4 * error + rounding, name
        error = np.sqrt(sum(((x - x.mean()) ** 2).var() / (4 * x.var() * number) for x in (a, b)))
        assert abs(a.std() - b.std()) < 4 * error + 0.25 * LEVEL, name
        for share in (0.05, 0.25, 0.5, 0.75, 0.95):
            error = np.sqrt(share * (1 - share) * 2 / number)  # of the share of draws below a value
            low, high = np.quantile(a, [max(share - 4 * error, 0), min(share + 4 * error, 1)])
            assert low - rounding < np.quantile(b, share) < high + rounding, (name, share)


def figures(images: Tensor) -> dict[str, np.ndarray]:
    """What brightness, contrast, colour, blur and flip each move, one figure per picture."""
    red, green, blue = images.double().unbind(dim=1)
    gray = 0.299 * red + 0.587 * green + 0.114 * blue
    columns = {
        "red": red.mean(dim=(1, 2)),
        "green": green.mean(dim=(1, 2)),
        "blue": blue.mean(dim=(1, 2)),
        "contrast": gray.std(dim=(1, 2)),
        "sharpness": gray.diff(dim=1).abs().mean(dim=(1, 2)),
        "chroma": (images.amax(dim=1) - images.amin(dim=1)).double().mean(dim=(1, 2)),
        "hue": (red - green).mean(dim=(1, 2)),
        "flip": (gray[..., 16:] - gray[..., :16]).mean(dim=(1, 2)),
    }
    return {name: column.numpy() for name, column in columns.items()}


def test_nothing_drawn_is_nothing_done():
    image = picture(0)
    assert torch.equal(apply([image], [NOTHING])[0], pixels(image))


def test_draws_have_the_published_distribution():
    augment, rng = simclr_augment(), np.random.default_rng(0)
    drawn = np.stack([augment.draw(rng) for _ in range(20_000)])
    jittered = drawn[(drawn[:, :4] != (1, 1, 1, 0)).any(axis=1)]
    assert abs(len(jittered) / len(drawn) - 0.8) < 0.015
    for column, (low, high) in enumerate([(0.6, 1.4)] * 3 + [(-0.1, 0.1)]):
        values = (jittered[:, column] - low) / (high - low)
        assert np.abs(np.quantile(values, [0, 0.25, 0.5, 0.75, 1]) - [0, 0.25, 0.5, 0.75, 1]).max() < 0.02
    counts = np.bincount(jittered[:, 4].astype(int), minlength=24) / len(jittered)
    assert np.abs(counts - 1 / 24).max() < 0.008
    assert abs(drawn[:, 5].mean() - 0.2) < 0.015
    sigma = drawn[drawn[:, 6] > 0, 6]
    assert abs(len(sigma) / len(drawn) - 0.5) < 0.015
    assert np.abs(np.quantile(sigma, [0, 0.5, 1]) - [0.1, 1.05, 2.0]).max() < 0.04
    assert abs(drawn[:, 7].mean() - 0.5) < 0.015


def test_normalisation_is_torchvisions():
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    torch.testing.assert_close(normalise(images, mean, std), F.normalize(images, mean, std), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hue": 0.6}, "augment.hue=0.6"),
        ({"contrast": -0.1}, "augment.contrast"),
        ({"blur_sigma": [0.0, 2.0]}, "blur_sigma"),
    ],
)
def test_impossible_strengths_are_named(changes: dict, message: str):
    settings = vars(simclr_augment())
    with pytest.raises(UserError, match=message):
        SimCLRAugment(**(settings | changes))


def test_what_is_drawn_for_one_operation_tells_nothing_of_another():
    augment = simclr_augment()
    augment.jitter_probability = 1.0
    rng = np.random.default_rng(0)
    drawn = np.stack([augment.draw(rng) for _ in range(5000)])
    columns = np.stack([*drawn.T, drawn[:, 6] > 0])  # and whether there is a blur at all
    together = np.array(np.corrcoef(columns))
    for one, other in itertools.combinations(range(9), 2):
        if (one, other) != (6, 8):
            assert abs(together[one, other]) < 0.06, (one, other)
    blurred = drawn[drawn[:, 6] > 0]
    assert abs(np.array(np.corrcoef(blurred[:, 6], blurred[:, 7]))[0, 1]) < 0.08
