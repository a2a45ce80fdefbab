"""Nothing in a dataset runs, leads out of its folder or ends a conversion; what cannot be used is counted."""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converted import left_out, run, samples_of
from PIL import Image
from shard_files import jpeg, write_tar

from openslip.data.captions.policy import UniformCaption
from openslip.data.convert.record import LeftOut, below, safe_key, with_unique_keys
from openslip.data.convert.restricted_pickle import load
from openslip.data.sources.shards import ShardSource
from openslip.errors import UserError


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


class EvilBuiltin(Evil):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"__import__('pathlib').Path({str(self.target)!r}).touch()",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("evil", [Evil, EvilBuiltin])
def test_a_pickle_that_names_a_program_is_refused_and_nothing_runs(tmp_path: Path, protocol: int, evil: type[Evil]):
    target = tmp_path / "ran"
    content = pickle.dumps([(1, "title", "description"), evil(target)], protocol)
    (tmp_path / "yfcc15m.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"names .*(system|eval), which could run code"):
        run("yfcc_zip", tmp_path, tmp_path / "out")
    array = np.empty(1, object)
    array[0] = evil(target)
    np.save(tmp_path / "cc.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=r"names .*(system|eval), which could run code"):
        run("cc_npy", tmp_path, tmp_path / "out")
    assert not target.exists()
    assert not (tmp_path / "out").exists()
    pickle.loads(content)  # which would have run it
    assert target.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_harmless_pickles_of_every_protocol_are_read(tmp_path: Path, protocol: int):
    (tmp_path / "00").mkdir()
    with zipfile.ZipFile(tmp_path / "00/000.zip", "w") as archive:
        for index in (1, 2):
            archive.writestr(f"{index:03}.jpg", jpeg(index))
    (tmp_path / "yfcc15m.pkl").write_bytes(pickle.dumps([(np.int64(2), np.str_("käse"), ""), (1, "a", "b")], protocol))
    run("yfcc_zip", tmp_path, tmp_path / "out")
    assert [json.loads(sample["json"])["title"] for sample in samples_of(tmp_path / "out").values()] == ["a", "käse"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", [object, "U3", "S3", np.int16, ">f8"])
def test_arrays_in_pickles_have_numpys_rows_in_either_order(tmp_path: Path, protocol: int, dtype: Any):
    rows = np.array([[1, 2, 3], [4, 5, 6]]).astype(str if dtype in ("U3", "S3") else int).astype(dtype)
    for array in (rows, np.asfortranarray(rows), rows.T, rows[:, ::2]):
        (tmp_path / "array.pkl").write_bytes(pickle.dumps(array, protocol))
        with (tmp_path / "array.pkl").open("rb") as file:
            assert load(file, tmp_path / "array.pkl") == array.tolist()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "cannot be read as a pickle"),
        (pickle.dumps([(1, "a", "b")])[:-5], "cannot be read as a pickle"),
        (b"cos\nsystem\n.", r"names os\.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.", r"names builtins\.exec"),
        (b"\x80\x02cnumpy\ndtype\nX\x0f\x00\x00\x00datetime64[2s]x\x85R.", "numpy type"),
        (b"\x80\x02P1\n.", "cannot be read as a pickle|outside the file"),
        (pickle.dumps({1: 2}), "holds a dict"),
        (pickle.dumps([1, 2]), r"entry 0 is 1, not \(index, title, description\)"),
    ],
)
def test_other_pickles_are_told_in_one_line(tmp_path: Path, content: bytes, why: str):
    (tmp_path / "yfcc15m.pkl").write_bytes(content)
    with pytest.raises(UserError, match=why) as caught:
        run("yfcc_zip", tmp_path, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_an_object_array_of_raw_bytes_is_refused(tmp_path: Path):
    class Raw:
        def __reduce__(self) -> tuple[Any, ...]:
            return np.int64(0).__reduce__()[0], (np.dtype(object), b"\xff" * 8)

    (tmp_path / "yfcc15m.pkl").write_bytes(pickle.dumps([Raw()]))
    with pytest.raises(UserError, match="objects in raw bytes"):
        run("yfcc_zip", tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "a/../../x", ".", "..", "a/../..", "", "./../x", "//etc/passwd"]
)
def test_paths_do_not_lead_out_of_their_folder(name: str):
    assert below(Path("/data/images"), name) is None


