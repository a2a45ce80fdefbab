"""The index on disk: written once, taken over, resumed, shared; and never believed when its shards have changed."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from shard_files import jpeg, write_pairs, write_tar

from openslip import terminal
from openslip.data.captions.policy import CaptionPolicy, FirstCaption, UniformCaption
from openslip.data.index import build as module
from openslip.data.index.build import NAME, open_index
from openslip.data.index.index import Index, Shard
from openslip.data.index.scan import ROW
from openslip.data.source import Sample
from openslip.data.sources.shards import ShardSource
from openslip.errors import UserError
from openslip.locks import locked

IMAGE = jpeg(0)


def nowhere(address: str) -> tuple[int, str]:
    raise AssertionError(address)


def opened(
    paths: list[Path],
    require: str | None = None,
    captions: CaptionPolicy = UniformCaption(),  # noqa: B008
    cache_folder: Path = Path("/nowhere"),
) -> Index:
    shards = [Shard(str(path), path, "", "") for path in paths]
    return open_index(
        shards, captions, require, cache_folder=cache_folder, fetch=nowhere, progress=lambda done, samples: None
    )


def keys(index: Index) -> list[str]:
    return [index.key(place) for place in range(len(index))]


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are really scanned."""
    names: list[str] = []
    whole: Callable = module.scan_shard
    monkeypatch.setattr(
        module, "scan_shard", lambda path, name, captions: names.append(path.name) or whole(path, name, captions)
    )
    return names


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [write_pairs(tmp_path / f"{number}.tar", 3, first=3 * number) for number in range(3)]


def test_a_dataset_is_scanned_once(paths: list[Path], scanned: list[str]):
    first = opened(paths)
    again = opened(paths)
    assert scanned == ["0.tar", "1.tar", "2.tar"]
    assert keys(first) == keys(again) == [f"s{number:04}" for number in range(9)]
    assert np.array_equal(first.rows, again.rows)
    assert first.fingerprint == again.fingerprint
    assert first.parts.tolist() == [3, 3, 3]
    assert [first.find(place) for place in (0, 2, 3, 8)] == [(0, 0), (0, 2), (1, 3), (2, 8)]


def test_a_dataset_that_grows_or_shrinks_is_not_scanned_again(paths: list[Path], scanned: list[str]):
    opened(paths[:2])
    assert keys(opened(paths)) == [f"s{number:04}" for number in range(9)]
    assert keys(opened(paths[1:])) == [f"s{number:04}" for number in range(3, 9)]
    assert scanned == ["0.tar", "1.tar", "2.tar"]


def test_a_shard_that_changed_is_scanned_again(paths: list[Path], scanned: list[str]):
    before = opened(paths).fingerprint
    write_pairs(paths[1], 4, first=100)
    index = opened(paths)
    assert scanned[3:] == ["1.tar"]
    assert keys(index)[3:7] == ["s0100", "s0101", "s0102", "s0103"]
    assert index.fingerprint != before


def test_another_caption_policy_is_another_index(paths: list[Path], scanned: list[str]):
    opened(paths)
    opened(paths, captions=FirstCaption())
    assert len(scanned) == 6


def test_a_moved_dataset_keeps_its_index_and_its_fingerprint(paths: list[Path], scanned: list[str]):
    before = opened(paths)
    folder = paths[0].parent
    moved = folder.with_name(folder.name + "-moved")
    folder.rename(moved)
    index = opened([moved / path.name for path in paths])
    assert len(scanned) == 3
    assert index.fingerprint == before.fingerprint
    assert [shard.path for shard in index.shards] == [moved / path.name for path in paths]


