"""Shards as samples, against webdataset's own reader; patterns; image folders."""

import os
import pickle
import pwd
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from braceexpand import braceexpand
from shard_files import jpeg, write_pairs, write_tar
from webdataset.compat import WebDataset

from openslip.data.captions.policy import CaptionFields, CaptionPolicy, FirstCaption, UniformCaption
from openslip.data.class_names import label_order
from openslip.data.index import build as index_build
from openslip.data.index.index import Shard
from openslip.data.remote.cache import ShardCache
from openslip.data.sources import shards as shards_module
from openslip.data.sources.image_folder import ImageFolder
from openslip.data.sources.shard_paths import expand
from openslip.data.sources.shards import ShardSource
from openslip.errors import DataError, UserError


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
    shards_of = [Shard(str(path), path, "", "") for path in expected]
    for shards in (pattern, str(folder), f"{folder}/part-*.tar", [f"{folder}/part-{{000,001}}.tar", str(expected[2])]):
        assert expand(shards) == shards_of


@pytest.mark.parametrize("name", ["a[1]", "a{0,1}", "~a", "a*", "a b", "a=b#c,(d)", "größe'"])
def test_a_folder_and_a_shard_may_have_the_characters_of_a_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    first, second = (write_pairs(Path(name, f"part-{number}.tar"), 2) for number in range(2))
    odd = write_pairs(Path(name, f"{name}.tar"), 2)
    assert [shard.path for shard in expand(str(odd))] == [odd]
    assert [shard.path for shard in expand([str(first), str(tmp_path / odd)])] == [first, tmp_path / odd]
    assert [shard.path for shard in expand(f"{name}/part-?.tar")] == [first, second]
    assert [shard.path for shard in expand(name)] == sorted([first, second, odd])