@pytest.mark.parametrize("name", ["x", "a/b", "./a//b", "a/../b", "..a", "a/...", "猫"])
def test_paths_inside_are_taken(name: str):
    found = below(Path("/data/images"), name)
    assert found is not None
    assert found.startswith("/data/images/")


def test_lists_from_elsewhere_choose_no_file_outside(tmp_path: Path):
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    (tmp_path / "secret.jpg").write_bytes(jpeg(1))
    (root / "fine.jpg").write_bytes(jpeg(2))
    names = ["../secret.jpg", str(tmp_path / "secret.jpg"), "fine.jpg"]
    content = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
        "annotations": [{"image_id": n, "caption": "x"} for n in range(3)],
    }
    (root / "captions_x.json").write_text(json.dumps(content))
    np.save(root / "cc.npy", np.array([(name, "x") for name in names], object), allow_pickle=True)
    (root / "cc.tsv").write_text("".join(f"x\thttp://a\t{name}\n" for name in names))
    for layout in ("coco_json", "cc_npy", "cc_tsv"):
        with pytest.raises(UserError, match="2 x path that leads out"):
            run(layout, root, out / layout)
        assert [sample["jpg"] for sample in samples_of(out / layout).values()] == [jpeg(2)]
    annotations = [{"image_id": "secret", "subreddit": "..", "caption": "x"}]
    (root / "red.json").write_text(json.dumps({"annotations": annotations}))
    with pytest.raises(UserError, match="1 x path that leads out"):
        run("redcaps_json", root, out / "red", metadata=Path("red.json"))


def test_names_in_a_zip_archive_lead_nowhere(tmp_path: Path):
    (tmp_path / "00").mkdir()
    with zipfile.ZipFile(tmp_path / "00/000.zip", "w") as archive:
        archive.writestr("../../../escaped.jpg", jpeg(0))
        archive.writestr("001.jpg", jpeg(1))
    (tmp_path / "00/001.zip").write_bytes(b"no archive")
    rows = [(1, "one", ""), (2, "two", ""), (1_000, "three", ""), (3, "a", "b")]
    (tmp_path / "yfcc15m.pkl").write_bytes(pickle.dumps(rows))
    before = sorted(tmp_path.parent.rglob("escaped.jpg"))
    with pytest.raises(UserError, match="3 of 4"):
        run("yfcc_zip", tmp_path, tmp_path / "out")
    assert sorted(samples_of(tmp_path / "out")) == ["00000001"]
    assert left_out(tmp_path / "out")["00001000"] == "zip archive that cannot be read"
    assert sorted(tmp_path.parent.rglob("escaped.jpg")) == before