def test_requirements_choose_among_the_same_rows(tmp_path: Path, scanned: list[str]):
    members = [
        *[("a.jpg", IMAGE), ("a.txt", b"one")],
        *[("b.jpg", IMAGE), ("b.cls", b"4")],
        *[("c.jpg", IMAGE), ("c.txt", b" "), ("c.cls", b"5")],
        ("d.jpg", IMAGE),
    ]
    paths = [write_tar(tmp_path / "0.tar", members), write_pairs(tmp_path / "1.tar", 2)]
    everything, captioned, labelled = (opened(paths, require) for require in (None, "caption", "label"))
    assert len(scanned) == 2
    assert keys(everything) == ["a", "b", "c", "d", "s0000", "s0001"]
    assert keys(captioned) == ["a", "s0000", "s0001"]
    assert keys(labelled) == ["b", "c", "s0000", "s0001"]
    assert [index.parts.tolist() for index in (everything, captioned, labelled)] == [[4, 2], [1, 2], [2, 2]]
    assert len({index.fingerprint for index in (everything, captioned, labelled)}) == 3
    assert everything.problems.lines() == ()
    assert captioned.problems.lines() == (
        f"2 x no caption, first {paths[0]}:b",
        f"1 x empty caption, first {paths[0]}:c",
    )
    assert labelled.problems.lines() == (f"2 x no label, first {paths[0]}:a",)


def test_the_fingerprint_changes_with_the_dataset_and_with_nothing_else(tmp_path: Path):
    (tmp_path / "moved").mkdir()
    path = write_pairs(tmp_path / "a.tar", 3)
    first = opened([path]).fingerprint
    assert opened([write_pairs(tmp_path / "moved" / "a.tar", 3)]).fingerprint == first
    assert opened([write_pairs(tmp_path / "b.tar", 3)]).fingerprint != first
    assert opened([write_pairs(tmp_path / "moved" / "a.tar", 4)]).fingerprint != first
    assert opened([path, path]).fingerprint != first
    longer = write_pairs(tmp_path / "moved" / "a.tar", 3, image=IMAGE + b"\0")
    assert opened([longer]).fingerprint != first
    cat, dog = (
        opened([write_tar(tmp_path / "moved" / "a.tar", [("a.jpg", IMAGE), ("a.txt", text)])]).fingerprint
        for text in (b"cat", b"dog")
    )
    assert cat != dog


def test_shards_of_one_name_size_and_time_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paths = []
    for name, text in (("one", b"cat"), ("two", b"the dog")):
        (tmp_path / name).mkdir()
        members = [("a.jpg", IMAGE + bytes(len(text) == 3)), (f"a{name}.jpg", IMAGE), ("a.txt", text)]
        paths.append(write_tar(tmp_path / name / "0.tar", members))
        os.utime(paths[-1], ns=(10**18, 10**18))
    assert paths[0].stat().st_size == paths[1].stat().st_size
    expected = [keys(opened([path])) for path in paths]
    assert keys(opened(paths)) == [*expected[0], *expected[1]]
    monkeypatch.setattr(module, "writable", lambda folder: folder.name == "cache" and (folder.mkdir() or True))
    shutil.rmtree(paths[0].parent / NAME)
    shutil.rmtree(paths[1].parent / NAME)
    cache = tmp_path / "cache"
    monkeypatch.setattr(module, "writable", lambda folder: folder == cache and folder.mkdir(exist_ok=True) is None)
    assert [keys(opened([path], cache_folder=cache)) for path in paths] == expected


@pytest.mark.parametrize("name", ["rows", "keys", "labels", "shards.jsonl"])
@pytest.mark.parametrize("length", [0, 0.5])
def test_an_index_that_is_damaged_is_made_again(paths: list[Path], name: str, length: float):
    index = opened(paths, "label")
    expected, fingerprint = keys(index), index.fingerprint
    file = index.folder / name
    os.truncate(file, int(file.stat().st_size * length))
    again = opened(paths, "label")
    assert keys(again) == expected
    assert [again.label(place) for place in range(9)] == list(range(9))
    assert again.fingerprint == fingerprint


def pairs(paths: list[Path], require: str | None) -> tuple[list[Sample], str]:
    """All samples as a source gives them, and its fingerprint."""
    source = ShardSource(shards=[str(path) for path in paths], require=require)  # pyright: ignore[reportArgumentType]
    return [source[place] for place in range(len(source))], source.fingerprint


