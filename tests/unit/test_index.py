"""The tar index against Python's tarfile and webdataset, and on every kind of damage."""

import gzip
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from shard_files import jpeg, write_pairs, write_tar

from openslip.data.index import BLOCK, build_index
from openslip.errors import UserError

PICTURE = jpeg(0)


def keys(path: Path, require: str | None = None) -> list[str]:
    index = build_index([path], require)
    return [index.key(place) for place in range(len(index.rows))]


def problems(path: Path, require: str | None = None) -> dict[str, int]:
    return dict(build_index([path], require).problems.counts)


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_offsets_are_those_of_tarfile(tmp_path: Path, tar_format: int):
    long = "folder/" * 12 + "k" * 80  # fits in no single header field, but in ustar's two
    names = ["a", "d/b", long, "z"]
    members = [(f"{name}.{suffix}", suffix.encode() * 300) for name in names for suffix in ("jpg", "txt")]
    path = write_tar(tmp_path / "shard.tar", members, tar_format)
    index = build_index([path], "caption")
    content = path.read_bytes()
    assert [index.key(place) for place in range(4)] == names
    for name, row in zip(names, index.rows, strict=True):
        with tarfile.open(path) as tar:
            for field, suffix in (("image", "jpg"), ("txt", "txt")):
                member = tar.getmember(f"{name}.{suffix}")
                assert (int(row[field]), int(row[f"{field}_size"])) == (member.offset_data, member.size)
                assert content[int(row[field]) :].startswith(suffix.encode())


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read(tmp_path: Path, tar_format: int):
    names = ["n" * 300, "猫" * 60, "short"]
    path = write_tar(tmp_path / "shard.tar", [(f"{name}.jpg", PICTURE) for name in names], tar_format)
    assert keys(path) == names


def test_samples_are_grouped_by_the_path_up_to_the_first_dot(tmp_path: Path):
    members = [("./a.JPG", PICTURE), ("./a.txt", b"x"), ("d.e/a.png", PICTURE), ("d.e/a.txt", b"y")]
    assert keys(write_tar(tmp_path / "shard.tar", members), "caption") == ["a", "d.e/a"]


def test_members_of_a_sample_need_not_be_neighbours(tmp_path: Path):
    members = [("a.jpg", PICTURE), ("b.jpg", PICTURE), ("a.txt", b"x"), ("b.txt", b"y")]
    assert keys(write_tar(tmp_path / "shard.tar", members), "caption") == ["a", "b"]


def test_every_kind_of_bad_sample_is_counted_and_left_out(tmp_path: Path):
    members = [
        ("good.jpg", PICTURE),
        ("good.txt", b"a caption"),
        ("good.json", b'{"captions": ["a caption", "another"]}'),
        ("bare.jpg", PICTURE),
        ("blank.jpg", PICTURE),
        ("blank.txt", b" \n"),
        ("zero.jpg", PICTURE),
        ("zero.txt", b""),
        ("words.txt", b"no picture here"),
        ("good.jpg", PICTURE),
        ("../../etc/x.jpg", PICTURE),
        ("/root/x.jpg", PICTURE),
        ("d.x.jpg", PICTURE),
        ("latin.jpg", PICTURE),
        ("latin.txt", "café".encode("latin-1")),
        ("broken.jpg", PICTURE),
        ("broken.txt", b"still here"),
        ("broken.json", b"{"),
        ("evil.pkl", b"cos\nsystem\n"),
        ("README", b"not a sample"),
        ("._good.jpg", b"macOS"),
    ]
    path = write_tar(tmp_path / "shard.tar", members)
    assert keys(path, "caption") == ["good", "latin", "broken"]
    assert problems(path, "caption") == {
        "no caption": 1,
        "empty caption": 2,
        "no picture": 1,
        "duplicate key, of which the first was used": 1,
        "bad name (leads out of its folder)": 2,
        "bad name (a dot in the key)": 1,
        "caption that is not UTF-8, used with its bad bytes replaced": 1,
        "json that cannot be read, so only txt was used": 1,
        "pickle, which is never read": 1,
    }
    lines = build_index([path], "caption").problems.lines()
    assert f"2 x empty caption, first {path}:blank" in lines


def test_without_a_requirement_pictures_alone_count(tmp_path: Path):
    members = [("a.jpg", PICTURE), ("b.jpg", PICTURE), ("b.txt", b" ")]
    assert keys(write_tar(tmp_path / "shard.tar", members)) == ["a", "b"]


def test_a_label_is_a_class_number(tmp_path: Path):
    members = [("a.jpg", PICTURE), ("a.cls", b"7\n"), ("b.jpg", PICTURE), ("b.cls", b"cat"), ("c.jpg", PICTURE)]
    path = write_tar(tmp_path / "shard.tar", members)
    assert build_index([path], "label").rows["label"].tolist() == [7]
    assert problems(path, "label") == {"cls that holds no class number such as 0": 1, "no label": 2}


