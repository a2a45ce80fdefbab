"""Remote shards through the bounded cache, from a real server on this machine."""

import fcntl
import multiprocessing
import os
import pickle
import re
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from file_server import Handler, Server, serving
from fsspec.implementations.memory import MemoryFileSystem

from openslip import terminal
from openslip.data.remote import transfer
from openslip.data.remote.address import is_remote, shown
from openslip.data.remote.cache import ShardCache
from openslip.errors import DataError, UserError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(transfer, "WAITS", (0.01, 0.02, 0.03))
    with serving() as server:
        yield server


def content(seed: int, size: int = 300_000) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def names(folder: Path) -> list[str]:
    """Complete shards, by the names of their addresses."""
    return sorted(path.name[17:] for path in folder.iterdir() if not path.name.startswith("."))


def parts(folder: Path) -> list[Path]:
    return list(folder.glob(".*.part"))


def test_a_fetched_shard_is_the_servers_and_is_fetched_once(server: Server, tmp_path: Path):
    server.files["a.tar"] = content(0)
    cache = ShardCache(folder=tmp_path / "new" / "cache", max_bytes=10**6)
    path = cache.fetch(server.address("a.tar"))
    assert path.read_bytes() == content(0)
    assert re.fullmatch(r"[0-9a-f]{16}-a\.tar", path.name)
    again = ShardCache(folder=tmp_path / "new" / "cache", max_bytes=10**6)
    assert again.fetch(server.address("a.tar")) == path
    assert server.downloads["a.tar"] == 1
    assert parts(path.parent) == []


def test_equal_names_at_other_addresses_are_other_files(server: Server, tmp_path: Path):
    server.files["a.tar"] = content(0)
    cache = ShardCache(folder=tmp_path, max_bytes=10**6)
    addresses = [server.address("a.tar"), server.address("other/a.tar"), server.address("a.tar") + "?part=2"]
    assert len({cache.fetch(address) for address in addresses}) == 3


def test_identities_of_many_shards_are_theirs(server: Server, tmp_path: Path):
    for number in range(20):
        server.files[f"{number}.tar"] = content(number, 1000 + number)
        server.versions[f"{number}.tar"] = f'"v{number}"'
    cache = ShardCache(folder=tmp_path, max_bytes=10**6)
    found = cache.identify(server.address(f"{number}.tar") for number in range(20))
    assert found == [(1000 + number, f'"v{number}"') for number in range(20)]
    assert sum(server.downloads.values()) == 0


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_is_resumed(server: Server, tmp_path: Path, ranges: bool):
    server.files["a.tar"] = content(0)
    server.breaks["a.tar"] = [70_000, 0]
    server.slow = 0.02  # so that what was sent before the break has been read before it is known
    server.ranges = ranges
    path = ShardCache(folder=tmp_path, max_bytes=10**6).fetch(server.address("a.tar"))
    assert path.read_bytes() == content(0)
    assert server.downloads["a.tar"] == 3
    first, second, third = server.requested_ranges
    assert first is None
    assert second in ("bytes=50000-", "bytes=70000-")
    assert third == (second if ranges else None)  # the second answer sent nothing, or began anew


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_server_that_is_busy_is_asked_again(server: Server, tmp_path: Path, status: int):
    server.files["a.tar"] = content(0)
    server.refusals["a.tar"] = [status] * 4  # a refused HEAD is followed by a GET
    assert ShardCache(folder=tmp_path, max_bytes=10**6).fetch(server.address("a.tar")).read_bytes() == content(0)


