"""Tables of text: no cell is lost, no row swallowed, no byte guessed, and an image is one sample."""

import codecs
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converted import left_out, run, samples_of
from shard_files import jpeg

from openslip.data.sources.shards import ShardSource
from openslip.errors import UserError

UNDECODED = "caption that is not UTF-8 (--encoding names another)"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the images 0.jpg to 7.jpg."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    return folder


def captions_of(out: Path) -> dict[str, Any]:
    return {
        key: sample["txt"].decode() if "txt" in sample else json.loads(sample["json"])["captions"]
        for key, sample in samples_of(out).items()
    }


def convert(root: Path, name: str, content: str | bytes, layout: str = "table", **options: Any) -> dict[str, Any]:
    data = content if isinstance(content, bytes) else content.encode()
    (root / name).write_bytes(data)
    run(layout, root, root / "out", samples_per_shard=10, **options)
    return captions_of(root / "out")


def refused(root: Path, name: str, content: str | bytes, layout: str = "table", **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        convert(root, name, content, layout, **options)
    assert not (root / "out").exists()
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("before", ["", '1.jpg,"two\nlines"\n', "\n\n1.jpg,x\n"])
def test_a_surplus_cell_is_an_error_with_its_line_and_the_fix(root: Path, before: str):
    rows = f"image,caption\n{before}0.jpg,a thing, red and round\n"
    told = refused(root, "t.csv", rows)
    assert f"t.csv, line {rows.count(chr(10))}: 3 cells" in told
    assert "red and round" in told
    assert "quote a cell that holds a ','" in told


@pytest.mark.parametrize("row", ["0.jpg,x,", "0.jpg", '"0.jpg,x"'])
def test_rows_of_another_number_of_cells_are_errors(root: Path, row: str):
    assert "t.csv, line 3: " in refused(root, "t.csv", f"image,caption\n1.jpg,x\n{row}\n2.jpg,x\n")


def test_a_tab_too_many_or_too_few_in_a_tsv_is_an_error(root: Path):
    assert "line 2: 3 cells" in refused(root, "t.tsv", "image\tcaption\n0.jpg\ta\tthing\n")
    assert "line 3: 1 cell" in refused(root, "t.tsv", 'image\tcaption\n0.jpg\t"two\nlines"\n')


def test_blank_lines_are_no_rows_and_quoted_separators_no_cells(root: Path):
    rows = '\nimage,caption\r\n\r\n0.jpg,"a thing, red"\r\n   \r\n1.jpg,"a ""quoted"" one"\r\n2.jpg,5" wide\r\n\r\n'
    assert convert(root, "t.csv", rows) == {"0": "a thing, red", "1": 'a "quoted" one', "2": '5" wide'}


@pytest.mark.parametrize("layout", ["table", "cc_tsv"])
def test_quotation_marks_in_a_tsv_are_text(root: Path, layout: str):
    captions = ['"open', "plain", '"another', 'a "word"', '"whole"', '5"', '""', "'"]
    if layout == "table":
        rows = ["image\tcaption", *(f"{number}.jpg\t{caption}" for number, caption in enumerate(captions))]
        expected = {str(number): caption for number, caption in enumerate(captions)}
    else:
        rows = [f"{caption}\thttp://a/{number}" for number, caption in enumerate(captions)]
        expected = {f"{number:09}": caption for number, caption in enumerate(captions)}
    assert convert(root, "t.tsv", "\n".join(rows), layout) == expected
    assert left_out(root / "out") == {}


def test_a_blank_before_a_quotation_mark_is_an_error_with_its_line(root: Path):
    told = refused(root, "t.csv", 'image,caption\n1.jpg,x\n0.jpg, "a thing"\n')
    assert "t.csv, line 3: a blank stands before a cell's quotation mark; remove it" in told


def test_a_tsv_that_was_written_with_quotation_marks_is_said(root: Path, capsys: pytest.CaptureFixture[str]):
    assert convert(root, "t.tsv", 'image\tcaption\n1.jpg\tx\n0.jpg\t"a ""big"" thing"\n')["0"] == '"a ""big"" thing"'
    assert (
        't.tsv, line 3: quotation marks of a .tsv are text, so that "" stays two of them\n' in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (['0.jpg,"a thing', "1.jpg,x", "2.jpg,x"], 2),
        (["0.jpg,x", '1.jpg,"a thing', "2.jpg,x", '3.jpg,"another'], 3),
        (["0.jpg,x", "1.jpg,x", '2.jpg,"big" dog'], 4),
        (["0.jpg,x", '1.jpg,"a \\"word\\" here"'], 3),
        (["0.jpg,x", '1.jpg,"a thing', '2.jpg,a nail of 5"', "3.jpg,x"], 3),
        (["0.jpg,x", '1.JPG,"a thing', '2.jpg,another"', "3.jpg,x"], 3),
        (['"0.jpg,x', "1.jpg,x"], 2),
    ],
)
def test_an_open_quotation_mark_is_an_error_with_its_line(root: Path, rows: list[str], line: int):
    told = refused(root, "t.csv", "\n".join(["image,caption", *rows, ""]))
    assert f"t.csv, line {line}: a quotation mark opens a cell" in told


