"""Mistakes in the words of `openslip reproduce`, and folders that are no run's."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ladder_runs import CONFIG, write_run

from openslip import signals
from openslip.__main__ import run
from openslip.commands import reproduce, train


@pytest.fixture
def curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of curves, with three recorded seeds."""
    monkeypatch.setattr(reproduce, "curves_folder", lambda: tmp_path / "curves")
    monkeypatch.setattr(reproduce, "config_of", lambda settings: deepcopy(CONFIG))
    runs = [write_run(tmp_path / "seeds" / str(seed), seed, top1=78.0 + seed) for seed in range(3)]
    assert run(["reproduce", "shapes", "--record", *map(str, runs)]) == 0
    return tmp_path / "curves"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["shape"], "shape is neither a run nor a rung; did you mean shapes? (`openslip reproduce` lists all)"),
        (["z"], "z is neither a run nor a rung; expected shapes, laptop_lit, laptop_scratch, one_gpu, yfcc15m, or a"),
        (["one_gpu", "seed=1"], "one_gpu is a rung: give one of its runs, cc3m_clip_vitb16_40ep, cc3m_slip_vitb16"),
        (["a", "seed=1"], "a is a rung: give one of its runs, shapes\n"),
        (["--weights", "x"], "--weights and --imagenet belong to `openslip reproduce published`"),
        (["--run", "x"], "--run and --record need the name of a run of the ladder"),
        (["seed=3"], "seed=3: give the NAME of a run before its settings"),
        (["laptop_clip", "laptop_slip"], "laptop_slip: expected one NAME, and then settings KEY=VALUE"),
        (["shapes", "seed=1", "--run", "x"], "seed=1: settings are for training a run; leave them out"),
        (["shapes", "--run", "nowhere"], "nowhere: no such folder; give the folder of a run"),
        (["shapes", "--run", "x", "--record", "y"], "--run compares a run and --record stores some: give one"),
        (["published", "seed=1"], "seed=1: `published` takes no settings but again=true, which computes"),
        (["published"], "needs --weights DIR and --imagenet DIR"),
        (["published", "--imagenet", "x"], "needs --weights DIR\n"),
    ],
)
def test_mistakes_are_named(words: list[str], said: str, curves: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["reproduce", *words]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "command"),
    [("shapes", "openslip train debug=fast"), ("laptop_clip", "openslip train experiment=laptop_clip debug=fast")],
)
def test_a_short_run_is_refused_before_it_is_trained(
    name: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def trained(*_: Any) -> None:
        raise AssertionError("a run is trained")

    monkeypatch.setattr(signals, "catch", lambda: None)
    monkeypatch.setattr(train, "main", trained)
    assert run(["reproduce", name, "seed=3", "debug=fast"]) == 1
    error = capsys.readouterr().err
    assert f"debug=fast makes another, shorter run, which cannot be compared with {name}: leave it out" in error
    assert f"`{command}`" in error


def test_a_folder_of_runs_and_a_file_of_a_run_are_told_from_a_run(
    tmp_path: Path, curves: Path, capsys: pytest.CaptureFixture[str]
):
    for place, said in (
        (tmp_path / "seeds", "seeds has no config.yaml; it holds the runs 0, 1, 2: give the folder of a run"),
        (tmp_path / "seeds/0/config.yaml", "config.yaml: is a file; give the folder of a run, runs/NAME"),
        (curves, "curves has no config.yaml: give the folder of a run, runs/NAME"),
    ):
        assert run(["reproduce", "shapes", "--run", str(place)]) == 1
        assert said in capsys.readouterr().err


def test_a_run_without_anything_to_compare_with_is_not_called_the_same(
    tmp_path: Path, curves: Path, capsys: pytest.CaptureFixture[str]
):
    (curves / "shapes.csv").unlink()
    assert run(["reproduce", "shapes", "--run", str(tmp_path / "seeds/0")]) == 1
    assert "nothing is stored of shapes to compare" in capsys.readouterr().err


def test_damaged_metrics_are_named(tmp_path: Path, curves: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "seeds/0/metrics.csv").write_text("damaged\n1\n")
    assert run(["reproduce", "shapes", "--run", str(tmp_path / "seeds/0")]) == 1
    assert "metrics.csv cannot be read (it has no column step)" in capsys.readouterr().err


def test_a_damaged_recording_is_named(tmp_path: Path, curves: Path, capsys: pytest.CaptureFixture[str]):
    (curves / "shapes.yaml").write_text(yaml.safe_dump({"runs": []}))
    assert run(["reproduce", "shapes", "--run", str(tmp_path / "seeds/0")]) == 1
    assert "shapes.csv and its .yaml cannot be read" in capsys.readouterr().err
