"""One shard's samples against Python's tarfile and webdataset, and on every kind of damage."""

import codecs
import gzip
import itertools
import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from shard_files import jpeg, write_pairs, write_tar

from openslip.data.captions.policy import CaptionFields, CaptionPolicy, FirstCaption, UniformCaption
from openslip.data.index.scan import ShardSamples, scan_shard
from openslip.data.index.tar import BLOCK
from openslip.data.sources.shards import ShardSource
from openslip.errors import UserError

IMAGE = jpeg(0)


def scan(path: Path) -> ShardSamples:
    return scan_shard(path, str(path), UniformCaption())


def keys(samples: ShardSamples) -> list[str]:
    ends = [0, *samples.rows["key_end"].tolist()]
    return [samples.keys[start:end].decode() for start, end in itertools.pairwise(ends)]


def problems(path: Path) -> dict[str, int]:
    return {reason: count for reason, count in scan(path).problems.counts.items() if reason != "no label"}


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_offsets_are_those_of_tarfile(tmp_path: Path, tar_format: int):
    long = "folder/" * 12 + "k" * 80  # fits in no single header field, but in ustar's two
    names = ["a", "d/b", long, "z"]
    members = [(f"{name}.{suffix}", suffix.encode() * 300) for name in names for suffix in ("jpg", "txt")]
    path = write_tar(tmp_path / "shard.tar", members, tar_format)
    samples = scan(path)
    content = path.read_bytes()
    assert keys(samples) == names
    for name, row in zip(names, samples.rows, strict=True):
        with tarfile.open(path) as tar:
            for field, suffix in (("image", "jpg"), ("txt", "txt")):
                member = tar.getmember(f"{name}.{suffix}")
                assert (BLOCK * int(row[field]), int(row[f"{field}_size"])) == (member.offset_data, member.size)
                assert content[BLOCK * int(row[field]) :].startswith(suffix.encode())


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read(tmp_path: Path, tar_format: int):
    names = ["n" * 300, "猫" * 60, "short"]
    path = write_tar(tmp_path / "shard.tar", [(f"{name}.jpg", IMAGE) for name in names], tar_format)
    assert keys(scan(path)) == names


@pytest.mark.parametrize(
    ("image", "text", "key"),
    [
        ("./a.jpg", "././a.txt", "a"),
        ("./a.jpg", "a.txt", "a"),
        ("d/a.jpg", "d//a.txt", "d/a"),
        ("d/a.jpg", "./d/./a.txt", "d/a"),
        ("/data/d/a.jpg", "data/d/a.txt", "data/d/a"),
        ("//data/a.jpg", "/data//./a.txt", "data/a"),
    ],
)
@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_one_file_are_one_key(tmp_path: Path, image: str, text: str, key: str, tar_format: int):
    path = write_tar(tmp_path / "shard.tar", [(image, IMAGE), (text, b"one")], tar_format)
    assert keys(scan(path)) == [key]
    assert problems(path) == {}


@pytest.mark.parametrize(
    "name", ["../a.jpg", "/../a.jpg", "./../a.jpg", "d/../../a.jpg", "d/../a.jpg", "/d/.././a.jpg"]
)
def test_names_with_two_dots_stay_refused(tmp_path: Path, name: str):
    path = write_tar(tmp_path / "shard.tar", [("good.jpg", IMAGE), (name, IMAGE)])
    assert keys(scan(path)) == ["good"]
    assert problems(path) == {"bad name (leads out of its folder)": 1, "no caption": 1}


