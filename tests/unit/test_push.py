"""Uploading an exported folder to a stand-in of the hub, and what the hub refuses."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import TOKEN, Hub, hub
from huggingface_hub import constants
from stored_models import write_checkpoint

import openslip.export.export as module
from openslip.commands.export import main
from openslip.errors import UserError
from openslip.export.push import push

CARD = "---\nlicense: other\ntags:\n- openslip\n---\n# model\n"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 4000)
    (folder / "config.json").write_text('{"model_type": "clip"}\n')
    (folder / "README.md").write_text(CARD)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_files_arrive_unchanged_in_one_commit(server: Hub, folder: Path, tmp_path: Path):
    code = (
        f"from pathlib import Path; from openslip.export.push import push; print(push(Path({str(folder)!r}), 'jane/m'))"
    )
    environment = {
        "HF_ENDPOINT": server.address,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path),
    }
    process = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)
    assert process.stdout == f"{server.address}/jane/m\n", process.stderr
    assert server.repositories["jane/m"] == contents(folder)
    assert server.commits == [("jane/m", sorted(contents(folder)))]


def test_a_repository_is_private_if_asked_for_and_an_existing_one_gets_another_commit(server: Hub, folder: Path):
    push(folder, "jane/secret", private=True)
    push(folder, "jane/open")
    assert server.visibility["jane/secret"] == "private"
    assert server.visibility["jane/open"] in (None, "public")
    (folder / "config.json").write_text("{}\n")
    push(folder, "jane/open")
    assert server.repositories["jane/open"] == contents(folder)
    assert len(server.commits) == 3


@pytest.mark.parametrize("repository", ["model", "jane/a/b", "jane/", "jane/a b", "https://example.org/a/b"])
def test_a_name_that_is_no_repository_is_refused_before_any_request(server: Hub, folder: Path, repository: str):
    with pytest.raises(UserError, match="expected USER/NAME"):
        push(folder, repository)


def test_a_missing_token_names_the_command_that_stores_one(server: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"^--push jane/m: no token of the hub is stored: hf auth login$"):
        push(folder, "jane/m")
    assert "jane/m" not in server.repositories


@pytest.mark.parametrize(
    ("repository", "token", "message"),
    [
        ("jane/m", "hf_wrong", r"the hub does not accept the stored token: hf auth login"),
        ("nobody/m", TOKEN, r"your token may not write to repositories of nobody: hf auth whoami"),
        ("someone/model", TOKEN, r"your token may not write to repositories of someone: hf auth whoami"),
        ("jane/-m-", TOKEN, r"the hub allows no such name"),
    ],
)
def test_what_the_hub_refuses_is_one_line_with_the_next_command(
    server: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, repository: str, token: str, message: str
):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=rf"^--push {repository}: {message}.*; the export stays in .*export$") as caught:
        push(folder, repository)
    assert "\n" not in str(caught.value)
    assert server.commits == []
    assert token not in str(caught.value)


def test_a_failed_upload_makes_no_commit_and_keeps_the_folder(server: Hub, folder: Path):
    before = contents(folder)
    server.fails["preupload"] = 400
    with pytest.raises(UserError, match=r"^--push jane/m: the hub answered 400 .*repeat the command with --force"):
        push(folder, "jane/m")
    assert server.commits == []
    assert contents(folder) == before


def test_no_network_is_one_line(folder: Path, server: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        UserError, match=r"^--push jane/m: the upload to http://127\.0\.0\.1:9 failed \(.*check the network"
    ):
        push(folder, "jane/m")


def test_an_export_is_uploaded_only_if_its_check_succeeds(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    target = tmp_path / "out"
    words = [str(write_checkpoint(tmp_path / "a.ckpt")), str(target), "--to", "safetensors", "--push", "jane/m"]

    def fail(*_: object) -> None:
        raise UserError("the exported model differs")

    monkeypatch.setattr(module, "compare", fail)
    with pytest.raises(UserError, match="the exported model differs"):
        main(words)
    with pytest.raises(UserError, match=r"^--push jane/m with --no-check: only a checked export is uploaded"):
        main([*words, "--no-check"])
    assert "jane/m" not in server.repositories
    assert not target.exists()

    monkeypatch.setattr(module, "compare", lambda *_: {"ids": 0.0, "image_features": 2e-7})
    assert main([*words, "--license", "cc-by-4.0"]) == 0
    assert server.repositories["jane/m"] == contents(target)
    assert b"license: cc-by-4.0" in server.repositories["jane/m"]["README.md"]
    assert f"uploaded in one commit: {server.address}/jane/m" in capsys.readouterr().out
    assert server.visibility["jane/m"] in (None, "public")


def test_private_without_a_repository_is_refused():
    with pytest.raises(UserError, match="--private has no effect without --push"):
        main(["a.ckpt", "out", "--to", "safetensors", "--private"])
