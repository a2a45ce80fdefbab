"""ImageNetV2, SLIP's file lists, ObjectNet and VOC 2007, and the first of several layouts that is there."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import evaluation_layouts as layouts
import numpy as np
import pytest

from openslip.data.image.decode import open_image
from openslip.data.source import Source
from openslip.data.sources.file_list import FileList
from openslip.data.sources.first_found import first_found
from openslip.data.sources.image_folder import ImageFolder
from openslip.data.sources.numbered_folder import NumberedFolder
from openslip.data.sources.objectnet import ObjectNet
from openslip.data.sources.subset import Subset
from openslip.data.sources.voc import Voc2007
from openslip.data.sources.wds_folder import WdsFolder
from openslip.errors import MissingData, UserError


def labels(source: Source) -> list[int | None]:
    return [source[index].label for index in range(len(source))]


def pixels(source: Source, index: int) -> np.ndarray:
    return np.asarray(open_image(source[index].image, source[index].key)).astype(int)


def all_raise_missing_data(tmp_path: Path) -> list[Callable[[], Source]]:
    root = str(tmp_path / "absent")
    return [
        partial(ImageFolder, root=root),
        partial(NumberedFolder, root=root),
        partial(FileList, root=root, images="images.npy"),
        partial(ObjectNet, root=root),
        partial(Voc2007, root=root, split="test"),
    ]


def test_absent_folders_are_missing_data(tmp_path: Path):
    for build in all_raise_missing_data(tmp_path):
        with pytest.raises(MissingData, match=f"^{tmp_path}/absent.*: no such f") as caught:
            build()
        assert caught.value.place.startswith(f"{tmp_path}/absent")


def test_numbered_folders_are_labelled_by_their_numbers(tmp_path: Path):
    layouts.numbered_folders(tmp_path, 12)
    source = NumberedFolder(root=str(tmp_path), num_classes=12)
    assert labels(source) == [label for label in range(12) for _ in range(2)]
    assert [int(Path(source[index].key).parent.name) for index in range(24)] == labels(source)
    assert np.abs(pixels(source, 20) - layouts.colour(10, 0)).max() <= 3
    assert source.classes is None
    assert source.fingerprint == NumberedFolder(root=str(tmp_path)).fingerprint


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("7", None, r"1 of 12 class folders are missing, first 7$"),
        ("11", None, r"1 of 12 class folders are missing, first 11$"),
        (None, "12", r"the folder 12 is no label from 0 to 11"),
        ("3", "03", r"the folder 03 is no label"),
        (None, "dog", r"the folder dog is no label"),
    ],
)
def test_a_missing_or_extra_number_is_refused(tmp_path: Path, old: str | None, new: str | None, message: str):
    layouts.numbered_folders(tmp_path, 12)
    if old and new:
        (tmp_path / old).rename(tmp_path / new)
    elif old:
        (tmp_path / old).rename(tmp_path.with_name(f"{tmp_path.name}-{old}"))
    else:
        layouts.put(tmp_path / str(new) / "1.jpg", layouts.picture(0, 0))
    with pytest.raises(UserError, match=message):
        NumberedFolder(root=str(tmp_path), num_classes=12)


NAMES = ("b/1.jpg", "a/1.jpg", "b/0.jpg")
COUNTS = ("count_10", "count_3", "count_4")


def listed(root: Path, names: Any = NAMES, targets: Any = (2, 0, 1)) -> dict[str, str]:
    for number, name in enumerate(NAMES):
        layouts.put(root / name, layouts.picture(number, 0))
    np.save(root / "test_images.npy", np.array(names))
    np.save(root / "test_labels.npy", np.array(targets))
    return {"root": str(root), "images": "test_images.npy", "labels": "test_labels.npy"}


def test_a_file_list_gives_its_images_in_its_order(tmp_path: Path):
    source = FileList(**listed(tmp_path))
    assert labels(source) == [2, 0, 1]
    assert [source[index].key for index in range(3)] == [str(tmp_path / name) for name in NAMES]
    assert np.abs(pixels(source, 1) - layouts.colour(1, 0)).max() <= 3
    assert source.classes is None


def test_label_names_are_places_in_the_classes(tmp_path: Path):
    source = FileList(**listed(tmp_path, targets=("count_4", "count_10", "count_3")), classes=COUNTS)
    assert labels(source) == [2, 0, 1]
    assert source.classes == COUNTS


@pytest.mark.parametrize("kind", ["objects", "absolute", "one text", "two texts"])
def test_other_forms_of_the_same_list_give_the_same(tmp_path: Path, kind: str):
    expected = FileList(**listed(tmp_path))
    arguments: dict[str, Any] = {"root": str(tmp_path), "images": "test_images.npy", "labels": "test_labels.npy"}
    if kind == "objects":
        np.save(tmp_path / "test_images.npy", np.array(NAMES, object), allow_pickle=True)
    elif kind == "absolute":
        np.save(tmp_path / "test_images.npy", np.array([str(tmp_path / name) for name in NAMES]))
    elif kind == "one text":
        (tmp_path / "list.txt").write_text("b/1.jpg 2\na/1.jpg 0\n\nb/0.jpg\t1\n")
        arguments = {"root": str(tmp_path), "images": "list.txt"}
    else:
        (tmp_path / "images.txt").write_text("\n".join(NAMES))
        (tmp_path / "labels.txt").write_text("2\n0\n1\n")
        arguments |= {"images": "images.txt", "labels": "labels.txt"}
    source = FileList(**arguments)
    assert [source[index] for index in range(3)] == [expected[index] for index in range(3)]
    assert source.fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xef\xbb\xbfb/1.jpg 2\na/1.jpg 0\n", None),
        (b"b/1.jpg 2\n\xe9.jpg 0\n", r"list\.txt, line 2: not UTF-8; save the file as UTF-8"),
    ],
)
def test_a_text_list_is_decoded_by_its_byte_order_mark_or_refused(tmp_path: Path, content: bytes, message: str | None):
    listed(tmp_path)
    (tmp_path / "list.txt").write_bytes(content)
    with nullcontext() if message is None else pytest.raises(UserError, match=message):
        assert labels(FileList(root=str(tmp_path), images="list.txt")) == [2, 0]


def test_a_path_in_a_list_may_hold_blanks(tmp_path: Path):
    for name in ("an image.jpg", "another  one.jpg"):
        layouts.put(tmp_path / name, layouts.picture(0, 0))
    (tmp_path / "list.txt").write_text("an image.jpg 2\nanother  one.jpg\t0\n")
    source = FileList(root=str(tmp_path), images="list.txt")
    assert [Path(source[index].key).name for index in range(2)] == ["an image.jpg", "another  one.jpg"]
    assert labels(source) == [2, 0]


def test_the_fingerprint_of_a_list_changes_with_labels_and_order(tmp_path: Path):
    fingerprints = {
        FileList(**listed(tmp_path)).fingerprint,
        FileList(**listed(tmp_path, targets=(2, 1, 0))).fingerprint,
        FileList(**listed(tmp_path, names=NAMES[::-1], targets=(1, 0, 2))).fingerprint,
    }
    assert len(fingerprints) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": NAMES[:2]}, r"lists 2 images, but .*test_labels\.npy 3 labels"),
        ({"names": ("b/1.jpg", "a/2.jpg", "b/0.jpg")}, r"1 of 3 listed images do not exist, such as .*a/2\.jpg"),
        ({"names": ("b/1.jpg", "a/1.jpg", "b/../b/1.jpg")}, r"lists .*b/1\.jpg 2 times"),
        ({"names": ("b/1.jpg", "a/1.jpg", "../b/0.jpg")}, r"lists \.\./b/0\.jpg, which is outside"),
        ({"names": ("b/1.jpg", "a/1.jpg", "/etc/hostname")}, r"lists /etc/hostname, which is outside"),
        ({"targets": (2, -1, 0)}, r"has label -1; expected a number from 0"),
        ({"targets": ("count_3", "count_4", "count_5")}, r"has label 'count_3'; expected a number from 0"),
    ],
)
def test_a_wrong_list_is_refused(tmp_path: Path, change: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        FileList(**listed(tmp_path, **change))


def test_a_list_with_other_classes_or_without_labels_is_refused(tmp_path: Path):
    arguments = listed(tmp_path)
    with pytest.raises(UserError, match=r"has label 2; expected one of count_10, count_3, \.\.\. or a number below 2"):
        FileList(**arguments, classes=COUNTS[:2])
    with pytest.raises(UserError, match=r"has label '3'; expected one of count_10, count_3"):  # not the fourth class
        FileList(**listed(tmp_path, targets=("3", "4", "5")), classes=COUNTS)
    listed(tmp_path)
    (tmp_path / "test_labels.npy").unlink()
    with pytest.raises(UserError, match=r"test_labels\.npy: no such file; expected a list of labels"):
        FileList(**arguments)


def test_objectnet_is_read_without_its_border_under_its_own_names(tmp_path: Path):
    layouts.objectnet(tmp_path)
    source = ObjectNet(root=str(tmp_path))
    assert source.classes == ["banana", "bench", "a t-shirt"]  # in the order of their folders
    assert labels(source) == [0, 0, 1, 1, 2, 2]
    assert pixels(source, 0).shape == (14, 20, 3)
    for index, (label, number) in enumerate([(1, 0), (1, 1), (3, 0), (3, 1), (2, 0), (2, 1)]):
        assert (pixels(source, index) == layouts.colour(label, number)).all()


def test_objectnet_gives_every_right_class_of_imagenet(tmp_path: Path):
    layouts.objectnet(tmp_path)
    source = ObjectNet(root=str(tmp_path), labels="imagenet")
    banana, bench, shirt = [0, 0, 0, 0, 1], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0]
    assert source.label_vectors is not None
    assert source.label_vectors.tolist() == [banana, banana, bench, bench, shirt, shirt]
    assert labels(source) == [None] * 6
    assert source.classes is None
    assert source.fingerprint != ObjectNet(root=str(tmp_path)).fingerprint


@pytest.mark.parametrize(
    ("disturb", "message"),
    [
        (lambda root: (root / "images/bench").rename(root / "bench"), "images/bench: no such folder"),
        (lambda root: (root / "mappings/objectnet_to_imagenet_1k.json").unlink(), "1k.json: no such file; it belongs"),
        (
            lambda root: layouts.put(root / "mappings/folder_to_objectnet_label.json", text="{}"),
            "no folder has the label",
        ),
        (lambda root: layouts.put(root / "mappings/imagenet_to_label_2012_v2", text="banana\n"), "no label for"),
    ],
)
def test_a_damaged_objectnet_is_refused(tmp_path: Path, disturb: Any, message: str):
    layouts.objectnet(tmp_path)
    disturb(tmp_path)
    with pytest.raises(UserError, match=message):
        ObjectNet(root=str(tmp_path), labels="imagenet")


def test_voc_counts_difficult_objects_as_shown(tmp_path: Path):
    layouts.voc(tmp_path)
    source = Voc2007(root=str(tmp_path), split="test")
    assert source.classes == ["aeroplane", "cat"]
    assert source.label_vectors.tolist() == [[0, 1], [1, 0], [1, 1], [0, 0]]
    assert labels(source) == [None] * 4
    assert np.abs(pixels(source, 3) - layouts.colour(3, 0)).max() <= 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("cat_test.txt", "000000 1\n000001 -1\n000002 0\n", "cat_test.txt lists other images than aeroplane_test.txt"),
        ("cat_test.txt", "000000 1\n000000 1\n", "line 2: expected an image's name, once"),
        ("cat_test.txt", "000000 2\n", "line 1: expected an image's name, once, and 1, 0 or -1"),
    ],
)
def test_a_damaged_voc_is_refused(tmp_path: Path, name: str, text: str, message: str):
    layouts.voc(tmp_path)
    before = Voc2007(root=str(tmp_path), split="test").fingerprint
    (tmp_path / "ImageSets/Main" / name).write_text("000000 1\n000001 -1\n000002 0\n000003 1\n")
    assert Voc2007(root=str(tmp_path), split="test").fingerprint != before
    (tmp_path / "ImageSets/Main" / name).write_text(text)
    with pytest.raises(UserError, match=message):
        Voc2007(root=str(tmp_path), split="test")
    with pytest.raises(UserError, match=r"no lists such as aeroplane_tset\.txt; is split=tset one of"):
        Voc2007(root=str(tmp_path), split="tset")


def test_a_name_that_leads_out_of_voc_2007_is_refused(tmp_path: Path):
    layouts.voc(tmp_path)
    layouts.put(tmp_path.parent / "outside.jpg", layouts.picture(0, 0))
    for path in (tmp_path / "ImageSets" / "Main").glob("*_test.txt"):
        path.write_text(path.read_text() + "../../outside 1\n")
    with pytest.raises(UserError, match=r"lists \.\./\.\./outside\.jpg, which is outside"):
        Voc2007(root=str(tmp_path), split="test")


def places(tmp_path: Path) -> dict[str, Any]:
    return {
        "wds": partial(WdsFolder, root=str(tmp_path / "wds"), split="test"),
        "folders": partial(ImageFolder, root=str(tmp_path / "folders")),
    }


def test_the_first_layout_that_is_there_is_read(tmp_path: Path):
    layouts.class_folders(tmp_path / "folders")
    assert isinstance(first_found(name="mine", places=places(tmp_path)), ImageFolder)
    layouts.wds(tmp_path / "wds")
    assert isinstance(first_found(name="mine", places=places(tmp_path)), WdsFolder)


def test_the_layout_and_split_that_were_read_are_known(tmp_path: Path):
    layouts.class_folders(tmp_path / "folders")
    source = first_found(name="mine", places=places(tmp_path))
    assert source.layout == f"folders: root={tmp_path}/folders"
    assert Subset(source, 2).layout == source.layout
    layouts.wds(tmp_path / "wds")
    assert first_found(name="mine", places=places(tmp_path)).layout == f"wds: root={tmp_path}/wds, split=test"


def test_a_damaged_layout_is_not_skipped(tmp_path: Path):
    layouts.class_folders(tmp_path / "folders")
    layouts.wds(tmp_path / "wds")
    (tmp_path / "wds/test/3.tar").unlink()
    with pytest.raises(UserError, match=r"3\.tar is missing"):
        first_found(name="mine", places=places(tmp_path))


def test_all_absent_places_are_named_with_the_next_command(tmp_path: Path):
    with pytest.raises(MissingData) as caught:
        first_found(name="mine", places=places(tmp_path))
    assert str(caught.value) == (
        f"mine: no files found in any of: {tmp_path}/wds (wds), {tmp_path}/folders (folders); "
        "openslip data get mine says how to get them"
    )
