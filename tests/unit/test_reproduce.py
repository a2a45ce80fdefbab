"""`openslip reproduce`: the ladder, recording runs, and which differences of a run it reports."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ladder_runs import CONFIG, STEPS, draw_columns, write_run

from openslip import signals
from openslip.__main__ import run
from openslip.commands import reproduce, train
from openslip.config.build import settled
from openslip.config.compose import compose_config
from openslip.config.folder import config_folder
from openslip.reproduce.comparison import LIMIT, compare, curve_rows
from openslip.reproduce.curves import Recorded, curves_folder, final, read_recorded
from openslip.reproduce.finished import Finished, config_differences, read_run
from openslip.reproduce.ladder import cost
from openslip.reproduce.rungs import Entry, Figure, find, ladder, read

Folder = Callable[..., Path]
ENTRIES = [entry for rung in ladder() for entry in rung.entries.values()]
SHAPES = find("shapes", ladder())[1]
TOP1 = "eval/builtin/top1"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Writes a run."""

    def write(seed: int, *changes: Any, **options: Any) -> Path:
        return write_run(tmp_path / "runs" / str(len([*tmp_path.glob("runs/*")])), seed, *changes, **options)

    return write


@pytest.fixture
def curves(tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of curves, with three recorded seeds."""
    monkeypatch.setattr(reproduce, "curves_folder", lambda: tmp_path / "curves")
    monkeypatch.setattr(reproduce, "config_of", lambda settings: deepcopy(CONFIG))
    assert run(["reproduce", "shapes", "--record", *(str(folder(seed, top1=78.0 + seed)) for seed in range(3))]) == 0
    return tmp_path / "curves"


def compared(place: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code and what is printed."""
    capsys.readouterr()
    code = run(["reproduce", "shapes", "--run", str(place)])
    return code, capsys.readouterr().out


def test_the_ladder_fits_80_columns_and_names_every_run_without_importing_torch():
    code = (
        "import sys; from openslip.__main__ import run; assert run(['reproduce']) == 0; "
        "assert not {'torch', 'numpy', 'hydra', 'pytorch_lightning'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0] for line in lines if re.match(" {4}[a-z]+[0-9a-z]*_?\\w* ", line)}
    assert {entry.name for entry in ENTRIES} <= rows
    assert "yfcc15m_slip_vitb16_100ep  45.0 published          428 h est.   not run" in done.stdout
    assert {f"({rung.letter}) {rung.name}:" for rung in ladder()} == {*re.findall(r"^\(\w\) \w+:", done.stdout, re.M)}
    for row in (
        "    top1_unseen: top-1 on drawings of unseen names (chance 6.7)\n",
        "    laptop_lit                                         0.6 min      3 seeds\n      top1_seen        ",
        "      top1_seen                47.0 (46.5 to 47.6)\n",
        "\n      top1_unseen              20.4 (18.5 to 23.7)\n",
        "    top1: linear probe on ImageNet (chance 0.1)\n",
    ):
        assert row in done.stdout


def test_the_lowest_rung_comes_first():
    assert [rung.name for rung in ladder()] == ["shapes", "laptop_lit", "laptop_scratch", "one_gpu", "yfcc15m"]


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])
def test_a_published_figure_is_that_of_the_experiments_header(entry: Entry):
    names = [setting.partition("=")[2] for setting in entry.settings if setting.startswith("experiment=")]
    for name in names:
        text = (config_folder() / "experiment" / f"{name}.yaml").read_text()
        kind = {"zero_shot": "zero-shot", "linear": "linear probe"}[entry.accuracy]
        if entry.published:
            assert f"{kind} {entry.published_figure()} %" in text
            assert entry.best == ("of the best epoch" in text)
            continue
        chances = {float(chance) for chance in re.findall(r"chance ([\d.]+) %", text)}
        assert {figure.chance for figure in entry.figures.values()} == chances
    assert all(figure.images > 0 for figure in entry.figures.values())


