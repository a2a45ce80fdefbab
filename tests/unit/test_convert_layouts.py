"""Every layout: what the dataset holds is in the shards, read back by webdataset."""

import csv
import io
import json
import pickle
import subprocess
import zipfile
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from converted import Samples, left_out, run, samples_of
from PIL import Image
from pyarrow import parquet
from shard_files import jpeg, write_tar

from openslip.data.captions.policy import CaptionFields
from openslip.data.convert import descriptions
from openslip.data.convert.layouts.yfcc_zip import clean
from openslip.data.sources.shards import ShardSource
from openslip.errors import UserError


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def encoded(form: str) -> bytes:
    stream = io.BytesIO()
    Image.open(io.BytesIO(jpeg(9))).save(stream, form)
    return stream.getvalue()


def texts(sample: dict[str, bytes]) -> Any:
    return sample["txt"].decode() if "txt" in sample else json.loads(sample["json"])


def test_every_layout_has_a_line_of_help():
    assert set(descriptions()) == {
        *("cc_npy", "cc_tsv", "coco_json", "image_folder", "img2dataset", "redcaps_json", "table", "yfcc_zip")
    }
    assert all(line.endswith((".", ";", ":")) for line in descriptions().values())


@pytest.fixture
def yfcc(tmp_path: Path) -> Path:
    root = tmp_path / "yfcc"
    for index in (12_345_678, 12_345_679, 1_002):
        digits = f"{index:08}"
        path = root / "images" / digits[:2] / f"{digits[2:5]}.zip"
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{digits[5:]}.jpg", jpeg(index))
    rows = [
        (12_345_679, "A <b>red</b>+barn%21", "see http://a.b/c or www.d.e it"),
        (12_345_678, "", "%E7%8C%AB"),
        (1_002, "title", ""),
        (12_345_677, "no such member", "x"),
        (99_000_001, "no such archive", "x"),
        (1_003, "<i></i>", " www.only.address "),
        (100_000_000, "title", ""),
    ]
    put(root / "yfcc15m.pkl", pickle.dumps(rows))
    return root


def test_yfcc_zip_keeps_images_titles_and_descriptions(yfcc: Path, tmp_path: Path):
    with pytest.raises(UserError, match="4 of 7 records were left out"):
        run("yfcc_zip", yfcc, tmp_path / "out")
    samples = samples_of(tmp_path / "out")
    assert {key: texts(sample) for key, sample in samples.items()} == {
        "00001002": {"title": "title", "description": ""},
        "12345678": {"title": "", "description": "猫"},
        "12345679": {"title": "A red barn!", "description": "see  or  it"},
    }
    assert all(sample["jpg"] == jpeg(int(key)) for key, sample in samples.items())
    assert left_out(tmp_path / "out") == {
        "00001003": "no title and no description",
        "12345677": "missing image",
        "99000001": "missing image",
        "100000000": "index that is not between 0 and 99999999",
    }


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("%3Ca+href%3D%22http%3A%2F%2Fx.y%22%3Ehere%3C%2Fa%3E+it+is", "here it is"),
        ("a%2Bb", "a b"),
        ("<abbr>x</abbr>", "x</abbr>"),
        ("<A HREF='x'>kept</A>", "<A HREF='x'>kept</A>"),
        ("wwwow http", "http"),
    ],
)
def test_yfcc_texts_are_cleaned_as_published(raw: str, cleaned: str):
    assert clean(raw) == cleaned


def test_training_reads_titles_and_descriptions(yfcc: Path, tmp_path: Path):
    with pytest.raises(UserError, match="left out"):
        run("yfcc_zip", yfcc, tmp_path / "out")
    source = ShardSource(
        shards=str(tmp_path / "out"),
        require="caption",
        captions=CaptionFields(fields=["title", "description"]),
        expected_samples=None,
    )
    assert [source[place].captions for place in range(3)] == [("title",), ("猫",), ("A red barn!", "see  or  it")]


def test_coco_json_keeps_all_captions_of_an_image(tmp_path: Path):
    root, ids = tmp_path / "coco", (9, 25, 30)
    for number in ids:
        put(root / "train2017" / f"{number:012}.jpg", jpeg(number))
    captions = [(25, "one"), (9, "only\none "), (25, "two"), (25, "one"), (77, "nobody's")]
    content = {
        "images": [{"id": number, "file_name": f"{number:012}.jpg"} for number in ids],
        "annotations": [{"id": n, "image_id": image, "caption": c} for n, (image, c) in enumerate(captions)],
    }
    put(root / "annotations" / "captions_train2017.json", json.dumps(content).encode())
    run("coco_json", root, tmp_path / "out")
    samples = samples_of(tmp_path / "out")
    assert samples == {
        "000000000009": {"jpg": jpeg(9), "txt": b"only\none"},
        "000000000025": {"jpg": jpeg(25), "json": b'{"captions": ["one", "two", "one"]}'},
    }
    assert left_out(tmp_path / "out") == {
        "000000000030": "no caption",
        "77": "captions of an image that is not in `images`",
    }


