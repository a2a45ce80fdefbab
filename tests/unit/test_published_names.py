"""Published checkpoints by name: downloaded once from a server on this machine, stripped, and read from the cache."""

import argparse
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from file_server import Server, serving
from published_files import DIMS, training_checkpoint
from reference_folder import initial_state

import openslip
from openslip.data.remote import transfer
from openslip.data.remote.files import cache_folder
from openslip.errors import UserError
from openslip.inference import libraries, published
from openslip.inference.load import local_file
from openslip.inference.strip import strip

NAME = "slip_mini_1ep"
FILE = f"{NAME}.pt"
TEXTS = ["a dog", "a man kicking a ball"]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file as it is published, with 12 MB of token embeddings and as many of optimizer state."""
    torch.manual_seed(0)
    state = {name: tensor.detach() for name, tensor in initial_state("slip", DIMS).items()}
    whole = training_checkpoint(state, argparse.Namespace(model="SLIP_MINI"))
    whole["optimizer"]["state"][0]["exp_avg"] = torch.zeros_like(state["token_embedding.weight"])
    path = tmp_path_factory.mktemp("published") / FILE
    torch.save(whole, path)
    return path.read_bytes()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, content: bytes) -> Iterator[Server]:
    monkeypatch.setattr(transfer, "WAITS", (0.01, 0.02))
    with serving() as server:
        server.files[FILE] = content
        server.versions[FILE] = '"first"'
        yield server


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the local copies."""
    monkeypatch.setenv("OPENSLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkpoints"


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server, content: bytes) -> Callable[..., Path]:
    """Publish a file of the server under a name, with further fields such as its size; returns the table."""

    def write(address: str = server.address(FILE), parameters: int | None = None, **fields: object) -> Path:
        group = {
            "source": "somebody/mini",
            "licence": "MIT",
            "address": address,
            "image_size": 32,
            "parameters": {"SLIP mini": parameters or len(content) // 12},
            "bytes_per_parameter": 12,
            "files": {NAME: {"model": "SLIP mini", "dataset": "none", "epochs": 1, **fields}},
        }
        table = tmp_path / f"table{len(list(tmp_path.glob('table*')))}.yaml"  # tables are read once
        table.write_text(yaml.safe_dump([group]))
        monkeypatch.setattr(published, "TABLE", table)
        return table

    write()
    return write


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.usefixtures("publish")
def test_a_name_is_downloaded_once_stripped_and_then_needs_no_network(
    server: Server, cache: Path, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bundle = openslip.load(NAME)
    assert bundle.origin == NAME
    copy = cache / f"{NAME}.ckpt"
    assert visible(cache) == [copy.name, f"{copy.name}.sha256", f"{FILE}.sha256"]
    assert hidden(cache) == [f".{NAME}.lock"]
    assert (cache / f"{FILE}.sha256").read_text() == f"{sha256(content)}  {FILE}\n"
    assert (cache / f"{copy.name}.sha256").read_text() == f"{sha256(copy.read_bytes())}  {copy.name}\n"
    assert copy.stat().st_size < 0.55 * len(content)
    assert f"starting the download of {server.address(FILE)} to {cache}" in capsys.readouterr().err

    server.files.clear()
    server.conditions.clear()
    again = openslip.load(NAME)
    assert server.conditions == []  # nothing was asked
    (tmp_path / FILE).write_bytes(content)
    truth = openslip.load(tmp_path / FILE)
    for loaded in (bundle, again):
        torch.testing.assert_close(loaded.encode_text(TEXTS), truth.encode_text(TEXTS), rtol=0, atol=0)


@pytest.mark.usefixtures("publish")
def test_a_download_is_on_the_disk_before_it_counts_as_complete(
    cache: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
):
    sizes, fsync = list[int](), os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (sizes.append(os.fstat(handle).st_size), fsync(handle)))
    local_file(NAME)
    assert len(content) in sizes


@pytest.mark.usefixtures("publish")
def test_a_download_that_breaks_off_is_resumed_by_the_same_process(server: Server, cache: Path, content: bytes):
    server.breaks[FILE] = [5_000_000, 4_000_000]
    local_file(NAME)
    # What the client had not read when the connection broke may be lost: how much depends on the load of the machine.
    begun, *starts = server.requested_ranges
    assert begun is None
    first, second = (int(str(start).removeprefix("bytes=").removesuffix("-")) for start in starts)
    assert 0 < first <= 5_000_000
    assert first <= second <= first + 4_000_000
    assert (cache / f"{FILE}.sha256").read_text().split()[0] == sha256(content)


@pytest.mark.usefixtures("publish")
def test_a_download_that_broke_off_is_resumed_by_a_later_process(server: Server, cache: Path, content: bytes):
    server.breaks[FILE] = [5_000_000, 1000, 1000]
    with pytest.raises(UserError, match="the connection broke off") as caught:
        openslip.load(NAME)
    kept = (cache / f".{FILE}.part").stat().st_size
    assert f"{kept:,} bytes are kept, and the same command resumes" in str(caught.value)
    assert 0 < kept <= 5_002_000
    assert visible(cache) == []
    server.requested_ranges.clear()
    server.conditions.clear()
    local_file(NAME)
    assert server.requested_ranges == [f"bytes={kept}-"]
    assert server.conditions[-1] == '"first"'  # If-Range
    assert (cache / f"{FILE}.sha256").read_text().split()[0] == sha256(content)
    assert hidden(cache) == [f".{NAME}.lock"]


@pytest.mark.usefixtures("publish")
def test_a_file_that_was_replaced_meanwhile_is_downloaded_from_its_start(server: Server, cache: Path, content: bytes):
    server.files[FILE] = bytes(len(content))  # of equal size
    server.breaks[FILE] = [5_000_000, 1000, 1000]
    with pytest.raises(UserError, match="cannot be downloaded"):
        openslip.load(NAME)
    server.files[FILE], server.versions[FILE] = content, '"second"'
    server.requested_ranges.clear()
    local_file(NAME)
    assert server.requested_ranges == [None]
    assert (cache / f"{FILE}.sha256").read_text().split()[0] == sha256(content)


@pytest.mark.usefixtures("publish")
def test_a_server_that_ignores_ranges_sends_the_whole_file_again(server: Server, cache: Path, content: bytes):
    server.ranges = False
    server.breaks[FILE] = [5_000_000]
    local_file(NAME)
    begun, resumed = server.requested_ranges
    assert begun is None
    assert resumed is not None
    assert (cache / f"{FILE}.sha256").read_text().split()[0] == sha256(content)


def test_a_file_of_another_size_than_the_published_one_is_refused(
    server: Server, cache: Path, content: bytes, publish: Callable[..., Path]
):
    publish(bytes=len(content) + 1)
    with pytest.raises(
        UserError, match=rf"has {len(content):,} bytes, and somebody/mini published {len(content) + 1:,}"
    ):
        openslip.load(NAME)
    assert server.downloads[FILE] == 0
    cache.mkdir(exist_ok=True)
    (cache / FILE).write_bytes(content)
    with pytest.raises(UserError, match=rf"{FILE} has {len(content):,} bytes"):
        openslip.load(NAME)
    assert visible(cache) == [FILE]
    publish(bytes=len(content))
    openslip.load(NAME)


def test_offline_the_error_names_the_address_and_the_place_for_the_file(
    cache: Path, content: bytes, publish: Callable[..., Path]
):
    address = f"http://127.0.0.1:9/{FILE}"
    publish(address)
    with pytest.raises(UserError) as caught:
        openslip.load(NAME)
    message = str(caught.value)
    assert f"checkpoint {NAME}: {address} cannot be downloaded (" in message
    assert message.endswith(f"download it on another machine and put it at {cache / FILE}")
    (cache / FILE).write_bytes(content)
    (cache / f"{FILE}.sha256").write_text(f"{sha256(b'')}  {FILE}\n")
    with pytest.raises(UserError, match=rf"{FILE} is damaged \(its SHA-256 differs from {FILE}\.sha256\)"):
        openslip.load(NAME)
    (cache / f"{FILE}.sha256").unlink()
    openslip.load(NAME)
    assert (cache / FILE).read_bytes() == content  # a user's own file is never removed
    (cache / FILE).unlink()
    openslip.load(NAME)


@pytest.mark.usefixtures("publish", "server")
def test_a_damaged_copy_is_refused(cache: Path):
    openslip.load(NAME)
    copy = cache / f"{NAME}.ckpt"
    damaged = bytearray(copy.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    copy.write_bytes(damaged)
    with pytest.raises(UserError, match=rf"{NAME}\.ckpt is damaged .*: delete it, and the next load"):
        openslip.load(NAME)
    copy.unlink()
    openslip.load(NAME)


@pytest.mark.usefixtures("publish")
def test_a_download_that_is_no_checkpoint_is_discarded(server: Server, cache: Path, content: bytes):
    server.files[FILE] = b"<html>log in first</html>".ljust(len(content))
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        openslip.load(NAME)
    assert visible(cache) == []
    assert hidden(cache) == [f".{NAME}.lock"]
    server.files[FILE] = content
    openslip.load(NAME)


def test_without_a_published_size_a_file_may_differ_little_from_the_estimate(
    server: Server, cache: Path, content: bytes, publish: Callable[..., Path]
):
    for factor in (0.94, 1.06):
        publish(parameters=int(len(content) / 12 * factor))
        with pytest.raises(UserError, match=rf"has {len(content):,} bytes, and about .* are expected of somebody/mini"):
            openslip.load(NAME)
    assert server.downloads[FILE] == 0
    assert visible(cache) == []
    publish(parameters=int(len(content) / 12 * 1.04))
    openslip.load(NAME)


@pytest.mark.usefixtures("publish")
def test_a_download_with_another_checksum_than_before_is_refused(server: Server, cache: Path, content: bytes):
    cache.mkdir(parents=True)
    (cache / f"{FILE}.sha256").write_text(f"{sha256(b'')}  {FILE}\n")
    with pytest.raises(UserError, match=rf"SHA-256 of this download is {sha256(content)}, and .* says {sha256(b'')}"):
        openslip.load(NAME)
    assert visible(cache) == [f"{FILE}.sha256"]
    assert hidden(cache) == [f".{NAME}.lock", f".{FILE}.identity"]
    assert server.downloads[FILE] == 1


@pytest.mark.usefixtures("publish", "cache")
def test_a_file_or_folder_of_that_name_comes_first(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path(NAME).mkdir()
    assert local_file(NAME) == NAME
    with pytest.raises(UserError, match="a folder without checkpoints"):
        openslip.load(NAME)
    assert server.downloads[FILE] == 0


def test_similar_names_are_listed_for_a_name_that_is_unknown():
    for name in ("slip_base_100", "slip_base_100ep.pt", "slip-base-100ep"):
        with pytest.raises(UserError, match=rf"checkpoint {name}: no such file, and no .* slip_base_100ep.*models"):
            openslip.load(name)
    with pytest.raises(UserError, match="runs/slip_base_100ep: no such file; give a run's folder"):
        openslip.load("runs/slip_base_100ep")
    with pytest.raises(UserError, match="other: no such file; give a run's folder"):
        openslip.load("other")


@pytest.mark.parametrize("name", ["x" * 5000, "runs/" + "x" * 5000])
def test_a_name_that_is_too_long_is_one_line(name: str):
    with pytest.raises(UserError, match=r"^checkpoint [xruns/]{120}: .*[Tt]oo long"):
        openslip.load(name)
    assert libraries.find(f"hf:{name}") is not None


def test_the_published_table_is_the_repositorys():
    table = published.published(published.TABLE)
    assert len(table) == 19
    file = table["slip_base_100ep"]
    assert file.address == "https://dl.fbaipublicfiles.com/slip/slip_base_100ep.pt"
    assert file.accuracies() == (45.0, 73.6, 83.4)
    assert file.size() == "~2.0 GB"
    for name, file in table.items():
        method, size, *_, epochs = name.split("_")
        assert file.model.lower().startswith(f"{method} vit-{size[0]}/")
        assert epochs == f"{file.epochs}ep"
        assert (file.zero_shot is None) == (method == "simclr")
        assert file.dataset == next((data for data in ("CC3M", "CC12M") if data.lower() in name), "YFCC15M")


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("OPENSLIP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder("checkpoints") == Path("/home/somebody/.cache/openslip/checkpoints")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder("checkpoints") == Path("/xdg/openslip/checkpoints")
    monkeypatch.setenv("OPENSLIP_CACHE", "/own")
    assert cache_folder("checkpoints") == Path("/own/checkpoints")


# Loads NAME in a process of its own; `argv[2]` says where it kills itself.
SCRIPT = """
import io, os, signal, sys
from pathlib import Path
import torch
import openslip
from openslip.data.remote import transfer
from openslip.inference import libraries, published

published.TABLE = Path(sys.argv[1])

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def half_save(content, file, save=torch.save):
    save(content, buffer := io.BytesIO())
    file.write(buffer.getvalue()[: buffer.tell() // 2])
    file.flush()
    die()

if sys.argv[2] == "download":
    transfer.time = type("Time", (), {"sleep": die, "monotonic": transfer.time.monotonic})
elif sys.argv[2] == "strip":
    torch.save = half_save
print(float(openslip.load("NAME").encode_text(["a dog"]).sum()))
""".replace("NAME", NAME)


def load_elsewhere(table: Path, killed_in: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(table), killed_in]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("killed_in", ["download", pytest.param("strip", marks=pytest.mark.slow)])
def test_a_process_that_is_killed_leaves_no_half_written_file(
    server: Server, cache: Path, content: bytes, publish: Callable[..., Path], killed_in: str
):
    server.breaks[FILE] = [5_000_000]  # after which the process would wait before it retries
    process = load_elsewhere(publish(), killed_in)
    _, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, err
    assert visible(cache) == ([] if killed_in == "download" else [f"{FILE}.sha256"])
    server.requested_ranges.clear()
    part = cache / f".{FILE}.part"
    expected = [f"bytes={part.stat().st_size}-"] if killed_in == "download" else []
    openslip.load(NAME)
    assert server.requested_ranges == expected
    assert hidden(cache) == [f".{NAME}.lock"]
    assert visible(cache) == [f"{NAME}.ckpt", f"{NAME}.ckpt.sha256", f"{FILE}.sha256"]
    assert (cache / f"{FILE}.sha256").read_text().split()[0] == sha256(content)


@pytest.mark.usefixtures("publish")
def test_threads_that_load_at_once_download_once(server: Server, cache: Path):
    server.slow, server.piece = 0.02, 1_000_000
    with ThreadPoolExecutor(3) as threads:
        assert set(threads.map(local_file, [NAME] * 3)) == {cache / f"{NAME}.ckpt"}
    assert server.downloads[FILE] == 1
    assert hidden(cache) == [f".{NAME}.lock"]


@pytest.mark.slow
def test_processes_that_load_at_once_download_once(server: Server, cache: Path, publish: Callable[..., Path]):
    table = publish()
    server.slow, server.piece = 0.05, 1_000_000
    processes = [load_elsewhere(table) for _ in range(2)]
    printed = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert printed[0][0] == printed[1][0]
    assert server.downloads[FILE] == 1
    assert hidden(cache) == [f".{NAME}.lock"]


@pytest.mark.usefixtures("publish", "server", "cache")
def test_a_published_name_can_be_stripped_to_a_file_of_ones_own(tmp_path: Path):
    strip(NAME, tmp_path / "own.safetensors", dtype="float16")
    own, cached = openslip.load(tmp_path / "own.safetensors"), openslip.load(NAME)
    torch.testing.assert_close(own.encode_text(TEXTS), cached.encode_text(TEXTS), rtol=0, atol=2e-3)
    assert os.path.getsize(tmp_path / "own.safetensors") < 0.55 * os.path.getsize(local_file(NAME))