def test_odd_images_are_counted_by_reason(tmp_path: Path):
    folder = tmp_path / "in" / "class"
    folder.mkdir(parents=True)
    good = jpeg(1, 300, 200)
    wide = io.BytesIO()
    Image.new("1", (10_000, 5_001)).save(wide, "PNG")
    files = {
        **{f"good{n}": good for n in range(5)},
        "cut": good[: len(good) // 2],
        "empty": b"",
        "text": b"<html>404</html>",
        "wide": wide.getvalue(),
        "svg": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    }
    for name, data in files.items():
        (folder / f"{name}.jpg").write_bytes(data)
    (folder / "broken_link.jpg").symlink_to(tmp_path / "nowhere")
    for resize in (None, 64):
        out = tmp_path / f"out{resize}"
        with pytest.raises(UserError, match="left out"):
            run("image_folder", tmp_path / "in", out, samples_per_shard=20, resize=resize)
        assert len(samples_of(out)) == 5
        assert left_out(out) == {
            "class/broken_link": "missing image",
            "class/cut": "image that cannot be decoded",
            "class/empty": "image that cannot be decoded",
            "class/svg": "image that cannot be decoded",
            "class/text": "image that cannot be decoded",
            "class/wide": "more than 50,000,000 pixels",
        }


def test_odd_captions_and_names_are_kept_readable(tmp_path: Path):
    rows = [
        ("1.jpg", "two\nlines"),
        ("2.jpg", "nul\0here"),
        ("3.jpg", " \t "),
        ("ünï.cödé 猫.jpg", "猫"),
        ("d.ot/a.b.jpg", "dots"),
        ("__x__/1.jpg", "read as metadata by others"),
        ("nul\0.jpg", "x"),
        ("n" * 300 + ".jpg", "x"),
    ]
    for name in ("1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg", "ünï.cödé 猫.jpg", "d.ot/a.b.jpg", "__x__/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(1))
    text = "image,caption,other\n" + "".join(f'"{name}","{caption}",x\n' for name, caption in rows)
    (tmp_path / "t.csv").write_bytes(text.encode() + b'4.jpg,caf\xe9,x\nlat\xe9.jpg,"latin",\n5.jpg,,\n\n,,\n')
    (tmp_path / os.fsdecode(b"lat\xe9.jpg")).write_bytes(jpeg(1))
    run("table", tmp_path, tmp_path / "out", samples_per_shard=4)
    assert {key: sample["txt"].decode() for key, sample in samples_of(tmp_path / "out").items()} == {
        "1": "two\nlines",
        "2": "nul here",
        "ünï-cödé 猫": "猫",
        "d-ot/a-b": "dots",
        "x__/1": "read as metadata by others",
        "lat\N{REPLACEMENT CHARACTER}": "latin",
    }
    assert left_out(tmp_path / "out") == {
        "3": "no caption",
        "nul-": "missing image",
        "n" * 300: "image file that cannot be opened",
        "row 8": "caption that is not UTF-8 (--encoding names another)",
        "5": "no caption",
        "row 11": "row without a value in column image",
    }
    source = ShardSource(
        shards=str(tmp_path / "out"), require="caption", captions=UniformCaption(), expected_samples=None
    )
    assert len(source) == 6


def test_lone_surrogates_in_json_become_marks(tmp_path: Path):
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    content = '{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [%s]}'
    captions = (
        '{"image_id": 1, "caption": "bad \\ud83d"}',
        '{"image_id": 1, "caption": "good"}',
        '{"image_id": 1}',
        "7",
    )
    (tmp_path / "captions_x.json").write_text(content % ", ".join(captions))
    run("coco_json", tmp_path, tmp_path / "out")
    found = json.loads(samples_of(tmp_path / "out")["1"]["json"].decode())
    assert found == {"captions": ["bad \N{REPLACEMENT CHARACTER}", "good"]}


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "..", ".", "", "a/./b", "__x__", "//", "\0", "a\\b.c", "\ud800"]
)
def test_keys_are_safe(name: str):
    key = safe_key(name)
    assert key.encode()
    assert not set(key) & set(".\\\0")
    assert not key.startswith(("/", "_"))


def test_keys_are_unique_even_among_names_like_the_made_ones():
    names = ["a", "a-1", "a", "a-2", "a-2", "a.b", "a-b", "a", "a-1-1"]
    keys = [record.key for record in with_unique_keys(LeftOut(name, "") for name in names)]
    assert len(set(keys)) == len(names)
    assert keys[:3] == ["a", "a-1", "a-2"]
    assert keys == [record.key for record in with_unique_keys(LeftOut(name, "") for name in names)]


