"""A SIGKILL in the middle of an export, a strip or a merge leaves nothing that loads, and the next try cleans up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from exported_models import bundle_of

import openslip
from openslip.commands import export, merge, strip
from openslip.errors import UserError
from openslip.export import forms
from openslip.inference.formats.openslip import write

pytestmark = pytest.mark.slow

# Python announces each file that it opens and each rename before it does so.
KILLED = """
import importlib, os, sys
command, event, place, *words = sys.argv[1:]
def kill(name, arguments):
    if name == event and any(str(each).endswith(place) for each in arguments):
        os.kill(os.getpid(), 9)
module = importlib.import_module(f"openslip.commands.{command}")
sys.addaudithook(kill)
module.main(words)
"""
# A file that each form writes after others; our own form is one file and its card.
MIDDLE = {
    "safetensors": "README.md",
    "open_clip": "open_clip_config.json",
    "huggingface": "/config.json",
    "timm": "/config.json",
    "onnx": "preprocessing.json",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "model.ckpt"
    write(bundle_of("test_vit"), path)
    return path


def run_killed(command: str, event: str, place: str, *words: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", KILLED, command, event, place, *words], capture_output=True, text=True
    )
    assert process.returncode == -9, process.stderr


def test_every_form_has_a_middle():
    assert [*sorted(MIDDLE)] == forms.names()


@pytest.mark.parametrize("form", MIDDLE)
def test_a_killed_export_leaves_no_folder_and_an_existing_one_is_kept_without_force(
    form: str, source: Path, tmp_path: Path
):
    target = tmp_path / "out"
    words = [str(source), str(target), "--to", form, "--no-check"]
    for event, place in (("open", MIDDLE[form]), ("os.rename", str(target))):
        run_killed("export", event, place, *words)
        (orphan,) = tmp_path.iterdir()
        assert orphan.name.startswith(".out.")
        assert any(orphan.iterdir())
    others = [tmp_path / name for name in (f".out.{os.getppid()}.tmp", ".out2.4194305.tmp", ".out.4194305.tmp.d")]
    for other in others:
        other.mkdir()
    assert export.main(words) == 0
    assert {*tmp_path.iterdir()} == {target, *others}
    files = {path.name: path.read_bytes() for path in target.iterdir()}
    with pytest.raises(UserError, match=r"out exists: .* --force"):
        export.main([*words, "--license", "mit"])
    run_killed("export", "open", MIDDLE[form], *words, "--force")
    assert {path.name: path.read_bytes() for path in target.iterdir()} == files
    assert export.main([*words, "--license", "mit", "--force"]) == 0
    assert "license: mit" in (target / "README.md").read_text()
    assert {path.name for path in target.iterdir()} == files.keys()


@pytest.mark.parametrize("command", ["strip", "merge"])
def test_a_killed_strip_or_merge_leaves_no_file_and_an_existing_one_is_kept_without_force(
    command: str, source: Path, tmp_path: Path
):
    target = tmp_path / "out.safetensors"
    words = [str(source), str(target)]
    if command == "merge":
        words = [str(source), str(source), "--alpha", "0.5", "--out", str(target)]
    run_killed(command, "os.rename", str(target), *words)
    (orphan,) = tmp_path.iterdir()
    assert orphan.name.startswith(".out.safetensors.")
    run = {"strip": strip.main, "merge": merge.main}[command]
    assert run(words) == 0
    assert [*tmp_path.iterdir()] == [target]
    content = target.read_bytes()
    with pytest.raises(UserError, match=r"out\.safetensors exists: .*--force"):
        run(words)
    run_killed(command, "os.rename", str(target), *words, "--force")
    assert target.read_bytes() == content
    assert run([*words, "--force"]) == 0
    openslip.load(target)
