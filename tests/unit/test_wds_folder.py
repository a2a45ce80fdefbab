"""The `wds_*` layout of the hub: classification, retrieval and multi-label sets, and damaged ones."""

import io
import pickle
from pathlib import Path
from typing import Any

import evaluation_layouts as layouts
import numpy as np
import pytest
from PIL import Image
from shard_files import write_tar
from webdataset.tariterators import group_by_keys, tar_file_iterator

from openslip.data.image.decode import open_image
from openslip.data.sources.subset import Subset
from openslip.data.sources.wds_folder import WdsFolder
from openslip.errors import MissingData, UserError

KINDS = {"webp", "png", "jpg", "jpeg"}
NUM_SAMPLES = len(layouts.CLASSES) * layouts.PER_CLASS


def folder(root: Path, **options: Any) -> WdsFolder:
    layouts.wds(root, **options)
    return WdsFolder(root=str(root), split="test")


def npy(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=True)
    return stream.getvalue()


def vectors(label: int, number: int) -> tuple[str, bytes]:
    return "npy", npy(np.array([label == 0, number, 1], np.int64))


def captions(label: int, number: int) -> tuple[str, bytes]:
    return "txt", f"a {label}\\nof two lines\na {label}\na {label}\n{number}".encode()


def test_classes_labels_and_pixels_of_all_image_formats(tmp_path: Path):
    source = folder(tmp_path / "wds")
    assert source.classes == [*layouts.CLASSES]
    assert not source.labels_are_sorted_names
    assert not source.problems
    assert len(source) == NUM_SAMPLES
    for index, (label, _, number) in enumerate(layouts.samples(layouts.CLASSES)):
        sample = source[index]
        assert (sample.label, sample.captions) == (label, ())
        pixels = np.asarray(open_image(sample.image, sample.key)).astype(int)
        assert np.abs(pixels - layouts.colour(label, number)).max() <= (
            0 if index % 4 < 2 else 3
        )  # WebP and PNG: exact
    assert source.label_vectors is None
    assert pickle.loads(pickle.dumps(source))[3] == source[3]


def test_samples_are_those_that_webdataset_reads(tmp_path: Path):
    source = folder(tmp_path / "wds", num_shards=12, classes=[f"class {number}" for number in range(12)])
    theirs = []
    for path in (tmp_path / "wds" / "test").glob("*.tar"):
        with path.open("rb") as stream:
            members = tar_file_iterator(stream)  # pyright: ignore[reportArgumentType] (its annotation is wrong)
            for sample in group_by_keys({**member, "__url__": ""} for member in members):
                (kind,) = sample.keys() & KINDS
                pixels = np.asarray(Image.open(io.BytesIO(sample[kind])).convert("RGB"))
                theirs.append((sample["__key__"], int(sample["cls"]), pixels.tobytes()))
    ours = [
        (sample.key.split(":")[1], sample.label, np.asarray(open_image(sample.image, sample.key)).tobytes())
        for sample in (source[index] for index in range(len(source)))
    ]
    assert len(ours) == 24
    assert ours == sorted(theirs)


