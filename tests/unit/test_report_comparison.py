"""The page that compares made-up runs: what it shows, what it refuses, and what it leaves as it is."""

import html
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

from openslip.__main__ import run as openslip
from openslip.errors import UserError
from openslip.report import write_report
from openslip.report.comparison import write_comparison
from openslip.report.differences import differences

BASE = {
    "name": "any",
    "runs_dir": "runs",
    "seed": 0,
    "image_size": 32,
    "optim": {"lr": 0.1, "schedule": {"lr": 0.1}},
    "objective": {"_target_": "openslip.objectives.clip.CLIP"},
    "data": {"num_workers": 2},
}


def a_run(folder: Path, *, scale: float = 1.0, batch: int = 64, steps: int = 100, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**BASE, "name": folder.name, **changes}))
    lines = ["step,samples_seen,train/loss,train/clip_loss,train/skipped,eval/mine/top1,eval/mine/chance"]
    for step in range(1, steps + 1):
        loss = scale * (1 + 3 / step)
        lines.append(f"{step},{step * batch},{loss},{loss},0,,")
    lines += [f"{step},,,,,{scale * step / 2},10" for step in (steps // 2, steps)]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def text_of(page: Path) -> str:
    """The page's text, with a bar between table cells."""
    source = re.sub(r"</t[dhr]>", "|", page.read_text())
    return html.unescape(re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]*>", "", source, flags=re.DOTALL))


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    first = a_run(tmp_path / "runs" / "first")
    second = a_run(tmp_path / "runs" / "second", scale=0.8, batch=128, seed=7, data={"num_workers": 5})
    return [first, second]


def test_settings_metrics_and_provenance_stand_side_by_side(pair: list[Path], tmp_path: Path):
    start = {"precision": "32-true", "commit": "ab" * 20, "dates": ["2026-01-02T03:04:05+00:00"]}
    (pair[0] / "env.json").write_text(json.dumps({"starts": [start], "training_seconds": 3725.0}))
    text = text_of(write_comparison(pair, tmp_path / "comparison.html"))
    assert "seed|0|7|" in text
    assert "data.num_workers|2|5|" in text
    assert "image_size" not in text
    assert "name|" not in text
    assert "mine: top-1|50.0 %|40.0 %|" in text
    assert "loss|1.03|0.824|" in text
    assert "first|CLIP|100|6,400|32-true|1 h 2 min|abababababab|2026-01-02 03:04 UTC|" in text
    assert "second|CLIP|100|12,800|||||" in text


def test_the_speed_of_a_run_is_its_median(pair: list[Path], tmp_path: Path):
    for number, run in enumerate(pair, 1):
        speeds = [f"{step},{64 * step},{speed}" for step, speed in enumerate((10, 300 * number, 500 * number), 1)]
        (run / "metrics.csv").write_text("\n".join(["step,samples_seen,speed/samples_per_second", *speeds]) + "\n")
    text = text_of(write_comparison(pair, tmp_path / "comparison.html"))
    assert "samples per second, median|300|600|" in text


def test_each_changing_metric_is_one_chart_with_a_line_per_run(pair: list[Path], tmp_path: Path):
    page = write_comparison(pair, tmp_path / "comparison.html").read_text()
    labels = re.findall(r'aria-label="([^"]*)"', page)
    assert labels == [
        "Loss: first ends at 1.03; second ends at 0.824",
        "mine: top-1: first ends at 50; second ends at 40",
    ], "neither the loss under its second name nor the constant metrics"
    for drawing in re.findall(r"<figure.*?</figure>", page, flags=re.DOTALL):
        assert re.findall(r"stroke: var\(--(s\d)\); stroke-width: 1.8", drawing) == ["s1", "s2"]
        assert re.findall(r'--c:var\(--(s\d)\)"></i>(\w+)', drawing) == [("s1", "first"), ("s2", "second")]


def test_metrics_of_evaluations_that_are_equal_in_all_runs_are_all_drawn(pair: list[Path], tmp_path: Path):
    for number, run in enumerate(pair, 1):
        lines = [f"{step},{64 * step},{step * number},{step * number}" for step in (1, 2)]
        (run / "metrics.csv").write_text("\n".join(["step,samples_seen,eval/a/top1,eval/b/top1", *lines]) + "\n")
    labels = re.findall(r'aria-label="([^"]*)"', write_comparison(pair, tmp_path / "comparison.html").read_text())
    assert labels == ["a: top-1: first ends at 2; second ends at 4", "b: top-1: first ends at 2; second ends at 4"]


def test_a_run_that_lacks_a_metric_changes_no_colours(pair: list[Path], tmp_path: Path):
    (pair[0] / "metrics.csv").write_text("step,samples_seen,train/loss\n1,64,3\n2,128,2\n")
    page = write_comparison(pair, tmp_path / "comparison.html").read_text()
    accuracy = re.findall(r"<figure.*?</figure>", page, flags=re.DOTALL)[-1]
    assert "mine: top-1" in accuracy
    assert re.findall(r'--c:var\(--(s\d)\)"></i>(\w+)', accuracy) == [("s2", "second")]
    assert "mine: top-1|\N{EN DASH}|40.0 %|" in text_of(tmp_path / "comparison.html")


def test_more_runs_than_colours_differ_by_dashes(tmp_path: Path):
    runs = [a_run(tmp_path / f"run{number}", scale=1 + number, steps=4) for number in range(8)]
    page = write_comparison(runs, tmp_path / "comparison.html").read_text()
    loss = re.findall(r"<figure.*?</figure>", page, flags=re.DOTALL)[0]
    swatches = re.findall(r'swatch (dash\d)" style="--c:var\(--(s\d)\)', loss)
    assert len(set(swatches)) == 8
    assert loss.count("stroke-dasharray") == 2


def test_links_lead_from_the_page_to_each_report(pair: list[Path], tmp_path: Path):
    write_report(pair[0])
    (tmp_path / "pages").mkdir()
    path = write_comparison(pair, tmp_path / "pages" / "a.html")
    links = [unquote(link) for link in re.findall(r'<a href="([^#"]*)"', path.read_text())]
    assert links == ["../runs/first/report.html"], "the second run has no report yet"
    assert (path.parent / links[0]).is_file()
    assert f"openslip report {pair[1]} writes its page" in path.read_text()


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path):
    runs = [a_run(tmp_path / place / "same", seed=seed) for seed, place in enumerate(("a", "b"))]
    text = text_of(write_comparison(runs, tmp_path / "comparison.html"))
    assert f"setting|{runs[0]}|{runs[1]}|" in text


def test_the_command_writes_into_the_current_folder_or_to_its_output(
    pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    words = ["report", *map(str, pair)]
    assert openslip(words) == 0
    assert capsys.readouterr().out == "comparison.html\n"
    page = (tmp_path / "comparison.html").read_text()
    assert openslip([*words, "--output", "other.html"]) == 0
    assert (tmp_path / "other.html").read_text() == page
    assert openslip(words) == 0, "an earlier page is replaced"
    assert openslip(["report", str(pair[0]), "--output", "other.html"]) == 1
    assert "one run's page is RUN/report.html" in capsys.readouterr().err
    assert not (pair[0] / "report.html").exists()


def test_a_folder_that_is_no_run_is_named_and_nothing_is_written(pair: list[Path], tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: not a run's folder, it has neither metrics\.csv nor config\.yaml"):
        write_comparison([*pair, tmp_path / "empty"], tmp_path / "comparison.html")
    with pytest.raises(UserError, match="first is given 2 times"):
        write_comparison([*pair, pair[0] / ".." / "first"], tmp_path / "comparison.html")
    assert not (tmp_path / "comparison.html").exists()


def test_another_file_is_never_replaced(pair: list[Path], tmp_path: Path):
    (tmp_path / "notes.html").write_text("<p>mine</p>")
    with pytest.raises(UserError, match=r"notes\.html exists and is no comparison of runs: choose another"):
        write_comparison(pair, tmp_path / "notes.html")
    assert (tmp_path / "notes.html").read_text() == "<p>mine</p>"
    with pytest.raises(UserError, match=r"runs could not be written .*choose another --output"):
        write_comparison(pair, tmp_path / "runs")


def test_the_report_of_a_compared_run_is_never_replaced(pair: list[Path], tmp_path: Path):
    report = write_report(pair[0])
    before = report.read_bytes()
    reason = r"report\.html is the report of the run .*first: choose another --output"
    with pytest.raises(UserError, match=reason):
        write_comparison(pair, pair[1] / ".." / "first" / "report.html")
    (tmp_path / "link.html").symlink_to(report)
    with pytest.raises(UserError, match=r"link\.html is the report of the run .*first: choose another --output"):
        write_comparison(pair, tmp_path / "link.html")
    assert report.read_bytes() == before
    with pytest.raises(UserError, match=r"report\.html is the report of the run .*second: choose another --output"):
        write_comparison(pair, pair[1] / "report.html")
    assert not (pair[1] / "report.html").exists()


def test_a_page_that_fails_half_way_leaves_the_earlier_one(
    pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_comparison(pair, tmp_path / "comparison.html")
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"comparison\.html could not be written \(No space left on device"):
        write_comparison(pair[::-1], path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_keys_with_the_same_values_share_a_row_and_those_of_the_identity_come_first():
    first = {"a": 1, "optim": {"lr": 0.1, "schedule": {"lr": 0.1}}, "views": {"x": {"_target_": "m.Crop", "size": 3}}}
    second = {"a": 2, "optim": {"lr": 0.2, "schedule": {"lr": 0.2}}, "views": {"x": None}}
    assert differences([first, second, {**second, "name": "third"}]) == [
        (["optim.lr", "optim.schedule.lr"], ("0.1", "0.2", "0.2")),
        (["a"], ("1", "2", "2")),
        (["views.x"], ("Crop", "null", "null")),
    ]
    assert differences([first, {**first, "runs_dir": "elsewhere"}]) == []
    assert differences([{"b": [1]}, {}]) == [(["b"], ("[1]", "\N{EN DASH}"))]


def test_a_block_that_a_run_lacks_hides_no_differences_inside_it():
    dash = "\N{EN DASH}"

    def slip(temperature: float) -> dict[str, Any]:
        return {"objective": {"ssl": {"_target_": "m.SimCLR", "t": temperature, "dim": 256}}}

    assert differences([slip(0.1), slip(0.5), {"objective": {}}]) == [
        (["objective.ssl"], ("SimCLR", "SimCLR", dash)),
        (["objective.ssl.t"], ("0.1", "0.5", dash)),
    ]
    assert differences([{"objective": {"ssl": None}}, slip(0.1), {"objective": {}}, slip(0.5)]) == [
        (["objective.ssl"], ("null", "SimCLR", dash, "SimCLR")),
        (["objective.ssl.t"], (dash, "0.1", dash, "0.5")),
    ]


def test_equal_settings_and_missing_configs_are_said(pair: list[Path], tmp_path: Path):
    (pair[1] / "config.yaml").unlink()
    text = text_of(write_comparison(pair, tmp_path / "comparison.html"))
    assert "Settings that differ: second has no readable config.yaml." in text
    same = a_run(tmp_path / "same")
    text = text_of(write_comparison([pair[0], same], tmp_path / "comparison.html"))
    assert "Settings that differ: all settings are equal, except name and runs_dir." in text


def test_names_and_values_are_escaped(tmp_path: Path):
    evil = "<script>alert(1)</script>"
    first, second = a_run(tmp_path / "a<b>", note=evil), a_run(tmp_path / "c&d", note="plain")
    page = write_comparison([first, second], tmp_path / "comparison.html").read_text()
    assert "<script" not in page
    assert "<b>" not in page.partition("</style>")[2]
    assert html.escape(evil) in page


def test_values_of_runs_with_other_batches_are_shown_where_they_lie(tmp_path: Path):
    runs = [a_run(tmp_path / "a", batch=64, steps=2), a_run(tmp_path / "b", batch=640, steps=2)]
    page = write_comparison(runs, tmp_path / "comparison.html").read_text()
    titles = re.findall(r"<title>([^<]*)</title>", page.partition("</header>")[2].partition("</svg>")[0])
    assert titles == [
        "64 samples seen\na: 4",
        "128 samples seen\na: 2.5",
        "640 samples seen\nb: 4",
        "1,280 samples seen\nb: 2.5",
    ]
