"""The geometry of features against loops and scikit-learn, on one process and on two."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_models import Pictures, bundle, dual_encoder, image_encoder
from geometry_models import geometry, measure_on_this_rank
from ranks import Ranks
from retrieval_models import CAPTIONS, Captioned
from sklearn.decomposition import PCA

from openslip.arrays import read_arrays, write_arrays
from openslip.data.sources.builtin import ATTRIBUTES, SYNONYMS, classnames
from openslip.data.sources.builtin_captions import Captioned as BuiltinCaptioned
from openslip.data.sources.builtin_captions import captioned
from openslip.errors import UserError
from openslip.evaluation.geometry import (
    MOST_SHOWN,
    alignment,
    duplicate_share,
    effective_rank,
    modality_gap,
    principal_components,
    uniformity,
)

Rows = list[list[float]]


def features(count: int) -> tuple[Rows, Rows, list[int]]:
    """Image features, text features, and the image of each text, in float64 and one sample at a time."""
    model, source = bundle(dual_encoder().double()), Captioned(count)
    images, texts, owners = [], [], []
    for index in range(count):
        sample = source[index]
        with torch.no_grad():
            image = model.model.eval().encode_image(model.transform_all([sample.image]).__next__().double())[0]
        images.append((image / image.norm()).tolist())
        for caption in sample.captions:
            texts.append(model.encode_text([caption])[0].tolist())
            owners.append(index)
    return images, texts, owners


def square(a: list[float], b: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def naive_uniformity(rows: Rows) -> float:
    potentials = [math.exp(-2 * square(a, b)) for i, a in enumerate(rows) for b in rows[i + 1 :]]
    return math.log(sum(potentials) / len(potentials))


def naive_effective_rank(rows: Rows) -> float:
    values = np.linalg.svd(np.array(rows), compute_uv=False)
    shares = [value / values.sum() for value in values if value > 0]
    return math.exp(-sum(share * math.log(share) for share in shares))


def naive_gap(images: Rows, texts: Rows) -> float:
    means = [[sum(column) / len(rows) for column in zip(*rows, strict=True)] for rows in (images, texts)]
    return math.sqrt(square(*means))


@pytest.mark.parametrize("count", [5, 13])
def test_metrics_equal_loops_over_all_pairs(count: int):
    metrics = geometry(Captioned(count)).run(bundle(dual_encoder()))
    images, texts, owners = features(count)
    expected = {
        "modality_gap": naive_gap(images, texts),
        "alignment": sum(square(images[owner], text) for owner, text in zip(owners, texts, strict=True)) / len(texts),
        "image_uniformity": naive_uniformity(images),
        "text_uniformity": naive_uniformity(texts),
        "image_effective_rank": naive_effective_rank(images),
        "text_effective_rank": naive_effective_rank(texts),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-4), name
    assert metrics["duplicate_captions_percent"] == 0
    assert (metrics["num_images"], metrics["num_texts"]) == (count, len(texts))
    assert len(texts) > count, "some images have several captions"
    assert 0.1 < metrics["alignment"] < 3.9, "features of a kind that tells little"


def test_extremes_have_their_known_values():
    axes = torch.eye(6, dtype=torch.float64)
    equal = axes[:1].expand(6, -1)
    assert effective_rank(axes) == pytest.approx(6)
    assert effective_rank(equal) == pytest.approx(1)
    assert uniformity(axes, 4) == pytest.approx(-4)
    assert uniformity(equal, 4) == pytest.approx(0)
    assert uniformity(torch.cat([axes[:1], -axes[:1]]), 1) == pytest.approx(-8)
    assert modality_gap(equal, -equal) == 2
    assert modality_gap(axes, axes.flip(0)) == pytest.approx(0)
    assert (alignment(axes, axes), alignment(axes, -axes)) == (0, 4)
    assert alignment(axes, axes.roll(1, 0)) == pytest.approx(2)


def test_the_chunk_changes_no_uniformity():
    rows = torch.nn.functional.normalize(torch.randn(11, 5, generator=torch.Generator().manual_seed(0)).double())
    assert [uniformity(rows, chunk) for chunk in (1, 4, 11, 50)] == [pytest.approx(naive_uniformity(rows.tolist()))] * 4


def test_every_copy_of_a_caption_counts_as_a_duplicate():
    assert duplicate_share(["a", "b", "a", "c", "a", "b"]) == pytest.approx(100 * 5 / 6)
    assert geometry(Captioned(4, caption="the same")).run(bundle(dual_encoder()))["duplicate_captions_percent"] == 100


def test_components_equal_scikit_learn():
    rows = torch.randn(40, 7, generator=torch.Generator().manual_seed(0)).double() * torch.arange(1, 8)
    centre, components, shares = principal_components(rows, 2)
    expected = PCA(2, svd_solver="full").fit(rows.numpy())
    np.testing.assert_allclose(centre, expected.mean_, atol=1e-12)
    np.testing.assert_allclose(shares, 100 * expected.explained_variance_ratio_)
    signs = np.sign((components.numpy() * expected.components_).sum(axis=1))
    np.testing.assert_allclose(components, expected.components_ * signs[:, None], atol=1e-9)
    assert (components.gather(1, components.abs().argmax(dim=1, keepdim=True)) > 0).all()


def test_the_map_shows_each_image_beside_its_first_caption(tmp_path: Path):
    evaluation = geometry(Captioned(13))
    evaluation.run(bundle(dual_encoder()))
    write_arrays(tmp_path / "a.npz", evaluation.arrays)
    arrays = read_arrays(tmp_path / "a.npz", max_bytes=1 << 20)
    images, texts, owners = features(13)
    first = [owners.index(index) for index in range(13)]
    plane = PCA(2, svd_solver="full").fit(np.array(images + texts))
    for name, rows in (("map_images", images), ("map_texts", [texts[row] for row in first])):
        expected = plane.transform(np.array(rows))
        np.testing.assert_allclose(np.abs(arrays[name]), np.abs(expected), atol=1e-4)
    assert arrays["map_keys"].tolist() == [f"picture{index}" for index in range(13)]
    assert arrays["map_captions"].tolist() == [f"{CAPTIONS[i % len(CAPTIONS)][0]}, number {i}" for i in range(13)]
    assert arrays["map_labels"].tolist() == [index % 7 for index in range(13)]
    assert "map_classes" not in arrays


def test_the_map_is_spread_over_a_large_source():
    evaluation = geometry(Captioned(2))
    rows = torch.nn.functional.normalize(torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)).double())
    evaluation.source = Captioned(1000)
    arrays = evaluation.feature_map(rows, rows, torch.arange(1000), torch.arange(1000), ["x"] * 1000)
    shown = arrays["map_labels"]
    assert len(shown) == MOST_SHOWN
    assert (shown[0], shown[-1]) == (0, 997)
    assert set(np.diff(shown)) == {2, 3}


def test_two_ranks_measure_what_one_process_does(two_ranks: Ranks):
    alone = measure_on_this_rank(13)
    assert two_ranks(measure_on_this_rank, 13) == [alone, alone]


def test_the_random_state_of_training_is_left_alone():
    model = dual_encoder().train()
    before, modes = torch.get_rng_state(), [part.training for part in model.modules()]
    geometry(Captioned(5)).run(bundle(model))
    assert torch.equal(torch.get_rng_state(), before)
    assert [part.training for part in model.modules()] == modes


def test_what_has_no_geometry_is_refused():
    with pytest.raises(UserError, match="the source has 1 samples: expected at least 2"):
        geometry(Captioned(1))
    with pytest.raises(UserError, match="'picture0' has no caption: geometry needs one for every image"):
        geometry(Pictures(3)).run(bundle(dual_encoder()))
    with pytest.raises(UserError, match="ImageEncoder has neither"):
        geometry(Captioned(3)).run(bundle(image_encoder()))


def test_drawn_captions_fit_their_labels_and_never_change():
    count = len(classnames())
    pictures = Pictures(count, labels=range(count))
    source, again = BuiltinCaptioned(pictures), BuiltinCaptioned(pictures)
    texts = [source[index].captions for index in reversed(range(count))][::-1]
    assert texts == [again[index].captions for index in range(count)]
    for name, (text,) in zip(classnames(), texts, strict=True):
        stated = [any(word in text for word in SYNONYMS.get(value, (value,))) for value in name.split()]
        assert sum(stated) >= len(ATTRIBUTES) - 1, text
        assert stated[-1], "the shape is never left out"
    assert len(set(texts)) > count / 2
    assert source.fingerprint != pictures.fingerprint


def test_the_held_out_split_of_the_built_in_dataset_has_captions_and_names(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("openslip.data.sources.builtin_captions.builtin", lambda root, split: named(Pictures(9)))
    source = captioned("anywhere", "seen")
    assert (len(source), source.classes) == (9, ["a", "b"])


def named(pictures: Pictures) -> Pictures:
    pictures.classes = ["a", "b"]
    return pictures