def test_shards_are_in_the_order_of_their_numbers(tmp_path: Path):
    source = folder(tmp_path / "wds", num_shards=12, classes=[f"class {number}" for number in range(12)])
    shards = [int(Path(source[index].key.split(":")[0]).stem) for index in range(len(source))]
    assert shards == sorted(shards)
    assert shards[0] == 0
    assert shards[-1] == 11
    assert [source[index].label for index in range(len(source))] == [number // 2 for number in range(24)]


def test_each_line_is_a_caption_and_equal_ones_are_kept(tmp_path: Path):
    source = folder(tmp_path / "wds", kind="retrieval", targets=captions)
    assert source.classes is None
    assert source[3].captions == ("a 1\nof two lines", "a 1", "a 1", "1")
    assert source[3].label is None


def test_label_vectors_follow_the_order_of_the_samples(tmp_path: Path):
    source = folder(tmp_path / "wds", kind="multilabel", targets=vectors)
    expected = [[label == 0, number, 1] for label, _, number in layouts.samples(layouts.CLASSES)]
    assert source.label_vectors is not None
    assert source.label_vectors.dtype == np.uint8
    assert source.label_vectors.tolist() == np.array(expected, int).tolist()
    assert source[0].label is None
    of_subset = Subset(source, 3).label_vectors
    assert of_subset is not None
    assert of_subset.tolist() == source.label_vectors[[0, 2, 4]].tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.array([0, 2, 1])), r"s0000000\.npy is no vector of zeros and ones"),
        (npy(np.array([[0, 1, 1]])), r"no vector of zeros and ones \(shape \(1, 3\)"),
        (npy(np.zeros(200_000)), r"s0000000\.npy has 1,600,128 bytes; expected a vector of at most 1,000,000"),
        (npy(np.array([0, 1])), r"s0000000\.npy holds 2 labels; expected 3, one per class"),
        (npy(np.array([0, None, 1], object)), r"s0000000\.npy cannot be read"),
        (npy(np.array([0, 1, 1]))[:-1], r"s0000000\.npy cannot be read \(an array of 24 bytes in"),
        (None, r"s0000000 has an image and no s0000000\.npy with its labels"),
    ],
)
def test_damaged_label_vectors_are_refused(tmp_path: Path, content: bytes | None, message: str):
    def targets(label: int, number: int) -> tuple[str, bytes]:
        first = (label, number) == (0, 0)
        return vectors(label, number) if not first else ("other", b"") if content is None else ("npy", content)

    source = folder(tmp_path / "wds", kind="multilabel", targets=targets)
    with pytest.raises(UserError, match=message):
        _ = source.label_vectors


def test_the_fingerprint_changes_with_labels_vectors_and_classes(tmp_path: Path):
    roots = [tmp_path / str(number) for number in range(5)]
    layouts.wds(roots[0])
    layouts.wds(roots[1], targets=lambda label, _: ("cls", str(2 - label).encode()))
    layouts.wds(roots[2], classes=["a", "b", "c"])
    layouts.wds(roots[3], kind="multilabel", targets=vectors)
    layouts.wds(roots[4], kind="multilabel", targets=lambda label, number: vectors(0, number))
    sources = [WdsFolder(root=str(root), split="test") for root in roots]
    assert len({source.fingerprint for source in sources}) == 5
    assert sources[0].fingerprint == WdsFolder(root=str(roots[0]), split="test").fingerprint


def test_an_absent_folder_is_missing_data(tmp_path: Path):
    with pytest.raises(MissingData, match="no such folder; expected classnames"):
        WdsFolder(root=str(tmp_path / "wds"), split="test")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


@pytest.mark.parametrize(
    ("disturb", "message"),
    [
        (lambda root: (root / "test/2.tar").unlink(), r"test/2\.tar is missing; nshards\.txt counts 3 shards"),
        (lambda root: (root / "test/1.tar").rename(root / "test/01.tar"), r"test/1\.tar is missing"),
        (
            lambda root: write_tar(root / "test/3.tar", []),
            r"test/3\.tar: not a shard of the 3 that nshards\.txt counts",
        ),
        (lambda root: (root / "test/nshards.txt").unlink(), r"test/nshards\.txt: no such file"),
        (lambda root: (root / "test/nshards.txt").write_text("three"), "holds 'three'; expected a number"),
        (lambda root: (root / "dataset_type.txt").write_text("video"), "holds 'video'; expected classification, "),
        (lambda root: cut(root / "test/1.tar"), r"shard .*1\.tar is cut off"),
        (lambda root: (root / "classnames.txt").write_bytes(b"\xff\xfe"), r"classnames\.txt cannot be read"),
    ],
)
def test_a_damaged_folder_is_an_error(tmp_path: Path, disturb: Any, message: str):
    layouts.wds(tmp_path, num_shards=3)
    disturb(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        WdsFolder(root=str(tmp_path), split="test")
    assert not isinstance(caught.value, MissingData)


def test_labels_without_names_are_reported(tmp_path: Path):
    layouts.wds(tmp_path)
    (tmp_path / "classnames.txt").unlink()
    source = WdsFolder(root=str(tmp_path), split="test")
    assert source.classes is None
    assert "no classnames.txt" in source.problems[0]