def test_links_and_devices_are_left_out(tmp_path: Path):
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(f"link{number}.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    write_tar(tmp_path / "end.tar", [("a.jpg", PICTURE)])
    path.write_bytes(path.read_bytes()[: 5 * BLOCK] + (tmp_path / "end.tar").read_bytes())
    assert keys(path) == ["a"]
    assert problems(path) == {"link, device or sparse file": 4}


def test_large_sizes_are_read_from_base_256(tmp_path: Path):
    path = write_tar(tmp_path / "shard.tar", [("a.jpg", PICTURE)])
    content = bytearray(path.read_bytes())
    content[124:136] = b"\x80" + len(PICTURE).to_bytes(11, "big")
    content[148:156] = b" " * 8
    content[148:156] = f"{sum(content[:BLOCK]):06o}\0 ".encode()
    path.write_bytes(content)
    assert build_index([path], None).rows["image_size"].tolist() == [len(PICTURE)]


@pytest.mark.parametrize("byte", [0, 100, 124, 130, 150, 156, 257, 400])
def test_one_wrong_byte_in_any_header_names_shard_and_offset(tmp_path: Path, byte: int):
    path = write_pairs(tmp_path / "shard.tar", 5)
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[7].offset
    content[offset + byte] ^= 0x08
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"shard {path} is damaged at offset {offset} "):
        build_index([path], None)


def test_a_shard_cut_anywhere_is_refused(tmp_path: Path):
    path = write_pairs(tmp_path / "shard.tar", 2)
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1].offset_data + BLOCK
    for length in (100, 511, 512, 700, 1024, end - BLOCK, end - 1, end, end + 100):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=rf"shard {path} is cut off: .* (offset|ends at) "):
            build_index([path], None)


def test_joined_tar_files_are_refused_instead_of_half_read(tmp_path: Path):
    path = write_pairs(tmp_path / "shard.tar", 2)
    end = len(path.read_bytes().rstrip(b"\0"))
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(UserError, match="goes on after its end marker at offset") as refusal:
        build_index([path], None)
    assert str(-(-end // BLOCK) * BLOCK) in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (gzip.compress(b"\0" * 2000), "is compressed"),
        (b"<html>404 Not Found</html>" * 100, "is damaged at offset 0 .*is it a tar file"),
    ],
)
def test_what_is_no_tar_file_is_named(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "shard.tar"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"shard {path} {message}"):
        build_index([path], None)


def test_a_missing_shard_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=rf"shard {tmp_path / 'no.tar'}: No such file"):
        build_index([tmp_path / "no.tar"], None)


def test_captions_of_txt_and_json_are_joined_without_repetition(tmp_path: Path):
    fields = json.dumps({"captions": ["two", " one ", 3, None, ""], "caption": "three"}).encode()
    members = [
        ("a.jpg", PICTURE),
        ("a.txt", b"one\n"),
        ("a.json", fields),
        ("b.jpg", PICTURE),
        ("b.json", b'{"caption": "one"}'),
    ]
    path = write_tar(tmp_path / "shard.tar", members)
    assert keys(path, "caption") == ["a", "b"]
    same = write_tar(tmp_path / "same.tar", [("a.jpg", PICTURE), ("a.txt", b"one"), ("a.json", b'{"caption": "one"}')])
    assert build_index([same], "caption").rows["json_size"].tolist() == [0]  # not read again for each sample


def test_the_fingerprint_changes_with_the_collection_and_with_nothing_else(tmp_path: Path):
    (tmp_path / "moved").mkdir()
    path = write_pairs(tmp_path / "a.tar", 3)
    first = build_index([path], None).fingerprint
    assert build_index([write_pairs(tmp_path / "moved" / "a.tar", 3)], None).fingerprint == first
    assert build_index([write_pairs(tmp_path / "b.tar", 3)], None).fingerprint != first
    assert build_index([write_pairs(tmp_path / "moved" / "a.tar", 4)], None).fingerprint != first
    assert build_index([path, path], None).fingerprint != first
    longer = write_pairs(tmp_path / "moved" / "a.tar", 3, picture=PICTURE + b"\0")
    assert build_index([longer], None).fingerprint != first


def test_a_sample_costs_44_bytes_and_its_key(tmp_path: Path):
    index = build_index([write_pairs(tmp_path / "shard.tar", 10)], "caption")
    assert index.rows.nbytes == 440
    assert index.keys == b"".join(f"s{number:04}".encode() for number in range(10))
    assert np.array_equal(index.key_ends, 5 * np.arange(1, 11))