@pytest.mark.parametrize("options", [["--format=gnu"], ["--format=pax", "--sparse-version=0.0"], ["--format=pax"]])
@pytest.mark.parametrize("num_pieces", [2, 5, 30])
def test_sparse_members_are_told_with_the_fix(tmp_path: Path, options: list[str], num_pieces: int):
    with (tmp_path / "holes.jpg").open("wb") as file:
        for piece in range(num_pieces):
            file.seek(piece << 20)
            file.write(IMAGE)
    (tmp_path / "z.jpg").write_bytes(IMAGE)
    (tmp_path / "z.txt").write_bytes(b"one")
    path = tmp_path / "shard.tar"
    command = ["tar", "-S", *options, "-cf", str(path), "-C", str(tmp_path), "holes.jpg", "z.jpg", "z.txt"]
    subprocess.run(command, check=True)
    if path.stat().st_size > num_pieces << 20:
        pytest.skip("this file system keeps no holes")
    assert keys(scan(path)) == ["z"]
    assert problems(path) == {"sparse file, which is not read (write the tar file again without -S)": 1}
    assert scan(path).problems.lines()[0].endswith(" holes.jpg")


def test_samples_are_grouped_by_the_path_up_to_the_first_dot(tmp_path: Path):
    members = [("./a.JPG", IMAGE), ("./a.txt", b"x"), ("d.e/a.png", IMAGE), ("d.e/a.txt", b"y")]
    assert keys(scan(write_tar(tmp_path / "shard.tar", members))) == ["a", "d.e/a"]


def test_members_of_a_sample_need_not_be_neighbours(tmp_path: Path):
    members = [("a.jpg", IMAGE), ("b.jpg", IMAGE), ("a.txt", b"x"), ("b.txt", b"y")]
    assert keys(scan(write_tar(tmp_path / "shard.tar", members))) == ["a", "b"]


def test_every_kind_of_bad_sample_is_counted_and_skipped(tmp_path: Path):
    members = [
        ("good.jpg", IMAGE),
        ("good.txt", b"a caption"),
        ("good.json", b'{"captions": ["a caption", "another"]}'),
        ("bare.jpg", IMAGE),
        ("blank.jpg", IMAGE),
        ("blank.txt", b" \n"),
        ("zero.jpg", IMAGE),
        ("zero.txt", b""),
        ("words.txt", b"no picture here"),
        ("good.jpg", IMAGE[:9]),
        ("../../etc/x.jpg", IMAGE),
        ("d.x.jpg", IMAGE),
        ("latin.jpg", IMAGE),
        ("latin.txt", "café".encode("latin-1")),
        ("broken.jpg", IMAGE),
        ("broken.txt", b"still here"),
        ("broken.json", b"{"),
        ("evil.pkl", b"cos\nsystem\n"),
        ("README", b"not a sample"),
        ("._good.jpg", b"macOS"),
    ]
    path = write_tar(tmp_path / "shard.tar", members)
    samples = scan(path)
    captioned = (samples.rows["txt_size"] > 0) | (samples.rows["json_size"] > 0)
    assert [key for key, has in zip(keys(samples), captioned, strict=True) if has] == ["good", "broken"]
    assert set(samples.rows["image_size"].tolist()) == {len(IMAGE)}
    assert problems(path) == {
        "no caption": 1,
        "empty caption": 2,
        "no image": 1,
        "duplicate key, of which the first was used": 1,
        "bad name (leads out of its folder)": 1,
        "bad name (a dot in the key)": 1,
        "caption that is not UTF-8, which is not used": 1,
        "json that cannot be read, so only txt was used": 1,
        "pickle, which is never read": 1,
    }
    assert "2 x empty caption, first blank" in samples.problems.lines()


def test_a_label_is_a_class_number(tmp_path: Path):
    members = [("a.jpg", IMAGE), ("a.cls", b"7\n"), ("b.jpg", IMAGE), ("b.cls", b"cat"), ("c.jpg", IMAGE)]
    path = write_tar(tmp_path / "shard.tar", members)
    samples = scan(path)
    assert samples.labels.tolist() == [7, -1, -1]
    assert samples.problems.counts["cls that holds no class number such as 0"] == 1
    assert "2 x no label, first b" in samples.problems.lines()


