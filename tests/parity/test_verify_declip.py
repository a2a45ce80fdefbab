"""`openslip verify` on steps recorded from DeCLIP's repository: what agrees, and that faults are seen."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from declip_on_ranks import repeated_with
from marks import slow
from ranks import Ranks

from openslip.__main__ import run as openslip
from openslip.objectives import logit_scale
from openslip.verify import declip_towers
from openslip.verify.declip import METHODS, declip_rows, has_recordings, read_recorded, recordings_in
from openslip.verify.declip_comparison import compared
from openslip.verify.declip_steps import Recorded, repeat
from openslip.verify.declip_towers import tower_model_rows
from openslip.verify.deviation import Arrays, Row
from openslip.verify.logit_scales import logit_scale_rows

RECORDED = Path(__file__).parents[1] / "data" / "declip"
FILES = [path.stem for path in recordings_in(RECORDED)]
FEW = {"declip_one_rank", "declip_two_ranks", "defilip_aug_two_ranks", "slip_two_ranks", "filip_one_rank"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recording(file: str) -> tuple[Recorded, str]:
    path = RECORDED / f"{file}.npz"
    method = recordings_in(RECORDED)[path]
    return read_recorded(path, method), method


def results(two_ranks: Ranks, recorded: Recorded, method: str, **switches: Any) -> Arrays:
    """Results of all ranks, with other values of some of DeCLIP's switches."""
    arguments = recorded, METHODS[method], switches
    parts = [repeated_with(*arguments)] if recorded.num_ranks == 1 else two_ranks(repeated_with, *arguments)
    return {key: array for part in parts for key, array in part.items()}


def outside(rows: list[Row]) -> set[str]:
    return {row.quantity.partition(": ")[2] for row in rows if not row.ok}