def test_a_server_that_drips_is_given_up_and_said(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(transfer, "RATE_WINDOW", 0.1)
    monkeypatch.setattr(terminal, "SAID_AFTER", 0.2)
    monkeypatch.setattr(terminal, "_quiet_until", 0.0)
    server.files["a.tar"] = content(0)
    server.piece, server.slow = 1, 0.03
    address = server.address("a.tar")
    with pytest.raises(
        UserError,
        match=rf"{address} cannot be fetched \(only [\d.]+ bytes/s; .*min_bytes_per_second=10000, tried 3 times",
    ):
        ShardCache(folder=tmp_path, max_bytes=10**6).fetch(address)
    assert re.fullmatch(rf"waiting for shard {address}: \d+ of 300,000 bytes\n", capsys.readouterr().err)
    assert parts(tmp_path) == []


def test_a_slow_download_within_the_setting_is_finished(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transfer, "RATE_WINDOW", 0.1)
    server.files["a.tar"] = content(0, 400)
    server.piece, server.slow = 20, 0.02
    cache = ShardCache(folder=tmp_path, max_bytes=10**6, min_bytes_per_second=100)
    assert cache.fetch(server.address("a.tar")).read_bytes() == content(0, 400)
    assert server.downloads["a.tar"] == 1


def test_a_server_that_does_not_say_what_it_has_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transfer, "ANSWER_LIMIT", 0.1)
    monkeypatch.setattr(transfer, "WAITS", (0.01,))
    monkeypatch.setattr(Handler, "answer", lambda self, send_body: time.sleep(0.4))
    with pytest.raises(UserError, match=r"cannot be fetched \(no answer in time, tried 2 times"):
        ShardCache(folder=tmp_path, max_bytes=10**6).fetch(server.address("a.tar"))


def test_a_download_that_always_breaks_leaves_nothing_and_says_where(server: Server, tmp_path: Path):
    server.files["a.tar"] = content(0)
    server.ranges = False
    server.breaks["a.tar"] = [1000] * 9
    address = server.address("a.tar")
    with pytest.raises(UserError, match=rf"shard {address} cannot be fetched \(.*tried 4 times\): check"):
        ShardCache(folder=tmp_path, max_bytes=10**6).fetch(address)
    assert names(tmp_path) == []
    assert parts(tmp_path) == []


@pytest.mark.parametrize("stated", [299_000, 301_000])
def test_a_server_that_lies_about_the_length_is_refused(server: Server, tmp_path: Path, stated: int):
    server.files["a.tar"] = content(0)
    cache = ShardCache(folder=tmp_path, max_bytes=10**6)
    cache.identities[server.address("a.tar")] = transfer.Identity(stated, "")
    server.stated["a.tar"] = stated
    if stated > 300_000:
        with pytest.raises(UserError, match=r"cannot be fetched .*tried 4 times"):
            cache.fetch(server.address("a.tar"))
        assert names(tmp_path) == []
    else:  # HTTP itself ends a body at its stated length: what is beyond it is not seen
        assert cache.fetch(server.address("a.tar")).read_bytes() == content(0)[:stated]
    assert parts(tmp_path) == []


def test_what_is_not_there_is_said_at_once_and_without_credentials(server: Server, tmp_path: Path):
    cache = ShardCache(folder=tmp_path, max_bytes=10**6)
    plain = server.address("none.tar")
    secret = plain.replace("127.0.0.1", "name:word@127.0.0.1") + "?signature=abc#here"
    for status, reason in ((404, "HTTP 404 Not Found"), (403, "HTTP 403 Forbidden")):
        server.refusals["none.tar"] = [status] * 2
        with pytest.raises(UserError, match=rf"shard {plain} cannot be fetched \({reason}\): check") as caught:
            cache.fetch(secret)
        assert not any(word in str(caught.value) for word in ("name", "word", "signature", "abc"))
        assert server.refusals["none.tar"] == []
    assert shown("s3://key:secret@bucket/a.tar?x=1") == "s3://bucket/a.tar"


def test_a_host_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(transfer, "WAITS", (0.01,))
    with pytest.raises(
        UserError, match=r"shard http://127\.0\.0\.1:9/a\.tar cannot be fetched \(Connect.*, tried 2 times"
    ):
        ShardCache(folder=tmp_path, max_bytes=10**6).fetch("http://127.0.0.1:9/a.tar")


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for scheme, package in (("s3", "s3fs"), ("gs", "gcsfs")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"shard {scheme}://b/a\.tar: .*pip install {package}"):
            ShardCache(folder=tmp_path, max_bytes=10**6).fetch(f"{scheme}://b/a.tar")


def test_only_network_addresses_are_remote():
    assert all(is_remote(address) for address in ("https://h/a.tar", "http://h/a", "s3://b/a", "gs://b/a"))
    assert not any(
        is_remote(word) for word in ("a.tar", "/https/a.tar", "pipe:cat a", "file:///a", "simplecache::s3://b/a")
    )


