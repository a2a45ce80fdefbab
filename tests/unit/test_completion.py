"""`openslip completion`: the scripts are valid and complete commands, options and configs."""

import argparse
import shutil
import subprocess
from pathlib import Path

import pytest

from openslip.__main__ import commands, run
from openslip.commands.completion import SETTINGS, all_commands
from openslip.commands.data import data_commands
from openslip.config.folder import config_folder, names


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "openslip.bash"
    with pytest.MonkeyPatch.context() as patch, file.open("w") as output:
        patch.setattr("sys.stdout", output)
        assert run(["completion", "bash"]) == 0
    return file


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers for the last word; bash has divided the words at `=`."""
    code = 'source "$1"; COMP_WORDS=(openslip "${@:2}"); COMP_CWORD=$(($#-1)); _shtab_openslip; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", code, "_", str(script), *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_the_script_is_valid_bash(script: Path):
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_all_commands_are_completed(script: Path):
    assert {*completed(script, "")} == {*commands()}
    assert {*completed(script, "data", "")} == {*data_commands()}
    assert completed(script, "pred") == ["predict"]


def test_configs_are_completed_after_their_group(script: Path):
    folders = [config_folder()]
    assert completed(script, "train", "model", "=") == names("model", folders)
    assert completed(script, "train", "model", "=", "slip_v") == [
        "slip_vitb16",
        "slip_vitb32",
        "slip_vitl16",
        "slip_vits16",
    ]
    assert completed(script, "plan", "seed", "=", "1", "experi")[0].startswith("experiment=")
    assert completed(script, "eval", "evaluation", "=", "food") == ["food101"]
    assert completed(script, "eval", "model", "=") == []


def test_the_options_are_those_of_the_commands(script: Path, capsys: pytest.CaptureFixture[str]):
    for command in commands().keys() - {*SETTINGS, "data"}:
        assert run([command, "--help"]) == 0
        usage = capsys.readouterr().out
        options = {option for option in completed(script, command, "--") if option != "--help"}
        assert all(option in usage for option in options)
        assert bool(options) == ("[--" in usage or " --" in usage.partition("\n\n")[0])
    assert {"--decode", "--contact-sheet"} <= {*completed(script, "data", "check", "--")}


def test_every_command_has_its_place():
    (subcommands,) = (action for action in all_commands()._actions if isinstance(action, argparse._SubParsersAction))
    assert {*subcommands.choices} == {*commands()}


def test_the_zsh_script_names_commands_and_models(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert run(["completion", "zsh"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("#compdef openslip\n")
    assert all(f" {name}:" in printed for name in commands())
    assert all(f"model={name} " in printed for name in names("model", [config_folder()]))
    if zsh := shutil.which("zsh"):
        (tmp_path / "_openslip").write_text(printed)
        assert subprocess.run([zsh, "-n", str(tmp_path / "_openslip")]).returncode == 0


@pytest.mark.parametrize("width", [40, 80])
def test_the_help_breaks_no_command(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", str(width))
    assert run(["completion", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "openslip completion bash > ~/.local/share/bash-completion/completions/openslip" in lines
    assert "openslip completion zsh > _openslip" in lines


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]):
    assert run(["completion", "fish"]) == 1
    assert "choose from" in capsys.readouterr().err