def one_per_cent(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "i":
        return np.asarray(array + (np.arange(array.size).reshape(array.shape) == 0))
    return np.asarray(array * 1.01)


def test_every_recorded_method_is_compared():
    assert set(recordings_in(RECORDED).values()) == set(METHODS)
    assert len(FILES) == 10


@pytest.mark.parametrize("file", [file if file in FEW else slow(file) for file in FILES])
def test_we_compute_what_the_published_code_computed_and_one_per_cent_in_any_result_is_seen(
    two_ranks: Ranks, file: str
):
    recorded, method = recording(file)
    ours = results(two_ranks, recorded, method)
    rows = compared(file, recorded.arrays, ours)
    assert outside(rows) == set()
    not_compared = {row.quantity for row in rows if row.deviation is None}
    assert not_compared <= {f"{file}: {name}" for name in NOT_OURS}
    total = np.sqrt(sum(np.square(array).sum() for key, array in recorded.arrays.items() if "/grad/" in key))
    planted = 0
    for key, array in recorded.arrays.items():
        small = "/grad/" in key and np.linalg.norm(array) < 1e-6 * total  # biases before batch norm, for instance
        if key.startswith("step0") and key in ours and (array.any() or array.dtype.kind == "i") and not small:
            assert outside(compared(file, {key: one_per_cent(array)}, {key: ours[key]})), key
            planted += 1
    assert planted > 10


NOT_OURS = ("nt_xent_losses (logged only, in no total)", "top5", "predictor_sim.bn3 (unused)")


@pytest.mark.parametrize(
    ("file", "switch", "value", "seen"),
    [
        ("declip_two_ranks", "rank_queue", False, {"queue of neighbours", "outputs", "loss terms", "gradients"}),
        ("declip_one_rank", "queue_wraps", True, {"queue of neighbours", "outputs", "loss terms", "gradients"}),
        ("declip_two_ranks", "rank_batch_norm", False, {"batch-norm statistics", "outputs", "loss terms", "gradients"}),
        ("declip_two_ranks", "rank_masked_mean", False, {"loss terms", "gradients"}),
        ("declip_one_rank", "largest_factor", 14.0, {"outputs", "loss terms", "gradients"}),
        ("declip_one_rank", "neighbour_scale", 0.202, {"loss terms", "gradients"}),
        ("declip_one_rank", "simsiam_scale", 0.202, {"loss terms", "gradients"}),
        ("declip_one_rank", "text_epsilon", 1e-6, {"loss terms", "gradients"}),
    ],
)
def test_each_switch_of_declip_is_seen(two_ranks: Ranks, file: str, switch: str, value: Any, seen: set[str]):
    recorded, method = recording(file)
    rows = compared("declip", recorded.arrays, results(two_ranks, recorded, method, **{switch: value}))
    assert seen <= outside(rows)


@pytest.mark.parametrize("file", ["declip_one_rank", slow("slip_one_rank"), slow("defilip_aug_one_rank")])
def test_one_per_cent_in_any_input_or_weight_is_seen(file: str):
    recorded, method = recording(file)
    arrays = {key: x for key, x in recorded.arrays.items() if not key.startswith(("step1", "step2"))}
    num_changed = 0
    for key, array in arrays.items():
        is_input = ("/in/" in key or key.startswith("weights/")) and array.dtype.kind == "f"
        # The last batch norm of SLIP is not used. A feature is scaled to unit length, so its direction is changed too.
        if is_input and array.any() and "predictor_sim.bn3" not in key:
            moved = array + 0.01 * np.abs(array).max() * np.cos(np.arange(array.size)).reshape(array.shape)
            changed = Recorded(arrays | {key: np.asarray(moved)}, recorded.scales)
            assert outside(compared(file, arrays, repeat(changed, METHODS[method]))), key
            num_changed += 1
    assert num_changed > 10


def test_the_limits_of_the_temperature_are_the_published_ones(monkeypatch: pytest.MonkeyPatch):
    rows = logit_scale_rows(RECORDED)
    assert outside(rows) == set()
    compared_rules = {row.quantity for row in rows if row.deviation is not None}
    assert compared_rules == {f"logit scale: {rule}" for rule in RULES}
    factor = logit_scale.LogitScaleLimits.factor

    def with_the_derivative_of_the_clamp(self: Any, model: Any) -> Any:
        return model.logit_scale.exp().clamp(max=100.0) + 0 * factor(self, model)

    with monkeypatch.context() as patch:
        patch.setattr(logit_scale.LogitScaleLimits, "factor", with_the_derivative_of_the_clamp)
        assert outside(logit_scale_rows(RECORDED)) == set(RULES)
    with monkeypatch.context() as patch:  # limited after the step only
        patch.setattr(logit_scale.LogitScaleLimits, "factor", lambda self, model: capped(model.logit_scale.exp()))
        assert outside(logit_scale_rows(RECORDED)) == set(RULES) - {"none"}


RULES = ("none", "logit_scale_param_value", "logit_scale_param_abs_min")


def capped(factor: torch.Tensor) -> torch.Tensor:
    return factor + (factor.clamp(max=100.0) - factor).detach()


def test_declip_agrees_from_pixels_and_token_ids_to_gradients(monkeypatch: pytest.MonkeyPatch):
    rows = tower_model_rows(RECORDED)
    assert outside(rows) == set()
    assert {row.quantity.partition(": ")[2] for row in rows if row.deviation is not None} == {
        *("outputs", "loss terms", "gradients", "queue of neighbours", "towers")
    }

    def one_later(ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.from_numpy(ids)
        return tokens, (tokens.argmax(dim=1) + 2).clamp(max=tokens.shape[1])

    monkeypatch.setattr(declip_towers, "captions", one_later)
    assert {"outputs", "towers", "gradients"} <= outside(tower_model_rows(RECORDED))


def test_a_folder_that_does_not_fit_together_is_a_finding(tmp_path: Path):
    for file in ("slip_one_rank.npz", "meta.json"):
        shutil.copy(RECORDED / file, tmp_path)
    assert has_recordings(tmp_path)
    rows = declip_rows(tmp_path, "cpu", "float64")
    assert outside(rows) == set()
    assert {row.note for row in rows if row.quantity.endswith((".json", ".npz"))} == {
        *("no logit_scale.json", "no tiny_towers.npz")
    }
    meta = json.loads((tmp_path / "meta.json").read_text())
    meta["weights"]["slip"] = {"clip_loss": 1.0}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    shutil.copy(tmp_path / "slip_one_rank.npz", tmp_path / "unknown_one_rank.npz")
    (tmp_path / "filip_one_rank.npz").write_bytes(b"nothing")  # beside a file that cannot be read, others are compared
    rows = declip_rows(tmp_path, "cpu", "float64")
    assert [row.quantity for row in rows if not row.ok] == ["filip_one_rank", "slip_one_rank"]
    assert [row.note for row in rows if row.quantity == "unknown_one_rank"] == ["OpenSLIP has no such method"]


@pytest.mark.slow
def test_the_command_compares_the_whole_folder(capsys: pytest.CaptureFixture[str]):
    assert openslip(["verify", str(RECORDED)]) == 0
    printed = capsys.readouterr().out
    assert "  OUT  " not in printed
    assert "52 of 52 quantities within tolerance (cpu, float64; " in printed


def test_a_recorded_kind_that_is_not_known_is_told():
    rows = compared("slip", {"step0/momentum/rank0/x": np.ones(3), "weights/x": np.ones(3)}, {})
    assert [row.quantity for row in rows] == ["slip: momentum (a kind that is not known)"]
    assert rows[0].deviation is None
