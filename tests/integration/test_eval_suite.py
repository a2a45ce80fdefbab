"""Several evaluations of a checkpoint: files of results, resuming, missing datasets, and several ranks."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluation_suites import CLASSES, Process, start, words, write_place
from screens import attach_plain, too_wide

from openslip.__main__ import run
from openslip.data.sources.image_folder import ImageFolder
from openslip.evaluation import stored
from openslip.evaluation.suite import Suite

RESULTS = Path("runs/one/evaluations/step-000003")
NAMES = sorted(CLASSES)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_place(tmp_path_factory.mktemp("template") / "place")


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with all that a suite needs, as the current one."""
    shutil.copytree(template, tmp_path / "place", symlinks=True)
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.setenv("OPENSLIP_CACHE", str(tmp_path / "place" / "cache"))
    return tmp_path / "place"


@pytest.fixture
def evaluate(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Evaluate in this process; the exit code, and what was printed on stdout and on stderr."""

    def call(evaluations: str, *arguments: str, **options: str) -> tuple[int, str, str]:
        code = run(["eval", *words(evaluations, *arguments, **options)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def edit(name: str, **changes: Any) -> None:
    file = Path("configs/evaluation") / f"{name}.yaml"
    config = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({name: config[name] | changes}))


@pytest.mark.parametrize("width", [60, 80])
def test_no_line_is_wider_than_the_terminal(width: int, place: Path, monkeypatch: pytest.MonkeyPatch):
    terminal = attach_plain(monkeypatch, width)
    for _ in range(2):  # the second time, the first result is reused
        assert run(["eval", *words("first,missing")]) == 0
    command = "`openslip report runs/one`"
    assert [command in line for line in terminal.written.splitlines() if "openslip report" in line] == [True, True]
    for said in ("metrics: ", "again=true", "no data for 1 of 2"):
        assert said in terminal.written
    assert not too_wide(terminal.written, width)


def test_each_evaluation_has_a_file_that_says_what_was_evaluated_and_how(evaluate):
    code, printed, _ = evaluate("first,second")
    assert code == 0
    assert printed.splitlines()[-1] == f"metrics: {RESULTS}/; `openslip report runs/one` adds them to its report"
    first, second = results().values()
    assert first["metrics"]["num_samples"] == 13
    assert second["metrics"]["num_samples"] == 7
    assert {key: first[key] for key in ("evaluation", "checkpoint", "step", "samples_seen", "headline_metric")} == {
        "evaluation": "first",
        "checkpoint": "runs/one",
        "step": 3,
        "samples_seen": 24,
        "headline_metric": "top1",
    }
    assert first["config"]["templates"] == ["a {}.", "a photo of a {}."]
    assert first["headline"] in printed.splitlines()
    assert len(first["weights"]) == 64
    assert first["weights"] == second["weights"]
    assert first["data"]["source"] == second["data"]["train"] != second["data"]["test"]
    assert {path.name for path in RESULTS.iterdir()} == {"first.json", "first.npz", "second.json", "second.npz"}


@pytest.mark.parametrize(
    ("checkpoint", "folder"),
    [
        ("runs/one/checkpoints/last.ckpt", RESULTS),
        ("runs/one/checkpoints/step-000003.ckpt", RESULTS),
        ("model.ckpt", Path("model.ckpt-evaluations")),
    ],
)
def test_results_lie_in_the_run_or_beside_the_checkpoint(evaluate, checkpoint: str, folder: Path):
    assert evaluate("first", checkpoint=checkpoint)[0] == 0
    assert list(results(folder)) == ["first"]
    assert results(folder)["first"]["step"] == (None if checkpoint == "model.ckpt" else 3)


def test_names_and_addresses_have_a_folder_here(tmp_path: Path):
    assert stored.folder_of("open_clip:ViT-B-32/openai", None) == Path("open_clip-ViT-B-32-openai-evaluations")
    assert stored.folder_of("slip_base_25ep", tmp_path / "cached.pt") == Path("slip_base_25ep-evaluations")
    assert stored.folder_of(str(tmp_path), tmp_path) == tmp_path / "evaluations"


def test_a_finished_evaluation_is_not_computed_again(evaluate):
    _, first_print, _ = evaluate("first")
    before = (RESULTS / "first.json").stat().st_mtime_ns
    code, printed, _ = evaluate("second,first")
    assert code == 0
    assert "first: computed before from the same weights and data (again=true computes it again)" in printed
    assert "second: computed before" not in printed
    assert (RESULTS / "first.json").stat().st_mtime_ns == before
    table = [line for line in first_print.splitlines() if "│ first" in line]
    record = json.loads((RESULTS / "first.json").read_text())
    assert len(table) == len(record["metrics"]) + len(record["notes"])
    assert all(row.split() in [line.split() for line in printed.splitlines()] for row in table)
    assert "computed before" not in evaluate("first", "again=true")[1]
    assert (RESULTS / "first.json").stat().st_mtime_ns > before


@pytest.mark.parametrize(
    "change",
    [
        lambda: edit("first", templates=["the {}."]),
        lambda: edit("first", classnames="names.txt"),
        lambda: (Path("images/red cross/0.png")).unlink(),
        lambda: shutil.copytree("images/red cross", "images/zebra"),
        lambda: Path("runs/one/evaluations/step-000003/first.json").write_text("{"),
        lambda: Path("runs/one/evaluations/step-000003/first.json").write_text("[]"),
    ],
)
def test_what_changes_a_metric_computes_it_again(evaluate, change: Callable[[], Any]):
    Path("names.txt").write_text("\n".join(NAMES))
    evaluate("first")
    change()
    code, printed, _ = evaluate("first")
    assert code == 0
    assert "computed before" not in printed
    assert "computed before" in evaluate("first")[1]


def test_a_result_of_other_settings_is_replaced_with_a_line_that_names_them(evaluate):
    evaluate("first")
    assert "replaces" not in evaluate("first", "again=true")[1]
    _, printed, _ = evaluate("first", "evaluation.first.templates=[a {}.]")
    assert "first: replaces a result of other settings (templates=" in printed
    assert "); output=FILE keeps both" in printed


def test_each_evaluation_of_several_is_told_when_it_is_stored(evaluate):
    _, printed, _ = evaluate("first,second")
    assert printed.splitlines()[:2] == ["first: stored, 1 of 2 evaluations", "second: stored, 2 of 2 evaluations"]
    assert "stored, " not in evaluate("first", "again=true")[1]


def test_an_interrupt_is_one_line_and_keeps_what_is_stored(evaluate, monkeypatch: pytest.MonkeyPatch):
    suite_run = Suite.run

    def interrupted(self: Suite, name: str, *arguments: Any) -> dict[str, Any]:
        if name == "second":
            raise KeyboardInterrupt
        return suite_run(self, name, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Suite, "run", interrupted)
        code, _, said = evaluate("first,second")
    assert (code, said) == (130, "interrupted\n")
    assert list(results()) == ["first"]
    assert "first: computed before" in evaluate("first,second")[1]


def test_names_in_a_file_that_changes_compute_it_again(evaluate):
    edit("first", classnames="names.txt")
    for names in (NAMES, [f"one {name}" for name in NAMES]):
        Path("names.txt").write_text("\n".join(names))
        code, printed, _ = evaluate("first")
        assert code == 0
        assert "computed before" not in printed


def test_what_changes_no_metric_does_not(evaluate):
    evaluate("first")
    edit("first", batch_size=5, num_workers=1, title="another title", every_n_steps=7)
    Path("images").rename("moved")
    edit("first", source={"_target_": "openslip.data.sources.image_folder.ImageFolder", "root": "moved"})
    assert "first: computed before" in evaluate("first")[1]


def test_other_weights_and_another_transform_are_computed_again(evaluate):
    evaluate("first")
    assert "computed before" not in evaluate("first", "exif=apply")[1]
    content = stored.read(RESULTS / "first.json")
    assert content is not None
    Path("model.ckpt").rename("other.ckpt")
    evaluate("first", checkpoint="other.ckpt")
    assert results(Path("other.ckpt-evaluations"))["first"]["weights"] == content["weights"]


def test_code_of_yours_is_always_run_again(evaluate):
    for _ in range(2):
        code, printed, _ = evaluate("waits")
        assert code == 0
        assert "computed before" not in printed


def test_the_layout_that_was_read_is_stored_and_shown(evaluate):
    _, printed, _ = evaluate("found,third")
    assert results()["found"]["notes"] == {"source": "b: root=other"}
    assert results()["third"]["notes"] == {}
    (row,) = [line for line in printed.splitlines() if "b: root=other" in line]
    assert "│ found" in row


def test_the_files_of_a_source_are_listed_once(evaluate, monkeypatch: pytest.MonkeyPatch):
    calls = []
    fingerprint = ImageFolder.fingerprint.func
    counted = cached_property(lambda source: calls.append(source.root) or fingerprint(source))
    counted.__set_name__(ImageFolder, "fingerprint")
    monkeypatch.setattr(ImageFolder, "fingerprint", counted)
    assert evaluate("first")[0] == 0
    assert calls == [Path("images")]


def test_missing_datasets_are_listed_and_the_others_run(evaluate):
    code, printed, said = evaluate("missing,third")
    assert (code, said) == (0, "")
    assert printed.splitlines()[-2:] == [
        "no data for 1 of 2 evaluations:",
        "  missing: data/evaluation/nothing: no such folder; openslip data get nothing",
    ]
    assert list(results()) == ["third"]


def test_a_dataset_that_is_missing_alone_is_an_error(evaluate):
    code, printed, said = evaluate("missing")
    assert (code, printed) == (1, "")
    assert said == "error: data/evaluation/nothing: no such folder; openslip data get nothing\n"


def test_only_missing_datasets_are_an_error(evaluate):
    edit("second", train={"_target_": "evaluation_suites.Missing"})
    code, printed, _ = evaluate("missing,second")
    assert code == 1
    assert "no data for 2 of 2 evaluations:" in printed


def test_what_fails_does_not_end_the_others(evaluate):
    code, printed, said = evaluate("wrong,fails,third")
    assert code == 1
    assert said.splitlines()[0].startswith("error: wrong: evaluation.wrong.classnames: 2 names for 5 class folders")
    assert said.splitlines()[1] == "error: fails: this evaluation fails on rank 0"
    assert "│ third" in printed
    assert list(results()) == ["third"]


def test_an_evaluation_without_memory_or_files_does_not_end_the_others(evaluate):
    code, printed, said = evaluate("out_of_memory,no_memory,no_file,third")
    assert code == 1
    assert said.splitlines() == [
        "error: out_of_memory: OutOfMemoryError: first line",
        "error: no_memory: MemoryError: first line",
        "error: no_file: OSError: first line",
    ]
    assert "│ third" in printed
    assert list(results()) == ["third"]


def test_the_output_keeps_the_order_of_the_command_while_equal_sources_follow_each_other(evaluate):
    code, printed, _ = evaluate("third,first,second")  # first and second read `images`, and second reads `other` too
    assert code == 0
    rows = [line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│")]
    assert list(dict.fromkeys(rows)) == ["third", "first", "second"]


def test_one_file_of_all_metrics_stores_and_reuses_nothing(evaluate):
    for _ in range(2):
        code, printed, _ = evaluate("first,second", "output=all.json")
        assert code == 0
        assert "computed before" not in printed
    assert list(json.loads(Path("all.json").read_text())["metrics"]) == ["first", "second"]
    assert not RESULTS.exists()


def test_one_file_of_all_metrics_names_those_that_have_none(evaluate):
    assert evaluate("third,missing,fails", "output=all.json")[0] == 1
    content = json.loads(Path("all.json").read_text())
    assert list(content["metrics"]) == ["third"]
    assert content["missing"] == {"missing": "data/evaluation/nothing: no such folder; openslip data get nothing"}
    assert content["failed"] == {"fails": "this evaluation fails on rank 0"}


def test_image_features_are_kept_for_later_commands(evaluate, monkeypatch: pytest.MonkeyPatch):
    evaluate("first")
    assert len(list(Path("cache/features").glob("*.safetensors"))) == 1
    kept = results()["first"]["metrics"]
    monkeypatch.setattr("openslip.evaluation.image_features.image_batches", lambda *_, **__: pytest.fail("a pass"))
    evaluate("first", "again=true")
    assert results()["first"]["metrics"] == kept
    monkeypatch.undo()


@pytest.mark.parametrize(("setting", "folders"), [("null", set()), ("mine", {"mine"})])
def test_the_folder_of_image_features_is_a_setting(evaluate, setting: str, folders: set[str]):
    assert evaluate("first", f"feature_cache={setting}")[0] == 0
    assert {path.parent.name for path in Path().glob("**/*.safetensors")} == folders


def wait_all(processes: list[Process]) -> None:
    codes = [process.wait() for process in processes]
    assert codes == [0] * len(processes), [process.said() for process in processes]


def test_the_files_are_the_same_on_one_two_and_three_ranks(place: Path):
    written = []
    for ranks in (1, 2, 3):
        processes = start(place, words("first,second,third,missing", "feature_cache=null"), ranks)
        wait_all(processes)
        written.append({path.name: path.read_bytes() for path in RESULTS.iterdir()})
        printed = processes[0].said()
        assert printed.count("no data for 1 of 4 evaluations") == 1
        assert [process.said() for process in processes[1:]] == [""] * (ranks - 1)
        shutil.rmtree(RESULTS)
    assert len(written[0]) == 6
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize(
    ("ranks", "arguments", "message"),
    [
        (3, words("fails_on_1"), "rank 1: this evaluation fails on rank 1"),
        (2, words("first", "agian=true"), "config key agian is unknown; did you mean again?"),
        (2, words("first", checkpoint="nothing"), "checkpoint nothing: no such file"),
    ],
)
def test_an_error_ends_all_ranks_with_one_message(place: Path, ranks: int, arguments: list[str], message: str):
    processes = start(place, arguments, ranks)
    assert [process.wait() for process in processes] == [1] * ranks
    said = "".join(process.said() for process in processes)
    # A rank that waits for another for seconds is ended by its watch, which says the same.
    (error,) = {line for line in said.splitlines() if "error:" in line}
    assert message in error


def test_an_error_on_all_ranks_does_not_end_the_others(place: Path):
    processes = start(place, words("fails,third"), 2)
    assert processes[0].wait() == 1
    assert processes[1].wait() == 1
    assert "error: fails: this evaluation fails on rank 0" in processes[0].said()
    assert processes[1].said() == ""
    assert list(results()) == ["third"]


def test_an_evaluation_that_fails_on_one_rank_is_skipped_by_all(place: Path):
    failing = {
        "opened_on_1": "cannot be opened",
        "listed_on_1": "OSError: cannot be listed",
        "read_on_1": "OSError: cannot be read",
        "encoded_on_1": "OutOfMemoryError: too little memory",
    }
    processes = start(place, words(",".join([*failing, "third"])), 2)
    assert [process.wait() for process in processes] == [1, 1]
    assert list(results()) == ["third"], processes[0].said()
    errors = [line for line in processes[0].said().splitlines() if "error:" in line]
    for name, message in failing.items():
        (line,) = [line for line in errors if line.startswith(f"error: {name}: rank 1: ")]
        assert line.endswith(message)
    assert processes[1].said() == ""


def test_after_a_kill_the_same_command_repeats_nothing_that_was_finished(place: Path, evaluate):
    Path("wait").touch()
    (process,) = start(place, words("first,waits,third"))
    deadline = time.monotonic() + 60
    while not Path("begun").exists():
        assert time.monotonic() < deadline, process.said()
        time.sleep(0.01)
    assert process.process.pid is not None
    os.kill(process.process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert list(results()) == ["first"]
    before = (RESULTS / "first.json").stat().st_mtime_ns
    Path("wait").unlink()
    code, printed, _ = evaluate("first,waits,third")
    assert code == 0
    assert printed.count("computed before") == 1
    assert (RESULTS / "first.json").stat().st_mtime_ns == before
    rows = [line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│")]
    assert list(dict.fromkeys(rows)) == ["first", "waits", "third"]
    assert list(results()) == ["first", "third", "waits"]


def test_two_processes_at_once_leave_whole_files(place: Path):
    processes = [*start(place, words("first,second", "again=true")), *start(place, words("first,second", "again=true"))]
    wait_all(processes)
    assert all(stored.read(RESULTS / f"{name}.json") is not None for name in ("first", "second"))
    assert not list(RESULTS.glob(".*"))
