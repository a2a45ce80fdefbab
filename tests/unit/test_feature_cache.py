"""Image features in files: what makes a pass over the images necessary, and what does not."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evaluation_models import Logged, bundle, dual_encoder, image_encoder
from torch import nn

from openslip.data.image.eval_transform import EvalTransform
from openslip.evaluation.feature_cache import VERSIONS, FeatureCache
from openslip.evaluation.image_features import ImageFeatures, joint_features, sharing, tower_features
from openslip.inference.bundle import Bundle
from openslip.inference.tensor_files import remove_oldest
from openslip.inference.wrapped import WrappedModel

COUNT = 5


def features(folder: Path | None, model: Bundle, *, batch_size: int = 2) -> tuple[ImageFeatures, int]:
    """Features from a new cache of a folder, and how many images were read for them."""
    log = Path("log")
    log.write_text("")
    with sharing(FeatureCache(folder)):
        found = joint_features(model, Logged(COUNT, log), batch_size=batch_size, num_workers=0)
    return found, len(log.read_text().split())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "features"


def test_a_later_command_reads_no_image(folder: Path):
    first, read = features(folder, bundle(dual_encoder()))
    assert read == COUNT
    second, read = features(folder, bundle(dual_encoder()))
    assert read == 0
    assert torch.equal(first.features, second.features)
    assert torch.equal(first.labels, second.labels)


def test_a_model_without_text_tower_has_files_too(folder: Path):
    for expected in (COUNT, 0):
        log = Path("log")
        log.write_text("")
        with sharing(FeatureCache(folder)):
            tower_features(bundle(image_encoder()), Logged(COUNT, log), batch_size=2, num_workers=0)
        assert len(log.read_text().split()) == expected


def test_evaluations_of_one_source_share_one_pass(folder: Path):
    log, model = Path("log"), bundle(dual_encoder())
    with sharing(FeatureCache(None)):
        for function in (joint_features, tower_features, joint_features):
            function(model, Logged(COUNT, log), batch_size=2, num_workers=0)
    assert len(log.read_text().split()) == COUNT
    assert not folder.exists()


def other_weights() -> Bundle:
    model = dual_encoder()
    assert model.image_projection is not None
    model.image_projection.data[0, 0] += 1
    return bundle(model)


def other_transform() -> Bundle:
    return replace(bundle(dual_encoder()), transform=EvalTransform(size=16, mean=[0.5] * 3, std=[0.2] * 3))


@pytest.mark.parametrize("build", [other_weights, other_transform])
def test_other_weights_or_another_transform_need_a_pass(folder: Path, build):
    first, _ = features(folder, bundle(dual_encoder()))
    second, read = features(folder, build())
    assert read == COUNT
    assert not torch.equal(first.features, second.features)
    assert len(list(folder.iterdir())) == 2


def test_another_batch_size_needs_a_pass_because_the_last_bits_may_depend_on_it(folder: Path):
    features(folder, bundle(dual_encoder()))
    assert features(folder, bundle(dual_encoder()), batch_size=3)[1] == COUNT


def test_every_kind_of_device_has_features_of_its_own():
    cache, model = FeatureCache(None), bundle(dual_encoder())
    devices = ("cpu", "cuda:0", "cuda:1")
    cpu, first, second = (cache.key(replace(model, device=torch.device(name)), "source", 2) for name in devices)
    assert cpu != first == second


def test_another_version_of_a_library_needs_a_pass(folder: Path, monkeypatch: pytest.MonkeyPatch):
    features(folder, bundle(dual_encoder()))
    monkeypatch.setitem(VERSIONS, "torch", "0.0")
    assert features(folder, bundle(dual_encoder()))[1] == COUNT


@pytest.mark.parametrize("place", [0.2, 0.5, 0.99])
def test_a_damaged_file_is_computed_again(folder: Path, place: float):
    first, _ = features(folder, bundle(dual_encoder()))
    (file,) = folder.iterdir()
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)
    second, read = features(folder, bundle(dual_encoder()))
    assert read == COUNT
    assert torch.equal(first.features, second.features)
    file.write_bytes(content[:100])
    assert features(folder, bundle(dual_encoder()))[1] == COUNT
    assert features(folder, bundle(dual_encoder()))[1] == 0


def test_features_in_memory_are_on_the_cpu(folder: Path):
    cache, model = FeatureCache(None), bundle(dual_encoder())
    on_device = torch.empty(3, 4, device="meta"), torch.empty(3, dtype=torch.int64, device="meta")
    with pytest.raises(NotImplementedError, match="meta tensor"):  # which cannot be copied to the CPU
        cache.put(model, "source", 2, on_device)


def test_a_folder_that_may_only_be_read_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    features(folder, bundle(dual_encoder()))

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    assert features(folder, bundle(dual_encoder()))[1] == 0


class Own(nn.Module):
    """A model of the user's, or of another library."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3)) @ torch.ones(3, 4) * self.weight


class Wrapped(WrappedModel):
    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.encode_image(images)


@pytest.mark.parametrize("build", [Own, lambda: Wrapped(Own())])
def test_code_of_yours_or_of_another_library_leaves_no_file(folder: Path, build):
    model = replace(bundle(dual_encoder()), model=build())
    for _ in range(2):
        assert features(folder, model)[1] == COUNT
    assert not folder.exists()


def test_the_newest_file_stays_even_if_it_alone_is_too_large(tmp_path: Path):
    for place, name in enumerate("bca"):
        (tmp_path / f"{name}.safetensors").write_bytes(bytes(100))
        os.utime(tmp_path / f"{name}.safetensors", (place, place))
    remove_oldest(tmp_path, most_bytes=200)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "c"]
    remove_oldest(tmp_path, most_bytes=50)
    assert [path.stem for path in tmp_path.iterdir()] == ["a"]
