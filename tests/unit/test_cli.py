import importlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from stored_models import write_checkpoint

from openslip import __version__
from openslip.__main__ import commands, main, run, use_expandable_segments
from openslip.commands import sweep
from openslip.config.words import refuse_replacing
from openslip.errors import UserError

LABELS = ["man kicking", "man sleeping", "dog"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("run") / "model.ckpt"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "frame.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return str(path)


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_an_interrupt_is_one_line_and_exit_code_130(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(f"openslip.commands.{command}"), "main", interrupted)
    assert run([command]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_package_that_does_not_load_is_one_line_that_names_doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "openslip.commands.train", None)
    assert run(["train"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ModuleNotFoundError: ")
    assert "`openslip doctor` says which one and what to install" in said
    assert said.count("\n") == 1


def test_help_and_version_need_no_torch():
    for argument in ("--help", "--version"):
        code = (
            "import sys; from openslip.__main__ import run; assert run([sys.argv[1]]) == 0; "
            "assert not {'torch', 'timm', 'hydra', 'numpy'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("platform", "given", "expected"),
    [
        ("linux", {}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ("linux", {"PYTORCH_CUDA_ALLOC_CONF": "x"}, {"PYTORCH_CUDA_ALLOC_CONF": "x"}),
        ("linux", {"PYTORCH_ALLOC_CONF": ""}, {"PYTORCH_ALLOC_CONF": ""}),
        ("win32", {}, {}),
        ("darwin", {}, {}),
    ],
)
def test_the_cuda_allocator_grows_its_segments_unless_it_is_set_up_or_cannot(
    platform: str, given: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "environ", dict(given))
    monkeypatch.setattr(sys, "platform", platform)
    use_expandable_segments()
    assert os.environ == expected


def test_the_allocator_is_set_up_before_a_command_imports_torch():
    code = (
        "import os, sys, importlib; from openslip.__main__ import run\n"
        "def at_import(name):\n"
        "    if name.startswith('openslip.commands'):\n"
        "        print(os.environ['PYTORCH_ALLOC_CONF'], 'torch' in sys.modules)\n"
        "        sys.exit()\n"
        "    return imported(name)\n"
        "imported, importlib.import_module = importlib.import_module, at_import\n"
        "run(['train'])"
    )
    environment = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.stdout, done.stderr) == ("expandable_segments:True False\n", "")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]):
    assert run([]) == 0
    printed = capsys.readouterr().out
    assert set(commands()) == {
        "train",
        "eval",
        "dashboard",
        "data",
        "predict",
        "strip",
        "merge",
        "export",
        "verify",
        "plan",
        "report",
        "reproduce",
        "results",
        "doctor",
        "sweep",
        "models",
        "completion",
    }
    assert all(re.search(rf"^  {name} ", printed, re.MULTILINE) for name in commands())


def test_the_help_of_train_names_the_option_that_sweeps(capsys: pytest.CaptureFixture[str]):
    assert run(["train", "--help"]) == 0
    assert "-m, --multirun" in capsys.readouterr().out


def test_a_sweep_of_debug_runs_is_refused_because_each_would_replace_the_one_before():
    with pytest.raises(UserError, match=r"debug=fast: each run would replace .* add name=null resume=auto"):
        refuse_replacing(["debug=fast", "seed=0,1"])
    refuse_replacing(["debug=fast", "seed=0,1", "name=null", "resume=auto"])


@pytest.mark.parametrize("option", ["-m", "--multirun"])
def test_train_with_m_is_a_sweep(monkeypatch: pytest.MonkeyPatch, option: str):
    given: list[list[str]] = []
    monkeypatch.setitem(sys.modules, "openslip.commands.sweep", SimpleNamespace(main=given.append))  # pyright: ignore
    assert run(["train", "seed=0,1", option, "--config-dir=x"]) == 0
    assert given == [["seed=0,1", "--config-dir=x"]]


def test_a_signal_that_ends_a_run_stops_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commands: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "run", lambda command: commands.append(command) or -signal.SIGUSR1)
    with pytest.raises(SystemExit) as end:
        sweep.main(["seed=0,1"])
    assert end.value.code == 143
    assert [command[-1] for command in commands] == ["seed=0"]


