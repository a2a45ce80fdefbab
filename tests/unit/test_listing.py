"""What readers list: every kind of image, nothing hidden, no shard twice."""

import io
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from converted import run, samples_of
from PIL import Image
from shard_files import jpeg, write_pairs, write_tar

from openslip.data.convert.layouts.img2dataset import records as img2dataset_records
from openslip.data.convert.layouts.redcaps_json import records as redcaps_records
from openslip.data.convert.metadata import find
from openslip.data.image.decode import open_image
from openslip.data.image.formats import FORMATS, IMAGE_SUFFIXES
from openslip.data.listing import visible_files
from openslip.data.source import Sample, Source
from openslip.data.sources.image_folder import ImageFolder, folder_names
from openslip.data.sources.mixture import Mixture
from openslip.data.sources.shards import ShardSource
from openslip.errors import UserError
from openslip.evaluation.knn import KNN


class Listing:
    """A folder's entries as a file system might list them, in place of `os.scandir`."""

    def __init__(self, path: Any, ordered: Callable[[list[Any]], list[Any]]) -> None:
        with SCANDIR(path) as entries:
            self.entries = iter(ordered(sorted(entries, key=lambda entry: entry.name)))

    def __enter__(self) -> "Listing":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> "Listing":
        return self

    def __next__(self) -> os.DirEntry[str]:
        return next(self.entries)

    def close(self) -> None:
        self.entries = iter(())


SCANDIR, LISTDIR = os.scandir, os.listdir
ORDERS: list[Callable[[list[Any]], list[Any]]] = [
    list,
    lambda names: names[::-1],
    lambda names: random.Random(1).sample(names, len(names)),
]
NAMES = ("b", "a", "10", "9", "C", "d")
READERS: dict[str, Callable[[Path], list[str]]] = {
    "class folders": lambda root: folder_names(str(root / "classes")),
    "images of classes": lambda root: [str(path) for path, _ in ImageFolder(root=str(root / "classes")).files],
    "images below a folder": lambda root: list(map(str, visible_files(root / "classes", below=True))),
    "shards": lambda root: [sample.key for sample in all_of(ShardSource(shards=str(root / "shards"), require=None))],
    "shards of a pattern": lambda root: [
        sample.key for sample in all_of(ShardSource(shards=str(root / "shards" / "*.tar"), require=None))
    ],
    "img2dataset": lambda root: [record.key for record in img2dataset_records(root / "classes")],
    "annotations": lambda root: [record.key for record in redcaps_records(root / "redcaps")],
}


def all_of(source: Source) -> list[Sample]:
    return [source[place] for place in range(len(source))]


@pytest.mark.parametrize("reader", READERS)
def test_the_order_in_which_a_file_system_lists_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str
):
    for number, name in enumerate(NAMES):
        for image in ("2", "10", "1"):
            put(tmp_path / "classes" / name / f"{image}.jpg", jpeg(number))
        write_pairs(put(tmp_path / "shards" / f"{name}.tar", b""), 2, first=2 * number)
        put(
            tmp_path / "redcaps" / "annotations" / f"{name}.json",
            b'[{"image_id": 0, "subreddit": "%s"}]' % name.encode(),
        )
    found = []
    for ordered in ORDERS:
        monkeypatch.setattr(os, "scandir", lambda path=".", ordered=ordered: Listing(path, ordered))
        monkeypatch.setattr(os, "listdir", lambda path=".", ordered=ordered: ordered(sorted(LISTDIR(path))))
        found.append(READERS[reader](tmp_path))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) >= len(NAMES)


def encoded(picture_format: str) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(jpeg(0))).save(file, picture_format)
    return file.getvalue()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