def test_links_and_devices_are_skipped(tmp_path: Path):
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(f"link{number}.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    write_tar(tmp_path / "end.tar", [("a.jpg", IMAGE)])
    path.write_bytes(path.read_bytes()[: 5 * BLOCK] + (tmp_path / "end.tar").read_bytes())
    assert keys(scan(path)) == ["a"]
    assert problems(path) == {"link or device": 4, "no caption": 1}


def test_large_sizes_are_read_from_base_256(tmp_path: Path):
    path = write_tar(tmp_path / "shard.tar", [("a.jpg", IMAGE)])
    content = bytearray(path.read_bytes())
    content[124:136] = b"\x80" + len(IMAGE).to_bytes(11, "big")
    content[148:156] = b" " * 8
    content[148:156] = f"{sum(content[:BLOCK]):06o}\0 ".encode()
    path.write_bytes(content)
    assert scan(path).rows["image_size"].tolist() == [len(IMAGE)]


@pytest.mark.parametrize("byte", [0, 100, 124, 130, 150, 156, 257, 400])
def test_one_wrong_byte_in_any_header_names_shard_and_offset(tmp_path: Path, byte: int):
    path = write_pairs(tmp_path / "shard.tar", 5)
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[7].offset
    content[offset + byte] ^= 0x08
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"shard {path} is damaged at offset {offset} "):
        scan(path)


def test_a_shard_cut_anywhere_is_refused(tmp_path: Path):
    path = write_pairs(tmp_path / "shard.tar", 2)
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1].offset_data + BLOCK
    for length in (100, 511, 512, 700, 1024, end - BLOCK, end - 1, end, end + 100):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=rf"shard {path} is cut off: .* (offset|ends at) "):
            scan(path)


def test_joined_tar_files_are_refused_instead_of_half_read(tmp_path: Path):
    path = write_pairs(tmp_path / "shard.tar", 2)
    end = len(path.read_bytes().rstrip(b"\0"))
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(UserError, match="continues after its end marker at offset") as refusal:
        scan(path)
    assert str(-(-end // BLOCK) * BLOCK) in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (gzip.compress(b"\0" * 2000, mtime=0), "is compressed"),
        (b"<html>404 Not Found</html>" * 100, "is damaged at offset 0 .*is it a tar file"),
    ],
)
def test_what_is_no_tar_file_is_named(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "shard.tar"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"shard {path} {message}"):
        scan(path)


def test_a_missing_shard_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=rf"shard {tmp_path / 'no.tar'}: No such file"):
        scan(tmp_path / "no.tar")


def test_captions_of_txt_and_json_are_joined_and_only_what_adds_something_is_read_again(tmp_path: Path):
    fields = json.dumps({"captions": ["two", " one ", 3, None, ""], "caption": "three"}).encode()
    members = [
        ("a.jpg", IMAGE),
        ("a.txt", b"one\n"),
        ("a.json", fields),
        ("b.jpg", IMAGE),
        ("b.json", b'{"caption": "one"}'),
        ("c.jpg", IMAGE),
        ("c.txt", b"one"),
        ("c.json", b'{"caption": "one", "url": "x"}'),
    ]
    rows = scan(write_tar(tmp_path / "a.tar", members)).rows
    assert (rows["txt_size"] > 0).tolist() == [True, False, True]
    assert (rows["json_size"] > 0).tolist() == [True, True, False]


