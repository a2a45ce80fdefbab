"""Torchvision's own layouts: the reader gives the pixels, labels and classes that torchvision gives."""

import io
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import evaluation_layouts as layouts
import numpy as np
import pytest
import torchvision
from PIL import Image

from openslip.data.image.decode import open_image
from openslip.data.image.png import png
from openslip.data.sources import torchvision_set
from openslip.data.sources.torchvision_set import LOCATIONS, TorchvisionSet, content_hash
from openslip.errors import MissingData, MissingPackage, UserError

DATASETS: Any = torchvision.datasets
FILES = {
    "Country211",
    "DTD",
    "EuroSAT",
    "FGVCAircraft",
    "Flowers102",
    "Food101",
    "RenderedSST2",
    "SUN397",
    "StanfordCars",
}


def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> tuple[str, dict[str, Any]]:
    arguments, write = layouts.TORCHVISION[name]
    write(tmp_path)
    layouts.accept_any_checksum(monkeypatch)
    return str(tmp_path), arguments


def pixels(image: Image.Image) -> bytes:
    return np.asarray(image.convert("RGB")).tobytes()


def test_every_readable_class_has_a_made_up_copy():
    assert layouts.TORCHVISION.keys() == LOCATIONS.keys()


@pytest.mark.parametrize("name", LOCATIONS)
def test_samples_are_those_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    root, arguments = written(tmp_path, monkeypatch, name)
    source = TorchvisionSet(dataset=name, root=root, arguments=arguments)
    theirs = getattr(DATASETS, name)(root, **arguments)
    samples = [source[index] for index in range(len(source))]
    ours = [(sample.label, pixels(open_image(sample.image, sample.key))) for sample in samples]
    expected = [(label, pixels(image)) for image, label in (theirs[index] for index in range(len(theirs)))]
    assert sorted(ours) == sorted(expected)
    assert len(source) == len({sample.key for sample in samples}) == len(ours) > 3
    assert {type(sample.label) for sample in samples} == {int}
    classes = getattr(theirs, "categories" if name == "Caltech101" else "classes", None)
    assert source.classes == classes


@pytest.mark.parametrize("name", LOCATIONS)
def test_an_images_colour_tells_its_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    root, arguments = written(tmp_path, monkeypatch, name)
    source = TorchvisionSet(dataset=name, root=root, arguments=arguments)
    for sample in (source[index] for index in range(len(source))):
        red = np.asarray(open_image(sample.image, sample.key))[5, 7, 0]
        assert sample.label is not None
        assert abs(int(red) - layouts.colour(sample.label, 0)[0]) <= 3  # JPEG may change the last bits
    assert {source[index].label for index in range(len(source))} == set(
        range(2 if name in ("PCAM", "RenderedSST2") else 3)
    )


@pytest.mark.parametrize("name", sorted(FILES))
def test_files_keep_their_bytes_and_are_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    root, arguments = written(tmp_path, monkeypatch, name)
    source = TorchvisionSet(dataset=name, root=root, arguments=arguments)
    keys = [source[index].key for index in range(len(source))]
    assert keys == sorted(keys)
    assert all(source[index].image == Path(key).read_bytes() for index, key in enumerate(keys))


@pytest.mark.parametrize("name", ["MNIST", "Food101", "OxfordIIITPet"])
def test_a_copy_for_another_process_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    root, arguments = written(tmp_path, monkeypatch, name)
    source = TorchvisionSet(dataset=name, root=root, arguments=arguments)
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 4000  # no array of images
    assert [copy[index] for index in range(len(copy))] == [source[index] for index in range(len(source))]
    assert copy.fingerprint == source.fingerprint


@pytest.mark.parametrize(
    ("name", "file", "place"),
    [
        ("MNIST", "MNIST/raw/t10k-images-idx3-ubyte", -1),
        ("MNIST", "MNIST/raw/t10k-labels-idx1-ubyte", -1),
        ("SVHN", "test_32x32.mat", 9000),
        ("OxfordIIITPet", "oxford-iiit-pet/annotations/test.txt", -6),
    ],
)
def test_the_fingerprint_changes_with_a_byte_of_an_array_or_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str, place: int
):
    root, arguments = written(tmp_path, monkeypatch, name)
    before = TorchvisionSet(dataset=name, root=root, arguments=arguments).fingerprint
    content = bytearray((tmp_path / file).read_bytes())
    content[place] ^= 1
    (tmp_path / file).write_bytes(content)
    assert TorchvisionSet(dataset=name, root=root, arguments=arguments).fingerprint != before


@pytest.mark.parametrize("name", ["GTSRB", "OxfordIIITPet", "MNIST"])
def test_images_that_torchvision_decodes_have_the_limit_of_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    root, arguments = written(tmp_path, monkeypatch, name)
    source = TorchvisionSet(dataset=name, root=root, arguments=arguments)
    before = Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(torchvision_set, "MAX_PIXELS", 10)
    if name == "MNIST":  # arrays
        assert source[0].image
    else:
        with pytest.raises(UserError, match=r"sample 0 cannot be read \(Image size .* exceeds limit"):
            source[0]
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_list_that_leads_out_of_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root, arguments = written(tmp_path / "data", monkeypatch, "Food101")
    layouts.put(tmp_path / "outside.jpg", layouts.picture(0, 0))
    file = tmp_path / "data" / "food-101" / "meta" / "test.json"
    content = json.loads(file.read_text())
    next(iter(content.values())).append("../../../outside")
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"lists \.\./outside\.jpg, which is outside"):
        TorchvisionSet(dataset="Food101", root=root, arguments=arguments)