def test_published_runs_of_the_paper_are_all_there():
    assert {name for name in (e.published for e in ENTRIES) if name} == {
        *("clip_small_25ep", "clip_base_25ep", "clip_large_25ep"),
        *("simclr_small_25ep", "simclr_base_25ep", "simclr_large_25ep"),
        *(f"slip_{size}_{epochs}ep" for size in ("small", "base", "large") for epochs in (25, 50, 100)),
        *("clip_base_cc3m_40ep", "slip_base_cc3m_40ep"),
    }


def test_one_file_adds_a_rung(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "# My own run.\nletter: f\nneeds: nothing\nmachine: mine\nruns:\n"
        "  mine: {settings: [seed=1], figures: {eval/a/top1: {what: accuracy, images: 10}}}\n"
    )
    rung = read(file)
    assert (rung.name, rung.meaning, [*rung.entries]) == ("mine", "My own run.", ["mine"])
    file.write_text("letter: f\n")
    assert run(["reproduce", "min"]) == 1
    with pytest.raises(Exception, match=r"mine.yaml: has the keys \['letter'\], expected"):
        read(file)


def test_stored_curves_are_those_of_the_present_recipe():
    config = settled(compose_config("train", [])[0])
    recorded = read_recorded("shapes", curves_folder())
    assert recorded is not None
    assert config_differences(recorded.config, config) == {}
    assert sorted(recorded.curves) == [0, 1, 2]
    assert {max(columns["train/loss"]) for columns in recorded.curves.values()} == {STEPS}


def test_every_stored_curve_belongs_to_a_run_of_the_ladder_and_has_its_figures():
    for file in curves_folder().glob("*.csv"):
        recorded = read_recorded(file.stem, file.parent)
        entry = find(file.stem, ladder())[1]
        assert recorded is not None
        assert entry is not None
        assert all(len(recorded.figures(entry, column)) == len(recorded.curves) >= 3 for column in entry.figures)
        assert len(recorded.runs) == len(recorded.curves)


def test_recorded_runs_are_read_as_they_were_logged(curves: Path, folder: Folder):
    assert SHAPES is not None
    recorded = read_recorded("shapes", curves)
    assert recorded is not None
    original = read_run(folder(1, top1=79.0), SHAPES).columns
    assert recorded.curves[1].keys() == {"train/loss", "train/clip_loss", "train/lr", TOP1}
    for column, values in recorded.curves[1].items():
        assert values == pytest.approx(original[column], rel=1e-5)
    assert recorded.figures(SHAPES, TOP1) == [78.0, 79.0, 80.0]
    assert recorded.minutes() == 1.5
    assert recorded.runs[2] == {
        **{
            "seed": 2,
            "machine": "2 cores of CPU (threads: 1)",
            "precision": "bf16-mixed",
            "seconds": 90.0,
            "date": "2026-01-02",
        },
        **{"openslip": "0.1.0", "torch": "2.14.1", "data": "a"},
    }
    assert (
        (curves / "shapes.csv")
        .read_text()
        .startswith("seed,step,train/loss,train/clip_loss,train/lr,eval/builtin/top1\n0,1,")
    )