HIDDEN = (
    *("cat/.ipynb_checkpoints/a-checkpoint.jpg", "cat/._a.jpg", "cat/.hidden.jpg", "cat/deeper/.git/x/y.png"),
    *("__MACOSX/cat/b.jpg", "cat/__MACOSX/b.jpg", "cat/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", ".trash/a.jpg", ".a.jpg"),
    *("#recycle/a.jpg", "$Recycle.Bin/a.jpg", "System Volume Information/a.jpg", "lost+found/a.jpg"),
)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two classes with an image each, and everything that is hidden."""
    for name in ("cat/a.jpg", "dog/deeper/b.jpg", *HIDDEN):
        put(tmp_path / "classes" / name, jpeg(0))
    return tmp_path / "classes"


def test_hidden_files_and_folders_are_no_images(classes: Path):
    source = ImageFolder(root=str(classes))
    assert [(str(path.relative_to(classes)), label) for path, label in source.files] == [
        ("cat/a.jpg", 0),
        ("dog/deeper/b.jpg", 1),
    ]
    assert source.problems == ()
    assert folder_names(str(classes)) == ["cat", "dog"]


def test_the_fingerprint_of_a_folder_changes_with_names_and_sizes_of_images(classes: Path):
    fingerprints = [ImageFolder(root=str(classes)).fingerprint]
    put(classes / "cat/a.jpg", jpeg(0) + b"\0")
    fingerprints.append(ImageFolder(root=str(classes)).fingerprint)
    (classes / "cat/a.jpg").rename(classes / "cat/b.jpg")
    fingerprints.append(ImageFolder(root=str(classes)).fingerprint)
    assert len(set(fingerprints)) == 3
    assert ImageFolder(root=str(classes)).fingerprint == fingerprints[-1]


def test_annotations_are_read_in_the_order_of_their_files(tmp_path: Path):
    for name in NAMES:
        annotation = b'[{"image_id": 0, "subreddit": "%s"}]' % name.encode()
        put(tmp_path / "annotations" / f"{name}.json", annotation)
    assert [record.key for record in redcaps_records(tmp_path)] == [f"{name}/0" for name in sorted(NAMES)]


def test_hidden_files_are_not_converted(classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run("image_folder", classes, tmp_path / "out")
    assert set(samples_of(tmp_path / "out")) == {"cat/a", "dog/deeper/b"}
    assert capsys.readouterr().err == ""


def test_a_folder_that_lies_in_a_hidden_one_is_read(tmp_path: Path):
    put(tmp_path / ".cache" / "classes" / "cat" / "a.jpg", jpeg(0))
    write_pairs(put(tmp_path / ".cache" / "shards" / "a.tar", b""), 2)
    assert len(ImageFolder(root=str(tmp_path / ".cache" / "classes"))) == 1
    for shards in (tmp_path / ".cache" / "shards", tmp_path / ".cache" / "shards" / "*.tar"):
        assert len(ShardSource(shards=str(shards), require=None)) == 2


@pytest.mark.parametrize("pattern", ["", "*.tar", "*"])
def test_hidden_shards_of_a_folder_are_skipped(tmp_path: Path, pattern: str):
    folder = tmp_path / "shards"
    write_pairs(put(folder / "00000.tar", b""), 3)
    put(folder / "._00000.tar", b"\0\5\26\7\0\2\0\0Mac OS X")
    put(folder / "__MACOSX" / "00000.tar", b"no tar")
    put(folder / ".ipynb_checkpoints" / "00000-checkpoint.tar", b"no tar")
    pattern = f"{folder.parent}/*/00000.tar" if pattern == "*" else str(folder / pattern)
    assert len(ShardSource(shards=pattern, require="caption")) == 3


def test_hidden_members_and_parts_are_skipped_in_tars(tmp_path: Path):
    members = [("a.jpg", jpeg(0)), ("a.txt", b"one")]
    hidden = [(f"{folder}/{name}", data) for folder in ("__MACOSX", "x/.git") for name, data in members]
    write_tar(put(tmp_path / "in" / "00000.tar", b""), [*members, *hidden, ("._a.jpg", b""), ("x/._a.txt", b"")])
    put(tmp_path / "in" / "._00000.tar", b"no tar")
    put(tmp_path / "in" / ".ipynb_checkpoints" / "b.jpg", jpeg(1))
    put(tmp_path / "in" / "00001" / "c.jpg", jpeg(2))
    put(tmp_path / "in" / "00001" / "._c.jpg", b"")
    assert [record.key for record in img2dataset_records(tmp_path / "in")] == ["a", "c"]
    assert len(ShardSource(shards=str(tmp_path / "in"), require="caption")) == 1


def test_a_hidden_table_is_not_the_datasets(tmp_path: Path):
    put(tmp_path / "._captions.csv", b"\0\5\26\7")
    table = put(tmp_path / "captions.csv", b"")
    assert find(tmp_path, None, "*.csv") == table


@pytest.mark.parametrize("suffix", [suffix for suffix in IMAGE_SUFFIXES if suffix != "avif"])
def test_every_reader_takes_every_kind_of_image(suffix: str, tmp_path: Path):
    kind = next(name for name, suffixes in FORMATS.items() if suffix in suffixes)
    data = encoded(kind)
    for number, written in enumerate((suffix, suffix.upper())):
        put(tmp_path / "classes" / "cat" / f"{number}.{written}", data)
        put(tmp_path / "i2d" / "00000" / f"{number}.{written}", data)
        put(tmp_path / "i2d" / "00000" / f"{number}.txt", b"a cat")
        put(tmp_path / "cc" / "images" / f"{number}.{written}", data)
    put(tmp_path / "cc" / "t.tsv", b"one\thttp://a\ntwo\thttp://b\n")
    source = ImageFolder(root=str(tmp_path / "classes"))
    assert [open_image(source[place].image, "x").size for place in range(2)] == [(40, 40), (40, 40)]
    for layout, root in (("image_folder", "classes"), ("img2dataset", "i2d"), ("cc_tsv", "cc")):
        assert run(layout, tmp_path / root, tmp_path / f"out_{layout}").samples == 2
    members = [(f"a.{suffix}", data), ("a.txt", b"one"), (f"b.{suffix.upper()}", data), ("b.txt", b"two")]
    path = write_tar(tmp_path / "a.tar", members)
    assert [ShardSource(shards=str(path), require="caption")[place].image for place in range(2)] == [data, data]


def test_files_that_are_no_images_are_counted_and_said_once(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("cat/notes.txt", "cat/deeper/b.xcf", "dog/c.txt", "README"):
        put(classes / name, b"")
    put(classes / "loose.jpg", jpeg(0))
    expected = (
        "4 x file that is no image (.txt, no suffix, .xcf), such as README",
        "1 x image in no class folder, such as loose.jpg",
    )
    source = ImageFolder(root=str(classes))
    assert source.problems == expected
    settings = {"k": 1, "temperature": 0.1, "batch_size": 1, "num_workers": 0}
    assert KNN(title="", train=source, test=ImageFolder(root=str(classes)), **settings).problems() == [*expected] * 2
    run("image_folder", classes, tmp_path / "out")
    assert capsys.readouterr().err.splitlines() == [f"{classes}: skipped {line}" for line in expected]


@pytest.mark.parametrize("content", [(), ("notes.txt",), (".hidden.jpg",), ("drawing.xcf", "deeper/drawing.svg")])
def test_a_class_without_images_is_named(classes: Path, tmp_path: Path, content: tuple[str, ...]):
    (classes / "cow").mkdir()
    for name in content:
        put(classes / "cow" / name, b"")
    with pytest.raises(UserError, match=rf"^{classes}/cow holds .*no image .*would be class 1: remove it"):
        ImageFolder(root=str(classes))
    with pytest.raises(UserError, match=rf"^{classes}/cow holds .*no image .*would be class 1: remove it"):
        run("image_folder", classes, tmp_path / "out")


def test_a_shard_that_is_named_again_counts_once_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "shards"
    for number in range(3):
        write_pairs(put(folder / f"{number}.tar", b""), 2, first=2 * number)
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "alias.tar").symlink_to(folder / "1.tar")
    (tmp_path / "hard.tar").hardlink_to(folder / "1.tar")
    monkeypatch.chdir(tmp_path)
    once = ShardSource(shards=str(folder), require="caption")
    assert once.problems == ()
    again = {
        "the file": str(folder / "1.tar"),
        "a link": str(tmp_path / "alias.tar"),
        "a linked folder": f"{tmp_path}/link/1.tar",
        "a relative path": "shards/1.tar",
        "a detour": f"{folder}/../shards/./1.tar",
        "a hard link": str(tmp_path / "hard.tar"),
        "a glob": f"{folder}/*1.tar",
        "braces": f"{folder}/{{1..1}}.tar",
    }
    for shards in again.values():
        source = ShardSource(shards=[str(folder), shards], require="caption")
        assert len(source) == len(once) == 6
        assert source.fingerprint == once.fingerprint
        (line,) = source.problems
        assert line.startswith("1 x shard named more than once, counted once, such as ")
        assert line.endswith(("1.tar", "alias.tar", "hard.tar"))
    twice = ShardSource(shards=[str(folder), f"{folder}/*.tar"], require="caption")
    assert (len(twice), twice.problems[0][:3]) == (6, "3 x")
    first = ShardSource(shards=[str(folder / "2.tar"), str(folder)], require="caption")
    assert [first[place].label for place in range(6)] == [4, 5, 0, 1, 2, 3]


def test_a_copy_of_a_shard_is_said(tmp_path: Path):
    for name in ("a.tar", "b.tar"):
        write_pairs(tmp_path / name, 2)
    write_pairs(tmp_path / "c.tar", 2, first=2)
    (line,) = ShardSource(shards=str(tmp_path), require="caption").problems
    assert line == (
        f"1 x shard with the same keys, sizes and captions as another, such as {tmp_path}/b.tar and {tmp_path}/a.tar: "
        "both are used"
    )


def test_shards_of_a_folder_that_are_not_read_are_said(tmp_path: Path):
    for number, name in enumerate(("a.tar", "B.TAR", "deeper/c.tar", ".hidden/d.tar")):
        write_pairs(put(tmp_path / name, b""), 2, first=2 * number)
    put(tmp_path / "e.tar.gz", b"x")
    source = ShardSource(shards=str(tmp_path), require="caption")
    assert len(source) == 4
    (line,) = source.problems
    assert line == f"2 x shard that is compressed or lies one folder deeper, such as {tmp_path}/deeper/c.tar"


def test_a_folder_linked_into_itself_by_files_counts_once(tmp_path: Path):
    write_pairs(tmp_path / "a.tar", 2)
    os.symlink("a.tar", tmp_path / "b.tar")
    source = ShardSource(shards=str(tmp_path), require="caption")
    assert len(source) == 2
    assert source.problems == (f"1 x shard named more than once, counted once, such as {tmp_path}/b.tar",)


def test_a_mixture_says_which_shards_its_sources_share(tmp_path: Path):
    for number in range(3):
        write_pairs(tmp_path / f"{number}.tar", 2, first=2 * number)
    sources: dict[str, Source] = {
        "all": ShardSource(shards=str(tmp_path), require="caption"),
        "some": ShardSource(shards=f"{tmp_path}/{{0..1}}.tar", require="caption"),
        "none": ShardSource(shards=[f"{tmp_path}/2.tar", f"{tmp_path}/./2.tar"], require="caption"),
    }
    assert Mixture(sources=sources, weights=dict.fromkeys(sources, 1)).problems == (
        f"none: 1 x shard named more than once, counted once, such as {tmp_path}/2.tar",
        "all and some: 2 x shard in both, whose samples are drawn for each of them",
        "all and none: 1 x shard in both, whose samples are drawn for each of them",
    )


def test_links_to_folders_are_followed_and_end_where_they_lead_back(classes: Path, tmp_path: Path):
    put(tmp_path / "elsewhere" / "z.jpg", jpeg(1))
    before = len(ImageFolder(root=str(classes)))
    first = classes / "cat"
    (first / "linked").symlink_to(tmp_path / "elsewhere")
    (first / "back").symlink_to(first)
    (tmp_path / "elsewhere" / "round").symlink_to(first)
    assert len(ImageFolder(root=str(classes))) == before + 1


def test_a_root_that_is_one_folder_too_high_is_said(classes: Path, tmp_path: Path):
    for split in ("train", "val"):
        shutil.copytree(classes, tmp_path / "splits" / split)
    (said,) = [line for line in ImageFolder(root=str(tmp_path / "splits")).problems if "too high" in line]
    assert said.startswith("2 x class folder, such as train, val, with a folder ")
    assert not [line for line in ImageFolder(root=str(classes)).problems if "too high" in line]