@pytest.mark.parametrize(("separator", "option"), [(";", ";"), ("|", "|"), ("\t", "tab"), ("\t", "\\t"), (" ", " ")])
def test_another_separator_is_guessed_and_can_be_named(root: Path, separator: str, option: str):
    rows = f"image{separator}caption\n" + "".join(f"{n}.jpg{separator}a,thing,{n}\n" for n in range(3))
    told = refused(root, "t.csv", rows)
    assert told.endswith("--separator tab" if separator == "\t" else f"--separator {separator!r}")
    assert "is its separator" in told
    assert convert(root, "t.csv", rows, separator=option) == {str(n): f"a,thing,{n}" for n in range(3)}


def test_commas_in_a_tsv_are_guessed(root: Path):
    assert refused(root, "t.tsv", "image,caption\n0.jpg,x\n").endswith("is its separator ','? --separator ','")
    assert convert(root, "t.tsv", 'image,caption\n0.jpg,"x, y"\n', separator=",") == {"0": "x, y"}


def test_names_of_columns_may_have_spaces_around_them(root: Path):
    rows = "image_name| comment_number| comment\n0.jpg| 0| A dog .\n0.jpg| 1| A cat .\n"
    options = {"separator": "|", "image_column": "image_name", "caption_columns": ["comment"]}
    assert convert(root, "t.csv", rows, **options) == {"0": ["A dog .", "A cat ."]}


@pytest.mark.parametrize("separator", ["", ";;", '"', "\n"])
def test_impossible_separators_are_refused(root: Path, separator: str):
    assert "expected one character, or tab" in refused(root, "t.csv", "image,caption\n0.jpg,x\n", separator=separator)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_captions_in_an_unknown_encoding_are_listed_with_their_row(root: Path, name: str):
    rows = ["image,caption", "0.jpg,one", "1.jpg,caf\xe9", "2.jpg,two", "2.jpg,Kr\xe4he", "3.jpg,three"]
    content = "\n".join(rows).replace(",", "\t" if name == "t.tsv" else ",").encode("latin-1")
    assert convert(root, name, content) == {"0": "one", "2": "two", "3": "three"}
    assert left_out(root / "out") == {"row 1": UNDECODED, "row 3": UNDECODED}
    assert json.loads((root / "out/manifest.json").read_text())["left_out"] == {UNDECODED: 2}


def test_the_published_list_of_cc_is_decoded_alike(root: Path):
    content = "caf\xe9\thttp://a/0\none\thttp://a/1\ntwo\thttp://a/2\n".encode("latin-1")
    assert convert(root, "t.tsv", content, "cc_tsv") == {"000000001": "one", "000000002": "two"}
    assert left_out(root / "out") == {"row 0": UNDECODED}
    run("cc_tsv", root, root / "second", encoding="latin-1")
    assert captions_of(root / "second")["000000000"] == "café"


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-8", "gb18030"])
def test_a_table_in_a_named_encoding_is_read(root: Path, encoding: str):
    content = "image,caption\n0.jpg,café\n".encode(encoding)
    assert convert(root, "t.csv", content, encoding=encoding) == {"0": "café"}
    assert json.loads((root / "out/manifest.json").read_text())["options"] == {"encoding": encoding}


def test_another_encoding_does_not_resume_a_conversion(root: Path):
    assert convert(root, "t.csv", b"image,caption\n0.jpg,caf\xe9\n", encoding="latin-1") == {"0": "café"}
    with pytest.raises(UserError, match=r"options=.*encoding.*give the same again"):
        run("table", root, root / "out", samples_per_shard=10, encoding="cp1252")