def test_the_ladder_shows_what_was_recorded(curves: Path, capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    assert run(["reproduce"]) == 0
    assert "    shapes                     79.0 (78.0 to 80.0)     1.5 min      3 seeds\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "said"), [((60, 120), "1.5 min"), ((5340, 5340), "89.0 min"), ((3600, 10_800), "2.0 h")]
)
def test_a_recorded_time_is_the_mean_of_the_seeds(seconds: tuple[float, ...], said: str):
    recorded = Recorded({}, {}, [{"seconds": value} for value in seconds])
    assert cost(ENTRIES[0], recorded) == said


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (None, "2 runs given, expected 3 or more"),
        ({"seed": 1}, "has the seed 1 of another run"),
        ({"seed": 2, "steps": 1000}, "is at step 1000 and not finished"),
        ({"seed": 2, "top1": None}, f"has no {TOP1} in its metrics.csv"),
        ({"seed": 2, "changes": {"optim.lr": 4e-4}}, "is not a run of shapes: optim.lr: 0.0004, expected 0.0008"),
        ({"seed": 2, "changes": {"trainer.max_steps": 900}}, "trainer.max_steps: 900, expected 1100"),
    ],
)
def test_only_finished_runs_of_the_recipe_are_recorded(
    last: dict[str, Any] | None, said: str, folder: Folder, curves: Path, capsys: pytest.CaptureFixture[str]
):
    before = (curves / "shapes.csv").read_bytes()
    runs = [folder(0), folder(1), *([] if last is None else [folder(**last)])]
    assert run(["reproduce", "shapes", "--record", *map(str, runs)]) == 1
    assert said in capsys.readouterr().err
    assert (curves / "shapes.csv").read_bytes() == before


def test_few_runs_of_another_seed_deviate(curves: Path):
    recorded = read_recorded("shapes", curves)
    assert SHAPES is not None
    deviations = 0
    for seed in range(10, 310):
        columns = draw_columns(seed, loss=1.0, noise=0.1, steps=STEPS, every=10)
        columns[TOP1] = {STEPS: 79 + float(np.random.default_rng(seed).standard_normal())}
        deviations += compare(Finished(curves, CONFIG, columns, True), SHAPES, CONFIG, recorded).deviates
    assert deviations <= 15  # the limit is that of 95 %


@pytest.mark.parametrize(
    ("options", "said"),
    [({"loss": 1.3}, "train/loss"), ({"loss": 0.7}, "train/clip_loss"), ({"top1": 70.0}, TOP1), ({"top1": 88.0}, TOP1)],
)
def test_a_loss_or_a_figure_outside_the_spread_deviates(
    options: dict[str, float], said: str, curves: Path, folder: Folder, capsys: pytest.CaptureFixture[str]
):
    code, printed = compared(folder(5, **options), capsys)
    assert (code, printed.splitlines()[-1]) == (1, "deviates")
    assert re.search(rf"^  {said} .* DEVIATES$", printed, re.MULTILINE)
    assert max(map(len, printed.splitlines()[2:])) <= 80


def test_a_small_difference_that_lasts_deviates():
    def columns(seed: int, factor: float) -> dict[str, dict[int, float]]:
        loss = draw_columns(seed, loss=1.0, noise=0.1, steps=STEPS, every=10)["train/loss"]
        return {"train/loss": {step: factor * value for step, value in loss.items()}}

    stored = {seed: columns(seed, 1.0) for seed in range(3)}
    for factor, deviates in ((1.0, False), (0.93, True), (1.07, True)):
        rows = [curve_rows(columns(seed, factor), stored)[0] for seed in range(10, 20)]
        assert sum(row.deviates for row in rows) == 10 * deviates
    assert {row.where for row in rows} == {"all steps together"}


def test_a_difference_in_one_part_of_a_run_deviates_and_is_located():
    curves = {seed: draw_columns(seed, loss=1.0, noise=0.1, steps=STEPS, every=10) for seed in range(4)}
    loss = curves[3]["train/loss"]
    (row, *_) = curve_rows({"train/loss": loss}, {seed: curves[seed] for seed in range(3)})
    assert not row.deviates
    changed = {step: value * (1.3 if 770 < step <= 880 else 1.0) for step, value in loss.items()}
    (row, *_) = curve_rows({"train/loss": changed}, {seed: curves[seed] for seed in range(3)})
    assert (row.deviates, row.where) == (True, "steps 771 to 880")