@pytest.mark.parametrize("merged", [False, True])
def test_redcaps_json_keeps_what_annotations_say(tmp_path: Path, merged: bool):
    root = tmp_path / "redcaps"
    by_file = {
        "cats_2019": [
            {"image_id": "a1", "subreddit": "cats", "caption": "a cat", "raw_caption": "A cat!", "url": "u"},
            {"image_id": "a2", "subreddit": "cats", "caption": "", "url": "v"},
        ],
        "dogs_2020": [{"image_id": "a1", "subreddit": "dogs", "caption": "a dog", "url": "w"}],
    }
    put(root / "images/cats/a1.jpg", jpeg(1))
    put(root / "images/cats/a2.jpg", jpeg(2))
    put(root / "images/dogs/a1.jpg", jpeg(3))
    options: dict[str, Any] = {}
    if merged:  # the list that published SLIP's combine_captions.py writes
        put(root / "all.json", json.dumps([*chain(*by_file.values())]).encode())
        options["metadata"] = Path("all.json")
    else:
        for name, annotations in by_file.items():
            put(root / f"annotations/{name}.json", json.dumps({"info": {}, "annotations": annotations}).encode())
    run("redcaps_json", root, tmp_path / "out", **options)
    samples = samples_of(tmp_path / "out")
    assert {key: sample["jpg"] for key, sample in samples.items()} == {"cats/a1": jpeg(1), "dogs/a1": jpeg(3)}
    assert samples["cats/a1"]["txt"] == b"a cat"
    assert json.loads(samples["cats/a1"]["json"]) == {
        **{"image_id": "a1", "subreddit": "cats", "raw_caption": "A cat!", "url": "u"}
    }
    assert left_out(tmp_path / "out") == {"cats/a2": "no caption"}


NPY_ENTRIES = [
    [{"image_id": 1510, "captions": ["one"]}, {"image_id": np.int64(7), "captions": np.array(["two", "three"])}],
    [
        {"image_name": "1510", "image_id": 0, "captions": ["one"]},
        {"image_name": "7", "captions": (np.str_("two"), "three")},
    ],
    [("1510", "one"), ("7", ["two", "three"])],
]


@pytest.mark.parametrize("entries", NPY_ENTRIES)
def test_cc_npy_reads_every_kind_of_entry(tmp_path: Path, entries: list[Any]):
    root = tmp_path / "cc"
    put(root / "1510", jpeg(1))
    put(root / "7", jpeg(2))
    array = np.empty(2, object)
    for place, entry in enumerate(entries):
        array[place] = entry
    np.save(root / "cc.npy", array, allow_pickle=True)
    run("cc_npy", root, tmp_path / "out")
    assert samples_of(tmp_path / "out") == {
        "1510": {"jpg": jpeg(1), "txt": b"one"},
        "7": {"jpg": jpeg(2), "json": b'{"captions": ["two", "three"]}'},
    }


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [object, "U20"])
def test_cc_npy_reads_a_matrix_of_paths_and_captions(tmp_path: Path, dtype: Any, order: Any):
    root = tmp_path / "cc"
    put(root / "a/1.jpg", jpeg(1))
    put(root / "b.png", encoded("PNG"))
    matrix = np.array([("a/1.jpg", "one"), ("b.png", "two")], dtype, order=order)
    np.save(root / "cc.npy", matrix, allow_pickle=True)
    run("cc_npy", root, tmp_path / "out")
    assert samples_of(tmp_path / "out") == {
        "a/1": {"jpg": jpeg(1), "txt": b"one"},
        "b": {"png": encoded("PNG"), "txt": b"two"},
    }


