"""`openslip verify` on losses of other libraries: tests/data/family, and folders of other sizes and contents."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip.loss
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openslip.__main__ import run as openslip
from openslip.errors import UserError
from openslip.verify import compare
from openslip.verify.deviation import Row

RECORDED = Path(__file__).parents[1] / "data" / "family"
COMPARED = {
    "one_rank.npz": {"siglip", "clip", "bigvision"},
    "ranks": {
        *(f"siglip_{way}" for way in ("bidir", "shift", "reduce", "gather")),
        *("clip_local1_grad0", "clip_local1_grad1", "clip_local0_grad1"),
    },
    "lightly.npz": {"ntxent", "simsiam", "nnclr"},
}


def rows_of(folder: Path) -> dict[str, Row]:
    return {row.quantity: row for row in compare(folder, "cpu", "float64")}


def one_process(folder: Path) -> Path:
    """A copy of the recordings without those of ranks, for which processes are started."""
    folder.mkdir()
    for name in ("meta.json", "one_rank.npz", "lightly.npz"):
        shutil.copy(RECORDED / name, folder)
    return folder


def changed(path: Path, key: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    arrays[key] = change(arrays[key])
    np.savez(path, allow_pickle=False, **arrays)


def test_losses_of_one_process_are_compared_and_within_tolerance(tmp_path: Path):
    rows = rows_of(one_process(tmp_path / "folder"))
    for file in ("one_rank.npz", "lightly.npz"):
        compared = {name for name, row in rows.items() if name.startswith(file) and row.deviation is not None}
        assert compared == {f"{file}: {case}" for case in COMPARED[file]}
    assert max(row.deviation or 0.0 for row in rows.values()) < 1e-12
    assert "no objective of ours has a captioning decoder" in rows["one_rank.npz: coca"].note


@pytest.mark.slow
def test_losses_on_two_and_three_ranks_are_within_tolerance(capsys: pytest.CaptureFixture[str]):
    rows = rows_of(RECORDED)
    for file in ("two_ranks.npz", "three_ranks.npz"):
        compared = {name for name, row in rows.items() if name.startswith(file) and row.deviation is not None}
        assert compared == {f"{file}: {case}" for case in COMPARED["ranks"]}
    assert max(row.deviation or 0.0 for row in rows.values()) < 1e-12
    assert openslip(["verify", str(RECORDED)]) == 0
    assert "21 of 21 quantities within tolerance (cpu, float64" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "key", "row"),
    [
        ("one_rank.npz", "siglip/grad/logit_bias", "one_rank.npz: siglip"),
        ("one_rank.npz", "clip/loss", "one_rank.npz: clip"),
        ("one_rank.npz", "bigvision/grad/text", "one_rank.npz: bigvision"),
        ("lightly.npz", "ntxent/grad/x1", "lightly.npz: ntxent"),
    ],
)
def test_a_recording_that_differs_by_a_millionth_is_out_of_tolerance(tmp_path: Path, file: str, key: str, row: str):
    folder = one_process(tmp_path / "folder")
    changed(folder / file, key, lambda array: array * (1 + 1e-6))
    rows = rows_of(folder)
    assert [name for name, each in rows.items() if not each.ok] == [row]


def open_clip_folder(folder: Path, batch: int, dim: int, log_scale: float, bias: float) -> None:
    """A folder of other sizes and settings: SigLIP and CLIP of open_clip, a loss that nobody knows, and no ranks."""
    generator = torch.Generator().manual_seed(3)
    unit = [F.normalize(torch.randn(batch, dim, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2)]
    arrays = {"in/image": unit[0].numpy(), "in/text": unit[1].numpy(), "mystery/loss": np.array(1.0)}
    for case, loss in (("siglip", open_clip.loss.SigLipLoss()), ("clip", open_clip.loss.ClipLoss())):
        image, text = (x.clone().requires_grad_() for x in unit)
        scale, shift = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (log_scale, bias))
        value = loss(image, text, scale.exp(), *((shift,) if case == "siglip" else ()))
        assert isinstance(value, Tensor)
        value.backward()
        named = {"image": image, "text": text, "logit_scale_log": scale, "logit_bias": shift}
        arrays[f"{case}/loss"] = value.detach().numpy()
        arrays |= {f"{case}/grad/{name}": x.grad.numpy() for name, x in named.items() if x.grad is not None}
    folder.mkdir()
    np.savez(folder / "one_rank.npz", allow_pickle=False, **arrays)
    (folder / "meta.json").write_text(json.dumps({"dims": {"log_scale": log_scale, "bias": bias, "note": "text"}}))


@pytest.mark.parametrize(("batch", "dim", "log_scale", "bias"), [(1, 3, 0.0, 0.0), (600, 5, 3.0, -2.5)])
def test_sizes_and_settings_are_those_of_the_folder(
    tmp_path: Path, batch: int, dim: int, log_scale: float, bias: float
):
    open_clip_folder(tmp_path / "folder", batch, dim, log_scale, bias)
    rows = rows_of(tmp_path / "folder")
    assert {name for name, row in rows.items() if row.deviation is not None} == {
        "one_rank.npz: siglip",
        "one_rank.npz: clip",
    }
    assert all(row.ok for row in rows.values())
    assert rows["one_rank.npz: mystery"].note == "openslip verify knows no quantity of this name"


def test_a_folder_without_settings_or_losses_is_refused(tmp_path: Path):
    folder = one_process(tmp_path / "folder")
    (folder / "one_rank.npz").unlink()
    with np.load(folder / "lightly.npz") as file:
        others = {key: array for key, array in file.items() if not key.startswith(("ntxent", "simsiam", "nnclr"))}
    np.savez(folder / "lightly.npz", allow_pickle=False, **others)
    with pytest.raises(UserError, match="hold no loss that can be compared"):
        rows_of(folder)
    (folder / "meta.json").write_text("{}")
    with pytest.raises(UserError, match=r"meta\.json has no `dims` of numbers"):
        rows_of(folder)


def test_a_damaged_file_does_not_hide_the_others(tmp_path: Path):
    folder = one_process(tmp_path / "folder")
    (folder / "one_rank.npz").write_bytes(b"nothing")
    rows = rows_of(folder)
    assert [name for name, row in rows.items() if not row.ok] == ["one_rank.npz"]
    assert rows["lightly.npz: ntxent"].ok
