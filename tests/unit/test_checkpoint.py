import argparse
import copy
import os
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openslip.errors import UserError
from openslip.inference.architecture import build_model
from openslip.inference.files import checkpoint_file, read, write
from openslip.models.image_encoder import ImageEncoder

TOWER: dict[str, Any] = {
    "_target_": "openslip.models.timm_tower.TimmTower",
    "name": "vit_small_patch16_224",
    "image_size": 16,
    "arguments": {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3},
}
MODEL: dict[str, Any] = {"_target_": "openslip.models.image_encoder.ImageEncoder", "image_tower": TOWER}


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


def test_the_published_layout_is_read_with_its_namespace_and_numpy_scalar(tmp_path: Path):
    weight = torch.arange(6.0).view(2, 3)
    published = {
        "epoch": 100,
        "state_dict": {"module.logit_scale": weight},
        "optimizer": {"state": {0: {"exp_avg": weight}}, "param_groups": [{"lr": 3e-3}]},
        "scaler": {"scale": 65536.0},
        "best_acc1": np.float64(45.0),
        "args": argparse.Namespace(model="SLIP_VITB16", lr=3e-3),
    }
    torch.save(published, tmp_path / "slip.pt")
    found = read(tmp_path / "slip.pt")
    assert found["args"] == published["args"]
    assert found["best_acc1"] == 45.0
    assert torch.equal(found["state_dict"]["module.logit_scale"], weight)


@pytest.mark.parametrize("zip_format", [True, False])
def test_a_file_that_names_other_code_is_refused_and_nothing_runs(tmp_path: Path, zip_format: bool):
    mark = tmp_path / "ran"
    payload = {"state_dict": {}, "args": Evil(mark)}
    torch.save(payload, tmp_path / "evil.pt", _use_new_zipfile_serialization=zip_format)
    with pytest.raises(UserError, match=rf"evil\.pt: it names {os.system.__module__}\.system"):
        read(tmp_path / "evil.pt")
    assert not mark.exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)  # the same file does run where nobody guards it
    assert mark.exists()