@pytest.mark.parametrize("is_cc12m", [False, True])
def test_cc_tsv_finds_images_by_row_or_by_a_third_column(tmp_path: Path, is_cc12m: bool):
    root = tmp_path / "cc"
    rows = [("zero", "http://a/0"), ('say "one', "https://a/1"), ("two", "http://a/2"), ("three", "http://a/3")]
    lines = ["\t".join(row[::-1] if is_cc12m else row) for row in rows]
    lines[2] += "\tsub/x.jpg"
    put(root / "train.tsv", "\n".join([*lines, "no columns"]).encode())
    put(root / "images/000000000.jpg", jpeg(0))
    put(root / "images/1.png", encoded("PNG"))
    put(root / "images/sub/x.jpg", jpeg(2))
    run("cc_tsv", root, tmp_path / "out")
    samples = samples_of(tmp_path / "out")
    assert {key: (sample["txt"].decode(), json.loads(sample["json"])["url"]) for key, sample in samples.items()} == {
        f"{number:09}": rows[number] for number in range(3)
    }
    assert [sample.get("jpg", sample.get("png")) for sample in samples.values()] == [jpeg(0), encoded("PNG"), jpeg(2)]
    assert left_out(tmp_path / "out") == {"3": "missing image", "4": "row that is no caption and address"}


def write_table(path: Path, columns: dict[str, list[Any]]) -> None:
    if path.suffix == ".parquet":
        parquet.write_table(pa.table(columns), path)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = [tuple(columns), *zip(*columns.values(), strict=True)]
        if path.suffix == ".tsv":
            file.writelines("\t".join(map(str, row)) + "\n" for row in rows)
        else:
            csv.writer(file).writerows(rows)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_table_reads_paths_and_captions(tmp_path: Path, suffix: str):
    root = tmp_path / "mine"
    put(root / "d/1.jpg", jpeg(1))
    put(root / "d/2.webp", encoded("WEBP"))
    put(tmp_path / "elsewhere/3.jpg", jpeg(3))
    paths = ["d/1.jpg", "./d/2.webp", str(tmp_path / "elsewhere/3.jpg"), "d/1.jpg", ""]
    captions = ['a "quoted", one', "two lines" if suffix == ".tsv" else "two\nlines", "drei Käse", "again", "no path"]
    write_table(root / f"t{suffix}", {"FilePath": paths, "n": [*range(5)], "caption": captions})
    run("table", root, tmp_path / "out", samples_per_shard=10)
    assert samples_of(tmp_path / "out") == {
        "d/1": {"jpg": jpeg(1), "json": json.dumps({"captions": [captions[0], "again"]}).encode()},
        "d/2": {"webp": encoded("WEBP"), "txt": captions[1].encode()},
        str(tmp_path / "elsewhere/3").lstrip("/"): {"jpg": jpeg(3), "txt": captions[2].encode()},
    }
    assert left_out(tmp_path / "out") == {"row 4": "row without a value in column FilePath"}


def test_table_takes_several_caption_columns_and_lists(tmp_path: Path):
    root = tmp_path / "mine"
    put(root / "1.jpg", jpeg(1))
    columns = {"image": ["1.jpg"], "title": ["t"], "text": [["a", "b", None]], "path": ["unused"]}
    write_table(root / "t.parquet", columns)
    run("table", root, tmp_path / "out", image_column="image", caption_columns=["title", "text"])
    assert samples_of(tmp_path / "out") == {"1": {"jpg": jpeg(1), "json": b'{"captions": ["t", "a", "b"]}'}}


@pytest.mark.parametrize("as_tar", [False, True])
def test_img2dataset_output_is_packed_again(tmp_path: Path, as_tar: bool):
    root, expected = tmp_path / "downloaded", Samples()
    for part in range(2):
        members = []
        for number in range(3):
            key = f"{part:05}{number:04}"
            fields = json.dumps({"caption": f"caption {key}", "url": "u", "key": key}, indent=4)
            if number < 2:  # the third could not be downloaded
                expected[key] = {"jpg": jpeg(number), "txt": f"caption {key}".encode(), "json": fields.encode()}
                members += [(f"{key}.{suffix}", data) for suffix, data in expected[key].items()]
        if as_tar:
            root.mkdir(exist_ok=True)
            write_tar(root / f"{part:05}.tar", members)
        for name, data in [] if as_tar else members:
            put(root / f"{part:05}" / name, data)
        put(root / f"{part:05}_stats.json", b"{}")
        put(root / f"{part:05}.parquet", b"not read")
    run("img2dataset", root, tmp_path / "out")
    found = samples_of(tmp_path / "out")
    assert {(key, sample["jpg"], sample["txt"]) for key, sample in found.items()} == {
        (key, sample["jpg"], sample["txt"]) for key, sample in expected.items()
    }
    assert {key: json.loads(sample["json"]) for key, sample in found.items()} == {
        key: json.loads(sample["json"]) for key, sample in expected.items()
    }


