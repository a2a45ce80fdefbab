"""A conversion that is ended at any moment can be resumed, and its files are those of one that was not ended."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from converted import contents, left_out, run, samples_of
from PIL import Image
from shard_files import jpeg

from openslip.data.convert.manifest import Entry, Totals
from openslip.errors import UserError

COMMAND = """
import sys
from pathlib import Path
from openslip.data.convert.convert import convert
root, out, workers = sys.argv[1:]
convert("table", Path(root), Path(out), options={}, samples_per_shard=16, resize=96, workers=int(workers),
        on_shard=lambda entry, totals: None)
"""
NUM_IMAGES = 240  # some seconds' work, of which no process gets far before it is killed


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for number in range(3):
        (root / f"{number}.jpg").write_bytes(jpeg(number, 1_200, 900))
    for number in range(3, NUM_IMAGES):
        os.link(root / f"{number % 3}.jpg", root / f"{number}.jpg")
    # A third of the images have a second row, far behind; every tenth is missing.
    rows = [f"{n if n % 10 else f'missing{n}'}.jpg,image {n}" for n in range(NUM_IMAGES)]
    rows += [f"./{n if n % 10 else f'missing{n}'}.jpg,another of {n}" for n in range(0, NUM_IMAGES, 3)]
    (root / "table.csv").write_text("\n".join(["image,caption", *rows]))
    return root


@pytest.fixture(scope="module")
def undisturbed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    run("table", root, out, samples_per_shard=16, resize=96)
    return out


def start(root: Path, out: Path, workers: int = 1) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", COMMAND, str(root), str(out), str(workers)])


def num_recorded(out: Path) -> int:
    path = out / "manifest.json"
    return len(json.loads(path.read_bytes())["shards"]) if path.exists() else -1


def shards(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("*.tar"))


@pytest.mark.parametrize(("workers", "moments"), [(1, (0, 5, 10)), (2, (3,))])
def test_a_killed_conversion_resumes_to_the_same_bytes(
    root: Path, undisturbed: Path, tmp_path: Path, workers: int, moments: tuple[int, ...]
):
    out, reference = tmp_path / "out", contents(undisturbed)
    for num_before in moments:  # killed in the middle of the shard after so many
        process = start(root, out, workers)
        while not (num_recorded(out) >= num_before and any(out.glob(".*.tar.*.tmp"))):
            assert process.poll() is None
            time.sleep(0.002)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) >= workers - 1
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 30
        while any(is_running(int(child)) for child in children):  # workers end with their parent
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert num_recorded(out) < len(shards(undisturbed))
        for name in shards(out):
            assert (out / name).read_bytes() == reference[name]
    reported: list[str] = []
    written = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    recorded = num_recorded(out)
    run("table", root, out, samples_per_shard=16, resize=96, on_shard=lambda entry, totals: reported.append(entry.name))
    assert contents(out) == reference
    assert reported == shards(undisturbed)
    for name in shards(out)[:recorded]:
        assert (out / name).stat().st_mtime_ns == written[name]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_finished_conversion_is_left_alone(root: Path, undisturbed: Path):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.glob("*.tar")}
    totals = run("table", root, undisturbed, samples_per_shard=16, resize=96)
    assert {path: path.stat().st_mtime_ns for path in undisturbed.glob("*.tar")} == before
    assert (totals.samples, totals.left_out) == (NUM_IMAGES * 9 // 10, {"missing image": NUM_IMAGES // 10})


def test_a_shard_that_was_damaged_or_deleted_is_written_again(root: Path, undisturbed: Path):
    reference = contents(undisturbed)
    damaged = bytearray(reference["shard-000001.tar"])
    damaged[700] ^= 1
    (undisturbed / "shard-000001.tar").write_bytes(damaged)
    (undisturbed / "shard-000003.tar").unlink()
    (undisturbed / ".shard-000099.tar.1.tmp").write_bytes(b"what a killed process left")
    run("table", root, undisturbed, samples_per_shard=16, resize=96)
    assert contents(undisturbed) == reference


def test_two_conversions_at_once_are_refused(root: Path, tmp_path: Path):
    def again(entry: Entry, totals: Totals) -> None:
        with pytest.raises(UserError, match="another conversion is writing here"):
            run("table", root, tmp_path / "out", samples_per_shard=200)

    run("table", root, tmp_path / "out", samples_per_shard=200, on_shard=again)


def test_other_options_or_another_source_are_refused_with_both(root: Path, undisturbed: Path, tmp_path: Path):
    before = contents(undisturbed)
    with pytest.raises(UserError, match="resize=96, this command has resize=64"):
        run("table", root, undisturbed, samples_per_shard=16, resize=64)
    with pytest.raises(UserError, match=r"options=.*this command has options=.*image_column.*"):
        run("table", root, undisturbed, samples_per_shard=16, resize=96, image_column="image")
    other = tmp_path / "other"
    other.mkdir()
    (other / "table.csv").write_bytes((root / "table.csv").read_bytes())
    with pytest.raises(UserError, match=f"root='{root}', this command has root='{other}'"):
        run("table", other, undisturbed, samples_per_shard=16, resize=96)
    assert contents(undisturbed) == before


def test_a_source_that_has_changed_is_refused(tmp_path: Path):
    for number in (1, 2):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    table = tmp_path / "table.csv"
    for rows, why in ((["1.jpg,other"], "has changed since this shard"), ([], "no sample"), (["1.jpg,one"], "more")):
        table.write_text("\n".join(["image,caption", *["1.jpg,one", "2.jpg,two"]]))
        out = tmp_path / why
        run("table", tmp_path, out, samples_per_shard=1)
        table.write_text("\n".join(["image,caption", *rows]))
        with pytest.raises(UserError, match=why):
            run("table", tmp_path, out, samples_per_shard=1)


def test_tar_files_of_others_are_left_alone(root: Path, tmp_path: Path):
    (tmp_path / "shard-000000.tar").write_bytes(b"precious")
    with pytest.raises(UserError, match="not ours"):
        run("table", root, tmp_path)
    assert contents(tmp_path)["shard-000000.tar"] == b"precious"
    assert "manifest.json" not in contents(tmp_path)


def test_a_wrong_folder_is_told_after_the_first_shard_and_can_be_mended(root: Path, tmp_path: Path):
    (tmp_path / "in").mkdir()
    table, images, out = root / "table.csv", tmp_path / "in", tmp_path / "out"
    with pytest.raises(UserError, match=r"none of the first 16 records could be used \(16 x missing image\)"):
        run("table", root, out, samples_per_shard=16, metadata=table, images=images)
    assert shards(out) == []
    for number in range(0, NUM_IMAGES, 3):
        (images / f"{number}.jpg").write_bytes(jpeg(0))
    with pytest.raises(UserError, match="all is written, but 168 of 240 records were left out"):
        run("table", root, out, samples_per_shard=240, metadata=table, images=images)
    assert len(samples_of(out)) == 72
    assert len(left_out(out)) == 168
    assert json.loads((out / "manifest.json").read_text())["is_complete"]


def test_the_manifest_counts_what_the_shards_hold(undisturbed: Path):
    manifest = json.loads((undisturbed / "manifest.json").read_text())
    sizes = {entry["name"]: (entry["samples"], entry["bytes"]) for entry in manifest["shards"]}
    assert sizes == {path.name: (num_samples(path), path.stat().st_size) for path in undisturbed.glob("*.tar")}
    assert manifest["samples"] == len(samples_of(undisturbed)) == NUM_IMAGES * 9 // 10
    assert manifest["left_out"] == {"missing image": len(left_out(undisturbed))}
    assert (manifest["resize"], manifest["layout"], manifest["is_complete"]) == (96, "table", True)


def num_samples(path: Path) -> int:
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    assert {(member.mtime, member.uid, member.uname) for member in members} == {(0, 0, "")}
    return sum(member.name.endswith(".jpg") for member in members)


def test_a_resized_image_is_pillows(root: Path, undisturbed: Path):
    image = Image.open(root / "1.jpg")
    expected = np.asarray(image.resize((128, 96), Image.Resampling.BICUBIC), np.float64)
    found = np.asarray(Image.open(io.BytesIO(samples_of(undisturbed)["1"]["jpg"])), np.float64)
    assert found.shape == (96, 128, 3)
    assert abs(found - expected).mean() < 1.5


def test_smaller_images_keep_their_bytes_and_other_formats_become_jpeg(tmp_path: Path):
    root = tmp_path / "in"
    (root / "c").mkdir(parents=True)
    small, forms = (
        Image.open(io.BytesIO(jpeg(0, 60, 40))),
        {"a": "PNG", "b": "WEBP", "c": "JPEG", "d": "BMP", "e": "GIF"},
    )
    for name, form in forms.items():
        small.save(root / "c" / f"{name}.jpg", form)  # the name's suffix is not believed
    run("image_folder", root, tmp_path / "out", samples_per_shard=9, resize=40)
    found = samples_of(tmp_path / "out")
    kept = {"c/a": "png", "c/b": "webp", "c/c": "jpg"}
    assert {key: found[key][suffix] for key, suffix in kept.items()} == {
        key: (root / f"{key}.jpg").read_bytes() for key in kept
    }
    for key in ("c/d", "c/e"):
        image = Image.open(io.BytesIO(found[key]["jpg"]))
        assert (image.format, image.size) == ("JPEG", (60, 40))