def test_version_is_printed(capsys: pytest.CaptureFixture[str]):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_an_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert run(["predct"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "did you mean predict?" in error
    assert run(["xyz"]) == 1
    assert "train" in capsys.readouterr().err


def test_main_exits_with_the_code_of_the_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["predct"])
    assert ended.value.code == 1


def test_predict_prints_labels_by_probability(checkpoint: str, picture: str, capsys: pytest.CaptureFixture[str]):
    words = ["predict", picture, "--checkpoint", checkpoint, "--labels", " man kicking,man sleeping, dog,"]
    assert run([*words, "--template", "a {} in a movie.", "--template", "a {}."]) == 0
    first, *rows = capsys.readouterr().out.splitlines()
    assert first == picture
    shown = [re.fullmatch(r"  (.+?) +([\d.]+) %  █*", row) for row in rows]
    assert sorted(match[1] for match in shown if match) == sorted(LABELS)
    percents = [float(match[2]) for match in shown if match]
    assert percents == sorted(percents, reverse=True)
    assert sum(percents) == pytest.approx(100, abs=0.2)


def test_predict_sees_a_transparent_drawing_on_white_unless_told_otherwise(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    files = [str(tmp_path / name) for name in ("drawing.png", "white.png", "black.png")]
    for file, colour in zip(files, ((0, 0, 0, 0), (255, 255, 255, 255), (0, 0, 0, 255)), strict=True):
        Image.new("RGBA", (20, 20), colour).save(file)
    for options, same in (([], 1), (["--transparency", "ignore"], 2)):
        assert run(["predict", *files, "--checkpoint", checkpoint, "--labels", "a,b", "--json", *options]) == 0
        drawing, *plain = [entry["labels"] for entry in json.loads(capsys.readouterr().out)]
        assert drawing == plain[same - 1] != plain[2 - same]


def test_labels_of_a_file_and_json_say_the_same(
    checkpoint: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n")
    common = ["predict", picture, picture, "--checkpoint", checkpoint, "--template", "a {}.", "--json"]
    found = []
    for labels in (",".join(LABELS), f"@{tmp_path / 'labels.txt'}"):
        assert run([*common, "--labels", labels]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    assert [entry["image"] for entry in found[0]] == [picture, picture]
    assert sum(row["probability"] for row in found[0][0]["labels"]) == pytest.approx(1)
    assert {row["label"] for row in found[0][0]["labels"]} == set(LABELS)


@pytest.mark.parametrize("name", ["small.pt", "small.safetensors", "Größe 1.SafeTensors"])
def test_strip_writes_a_smaller_file_that_predicts_the_same(
    checkpoint: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
):
    stripped = str(tmp_path / name)
    assert run(["strip", checkpoint, stripped]) == 0
    assert len(re.findall(r"[\d.]+ MB", capsys.readouterr().out)) == 2
    assert Path(stripped).stat().st_size < 0.6 * Path(checkpoint).stat().st_size
    found = []
    for path in (checkpoint, stripped):
        assert run(["predict", picture, "--checkpoint", path, "--labels", ",".join(LABELS), "--json"]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("image", "labels", "template", "message"),
    [
        ("missing.png", "a,b", "a {}.", "missing.png"),
        (None, " , ", "a {}.", "empty"),
        (None, "a,b", "no place", "no place"),
        (None, "@missing.txt", "a {}.", "missing.txt"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(
    image: str | None,
    labels: str,
    template: str,
    message: str,
    checkpoint: str,
    picture: str,
    capsys: pytest.CaptureFixture[str],
):
    words = ["predict", image or picture, "--checkpoint", checkpoint, "--labels", labels]
    assert run([*words, "--template", template]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(rf"error: .*{re.escape(message)}.*\n", captured.err)


def test_a_traceback_comes_with_debug_only(capsys: pytest.CaptureFixture[str]):
    words = ["predict", "x.png", "--checkpoint", "missing.ckpt", "--labels", "a"]
    assert run(words) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert run([*words, "debug=true"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_eval_says_what_it_skips_and_how_it_reads_images(
    checkpoint: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("ant", "bee"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        Image.open(picture).save(tmp_path / "classes" / name / "a.tif")
    (tmp_path / "classes" / "bee" / "notes.txt").touch()
    words = [
        "eval",
        f"checkpoint={checkpoint}",
        "evaluation=folder",
        f"evaluation.folder.source.root={tmp_path}/classes",
    ]
    words += ["evaluation.folder.num_workers=0", f"output={tmp_path}/result.json", "device=cpu"]
    assert run([*words, "transparency=black"]) == 1
    assert "transparency=black: expected white or ignore" in capsys.readouterr().err
    assert run([*words, "transparency=ignore", "exif=apply"]) == 0
    said = capsys.readouterr().out
    assert said.count("folder: 1 x file that is no image (.txt), such as bee/notes.txt\n") == 1
    assert json.loads((tmp_path / "result.json").read_text())["metrics"]["folder"]["num_samples"] == 2