def test_img2dataset_reads_members_of_any_form_by_their_plain_name(tmp_path: Path):
    (tmp_path / "in").mkdir()
    names = [("./a.jpg", "././a.txt"), ("/data/b.jpg", "data/b.txt"), ("../c.jpg", "c.txt")]
    members = [member for image, text in names for member in ((image, jpeg(1)), (text, b"one"))]
    write_tar(tmp_path / "in" / "00000.tar", members)
    run("img2dataset", tmp_path / "in", tmp_path / "out", samples_per_shard=9)
    assert set(samples_of(tmp_path / "out")) == {"a", "data/b"}
    assert sorted(left_out(tmp_path / "out").values()) == ["bad name (leads out of its folder)", "missing image"]


def test_img2dataset_lists_sparse_members_with_the_fix(tmp_path: Path):
    (tmp_path / "in").mkdir()
    with (tmp_path / "holes.jpg").open("wb") as file:
        for piece in range(6):
            file.seek(piece << 20)
            file.write(jpeg(0))
    put(tmp_path / "a.jpg", jpeg(1))
    put(tmp_path / "a.txt", b"one")
    path = tmp_path / "in" / "00000.tar"
    command = ["tar", "-S", "--format=gnu", "-cf", str(path), "-C", str(tmp_path), "holes.jpg", "a.jpg", "a.txt"]
    subprocess.run(command, check=True)
    if path.stat().st_size > 6 << 20:
        pytest.skip("this file system keeps no holes")
    run("img2dataset", tmp_path / "in", tmp_path / "out", samples_per_shard=9)
    assert set(samples_of(tmp_path / "out")) == {"a"}
    reason = "sparse file, which is not read (write the tar file again without -S)"
    assert left_out(tmp_path / "out") == {"00000-tar:holes-jpg": reason}


def test_img2dataset_refuses_a_tar_that_is_cut_off(tmp_path: Path):
    (tmp_path / "in").mkdir()
    path = write_tar(tmp_path / "in" / "00000.tar", [("0.jpg", jpeg(0)), ("0.txt", b"x")])
    path.write_bytes(path.read_bytes()[:1_500])
    with pytest.raises(UserError, match="cut off"):
        run("img2dataset", tmp_path / "in", tmp_path / "out")


def test_image_folder_writes_labels_and_captions_by_a_template(tmp_path: Path):
    root = tmp_path / "classes"
    for name, number in (("zebra", 1), ("big_cat", 2), ("big_cat/deeper", 3)):
        put(root / name / f"p.{number}.jpg", jpeg(number))
    run("image_folder", root, tmp_path / "plain")
    assert samples_of(tmp_path / "plain") == {
        "big_cat/deeper/p-3": {"jpg": jpeg(3), "cls": b"0"},
        "big_cat/p-2": {"jpg": jpeg(2), "cls": b"0"},
        "zebra/p-1": {"jpg": jpeg(1), "cls": b"1"},
    }
    run("image_folder", root, tmp_path / "captioned", template="a photo of a {}.")
    assert {sample["txt"] for sample in samples_of(tmp_path / "captioned").values()} == {
        b"a photo of a big cat.",
        b"a photo of a zebra.",
    }
    run("image_folder", root, tmp_path / "kept", template="a photo of a {}.", underscores="keep")
    assert b"a photo of a big_cat." in {sample["txt"] for sample in samples_of(tmp_path / "kept").values()}
    with pytest.raises(UserError, match="underscores=dash: expected space"):
        run("image_folder", root, tmp_path / "dash", template="a photo of a {}.", underscores="dash")
    (root / "empty").mkdir()
    with pytest.raises(UserError, match="would be class 1"):
        run("image_folder", root, tmp_path / "third")


def test_image_folder_says_once_how_it_reads_underscores(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("big_cat", "small_dog"):
        put(tmp_path / "classes" / name / "a.jpg", jpeg(0))
    said = "captions: `_` in folder names is read as a space (--underscores keep leaves it)\n"
    options: list[dict[str, Any]] = [{"underscores": "keep"}, {"underscores": "space"}, {}]
    for number, option in enumerate(options):
        run("image_folder", tmp_path / "classes", tmp_path / str(number), template="a {}.", **option)
        assert capsys.readouterr().err == ("" if option else said)
    run("image_folder", tmp_path / "classes", tmp_path / "labels")  # no caption, no word of it
    assert capsys.readouterr().err == ""


def test_image_folder_numbers_numeric_classes_by_their_number(tmp_path: Path):
    for number in range(11):
        put(tmp_path / "classes" / str(number) / f"p{number}.jpg", jpeg(number))
    run("image_folder", tmp_path / "classes", tmp_path / "out")
    labels = {key: sample["cls"] for key, sample in samples_of(tmp_path / "out").items()}
    assert labels == {f"{number}/p{number}": str(number).encode() for number in range(11)}