def test_of_a_large_file_evenly_spaced_blocks_are_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torchvision_set, "WHOLE", 1000)
    monkeypatch.setattr(torchvision_set, "BLOCK", 10)
    file = tmp_path / "x.h5"

    def hashed(*places: int) -> str:
        content = bytearray(6310)  # blocks begin at 0, 100, ..., 6300
        for place in places:
            content[place] = 1
        file.write_bytes(content)
        return content_hash(tmp_path, [file])

    assert len({hashed(), hashed(0), hashed(109), hashed(6300), hashed(6309)}) == 5
    assert hashed(50) == hashed()
    before = hashed()
    file.write_bytes(bytes(6311))
    assert content_hash(tmp_path, [file]) != before


def test_the_fingerprint_changes_with_files_labels_and_arguments(tmp_path: Path):
    layouts.food101(tmp_path)
    arguments = {"split": "test"}
    fingerprints = [TorchvisionSet(dataset="Food101", root=str(tmp_path), arguments=arguments).fingerprint]
    layouts.put(tmp_path / "food-101/images/apple_pie/100.jpg", layouts.picture(0, 0, (90, 90)))
    fingerprints.append(TorchvisionSet(dataset="Food101", root=str(tmp_path), arguments=arguments).fingerprint)
    meta = tmp_path / "food-101/meta"
    (meta / "train.json").write_text((meta / "test.json").read_text())
    fingerprints.append(TorchvisionSet(dataset="Food101", root=str(tmp_path), arguments={"split": "train"}).fingerprint)
    meta.joinpath("test.json").write_text((meta / "test.json").read_text().replace('"carrot_cake":', '"a_cake":'))
    fingerprints.append(TorchvisionSet(dataset="Food101", root=str(tmp_path), arguments=arguments).fingerprint)
    assert len(set(fingerprints)) == 4
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert TorchvisionSet(dataset="Food101", root=str(moved), arguments=arguments).fingerprint == fingerprints[-1]


@pytest.mark.parametrize("name", LOCATIONS)
def test_absent_files_are_missing_data_and_nothing_is_created(tmp_path: Path, name: str):
    with pytest.raises(MissingData, match=f"no such file or folder, where torchvision's {name} is read from") as caught:
        TorchvisionSet(dataset=name, root=str(tmp_path), arguments=layouts.TORCHVISION[name][0])
    assert caught.value.place == str(tmp_path / LOCATIONS[name])
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_an_error_that_no_other_place_replaces(tmp_path: Path):
    layouts.mnist(tmp_path)
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        UserError, match=r"MNIST/raw: torchvision's MNIST\(train=False\) cannot be read .*not found"
    ) as caught:
        TorchvisionSet(dataset="MNIST", root=str(tmp_path), arguments={"train": False})
    assert type(caught.value) is UserError
    assert "download" not in str(caught.value)


def test_a_pickle_that_is_not_the_published_one_is_not_opened(tmp_path: Path):
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    layouts.cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(UserError, match=r"CIFAR10\(train=False\) cannot be read \(RuntimeError: .*corrupted"):
        TorchvisionSet(dataset="CIFAR10", root=str(tmp_path), arguments={"train": False})
    assert not (tmp_path / "ran").exists()


def test_a_listed_image_that_is_missing_is_named(tmp_path: Path):
    layouts.food101(tmp_path)
    (tmp_path / "food-101/images/apple_pie/101.jpg").unlink()
    with pytest.raises(UserError, match=r"Food101: 1 of 6 listed images do not exist, such as .*apple_pie/101\.jpg"):
        TorchvisionSet(dataset="Food101", root=str(tmp_path), arguments={"split": "test"})


@pytest.mark.parametrize(
    ("dataset", "arguments", "message"),
    [
        ("LSUN", {}, "dataset=LSUN: expected one of torchvision's CIFAR10, "),
        ("Food101", {"split": "tset"}, r"Food101\(split=tset\) .*Unknown value 'tset' for argument split"),
        ("Food101", {"spilt": "test"}, "unexpected keyword argument 'spilt'"),
    ],
)
def test_unknown_datasets_and_arguments_are_refused(
    tmp_path: Path, dataset: str, arguments: dict[str, str], message: str
):
    layouts.food101(tmp_path)
    with pytest.raises(UserError, match=message):
        TorchvisionSet(dataset=dataset, root=str(tmp_path), arguments=arguments)


@pytest.mark.parametrize("name", ["SVHN", "StanfordCars"])  # torchvision raises two kinds of errors
def test_a_package_that_torchvision_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    root, arguments = written(tmp_path, monkeypatch, name)
    for module in ("scipy", "scipy.io"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackage, match=rf"torchvision's {name} needs scipy.*; pip install 'openslip\[eval\]'"):
        TorchvisionSet(dataset=name, root=root, arguments=arguments)


def test_png_keeps_every_pixel_of_any_mode():
    from_noise = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    for image in (
        Image.fromarray(from_noise[..., :3]),
        Image.fromarray(from_noise[..., 0]),
        Image.fromarray(from_noise),
    ):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(image)))), np.asarray(image))