def test_another_setting_deviates_and_is_named(curves: Path, folder: Folder, capsys: pytest.CaptureFixture[str]):
    changes = {"optim.lr": 4e-4, "data.source.shuffle_captions": True, "towers.text.weights": "/elsewhere/others.txt"}
    code, printed = compared(folder(5, changes), capsys)
    assert code == 1
    assert "another setting: towers.text.weights: /elsewhere/others.txt, expected" in printed
    assert "another setting: optim.lr: 0.0004, expected 0.0008" in printed
    assert "another setting: data.source.shuffle_captions: True, expected False" in printed
    assert "DEVIATES" not in printed


def test_of_many_other_settings_some_are_printed(curves: Path, folder: Folder, capsys: pytest.CaptureFixture[str]):
    code, printed = compared(folder(5, {"model": {f"key{number}": number for number in range(12)}}), capsys)
    assert code == 1
    assert printed.count("another setting: ") == 8
    assert "  and 5 more settings\n" in printed


def test_hardware_and_places_may_differ(curves: Path, folder: Folder, capsys: pytest.CaptureFixture[str]):
    changes = {
        "trainer.precision": "32-true",
        "data.source.root": "/elsewhere",
        "towers.text.weights": "/elsewhere/vectors.txt",
        "micro_batch_size": 16,
    }
    start = {"precision": "32-true", "data": {"fingerprint": "b"}}
    code, printed = compared(folder(5, changes, start=start), capsys)
    assert code == 0
    assert "precision: 32-true, of the stored runs bf16-mixed" in printed
    assert "fingerprint of the data: b, of the stored runs a" in printed


def test_seeds_that_agree_do_not_turn_rounding_into_a_deviation(
    folder: Folder, curves: Path, capsys: pytest.CaptureFixture[str]
):
    runs = [folder(seed, noise=0.0) for seed in range(3)]
    assert run(["reproduce", "shapes", "--record", *map(str, runs)]) == 0
    assert compared(folder(5, noise=0.0, loss=1.001, top1=81.0), capsys)[0] == 0
    assert compared(folder(5, noise=0.0, loss=1.2), capsys)[0] == 1


def test_a_term_that_is_switched_off_does_not_deviate():
    zero = {"train/kl_loss": dict.fromkeys(range(1, 101), 0.0)}
    (row,) = curve_rows(zero, dict.fromkeys(range(3), zero))
    assert not row.deviates
    (row,) = curve_rows({"train/kl_loss": dict.fromkeys(range(1, 101), 0.1)}, dict.fromkeys(range(3), zero))
    assert row.deviates


def test_an_unfinished_run_is_compared_as_far_as_it_is(
    curves: Path, folder: Folder, capsys: pytest.CaptureFixture[str]
):
    code, printed = compared(folder(5, steps=470), capsys)
    assert (code, printed.splitlines()[-1]) == (0, "no deviation so far; the run is at step 470 and not finished")
    code, printed = compared(folder(5, steps=470, loss=2.0), capsys)
    assert code == 1
    assert re.search(
        r"largest difference: (steps (331 to 440|\d+ to (110|220|330))|all steps together)$", printed, re.M
    )


def test_the_beginning_of_a_window_is_not_compared(curves: Path, folder: Folder, capsys: pytest.CaptureFixture[str]):
    for steps, code in ((220, 0), (250, 0), (330, 1)):
        place = folder(5, steps=steps)
        text = (place / "metrics.csv").read_text().splitlines()
        changed = [
            line if int(line.split(",")[0]) <= 220 else re.sub(",.*?,", ",99,", line, count=1) for line in text[1:]
        ]
        (place / "metrics.csv").write_text("\n".join([text[0], *changed]))
        assert compared(place, capsys)[0] == code
    assert run(["reproduce", "shapes", "--run", str(folder(5, steps=100))]) == 1
    assert "is logged up to step 100, and a tenth of its steps is compared first" in capsys.readouterr().err


def test_the_last_evaluation_counts_or_the_best_where_that_was_published():
    columns = {TOP1: {100: 70.0, 200: 90.0, 300: 80.0}}
    assert [final(columns, TOP1, best=best) for best in (False, True)] == [80.0, 90.0]
    assert final(columns, "eval/other", best=True) is None


