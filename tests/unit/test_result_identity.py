"""What a stored result is known by, and in which order a suite runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_models import CLASSNAMES, Pictures, bundle, dual_encoder, transform, zero_shot
from torch import nn

from openslip.data.source import Source
from openslip.data.sources.image_folder import ImageFolder
from openslip.data.sources.mixture import Mixture
from openslip.data.sources.subset import Subset
from openslip.evaluation.evaluation import Evaluation
from openslip.evaluation.feature_cache import VERSIONS, FeatureCache
from openslip.evaluation.frozen_classifiers import NearestNeighbours
from openslip.evaluation.identity import identity
from openslip.evaluation.novelty import Energy
from openslip.evaluation.open_set import OpenSet
from openslip.evaluation.suite import Suite, in_order_of_sources
from openslip.evaluation.zeroshot import ZeroShot
from openslip.inference.bundle import Bundle
from openslip.inference.wrapped import WrappedModel, WrappedTokenizer, WrappedTransform


@pytest.fixture
def evaluation(tmp_path: Path) -> ZeroShot:
    for index, name in enumerate(CLASSNAMES):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(Pictures(7)[index].image)
    source = ImageFolder(root=str(tmp_path))
    return ZeroShot(title="", source=source, classnames=None, templates=["a {}"], batch_size=2, num_workers=0)


def wrapped(origin: str) -> Bundle:
    """A model as another library computes it; its transform and tokenizer have no settings."""
    tokenizer = WrappedTokenizer(
        lambda texts: (torch.zeros(len(texts), 2), torch.ones(len(texts))),
        context_length=2,
        vocab_size=3,
        invert=str,
        origin=origin,
    )
    own = transform()
    images = WrappedTransform(own._resized, size=16, mean=own.mean, std=own.std, origin=origin)
    return Bundle(WrappedModel(nn.Linear(1, 1)), tokenizer, images, {}, torch.device("cpu"), origin)


def test_a_model_of_another_library_is_known_by_its_address_architecture_and_weights(evaluation: ZeroShot):
    known = identity(wrapped("hf:a/b"), evaluation, {}, "1")
    assert known is not None
    assert identity(wrapped("hf:a/b"), evaluation, {}, "1") == known
    assert identity(wrapped("hf:a/c"), evaluation, {}, "1") != known
    assert identity(wrapped("hf:a/b"), evaluation, {}, "2") != known
    assert identity(wrapped("hf:a/b").reading(exif="apply"), evaluation, {}, "1") != known
    assert identity(replace(wrapped("hf:a/b"), architecture={"version": "5"}), evaluation, {}, "1") != known


class Own(nn.Module):
    """A part of the user's."""


def test_code_of_yours_has_no_identity(evaluation: ZeroShot):
    assert identity(bundle(dual_encoder()), evaluation, {}, "1") is not None
    assert identity(bundle(dual_encoder()), zero_shot(Pictures(7)), {}, "1") is None
    model = dual_encoder()
    model.image_tower.add_module("own", Own())
    assert identity(bundle(model), evaluation, {}, "1") is None


class OwnNovelty(Energy):
    """A novelty score of the user's."""


class OwnClassifier(NearestNeighbours):
    """A classifier of the user's."""


def open_set(source: Source, **changes: Any) -> OpenSet:
    settings: dict[str, Any] = {
        **{"title": "", "train": source, "seen": source, "unseen": source, "held_out": 0.5, "accepted": 0.9, "seed": 0},
        **{"classnames": None, "templates": ["a {}"], "features": "joint", "normalise": True},
        **{"classifier": NearestNeighbours(k=1, temperature=1.0), "novelty": {"energy": Energy()}},
        **{"batch_size": 2, "num_workers": 0},
    }
    return OpenSet(**settings | changes)


def test_code_of_yours_inside_ours_has_no_identity(evaluation: ZeroShot):
    ours, own, model = evaluation.source, Pictures(7), bundle(dual_encoder())

    def is_known(part: Evaluation) -> bool:
        return identity(model, part, {}, "1") is not None

    assert is_known(open_set(ours))
    assert not is_known(open_set(ours, novelty={"energy": Energy(), "own": OwnNovelty()}))
    assert not is_known(open_set(ours, classifier=OwnClassifier(k=1, temperature=1.0)))
    for inner, expected in ((ours, True), (own, False)):
        mixture = Mixture(sources={"a": ours, "b": inner}, weights={"a": 1.0, "b": 1.0})
        for source in (Subset(inner, 2), Subset(Subset(inner, 3), 2), mixture):
            settings: dict[str, Any] = {"title": "", "templates": ["a {}"], "batch_size": 2, "num_workers": 0}
            assert is_known(ZeroShot(source=source, classnames=ours.classes, **settings)) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda bundle: replace(
            bundle, tokenizer=type(bundle.tokenizer)(context_length=24, truncation="drop_end", special_text="plain")
        ),
        lambda bundle: bundle.reading(transparency="ignore"),
        lambda bundle: replace(bundle, architecture={"width": 2}),
    ],
)
def test_tokenizer_transform_and_architecture_belong_to_it_and_the_device_does_not(evaluation: ZeroShot, change: Any):
    model = bundle(dual_encoder())
    known = identity(model, evaluation, {}, "1")
    assert identity(change(model), evaluation, {}, "1") != known
    assert identity(replace(model, device=torch.device("meta")), evaluation, {}, "1") == known


@pytest.mark.parametrize("library", ["torch", "timm", "pillow", "simplejpeg"])
def test_the_versions_of_what_computes_belong_to_it(
    evaluation: ZeroShot, monkeypatch: pytest.MonkeyPatch, library: str
):
    model = bundle(dual_encoder())
    known = identity(model, evaluation, {}, "1")
    monkeypatch.setitem(VERSIONS, library, "0.0")
    assert identity(model, evaluation, {}, "1") != known


def test_a_stored_result_holds_no_credentials():
    suite = Suite(bundle(dual_encoder()), "x", FeatureCache(None))
    config = {"source": {"shards": ["https://user:SECRET@host/a.tar?sig=TOKEN"]}, "templates": ["a {}"]}
    assert suite.run("mine", zero_shot(Pictures(7)), config)["config"] == {
        "source": {"shards": ["https://host/a.tar"]},
        "templates": ["a {}"],
    }


def test_evaluations_of_one_source_follow_each_other():
    first, other = Pictures(3), Pictures(4)
    evaluations = {"a": zero_shot(first), "b": zero_shot(other), "c": zero_shot(Pictures(3)), "d": zero_shot(other)}
    assert [name for name, _ in in_order_of_sources(evaluations)] == ["a", "c", "b", "d"]