def test_refused_code_is_named(tmp_path: Path):
    torch.save({"args": Evil(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=f"names {os.system.__module__}.system"):
        read(tmp_path / "evil.pt")


def test_what_is_no_whole_checkpoint_is_named(tmp_path: Path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    for name, content in {"empty": b"", "text": b"hello", "cut": whole[: len(whole) // 2]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read(tmp_path / name)
    with pytest.raises(UserError, match="missing"):
        checkpoint_file(tmp_path / "missing.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(UserError, match="list"):
        read(tmp_path / "list.pt")


def forged(path: Path, change: Callable[[bytes], bytes], *, compression: int = zipfile.ZIP_STORED) -> Path:
    """The same checkpoint with another pickle or compression."""
    target = path.with_name(f"forged-{path.name}")
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(target, "w", compression) as other:
        for entry in whole.infolist():
            content = whole.read(entry)
            other.writestr(entry.filename, change(content) if entry.filename.endswith("data.pkl") else content)
    return target


def number(value: int) -> bytes:
    """A whole number as pickle writes it from 65,536 on."""
    return b"J" + struct.pack("<i", value)


NUMEL = 100_000
CLAIMS = {
    "tensor and storage": lambda pickled: pickled.replace(number(NUMEL), number(2**30)),
    "storage": lambda pickled: pickled.replace(number(NUMEL), number(2**30), 1),
    "tensor": lambda pickled: number(2**30).join(pickled.rsplit(number(NUMEL), 1)),
    "a little": lambda pickled: number(2 * NUMEL).join(pickled.rsplit(number(NUMEL), 1)),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_tensor_larger_than_what_is_stored_is_refused_before_it_is_allocated(tmp_path: Path, claim: str):
    torch.save({"state_dict": {"weight": torch.ones(NUMEL)}}, tmp_path / "x.pt")
    path = forged(tmp_path / "x.pt", CLAIMS[claim])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"forged-x\.pt: (its tensors claim 4,295\.0 MB.*'weight'|cannot be read)"):
        read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_compressed_members_are_refused(tmp_path: Path):
    torch.save({"state_dict": {"weight": torch.zeros(10_000_000)}}, tmp_path / "x.pt")
    path = forged(tmp_path / "x.pt", bytes, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"forged-x\.pt: its members unpack to 40\.0 MB from 0\.0 MB"):
        read(path)


def test_members_that_share_their_bytes_are_refused(tmp_path: Path):
    torch.save({"weight": torch.ones(100_000)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt", "a") as archive:
        archive.writestr("x/more", b"")
        for name in range(1, 9):
            member = copy.copy(archive.getinfo("x/data/0"))
            member.filename = f"x/data/{name}"
            archive.filelist.append(member)
    with pytest.raises(UserError, match=r"x\.pt: its members unpack to 3\.6 MB from 0\.4 MB"):
        read(tmp_path / "x.pt")


def test_a_view_that_expands_is_refused_and_a_small_one_is_read(tmp_path: Path):
    torch.save({"state_dict": [{"huge": torch.zeros(1).expand(30_000, 30_000)}]}, tmp_path / "huge.pt")
    with pytest.raises(UserError, match=r"huge\.pt: its tensors claim 3,600\.0 MB.*\['state_dict'\]\[0\]\['huge'\]"):
        read(tmp_path / "huge.pt")
    shared = torch.ones(1000)
    small = {"mask": torch.zeros(1).expand(100, 100), "tied": shared, "twice": shared, "row": shared[10:20]}
    torch.save(small, tmp_path / "small.pt")
    assert all(torch.equal(tensor, small[name]) for name, tensor in read(tmp_path / "small.pt").items())


def test_memory_that_a_pickle_asks_for_is_refused(tmp_path: Path):
    torch.save({"key": "GROW"}, tmp_path / "x.pt")
    grow = b"cbuiltins\nbytearray\n" + number(2**30) + b"\x85R"
    path = forged(tmp_path / "x.pt", lambda pickled: pickled.replace(b"X\x04\x00\x00\x00GROW", grow))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"forged-x\.pt: it names bytearray"):
        read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_file_without_checksums_is_read(tmp_path: Path):
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.ones(3)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(computed)
    assert torch.equal(read(tmp_path / "x.pt")["weight"], torch.ones(3))


def test_a_nest_of_any_depth_is_looked_through(tmp_path: Path):
    torch.save({"key": "NEST"}, tmp_path / "x.pt")
    nest = b"]" * 100_000 + b"a" * 99_999  # lists in lists
    path = forged(tmp_path / "x.pt", lambda pickled: pickled.replace(b"X\x04\x00\x00\x00NEST", nest))
    assert isinstance(read(path)["key"], list)


def test_what_is_written_is_read_and_no_other_file_stays(tmp_path: Path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    write(path, {"state_dict": {"w": torch.ones(3)}, "step": 1})
    write(path, {"state_dict": {"w": torch.zeros(3)}, "step": 2})
    assert read(path)["step"] == 2
    assert torch.equal(read(path)["state_dict"]["w"], torch.zeros(3))
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path: Path):
    path = tmp_path / "last.ckpt"
    write(path, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # to the writer, a disk that fills up
    try:
        with pytest.raises(UserError, match=r"last\.ckpt could not be written \(File too large\)"):
            write(path, {"step": 2, "w": torch.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_what_cannot_be_pickled_leaves_the_old_file_whole(tmp_path: Path):
    path = tmp_path / "last.ckpt"
    write(path, {"step": 1})
    with pytest.raises((AttributeError, TypeError)):
        write(path, {"step": lambda: 2})
    assert read(path) == {"step": 1}


def test_plain_fields_become_the_model():
    model = build_model(MODEL)
    assert isinstance(model, ImageEncoder)
    assert model.image_tower.width == 24


@pytest.mark.parametrize(
    "architecture",
    [
        {"_target_": "os.system", "command": "touch ran"},
        {**MODEL, "image_tower": {"_target_": "os.system", "command": "touch ran"}},
        {**MODEL, "image_tower": {**TOWER, "arguments": {"x": [{"_target_": "os.system"}]}}},
        {**MODEL, "_target_": "openslip.models.image_encoder.Tower"},
    ],
)
def test_any_other_target_is_named_and_nothing_is_built(
    architecture: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"'os\.system'|'openslip\.models\.image_encoder\.Tower'"):
        build_model(architecture)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["hf-hub:timm/vit_small_patch16_224", "local-dir:/tmp/model", "hf_hub:a/b"])
def test_a_timm_name_that_would_download_is_refused(name: str):
    with pytest.raises(UserError, match=name):
        build_model({**MODEL, "image_tower": {**TOWER, "name": name}})


def test_a_misspelt_field_is_named():
    with pytest.raises(UserError, match="image_towr"):
        build_model({"_target_": MODEL["_target_"], "image_towr": TOWER})


def test_numpy_scalars_of_numpy_1_are_read(tmp_path: Path):
    torch.save({"best_acc1": np.float64(45.0)}, tmp_path / "new.pt")
    with zipfile.ZipFile(tmp_path / "new.pt") as new, zipfile.ZipFile(tmp_path / "old.pt", "w") as old:
        for entry in new.infolist():
            content = new.read(entry).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(entry, content)
    assert read(tmp_path / "old.pt") == {"best_acc1": 45.0}


@pytest.mark.parametrize("code", list("?bBhHiIlLqQefdgFDG"))
def test_numpy_numbers_of_every_kind_are_read(tmp_path: Path, code: str):
    torch.save({"x": np.dtype(code).type(1)}, tmp_path / "number.pt")
    assert read(tmp_path / "number.pt")["x"] == 1


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg", "pretrained", "cache_dir"])
def test_a_timm_argument_that_opens_another_file_is_refused(key: str):
    with pytest.raises(UserError, match=f"{key}=/tmp/other"):
        build_model({**MODEL, "image_tower": {**TOWER, "arguments": {**TOWER["arguments"], key: "/tmp/other"}}})


@pytest.mark.parametrize("architecture", ["text", {"a": 1}, {**MODEL, "image_tower": {**TOWER, "image_size": "x"}}])
def test_what_describes_no_model_is_one_error(architecture: Any):
    with pytest.raises(UserError, match="checkpoint's"):
        build_model(architecture)


def test_an_argument_that_timm_does_not_know_is_named():
    with pytest.raises(UserError, match="bogus"):
        build_model({**MODEL, "image_tower": {**TOWER, "arguments": {"bogus": 1}}})


def test_the_next_write_sweeps_what_a_killed_one_left(tmp_path: Path):
    (tmp_path / ".last.ckpt.99999.tmp").write_bytes(b"half")
    write(tmp_path / "last.ckpt", {"step": 1})
    assert os.listdir(tmp_path) == ["last.ckpt"]