@pytest.mark.parametrize(
    ("header", "options", "why"),
    [
        ("picture,words", {}, "no column image or .*; give --image-column one of picture, words"),
        (
            "image,path,caption",
            {},
            "columns image and path may be meant; give --image-column one of image, path, caption",
        ),
        ("image,title,text", {}, "columns title and text may be meant; give --caption-column"),
        ("image,caption", {"image_column": "img"}, "no column img; give --image-column one of image, caption"),
        ("", {}, "no column"),
    ],
)
def test_missing_columns_are_told_with_those_there_are(tmp_path: Path, header: str, options: dict[str, Any], why: str):
    (tmp_path / "t.csv").write_text(f"{header}\n1,2,3\n")
    with pytest.raises(UserError, match=why):
        run("table", tmp_path, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("layout", "files", "why"),
    [
        ("cocojson", {}, "did you mean coco_json"),
        ("../table", {}, "does not exist"),
        ("record", {}, "does not exist"),
        ("coco_json", {}, r"no metadata file .*captions_\*.json"),
        ("coco_json", {"captions_a.json": "{", "captions_b.json": "{"}, "choose one with --metadata"),
        ("coco_json", {"captions_a.json": "{"}, "is not JSON"),
        ("coco_json", {"captions_a.json": "[" * 100_000}, "is not JSON"),
        ("coco_json", {"captions_a.json": "[]"}, "no lists `images` and `annotations`"),
        ("redcaps_json", {}, "holds no .json file"),
        ("redcaps_json", {"annotations/x.json": '{"annotations": 1}'}, "no list `annotations`"),
        ("cc_npy", {"x.npy": "no array"}, "is no .npy file"),
        ("cc_tsv", {"x.tsv": ""}, "no sample in it"),
        ("table", {"t.parquet": "PAR1"}, "cannot be read as Parquet"),
        ("table", {"t.csv": 'image,caption\n1.jpg,"' + "x" * 200_000}, "line .*quotation mark"),
        ("yfcc_zip", {}, "no such file"),
        ("img2dataset", {}, "no folders and no .tar files"),
        ("image_folder", {}, "no class folders"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path: Path, layout: str, files: dict[str, str], why: str):
    root = tmp_path / "in"
    root.mkdir()
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(content)
    with pytest.raises(UserError, match=why) as caught:
        run(layout, root, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path\n"
        "from openslip.data.convert.layouts.table import records\n"
        "from openslip.errors import UserError\n"
        "try: list(records(Path(sys.argv[1])))\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert 'pip install "openslip[parquet]"' in done.stdout


def test_broken_members_of_img2dataset_are_counted(tmp_path: Path):
    members = {
        "good": {"jpg": jpeg(1), "txt": b"x", "json": b'{"a": 1, "caption": "x"}', "cls": b"3"},
        "captions": {"jpg": jpeg(2), "json": b'{"captions": ["a", 7, "b"], "caption": "a"}'},
        "several": {"jpg": jpeg(3), "png": b"", "txt": b"x"},
        "whole": {"jpg": jpeg(3), "txt": b"x"},
        "half": {"jpg": jpeg(1), "txt": b"x", "json": b'{"a": '},
        "list": {"jpg": jpeg(1), "txt": b"x", "json": b"[]"},
        "word": {"jpg": jpeg(1), "cls": b"cat"},
        "alone": {"txt": b"x"},
    }
    (tmp_path / "in/00000").mkdir(parents=True)
    for key, parts in members.items():
        for suffix, data in parts.items():
            (tmp_path / f"in/00000/{key}.{suffix}").write_bytes(data)
    (tmp_path / "in/00000/evil.pkl").write_bytes(b"cos\nsystem\n")
    latin = [("x/1.JPG", jpeg(1)), ("x/1.txt", b"caf\xe9"), ("x/2.jpg", jpeg(2)), ("x/2.txt", b"two")]
    write_tar(tmp_path / "in/00001.tar", [("x/evil.pyd", b""), *latin, ("x/3.jpg", jpeg(3)), ("x/3.txt", b"three")])
    run("img2dataset", tmp_path / "in", tmp_path / "out", samples_per_shard=10, resize=20)
    found = samples_of(tmp_path / "out")
    assert {key: sorted(sample) for key, sample in found.items()} == {
        "captions": ["jpg", "json"],
        "good": ["cls", "jpg", "json", "txt"],
        "several": ["jpg", "txt"],
        "whole": ["jpg", "txt"],
        "x/2": ["jpg", "txt"],
        "x/3": ["jpg", "txt"],
    }
    assert json.loads(found["captions"]["json"])["captions"] == ["a", "b"]
    assert left_out(tmp_path / "out") == {
        "a caption of captions": "caption that is not text",
        "alone": "missing image",
        "half": "json or cls that cannot be read",
        "list": "json or cls that cannot be read",
        "word": "json or cls that cannot be read",
        "x/1": "caption that is not UTF-8 (--encoding names another)",
    }


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path):
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(UserError, match=r"t\.csv: Is a directory"):
        run("table", tmp_path, tmp_path / "out")