@pytest.mark.parametrize("require", ["caption", "label", None])
def test_no_flipped_bit_of_an_index_changes_a_pair(tmp_path: Path, require: str | None):
    """Every file of the index, many places: the samples are the right ones, and a line says what was damaged."""
    paths = [write_pairs(tmp_path / f"{number}.tar", 3, first=3 * number) for number in range(2)]
    write_tar(tmp_path / "2.tar", [("\u00e9.jpg", IMAGE), ("b.jpg", IMAGE), ("b.cls", b"4"), ("c.jpg", IMAGE)])
    paths.append(tmp_path / "2.tar")
    expected = pairs(paths, require)
    (folder,) = (path for path in (tmp_path / NAME).iterdir() if path.is_dir())
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["caption", "checksums", "keys", "label", "labels", "rows", "shards.jsonl"]
    generator = np.random.default_rng(0)
    for name in names:
        for _ in range(12):
            content = bytearray((folder / name).read_bytes())
            place = int(generator.integers(8 * len(content)))
            content[place // 8] ^= 1 << place % 8
            (folder / name).write_bytes(content)
            assert pairs(paths, require) == expected, (name, place)


def test_captions_shifted_by_one_sample_are_noticed(paths: list[Path], capsys: pytest.CaptureFixture[str]):
    expected = pairs(paths, "caption")
    folder = opened(paths).folder
    rows = np.fromfile(folder / "rows", ROW)
    for field in ("txt", "txt_size"):
        rows[field] = np.roll(rows[field], 1)
    rows.tofile(folder / "rows")
    capsys.readouterr()
    assert pairs(paths, "caption") == expected
    assert capsys.readouterr().err == (
        f"index {folder} is damaged (rows: not what was written): the affected shards are scanned again\n"
    )
    assert pairs(paths, "caption") == expected
    assert capsys.readouterr().err == ""


def test_only_the_shards_of_a_damaged_index_that_are_damaged_are_scanned_again(paths: list[Path], scanned: list[str]):
    folder = opened(paths).folder
    content = bytearray((folder / "rows").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "rows").write_bytes(content)
    assert keys(opened(paths)) == [f"s{number:04}" for number in range(9)]
    assert scanned[3:] == ["1.tar"]
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_a_damaged_index_that_cannot_be_replaced_is_not_used(paths: list[Path], monkeypatch: pytest.MonkeyPatch):
    folder = opened(paths).folder
    os.truncate(folder / "keys", 3)
    monkeypatch.setattr(module, "set_aside", lambda folder: None)
    with pytest.raises(UserError, match=rf"index {folder} is damaged \(keys: .*\) and cannot be replaced: remove it"):
        opened(paths)


@pytest.mark.parametrize("name", ["checksums", "rows", "shards.jsonl", "keys"])
def test_an_index_without_one_of_its_files_is_made_again(paths: list[Path], name: str):
    expected = pairs(paths, "caption")
    (opened(paths).folder / name).unlink()
    assert pairs(paths, "caption") == expected


def test_an_unwritable_folder_has_its_index_in_the_cache(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    beside = paths[0].parent / NAME
    monkeypatch.setattr(module, "writable", lambda folder: folder != beside and not folder.mkdir(parents=True))
    index = opened(paths, cache_folder=tmp_path / "cache")
    assert index.folder.parent == tmp_path / "cache"
    assert not beside.exists()
    assert opened(paths, cache_folder=tmp_path / "cache").folder == index.folder
    monkeypatch.setattr(module, "writable", lambda folder: False)
    with pytest.raises(UserError, match=r"can be written neither to .*index nor to .*elsewhere: make one"):
        opened(paths[:1], cache_folder=tmp_path / "elsewhere")


def test_processes_map_the_index_instead_of_copying_it(paths: list[Path]):
    index = opened(paths, "caption")
    sent = pickle.dumps(index)
    assert len(sent) < 1000
    copy = pickle.loads(sent)
    assert isinstance(copy.rows.base, np.memmap)
    assert keys(copy) == keys(index)
    assert copy.fingerprint == index.fingerprint


def test_a_damaged_shard_ends_the_scan_and_what_was_scanned_before_it_is_kept(paths: list[Path], scanned: list[str]):
    content = paths[2].read_bytes()
    paths[2].write_bytes(content[:2000])
    with pytest.raises(UserError, match=rf"shard {paths[2]} is cut off"):
        opened(paths)
    paths[2].write_bytes(content)
    assert len(opened(paths)) == 9
    assert scanned == ["0.tar", "1.tar", "2.tar", "2.tar"]
    assert not list((paths[0].parent / NAME).glob("*.partial-*"))


def test_what_a_crash_left_half_written_is_scanned_again(paths: list[Path], scanned: list[str]):
    folder = opened(paths).folder
    partial = folder.with_name("0.partial-x")
    shutil.copytree(folder, partial)
    shutil.rmtree(folder)
    (partial / "rows").write_bytes((partial / "rows").read_bytes()[:100])
    journal = (partial / "shards.jsonl").read_text()
    (partial / "shards.jsonl").write_text(journal[:-20])
    assert keys(opened(paths)) == [f"s{number:04}" for number in range(9)]
    assert scanned[3:] == ["1.tar", "2.tar"]  # the rows of the first are complete


SCAN = """
import sys, time
from pathlib import Path
from openslip.data.index import build as index_build
from openslip.data.index import index
from openslip.data.captions.policy import UniformCaption
shards = [index.Shard(name, Path(name), "", "") for name in sys.argv[1:]]
index_build.open_index(shards, UniformCaption(), None, cache_folder=Path("/nowhere"), fetch=Path,
                 progress=lambda done, samples: (print(done, flush=True), time.sleep(0.2)))
"""


def test_a_killed_scan_resumes_where_it_stopped(paths: list[Path], scanned: list[str]):
    process = subprocess.Popen([sys.executable, "-c", SCAN, *map(str, paths)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert keys(opened(paths)) == [f"s{number:04}" for number in range(9)]
    assert scanned == ["1.tar", "2.tar"]


def test_processes_without_locks_scan_side_by_side_and_agree(paths: list[Path]):
    without = "import fcntl; fcntl.flock = lambda *_: (_ for _ in ()).throw(OSError(38, 'no locks'))" + SCAN
    commands = [[sys.executable, "-c", without, *map(str, paths)]] * 3
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    said = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert keys(opened(paths)) == [f"s{number:04}" for number in range(9)]


def test_two_processes_scan_a_dataset_once(paths: list[Path]):
    commands = [[sys.executable, "-c", SCAN, *map(str, paths)]] * 2
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    printed = [process.communicate(timeout=60)[0] for process in processes]
    assert sorted(printed) == ["", "1\n2\n3\n"]
    assert [process.returncode for process in processes] == [0, 0]


def test_a_long_wait_for_an_index_that_another_process_makes_is_said(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(terminal, "SAID_AFTER", 0.05)
    monkeypatch.setattr(terminal, "_quiet_until", 0.0)
    folder = opened(paths).folder
    shutil.rmtree(folder)
    waits = threading.Thread(target=opened, args=(paths,))
    said, deadline = "", time.monotonic() + 30
    with locked(folder.with_suffix(".lock")):
        waits.start()
        while not said and time.monotonic() < deadline:
            time.sleep(0.02)
            said = capsys.readouterr().err
    waits.join()
    assert said == f"waiting for the index {folder}, which another process has locked\n"
    assert folder.exists()


def test_shards_are_scanned_in_several_processes_with_the_same_result(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
):
    alone = opened(paths)
    rows, fingerprint = alone.rows.copy(), alone.fingerprint
    shutil.rmtree(paths[0].parent / NAME)
    monkeypatch.setattr(module, "WORTH_PROCESSES", 0)
    together = opened(paths)
    assert np.array_equal(together.rows, rows)
    assert together.fingerprint == fingerprint


def test_a_sample_costs_28_bytes_its_key_and_its_label(tmp_path: Path):
    index = opened([write_pairs(tmp_path / "shard.tar", 10)], "caption")
    files = {path.name: path.stat().st_size for path in index.folder.iterdir()}
    journal = files.pop("shards.jsonl")
    assert files.pop("checksums") < 200
    assert files == {"rows": 280, "labels": 40, "keys": 50}
    path = write_tar(tmp_path / "bare.tar", [("a.jpg", IMAGE), ("b.jpg", IMAGE)])
    bare = {path.name: path.stat().st_size for path in opened([path]).folder.iterdir()}
    assert bare["rows"] == 56
    assert "labels" not in bare
    assert journal < 500
    assert json.loads((index.folder / "shards.jsonl").read_text())["counts"] == {
        "samples": 10,
        "caption": 10,
        "label": 10,
    }
