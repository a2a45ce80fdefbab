"""Shards as samples, against webdataset's own reader; patterns; image folders."""

import os
import pickle
from pathlib import Path

import pytest
from braceexpand import braceexpand
from shard_files import jpeg, write_pairs, write_tar
from webdataset.compat import WebDataset

from openslip.data import shards as shards_module
from openslip.data.image_folder import ImageFolder
from openslip.data.shards import ShardSource, expand
from openslip.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        write_pairs(tmp_path / f"part-{number:03}.tar", 4, first=4 * number)
    return tmp_path


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files open
def test_samples_equal_webdatasets(folder: Path):
    source = ShardSource(shards=f"{folder}/part-{{000..002}}.tar", require="caption")
    theirs = list(WebDataset(f"{folder}/part-{{000..002}}.tar", shardshuffle=False, empty_check=False))
    assert len(source) == len(theirs) == 12
    for place, sample in enumerate(theirs):
        ours = source[place]
        assert ours.key == f"{sample['__url__']}:{sample['__key__']}"
        assert ours.image == sample["jpg"]
        assert ours.captions == (sample["txt"].decode(),)
        assert ours.label == int(sample["cls"])


def test_pattern_folder_glob_and_list_name_the_same_shards(folder: Path):
    expected = sorted(folder.glob("*.tar"))
    pattern = f"{folder}/part-{{000..002}}.tar"
    assert [str(path) for path in expected] == list(braceexpand(pattern))
    for shards in (pattern, str(folder), f"{folder}/part-*.tar", [f"{folder}/part-{{000,001}}.tar", str(expected[2])]):
        assert expand(shards) == expected


@pytest.mark.parametrize("shards", ["pipe:touch {}/PWNED", ["pipe:touch {}/PWNED"], " pipe:touch {}/PWNED"])
def test_pipes_are_refused_and_never_run(tmp_path: Path, shards: str | list[str]):
    filled = [shard.format(tmp_path) for shard in shards] if isinstance(shards, list) else shards.format(tmp_path)
    with pytest.raises(UserError, match="pipe: would run a command and is refused"):
        ShardSource(shards=filled, require=None)
    assert not (tmp_path / "PWNED").exists()


def test_addresses_and_empty_places_are_named(tmp_path: Path):
    for shards in ("https://example.org/a.tar", "s3://bucket/{0..3}.tar"):
        with pytest.raises(UserError, match="read from local files"):
            expand(shards)
    with pytest.raises(UserError, match=r"no \.tar file there"):
        expand(str(tmp_path))
    with pytest.raises(UserError, match=r"no \.tar file there"):
        expand(f"{tmp_path}/*.tar")
    with pytest.raises(UserError, match="an empty list"):
        expand([])


def test_shards_without_any_caption_say_what_to_do(tmp_path: Path):
    path = write_tar(tmp_path / "a.tar", [("a.jpg", jpeg(0)), ("b.jpg", jpeg(1))])
    with pytest.raises(UserError, match=rf"shard {path}: .*2 x no caption.*KEY\.txt, or KEY\.json.*simclr"):
        ShardSource(shards=str(path), require="caption")
    with pytest.raises(UserError, match=r"2 x no label.*KEY\.cls"):
        ShardSource(shards=str(path), require="label")
    assert ShardSource(shards=str(path), require=None)[1].captions == ()


def test_captions_of_json_are_read(tmp_path: Path):
    members = [("a.jpg", jpeg(0)), ("a.txt", b"one"), ("a.json", b'{"captions": ["two", "one"], "caption": "three"}')]
    source = ShardSource(shards=str(write_tar(tmp_path / "a.tar", members)), require="caption")
    assert source[0].captions == ("one", "two", "three")


def test_what_was_left_out_is_reported(tmp_path: Path):
    members = [("a.jpg", jpeg(0)), ("a.txt", b"one"), ("b.jpg", jpeg(1))]
    path = write_tar(tmp_path / "a.tar", members)
    assert ShardSource(shards=str(path), require="caption").problems == (f"1 x no caption, first {path}:b",)


def test_a_pickled_source_reads_the_same_and_carries_no_open_file(folder: Path):
    source = ShardSource(shards=str(folder), require="caption")
    before = [source[place] for place in range(len(source))]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.files == {}
    assert [copy[place] for place in range(len(copy))] == before
    assert copy.fingerprint == source.fingerprint


def test_more_shards_than_files_may_be_open_can_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards_module, "MAX_OPEN", 2)
    source = ShardSource(shards=str(folder), require="caption")
    open_before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for place in (0, 4, 8, 0, 5, 9, 1):
        assert source[place].label == place
        assert len(source.files) <= 2
    if open_before:
        assert len(os.listdir("/proc/self/fd")) <= open_before + 2


def test_a_shard_that_shrinks_during_the_run_is_an_error(folder: Path):
    source = ShardSource(shards=str(folder), require="caption")
    path = folder / "part-002.tar"
    os.truncate(path, 1000)
    with pytest.raises(UserError, match=f"shard {path} has become shorter"):
        source[11]


def test_folders_are_classes_in_alphabetical_order(tmp_path: Path):
    for name, number in (("zebra", 0), ("ant", 1), ("cat/inner", 2)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / f"{number}.JPG").write_bytes(jpeg(number))
    (tmp_path / "ant" / "notes.txt").write_text("no picture")
    source = ImageFolder(root=str(tmp_path))
    assert source.classnames == ["ant", "cat", "zebra"]
    assert [(source[place].label, source[place].image) for place in range(3)] == [
        (0, jpeg(1)),
        (1, jpeg(2)),
        (2, jpeg(0)),
    ]
    before = source.fingerprint
    (tmp_path / "ant" / "more.png").write_bytes(b"more")
    assert ImageFolder(root=str(tmp_path)).fingerprint != before


def test_a_folder_without_classes_or_pictures_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder"):
        ImageFolder(root=str(tmp_path / "none"))
    with pytest.raises(UserError, match="no class folders"):
        ImageFolder(root=str(tmp_path))
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match="hold no picture"):
        ImageFolder(root=str(tmp_path))