MARKED = [
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(("mark", "encoding"), MARKED)
def test_a_table_is_decoded_by_its_byte_order_mark(root: Path, mark: bytes, encoding: str, named: bool):
    content = mark + 'image,caption\r\n0.jpg,"café, 猫"\r\n'.encode(encoding)
    assert convert(root, "t.csv", content, encoding=encoding if named else None) == {"0": "café, 猫"}


def test_an_encoding_is_asked_for_where_the_header_shows_the_need(root: Path):
    for content in ("image,l\xe9gende\n0.jpg,x\n".encode("latin-1"), "image,caption\n0.jpg,x\n".encode("utf-16-le")):
        assert "is it UTF-8? --encoding names another" in refused(root, "t.csv", content)
    assert "is not utf-16" in refused(root, "t.csv", b"image,caption\n0.jpg,xyz\n", encoding="utf-16")


@pytest.mark.parametrize("layout", ["table", "cc_tsv", "img2dataset"])
@pytest.mark.parametrize("encoding", ["latin-0", "hex", "nul\0"])
def test_an_unknown_encoding_is_named(root: Path, layout: str, encoding: str):
    (root / "t.tsv").write_text("x\thttp://a\n")
    with pytest.raises(UserError, match="Python knows no such encoding of texts"):
        run(layout, root, root.parent / "out", encoding=encoding)


def test_parquet_takes_neither_encoding_nor_separator(root: Path):
    (root / "t.parquet").write_bytes(b"PAR1")
    given: list[dict[str, Any]] = [{"encoding": "latin-1"}, {"separator": ";"}]
    for options in given:
        with pytest.raises(UserError, match="needs neither --separator nor --encoding"):
            run("table", root, root / "out", **options)


def test_rows_of_one_image_become_one_sample(root: Path):
    rows = ["image,caption", "1.jpg,b1", "0.jpg,a1", "./0.jpg,a2", "2.jpg,c", f"{root}/0.jpg,a3", "1.jpg,", "0.jpg,a1"]
    assert convert(root, "t.csv", "\n".join(rows)) == {"1": "b1", "0": ["a1", "a2", "a3", "a1"], "2": "c"}
    dropped = ShardSource(shards=str(root / "out"), require="caption")
    kept = ShardSource(shards=str(root / "out"), require="caption", equal_captions="keep")
    assert [source[1].captions for source in (dropped, kept)] == [("a1", "a2", "a3"), ("a1", "a2", "a3", "a1")]


def test_five_equal_captions_of_an_image_are_kept(root: Path):
    assert convert(root, "t.csv", "image,caption\n" + "0.jpg,x\n" * 5) == {"0": ["x"] * 5}


def test_other_lists_with_several_entries_of_an_image_join_them(root: Path):
    entries = np.array([("0.jpg", "one"), ("1.jpg", "two"), ("0.jpg", "three")], object)
    np.save(root / "cc.npy", entries, allow_pickle=True)
    run("cc_npy", root, root / "npy")
    assert captions_of(root / "npy") == {"0": ["one", "three"], "1": "two"}
    rows = "one\thttp://a\t0.jpg\ntwo\thttp://b\nthree\thttp://c\t0.jpg\n"
    assert convert(root, "t.tsv", rows, "cc_tsv") == {"000000000": ["one", "three"], "000000001": "two"}


def test_annotations_with_several_entries_of_an_image_join_them(root: Path):
    coco = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(("0.jpg", "1.jpg", "./0.jpg"))],
        "annotations": [{"image_id": number, "caption": text} for number, text in enumerate(("one", "two", "three"))],
    }
    expected = {"0": ["one", "three"], "1": "two"}
    assert convert(root, "captions_x.json", json.dumps(coco), "coco_json") == expected
    (root / "images").mkdir()
    for name in ("0.jpg", "1.jpg"):
        (root / name).rename(root / "images" / name)
    red = [{"image_id": name, "subreddit": ".", "caption": text} for name, text in (("0", "one"), ("1", "two"))]
    (root / "red.json").write_text(json.dumps([*red, {**red[0], "caption": "three", "author": "x"}]))
    run("redcaps_json", root, root / "red", metadata=Path("red.json"))
    samples = samples_of(root / "red")
    assert sorted(captions_of(root / "red").values(), key=len) == [["one", "three"], "two"]
    assert not any("author" in json.loads(sample["json"]) for sample in samples.values())