def test_file_systems_other_than_http_are_read_by_ranges(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    memory = MemoryFileSystem()
    memory.pipe_file("/bucket/a.tar", content(0))
    monkeypatch.setattr(transfer, "connect", lambda address: (memory, "/bucket/a.tar"))
    monkeypatch.setattr(transfer, "BLOCK", 70_000)
    cache = ShardCache(folder=tmp_path, max_bytes=10**6)
    assert cache.identity("gs://bucket/a.tar").size == 300_000
    assert cache.fetch("gs://bucket/a.tar").read_bytes() == content(0)


def test_the_least_recently_used_make_room_and_nothing_else_does(server: Server, tmp_path: Path):
    (tmp_path / "mine.tar").write_bytes(content(9))
    (tmp_path / ".hidden.part").write_bytes(content(9))
    for name in "abcd":
        server.files[f"{name}.tar"] = content(ord(name))
    cache = ShardCache(folder=tmp_path, max_bytes=900_000)
    for name in "abc":
        cache.fetch(server.address(f"{name}.tar"))
        time.sleep(0.01)
    cache.fetch(server.address("a.tar"))
    cache.fetch(server.address("d.tar"))
    assert [name for name in names(tmp_path) if len(name) == 5] == ["a.tar", "c.tar", "d.tar"]
    assert (tmp_path / "mine.tar").read_bytes() == (tmp_path / ".hidden.part").read_bytes() == content(9)
    assert server.downloads == {f"{name}.tar": 1 for name in "abcd"}


def test_files_open_during_eviction_stay_readable(server: Server, tmp_path: Path):
    for name in "ab":
        server.files[f"{name}.tar"] = content(ord(name))
    cache = ShardCache(folder=tmp_path, max_bytes=400_000)
    first = cache.open(server.address("a.tar"))
    second = cache.open(server.address("b.tar"))
    assert names(tmp_path) == ["b.tar"]
    assert os.pread(first, 10**6, 0) == content(ord("a"))
    assert os.pread(second, 10**6, 0) == content(ord("b"))
    os.close(first)
    os.close(second)


def test_a_shard_larger_than_the_bound_is_refused_before_anything_is_deleted(server: Server, tmp_path: Path):
    server.files.update({"a.tar": content(0), "b.tar": content(1, 600_000)})
    cache = ShardCache(folder=tmp_path, max_bytes=300_000)  # exactly the first one
    cache.fetch(server.address("a.tar"))
    with pytest.raises(UserError, match=r"b\.tar has 600,000 bytes, more than the 300,000 of shard_cache\.max_bytes"):
        cache.fetch(server.address("b.tar"))
    assert names(tmp_path) == ["a.tar"]
    assert server.downloads["b.tar"] == 0


def test_a_download_that_must_wait_for_others_deletes_nothing(server: Server, tmp_path: Path):
    server.files.update({"a.tar": content(0), "b.tar": content(1, 500_000)})
    cache = ShardCache(folder=tmp_path, max_bytes=1_000_000)
    cache.fetch(server.address("a.tar"))
    other = tmp_path / ".0123456789abcdef-other.tar.part"
    with other.open("wb") as file:
        file.truncate(600_000)
        fcntl.flock(file, fcntl.LOCK_EX)
        cache.prefetch(server.address("b.tar"))
        while len(parts(tmp_path)) < 2:
            time.sleep(0.01)
        time.sleep(0.3)
        assert names(tmp_path) == ["a.tar"]
        assert server.downloads["b.tar"] == 0
    assert cache.fetch(server.address("b.tar")).read_bytes() == content(1, 500_000)
    assert names(tmp_path) == ["a.tar", "b.tar"]
    assert not other.exists()


def test_a_changed_shard_is_noticed(server: Server, tmp_path: Path):
    server.files["a.tar"], server.versions["a.tar"] = content(0), '"1"'
    address = server.address("a.tar")
    cache = ShardCache(folder=tmp_path, max_bytes=10**6)
    old = cache.fetch(address)
    server.files["a.tar"], server.versions["a.tar"] = content(1), '"2"'
    assert cache.fetch(address) == old  # this run keeps what it began with
    later = ShardCache(folder=tmp_path, max_bytes=10**6)
    assert later.identity(address) != cache.identity(address)
    assert later.fetch(address).read_bytes() == content(1)
    old.unlink()
    with pytest.raises(DataError, match=r"a\.tar has changed since the run began"):
        cache.fetch(address)


@pytest.mark.parametrize("kind", ["link", "hard link", "named pipe", "dangling link"])
def test_nothing_planted_under_a_downloads_name_is_written_to(server: Server, tmp_path: Path, kind: str):
    server.files["a.tar"] = content(0)
    cache = ShardCache(folder=tmp_path / "cache", max_bytes=10**6)
    cache.folder.mkdir()
    precious = tmp_path / "precious"
    path = cache.path(server.address("a.tar"))
    part = path.with_name(f".{path.name}.part")
    if kind != "dangling link":
        precious.write_text("mine")
    if kind == "named pipe":
        os.mkfifo(part)
    elif kind == "hard link":
        part.hardlink_to(precious)
    else:
        part.symlink_to(precious)
    with pytest.raises(UserError, match=f"shard cache: {part} is a link, .*: remove it, or name another shard_cache"):
        cache.fetch(server.address("a.tar"))
    assert precious.exists() == (kind != "dangling link")
    assert not precious.exists() or precious.read_text() == "mine"
    part.unlink()
    (cache.folder / ".0123456789abcdef-other.part").symlink_to(precious)  # another shard's: left alone
    assert cache.fetch(server.address("a.tar")).read_bytes() == content(0)


def test_a_link_under_a_shards_or_the_locks_name_is_refused(server: Server, tmp_path: Path):
    server.files["a.tar"] = content(0)
    cache = ShardCache(folder=tmp_path / "cache", max_bytes=10**6)
    cache.folder.mkdir()
    other = tmp_path / "other"
    other.write_bytes(content(1))
    path = cache.path(server.address("a.tar"))
    path.symlink_to(other)
    with pytest.raises(UserError, match=f"{path} is a link"):
        cache.fetch(server.address("a.tar"))
    path.unlink()
    (cache.folder / ".lock").unlink()
    (cache.folder / ".lock").symlink_to(tmp_path / "made")
    with pytest.raises(UserError, match=f"lock {cache.folder / '.lock'} is a link"):
        cache.fetch(server.address("a.tar"))
    assert not (tmp_path / "made").exists()


def test_a_cache_folder_that_others_may_write_to_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server.files["a.tar"] = content(0)
    cache = ShardCache(folder=tmp_path / "cache", max_bytes=10**6)
    cache.folder.mkdir()
    cache.folder.chmod(0o1777)
    with pytest.raises(
        UserError, match=rf"shard cache {cache.folder} may be written to by anybody: .*shard_cache\.folder"
    ):
        cache.fetch(server.address("a.tar"))
    cache.folder.chmod(0o775)
    monkeypatch.setattr(os, "geteuid", lambda: cache.folder.stat().st_uid + 1)
    with pytest.raises(UserError, match=rf"shard cache {cache.folder} belongs to user .*: .*shard_cache\.folder"):
        cache.fetch(server.address("a.tar"))
    monkeypatch.setattr(os, "geteuid", lambda: cache.folder.stat().st_uid)
    assert cache.fetch(server.address("a.tar")).read_bytes() == content(0)


def test_a_local_copy_that_was_cut_off_is_fetched_again(server: Server, tmp_path: Path):
    server.files["a.tar"] = content(0)
    cache = ShardCache(folder=tmp_path, max_bytes=10**6)
    os.truncate(cache.fetch(server.address("a.tar")), 1000)
    assert cache.fetch(server.address("a.tar")).read_bytes() == content(0)


@pytest.mark.parametrize("reserves", [True, False])
def test_a_disk_that_takes_no_more_is_named_and_left_clean(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reserves: bool
):
    if not reserves:  # a file that is made longer takes room only when it is written
        monkeypatch.setattr(os, "ftruncate", lambda descriptor, length: None)
    server.files["a.tar"] = content(0)
    cache = ShardCache(folder=tmp_path, max_bytes=10**6)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # stands for a full disk: the system refuses to write
    try:
        with pytest.raises(
            UserError, match=rf"shard cache {tmp_path} cannot be written .*: free disk space.*another shard_cache"
        ):
            cache.fetch(server.address("a.tar"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []
    assert parts(tmp_path) == []
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"shard cache .*file cannot be written .*: name another shard_cache"):
        ShardCache(folder=tmp_path / "file", max_bytes=10**6).fetch(server.address("a.tar"))


def fetch_in_process(cache: ShardCache, addresses: list[str]) -> list[str]:
    return [str(cache.fetch(address)) for address in addresses]


def test_processes_and_threads_download_a_shard_once(server: Server, tmp_path: Path):
    server.files["a.tar"] = content(0)
    server.slow = 0.05
    cache = ShardCache(folder=tmp_path, max_bytes=10**6)
    cache.prefetch(server.address("a.tar"))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(fetch_in_process, [(cache, [server.address("a.tar")])] * 2, chunksize=1)
    assert found == [[str(cache.fetch(server.address("a.tar")))]] * 2
    assert server.downloads["a.tar"] == 1


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # as the data loader's on Linux
def test_a_forked_process_downloads_what_its_parent_has_not(server: Server, tmp_path: Path):
    for name in "abc":
        server.files[f"{name}.tar"] = content(ord(name))
    server.slow = 0.05
    cache = ShardCache(folder=tmp_path, max_bytes=10**6)
    cache.identify([server.address("a.tar"), server.address("b.tar")])
    cache.prefetch(server.address("a.tar"))
    while server.downloads["a.tar"] == 0:
        time.sleep(0.01)
    wanted = [server.address(f"{name}.tar") for name in "bca"]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        result = pool.apply_async(fetch_in_process, (cache, wanted))
        found = result.get(timeout=30)
    assert [Path(path).read_bytes() for path in found] == [content(ord(name)) for name in "bca"]
    assert set(server.downloads.values()) == {1}


def test_processes_that_together_want_more_than_the_bound_keep_it(server: Server, tmp_path: Path):
    addresses = []
    for number in range(6):
        server.files[f"{number}.tar"] = content(number, 100_000)
        addresses.append(server.address(f"{number}.tar"))
    server.slow = 0.005
    cache = ShardCache(folder=tmp_path, max_bytes=250_000)
    most = 0
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.starmap_async(fetch_in_process, [(cache, addresses), (cache, addresses[::-1])], chunksize=1)
        while not results.ready():
            time.sleep(0.002)
            sizes = []
            for path in tmp_path.iterdir():
                try:
                    sizes.append(path.stat().st_size)
                except FileNotFoundError:
                    continue
            most = max(most, sum(sizes))
        results.get()
    assert 100_000 <= most <= 250_000


def test_a_killed_download_leaves_no_file_of_that_name_and_is_swept(server: Server, tmp_path: Path):
    server.files.update({"a.tar": content(0), "b.tar": content(1)})
    server.slow = 0.2
    cache = ShardCache(folder=tmp_path, max_bytes=10**6)
    process = multiprocessing.get_context("spawn").Process(
        target=fetch_in_process, args=(cache, [server.address("a.tar")])
    )
    process.start()
    while server.downloads["a.tar"] == 0:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert names(tmp_path) == []
    assert len(parts(tmp_path)) == 1
    server.slow = 0
    cache.fetch(server.address("b.tar"))
    assert parts(tmp_path) == []
    assert cache.fetch(server.address("a.tar")).read_bytes() == content(0)


def test_prefetched_shards_are_there_and_their_errors_wait_for_the_fetch(server: Server, tmp_path: Path):
    server.files["a.tar"] = content(0)
    cache = ShardCache(folder=tmp_path, max_bytes=10**6)
    cache.prefetch(server.address("none.tar"))
    cache.prefetch(server.address("a.tar"))
    deadline = time.monotonic() + 20
    while names(tmp_path) != ["a.tar"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert cache.fetch(server.address("a.tar")).read_bytes() == content(0)
    assert server.downloads["a.tar"] == 1
    with pytest.raises(UserError, match="404"):
        cache.fetch(server.address("none.tar"))


def test_a_pickled_cache_carries_identities_and_no_thread(server: Server, tmp_path: Path):
    server.files["a.tar"] = content(0)
    cache = ShardCache(folder=tmp_path, max_bytes=10**6)
    cache.prefetch(server.address("a.tar"))
    path = cache.fetch(server.address("a.tar"))
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.prefetcher is None
    del server.files["a.tar"]
    assert copy.fetch(server.address("a.tar")) == path  # the server is not asked again