def test_a_finished_run_without_its_figure_deviates(curves: Path, folder: Folder, capsys: pytest.CaptureFixture[str]):
    code, printed = compared(folder(5, top1=None), capsys)
    assert code == 1
    assert f"missing: {TOP1}" in printed


def test_another_interval_of_logging_changes_no_verdict(
    curves: Path, folder: Folder, capsys: pytest.CaptureFixture[str]
):
    assert compared(folder(5, every=50), capsys)[0] == 0
    assert compared(folder(5, every=5), capsys)[0] == 0
    assert compared(folder(5, every=50, loss=1.5), capsys)[0] == 1


def test_a_published_figure_is_compared_without_curves(folder: Folder):
    entry = Entry("a", (), {TOP1: Figure("accuracy", 50_000)}, best=True, published="clip_base_cc3m_40ep")
    for top1, deviates in ((17.1, False), (17.9, False), (16.2, False), (18.3, True), (10.0, True)):
        comparison = compare(read_run(folder(3, top1=top1), entry), entry, CONFIG, None)
        (row,) = comparison.rows
        assert (row.expected, row.deviates) == (17.1, deviates)
        assert row.deviates == (abs(row.difference) > LIMIT)


def test_a_rung_shows_the_plan_and_the_command_of_each_run(capsys: pytest.CaptureFixture[str]):
    assert run(["reproduce", "one_gpu"]) == 0
    printed = capsys.readouterr().out
    assert run(["reproduce", "d"]) == 0
    assert capsys.readouterr().out == printed
    for method, figure in (("clip", 17.1), ("slip", 23.0)):
        settings = f"experiment=cc3m_{method}_vitb16_40ep evaluation.imagenet.every_n_epochs=1"
        assert f"    openslip plan {settings}\n    openslip train {settings}\n" in printed
        assert f"    openslip reproduce cc3m_{method}_vitb16_40ep --run RUN\n" in printed
        assert f"{figure} published (best)" in printed


@pytest.mark.parametrize(("loss", "code"), [(1.0, 0), (1.5, 1)])
def test_a_run_is_trained_in_a_folder_of_its_seed_and_then_compared(
    loss: float, code: int, curves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words = trained_words(tmp_path, monkeypatch, "shapes_seed5", loss=loss)
    assert run(["reproduce", "shapes", "seed=5"]) == code
    assert words == ["seed=5", "name=shapes_seed5"]


@pytest.mark.parametrize(
    ("given", "name", "settings"),
    [
        (["name=null"], "shapes_seed5", []),
        (["seed=5", "name=mine"], "mine", ["seed=5"]),
        (["~callbacks.snapshot", "debug=null"], "shapes_seed5", ["~callbacks.snapshot", "debug=null"]),
    ],
)
def test_the_run_that_is_trained_is_the_one_that_is_compared(
    given: list[str],
    name: str,
    settings: list[str],
    curves: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    words = trained_words(tmp_path, monkeypatch, name)
    assert run(["reproduce", "shapes", *given]) == 0
    assert words == [*settings, f"name={name}"]
    said = capsys.readouterr().out
    assert f"runs: {shlex.join(['openslip', 'train', *words])}\n" in said
    assert f"{tmp_path / 'trained' / name} beside the 3 stored seeds" in said


def trained_words(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, *, loss: float = 1.0) -> list[str]:
    """Let a training write a finished run of a name; the list gets the words that it was given."""
    given: list[str] = []
    config = {**CONFIG, "seed": 5, "name": name if name == "mine" else None, "runs_dir": str(folder / "trained")}
    monkeypatch.setattr(reproduce, "config_of", lambda settings: config)
    monkeypatch.setattr(signals, "catch", lambda: None)

    def trained(arguments: list[str]) -> None:
        given.extend(arguments)
        write_run(folder / "trained" / name, 5, loss=loss)

    monkeypatch.setattr(train, "main", trained)
    return given