def test_members_of_img2dataset_hold_lists_marks_and_other_encodings(root: Path):
    folder = root / "tars" / "00000"
    folder.mkdir(parents=True)
    texts = {
        "list.json": b'\xef\xbb\xbf{"caption": ["one", "two"]}',
        "mark.txt": codecs.BOM_UTF16_LE + "a cat".encode("utf-16-le"),
        "bare.txt": "a cat".encode("utf-16-le"),
        "both.txt": "caf\xe9".encode("latin-1"),
        "both.json": b'{"caption": "x", "captions": ["y", "caf\\u00e9"]}',
        "byte.json": b'{"captions": ["z", "caf\xe9"], "author": "Andr\xe9"}',
    }
    for name, data in texts.items():
        (folder / name).write_bytes(data)
        (folder / name).with_suffix(".jpg").write_bytes(jpeg(1))
    run("img2dataset", root / "tars", root / "out", samples_per_shard=9)
    found = samples_of(root / "out")
    assert captions_of(root / "out") == {
        **{"list": ["one", "two"], "mark": "a cat", "both": ["y", "café"], "byte": "z"}
    }
    assert "\N{REPLACEMENT CHARACTER}" not in found["byte"]["txt"].decode()
    assert json.loads(found["byte"]["json"]) == {"author": "Andr\N{REPLACEMENT CHARACTER}"}
    source = ShardSource(shards=str(root / "out"), require="caption")
    assert [source[place].captions for place in range(4)] == [("y", "café"), ("z",), ("one", "two"), ("a cat",)]


def write_list(layout: str, root: Path, captions: list[Any]) -> dict[str, Any]:
    """Write a list of one image with these captions, as the layout reads it; the options that it needs."""
    if layout == "cc_npy":
        np.save(root / "cc.npy", np.array([{"image_id": "0.jpg", "captions": captions}], object), allow_pickle=True)
    elif layout == "table":
        columns = {"image": ["0.jpg"]} | {f"c{place}": [caption] for place, caption in enumerate(captions)}
        table = pytest.importorskip("pyarrow").table(columns)
        pytest.importorskip("pyarrow.parquet").write_table(table, root / "t.parquet")
        return {"caption_columns": list(columns)[1:]}
    elif layout == "img2dataset":
        (root / "00000").mkdir()
        (root / "0.jpg").rename(root / "00000" / "0.jpg")
        (root / "00000" / "0.json").write_text(json.dumps({"caption": captions, "url": "x"}))
    elif layout == "coco_json":
        entry = {"image_id": 1, "caption": captions}
        content = {"images": [{"id": 1, "file_name": "0.jpg"}], "annotations": [entry]}
        (root / "captions_x.json").write_text(json.dumps(content))
    else:
        (root / "images/cats").mkdir(parents=True)
        (root / "0.jpg").rename(root / "images/cats/0.jpg")
        (root / "annotations").mkdir()
        annotation = {"image_id": 0, "subreddit": "cats", "caption": captions}
        (root / "annotations/a.json").write_text(json.dumps([annotation]))
    return {}


@pytest.mark.parametrize("layout", ["cc_npy", "table", "img2dataset", "coco_json", "redcaps_json"])
def test_a_caption_that_is_no_text_is_listed(root: Path, layout: str):
    options = write_list(layout, root, ["one", 5, None])
    run(layout, root, root.parent / "out", samples_per_shard=9, **options)
    assert list(left_out(root.parent / "out").values()) == ["caption that is not text"]
    assert list(captions_of(root.parent / "out").values()) == ["one"]
    assert ShardSource(shards=str(root.parent / "out"), require="caption").problems == ()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_annotations_hold_lists_and_a_byte_order_mark(root: Path, encoding: str):
    coco = {"images": [{"id": 1, "file_name": "0.jpg"}], "annotations": [{"image_id": 1, "caption": ["one", "two"]}]}
    assert convert(root, "captions_x.json", json.dumps(coco).encode(encoding), "coco_json") == {"0": ["one", "two"]}
    (root / "images/cats").mkdir(parents=True)
    (root / "images/cats/a.jpg").write_bytes(jpeg(1))
    red = json.dumps([{"image_id": "a", "subreddit": "cats", "caption": ["one", "two"]}]).encode(encoding)
    (root / "red.json").write_bytes(red)
    run("redcaps_json", root, root / "red", metadata=Path("red.json"))
    assert captions_of(root / "red") == {"cats/a": ["one", "two"]}


def test_annotations_that_are_not_utf8_are_told(root: Path):
    assert "is not UTF-8 (byte 12)" in refused(root, "captions_x.json", b'{"images": "\xe9"}', "coco_json")