def test_the_policy_decides_what_counts_as_a_caption(tmp_path: Path):
    members = [
        ("a.jpg", IMAGE),
        ("a.txt", b"a name of a file"),
        ("b.jpg", IMAGE),
        ("b.json", b'{"title": "", "description": " a dog "}'),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    samples = scan_shard(path, str(path), CaptionFields(fields=["title", "description"]))
    assert samples.rows["txt_size"].tolist() == [0, 0]
    assert (samples.rows["json_size"] > 0).tolist() == [False, True]
    assert samples.problems.counts["empty caption"] == 1


@pytest.mark.parametrize("content", [b"[" * 100_000, b'"text"', b"[1, 2]", b"null", b"\xff\xfe{}", b"1e999999"])
def test_odd_json_is_never_more_than_a_problem(tmp_path: Path, content: bytes):
    path = write_tar(tmp_path / "a.tar", [("a.jpg", IMAGE), ("a.txt", b"one"), ("a.json", content)])
    samples = scan(path)
    assert keys(samples) == ["a"]
    assert samples.rows["txt_size"].tolist() == [3]
    assert samples.rows["json_size"].tolist() == [0]


MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("encoding", MARKED)
def test_texts_are_decoded_by_their_byte_order_mark(tmp_path: Path, encoding: str):
    def encoded(text: str) -> bytes:
        return MARKED[encoding] + text.encode(encoding)

    members = [
        *(("a.jpg", IMAGE), ("a.txt", encoded("ein Käse\n")), ("a.json", encoded('{"caption": ["猫", "two"]}'))),
        ("a.cls", encoded("7\n")),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    source = ShardSource(shards=str(path), require="caption")
    assert source[0].captions == ("ein Käse", "猫", "two")
    assert source[0].label == 7
    assert source.problems == ()


@pytest.mark.parametrize(
    "content",
    [
        "a dog".encode("utf-16-le"),
        "a dog".encode("utf-16-be"),
        "猫 und Hund".encode("utf-16-le"),
        "a dog".encode("utf-32-le"),
        codecs.BOM_UTF16_LE + b"a\0b",
        "café".encode("latin-1"),
        "猫".encode("shift_jis"),
    ],
)
def test_a_text_in_an_unknown_encoding_is_counted_and_not_used(tmp_path: Path, content: bytes):
    members = [
        *(("a.jpg", IMAGE), ("a.txt", content), ("b.jpg", IMAGE), ("b.txt", content)),
        *(("b.json", b'{"caption": "two"}'), ("c.jpg", IMAGE), ("c.json", b'{"caption": "caf\xe9", "url": "x"}')),
        *(("d.jpg", IMAGE), ("d.json", b'{"caption": "three", "author": "Andr\xe9"}')),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    source = ShardSource(shards=str(path), require="caption")
    assert [source[place].captions for place in range(len(source))] == [("two",), ("three",)]
    assert source.problems == (f"3 x caption that is not UTF-8, which is not used, first {path}:a",)
    first = ShardSource(shards=str(path), require="caption", captions=FirstCaption())
    assert [first[place].captions for place in range(len(first))] == [("two",), ("three",)]


REPLACED = {"caption with U+FFFD, the mark of bytes lost earlier": 1}


def test_a_replacement_character_is_told(tmp_path: Path):
    members = [("a.jpg", IMAGE), ("a.txt", "caf\N{REPLACEMENT CHARACTER}".encode())]
    assert problems(write_tar(tmp_path / "a.tar", members)) == REPLACED


@pytest.mark.parametrize("key", ["caption", "captions"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["one", "two"], ("one", "two")),
        ([["one", "two"], ["three"]], ("one", "two", "three")),
        ("one", ("one",)),
        ([], ()),
        (3, ()),
        ([None, "one"], ("one",)),
    ],
)
def test_both_keys_of_a_json_hold_a_text_or_a_list(tmp_path: Path, key: str, value: object, expected: tuple[str, ...]):
    members = [("a.jpg", IMAGE), ("a.json", json.dumps({key: value}).encode())]
    path = write_tar(tmp_path / "a.tar", members)
    assert ShardSource(shards=str(path), require=None)[0].captions == expected


@pytest.mark.parametrize("value", [5, 0, 1.5, True, {"en": "two"}, [["one"], 5]])
@pytest.mark.parametrize("policy", [UniformCaption(), FirstCaption(), CaptionFields(fields=["caption"])])
def test_a_caption_that_is_no_text_is_counted(tmp_path: Path, policy: CaptionPolicy, value: object):
    members = [
        *(("a.jpg", IMAGE), ("a.json", json.dumps({"caption": ["one", value]}).encode())),
        *(("b.jpg", IMAGE), ("b.json", json.dumps({"caption": value}).encode())),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    source = ShardSource(shards=str(path), require="caption", captions=policy)
    assert source[0].captions == ("one",)
    assert source.problems == (f"2 x caption that is not text, which is not used, first {path}:a",)


def test_null_in_a_list_of_captions_is_as_if_it_were_not_there(tmp_path: Path):
    members = [("a.jpg", IMAGE), ("a.json", b'{"caption": [null, "one"], "captions": null}')]
    assert problems(write_tar(tmp_path / "a.tar", members)) == {}


EQUAL = [
    ({"txt": "a", "captions": ["a", "b", "b", "a", "c"]}, ("a", "b", "b", "a", "c")),
    ({"txt": "b", "captions": ["a", "b", "b"]}, ("b", "a", "b")),
    ({"captions": ["a", " a ", "a", "", "a", "a"]}, ("a",) * 5),
    ({"txt": "a", "caption": "a"}, ("a",)),
    ({"txt": "a", "caption": "a", "captions": ["a"]}, ("a",)),
    ({"txt": "a", "caption": ["a", "a"], "captions": ["b"]}, ("a", "b", "a")),
    ({"txt": "a\n"}, ("a",)),
]


@pytest.mark.parametrize(("texts", "kept"), EQUAL)
def test_equal_captions_of_one_image_are_dropped_or_kept(tmp_path: Path, texts: dict, kept: tuple[str, ...]):
    fields = {name: value for name, value in texts.items() if name != "txt"}
    members = [("i.jpg", IMAGE), ("i.json", json.dumps(fields).encode())]
    members += [("i.txt", texts["txt"].encode())] if "txt" in texts else []
    path = str(write_tar(tmp_path / "a.tar", members))
    for option in (None, "drop", "keep", "drop"):  # each after an index that the other has left
        source = ShardSource(shards=path, require="caption", equal_captions=option)
        assert source[0].captions == (kept if option == "keep" else tuple(dict.fromkeys(kept)))


def with_header(path: Path, offset: int, field: slice, value: bytes) -> Path:
    """One header field overwritten, its checksum made good."""
    content = bytearray(path.read_bytes())
    content[offset + field.start : offset + field.stop] = value.ljust(field.stop - field.start, b"\0")
    content[offset + 148 : offset + 156] = b" " * 8
    content[offset + 148 : offset + 156] = f"{sum(content[offset : offset + BLOCK]):06o}\0 ".encode()
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("size", [b"-1000", b"+10", b"1_0", b"0o17", b"9"])
def test_a_size_that_is_no_octal_number_is_refused_and_never_leads_back(tmp_path: Path, size: bytes):
    path = with_header(write_pairs(tmp_path / "a.tar", 2), 0, slice(124, 136), size)
    with pytest.raises(UserError, match=r"is damaged at offset 0 \(a header without a size"):
        scan(path)


def test_pax_numbers_of_any_length_are_survived(tmp_path: Path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a.jpg")
        member.pax_headers = {"comment": "x", "size": "9" * 5000}
        tar.addfile(member)
    scan(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"size=999", b"size=000", 1))
    scan(path)


def test_a_member_too_large_for_the_table_is_skipped(tmp_path: Path):
    path = write_tar(tmp_path / "a.tar", [("a.jpg", IMAGE), ("b.jpg", IMAGE)])
    content = path.read_bytes()
    header = bytearray(content[:BLOCK])
    length = 1 << 32
    header[124:136] = b"\x80" + length.to_bytes(11, "big")
    header[:5] = b"c.jpg"
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    with path.open("wb") as file:  # sparse: takes no room on the disk
        file.write(header)
        file.seek(BLOCK + length)
        file.write(content)
    assert keys(scan(path)) == ["a", "b"]
    assert problems(path)["member of 4 GiB or more"] == 1


def test_an_empty_tar_is_a_line_in_the_report(tmp_path: Path):
    assert problems(write_tar(tmp_path / "a.tar", [])) == {"shard without a sample": 1}


def test_what_a_terminal_would_obey_is_written_as_escapes(tmp_path: Path):
    path = write_tar(tmp_path / "a.tar", [("\x1b[2J.jpg", IMAGE), ("a\nb.txt", b"x")], tarfile.GNU_FORMAT)
    lines = scan(path).problems.lines()
    assert any("\\x1b[2J" in line for line in lines)
    assert all(line.isprintable() for line in lines)