def test_local_shards_need_no_home(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    cache = ShardCache(folder=None, max_bytes=1)
    assert len(ShardSource(shards=f"{folder}/part-*.tar", require=None, cache=cache)) == 12
    assert [shard.path for shard in expand("~/a.tar")] == [Path("~/a.tar")], "whoever opens it says that it is missing"
    with pytest.raises(UserError, match="XDG_CACHE_HOME=FOLDER"):
        _ = cache.folder
    monkeypatch.setattr(index_build, "writable", lambda folder: False)
    with pytest.raises(UserError, match=r"nor to a home, which this user does not have: .*XDG_CACHE_HOME=FOLDER"):
        ShardSource(shards=f"{folder}/part-000.tar", require=None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    assert cache.folder == folder / "openslip" / "shards"


@pytest.mark.parametrize("shards", ["pipe:touch {}/PWNED", ["pipe:touch {}/PWNED"], " pipe:touch {}/PWNED"])
def test_pipes_are_refused_and_never_run(tmp_path: Path, shards: str | list[str]):
    filled = [shard.format(tmp_path) for shard in shards] if isinstance(shards, list) else shards.format(tmp_path)
    with pytest.raises(UserError, match="pipe: would run a command and is refused"):
        ShardSource(shards=filled, require=None)
    assert not (tmp_path / "PWNED").exists()


def test_addresses_are_expanded_and_those_of_unknown_kinds_are_named():
    assert [shard.address for shard in expand("s3://bucket/{0..2}.tar")] == [f"s3://bucket/{n}.tar" for n in range(3)]
    with pytest.raises(
        UserError, match=r"shards ftp://host/a.tar: expected paths, or addresses that begin with http://"
    ):
        expand("ftp://user:secret@host/a.tar")


def test_globs_and_homes_are_understood_and_open_braces_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    names = [shard.name for shard in expand(str(folder))]
    for pattern in (
        f"{folder}/part-00?.tar",
        f"{folder}/part-[0][0][012].tar",
        f"{folder.parent}/{folder.name[:-1]}?/part-*.tar",
    ):
        assert [shard.name for shard in expand(pattern)] == names
    assert [shard.name for shard in expand(f"~/{folder.name}")] == names
    with pytest.raises(UserError, match=r"shards \{0..3.tar: its braces do not match"):
        expand("{0..3.tar")


def test_an_address_without_a_cache_says_what_is_missing():
    with pytest.raises(UserError, match=r"shard https://host/a.tar: an address needs data.source.cache"):
        ShardSource(shards="https://user:secret@host/a.tar?key=1", require=None)


def test_empty_places_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"no \.tar file there"):
        expand(str(tmp_path))
    with pytest.raises(UserError, match=r"no \.tar file there"):
        expand(f"{tmp_path}/*.tar")
    with pytest.raises(UserError, match="an empty list"):
        expand([])


def test_shards_without_any_caption_say_what_to_do(tmp_path: Path):
    path = write_tar(tmp_path / "a.tar", [("a.jpg", jpeg(0)), ("b.jpg", jpeg(1))])
    with pytest.raises(
        UserError, match=rf"shard {path}: .*2 x no caption.*KEY\.txt or KEY\.json with what UniformCaption.*simclr"
    ):
        ShardSource(shards=str(path), require="caption")
    with pytest.raises(UserError, match=r"2 x no label.*KEY\.cls"):
        ShardSource(shards=str(path), require="label")
    assert ShardSource(shards=str(path), require=None)[1].captions == ()


def test_captions_of_json_are_read(tmp_path: Path):
    members = [("a.jpg", jpeg(0)), ("a.txt", b"one"), ("a.json", b'{"captions": ["two", "one"], "caption": "three"}')]
    source = ShardSource(shards=str(write_tar(tmp_path / "a.tar", members)), require="caption")
    assert source[0].captions == ("one", "two", "three")


def test_what_was_skipped_is_reported(tmp_path: Path):
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


def test_a_shard_that_changes_during_the_run_is_an_error(folder: Path):
    source = ShardSource(shards=str(folder), require="caption")
    path = folder / "part-002.tar"
    assert source[10].label == 10
    os.truncate(path, 1000)
    with pytest.raises(DataError, match=f"shard {path} has become shorter"):
        source[11]
    source = pickle.loads(pickle.dumps(source))
    with pytest.raises(DataError, match=f"shard {path} is another file than when the run began"):
        source[11]
    path.unlink()
    copy = pickle.loads(pickle.dumps(source))
    with pytest.raises(DataError, match=rf"shard {path} cannot be read any more \(No such file"):
        copy[11]


def overwrite(path: Path, first: int, *, keep_time: bool = False) -> None:
    """Other samples of the same keys and sizes, written into the same file."""
    status, size = path.stat(), path.stat().st_size
    other = write_pairs(path.with_name("other"), 4, first=first, image=b"x" * len(jpeg(first)))
    content = other.read_bytes().ljust(size, b"\0")[:size]
    other.unlink()
    with path.open("r+b") as file:
        file.write(content)
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == size


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_shard_overwritten_in_place_while_it_is_open_ends_the_run(folder: Path, keep_time: bool):
    source = ShardSource(shards=str(folder), require="caption")
    path = folder / "part-002.tar"
    assert source[9].captions == ("picture number 9",)
    overwrite(path, 20, keep_time=keep_time)
    with pytest.raises(DataError, match=f"shard {path} is another file than when the run began"):
        source[10]
    with pytest.raises(DataError, match=f"shard {path} is another file than when the run began"):
        pickle.loads(pickle.dumps(source))[10]
    assert source[0].captions == ("picture number 0",)


def test_a_shard_replaced_by_one_of_its_size_and_time_ends_the_run(folder: Path):
    source = ShardSource(shards=str(folder), require="caption")
    path = folder / "part-002.tar"
    shutil.copy2(path, folder / "copy")
    overwrite(folder / "copy", 20, keep_time=True)
    (folder / "copy").rename(path)
    with pytest.raises(DataError, match=f"shard {path} is another file than when the run began"):
        source[9]


def test_a_shard_that_is_linked_moved_or_given_other_rights_is_the_same(folder: Path):
    source = ShardSource(shards=str(folder), require="caption")
    path = folder / "part-002.tar"
    assert source[9].label == 9
    path.chmod(0o600)
    os.link(path, folder / "link")
    assert source[10].label == 10
    shutil.copy2(path, folder / "copy")
    (folder / "copy").rename(path)
    assert pickle.loads(pickle.dumps(source))[11].label == 11


def test_a_shard_that_becomes_a_named_pipe_ends_the_run(folder: Path):
    source = ShardSource(shards=str(folder), require="caption")
    path = folder / "part-002.tar"
    path.unlink()
    os.mkfifo(path)
    source.prefetch(9)
    with pytest.raises(DataError, match=f"shard {path} is another file than when the run began"):
        source[9]


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    """The shards at an address on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if (folder / "closed").exists():
                self.send_error(403)
            else:
                super().do_GET()

        def send_header(self, keyword: str, value: str) -> None:
            if keyword != "Last-Modified" or not (folder / "unversioned").exists():
                super().send_header(keyword, value)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_shards_at_an_address_are_read_through_the_cache(
    server: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    cache = ShardCache(folder=tmp_path / "cache", max_bytes=100_000)
    source = ShardSource(shards=f"{server}/part-{{000..002}}.tar", require="caption", cache=cache)
    local = ShardSource(shards=str(folder), require="caption")
    copy = pickle.loads(pickle.dumps(source))
    for place in range(12):
        here, there = local[place], copy[place]
        assert (there.image, there.captions, there.label) == (here.image, here.captions, here.label)
        assert there.key == f"{server}/part-{place // 4:03}.tar:{source.index.key(place)}"
    assert source.index.folder.parent == tmp_path / "home" / "openslip" / "index"
    write_pairs(folder / "part-001.tar", 5, first=50)  # another file at the same address is another index
    changed = ShardSource(
        shards=f"{server}/part-{{000..002}}.tar",
        require="caption",
        cache=ShardCache(folder=tmp_path / "cache", max_bytes=100_000),
    )
    assert len(changed) == 13
    assert changed.fingerprint != source.fingerprint
    changed.prefetch(0)


def test_a_remote_shard_that_changes_without_a_word_of_its_server_ends_the_run(
    server: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (folder / "unversioned").touch()
    cache = ShardCache(folder=tmp_path / "cache", max_bytes=1_000_000)
    source = ShardSource(shards=f"{server}/part-{{000..002}}.tar", require="caption", cache=cache)
    assert source[8].captions == ("picture number 8",)
    overwrite(folder / "part-002.tar", 20)
    assert source[9].captions == ("picture number 9",)
    shutil.rmtree(cache.folder)
    later = ShardSource(
        shards=f"{server}/part-{{000..002}}.tar",
        require="caption",
        cache=ShardCache(folder=tmp_path / "cache", max_bytes=1_000_000),
    )
    for changed in (pickle.loads(pickle.dumps(source)), later):
        with pytest.raises(DataError, match=rf"shard {server}/part-002.tar has changed, although its server"):
            changed[10]
        assert changed[0].captions == ("picture number 0",)
    shutil.rmtree(tmp_path / "home")  # as the message says
    cache = ShardCache(folder=tmp_path / "cache", max_bytes=1_000_000)
    anew = ShardSource(shards=f"{server}/part-{{000..002}}.tar", require="caption", cache=cache)
    assert anew[8].captions == ("picture number 20",)


def test_a_local_copy_that_was_overwritten_is_fetched_again_and_one_in_use_ends_the_run(
    server: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    cache = ShardCache(folder=tmp_path / "cache", max_bytes=1_000_000)
    source = ShardSource(shards=f"{server}/part-{{000..002}}.tar", require="caption", cache=cache)
    assert source[8].captions == ("picture number 8",)
    overwrite(cache.path(f"{server}/part-002.tar"), 20)
    assert pickle.loads(pickle.dumps(source))[9].captions == ("picture number 9",)
    copy = pickle.loads(pickle.dumps(source))
    assert copy[9].label == 9
    overwrite(cache.path(f"{server}/part-002.tar"), 20)
    with pytest.raises(DataError, match=rf"shard {server}/part-002.tar is another file"):
        copy[9]


def test_a_shard_that_cannot_be_fetched_ends_the_run_and_is_no_bad_sample(server: str, folder: Path, tmp_path: Path):
    cache = ShardCache(folder=tmp_path / "cache", max_bytes=1_000_000)
    source = ShardSource(shards=f"{server}/part-{{000..002}}.tar", require="caption", cache=cache)
    shutil.rmtree(cache.folder)  # which copy a small cache keeps depends on the order of the scanning threads
    (folder / "closed").touch()
    with pytest.raises(DataError, match=rf"shard {server}/part-000.tar cannot be fetched \(HTTP 403"):
        source[0]


def test_reading_ahead_changes_nothing(folder: Path):
    source = ShardSource(shards=str(folder), require="caption")
    for place in (0, 4, 8):
        source.prefetch(place)
    assert pickle.loads(pickle.dumps(source)).ahead is None
    assert source[8].label == 8


def test_collections_are_the_shards(folder: Path):
    (collection,) = ShardSource(shards=str(folder), require="caption").collections
    assert collection.parts.tolist() == [4, 4, 4]
    assert collection.weight == 1


def test_captions_follow_the_policy(tmp_path: Path):
    members = [("a.jpg", jpeg(0)), ("a.txt", b"one"), ("a.json", b'{"title": "T", "description": "D", "caption": "C"}')]
    path = str(write_tar(tmp_path / "a.tar", members))
    policies: list[tuple[CaptionPolicy, tuple[str, ...]]] = [
        (UniformCaption(), ("one", "C")),
        (FirstCaption(), ("one",)),
        (CaptionFields(fields=["title", "description"]), ("T", "D")),
    ]
    for policy, captions in policies:
        assert ShardSource(shards=path, require="caption", captions=policy)[0].captions == captions


def test_folders_are_classes_in_alphabetical_order(tmp_path: Path):
    for name, number in (("zebra", 0), ("ant", 1), ("cat/inner", 2)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / f"{number}.JPG").write_bytes(jpeg(number))
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    source = ImageFolder(root=str(tmp_path))
    assert source.classes == ["ant", "cat", "zebra"]
    assert [(source[place].label, source[place].image) for place in range(3)] == [
        (0, jpeg(1)),
        (1, jpeg(2)),
        (2, jpeg(0)),
    ]
    before = source.fingerprint
    (tmp_path / "ant" / "more.png").write_bytes(b"more")
    assert ImageFolder(root=str(tmp_path)).fingerprint != before


def test_numeric_class_folders_sort_as_numbers(tmp_path: Path):
    names = [str(number) for number in range(12)]
    for name in (*names, ".cache"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(jpeg(0))
    source = ImageFolder(root=str(tmp_path))
    assert source.classes == names
    assert [int(Path(source[place].key).parent.name) for place in range(12)] == list(range(12))
    assert [source[place].label for place in range(12)] == list(range(12))


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["10", "9", "009", "1"], ["1", "009", "9", "10"]),
        (["10", "9", "b"], ["10", "9", "b"]),  # torchvision's order
        (["2_dogs", "10_cats"], ["10_cats", "2_dogs"]),
        (["-1", "10", "9"], ["-1", "10", "9"]),
    ],
)
def test_only_whole_numbers_alone_sort_as_numbers(names: list[str], ordered: list[str]):
    assert label_order(names) == ordered


def test_a_folder_without_classes_or_images_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder"):
        ImageFolder(root=str(tmp_path / "none"))
    with pytest.raises(UserError, match="no class folders"):
        ImageFolder(root=str(tmp_path))
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match=r"/cat holds no image .*would be class 0"):
        ImageFolder(root=str(tmp_path))
