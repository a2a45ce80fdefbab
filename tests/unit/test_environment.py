"""`env.json`: the command, commit, versions and hardware that a run's metrics come from."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openslip.report import write_report
from openslip.run.environment import command, commit, environment
from openslip.run.folder import Run


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    done = subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout with a package."""
    package = tmp_path / "checkout" / "src" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(package, "init", "-q")
    git(package, "add", ".")
    git(package, "commit", "-q", "-m", "first")
    return package


def test_the_commit_is_that_of_the_checkout_and_says_if_files_differ(checkout: Path):
    head = git(checkout, "rev-parse", "HEAD")
    git(checkout, "tag", "v1")  # no tag stands in for the commit
    assert commit(checkout) == head
    (checkout / "new.py").write_text("")
    assert commit(checkout) == head
    (checkout / "__init__.py").write_text("changed = True\n")
    assert commit(checkout) == f"{head}-dirty"


def test_a_package_that_git_does_not_track_has_no_commit(checkout: Path, tmp_path: Path):
    installed = checkout / "site-packages" / "openslip"  # inside another project's repository
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert commit(installed) is None
    assert commit(tmp_path) is None


def test_a_machine_without_git_gives_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert commit(checkout) is None


def test_the_command_can_be_pasted_and_holds_no_credentials():
    words = ["/x/train.py", "model=clip_tiny", "name=a b", "data.source.shards=https://me:secret@host/0.tar?key=1"]
    assert command(words) == "train.py model=clip_tiny 'name=a b' data.source.shards=https://host/0.tar"


def test_versions_and_hardware_are_those_of_this_machine():
    found = environment({}, {"precision": "32-true"})
    assert found["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert found["versions"]["python"] == sys.version.split()[0]
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["memory_gb"] > 0.1
    assert len(found["hardware"]["gpus"]) == torch.cuda.device_count()
    assert found["precision"] == "32-true"


def test_a_resumed_run_adds_its_date_and_keeps_the_first(tmp_path: Path):
    for _ in range(2):
        Run(tmp_path, "unfinished").begin({"seed": 0}, {})
    dates = json.loads((tmp_path / "env.json").read_text())["dates"]
    assert len(dates) == 2
    assert dates == sorted(dates)


@pytest.mark.parametrize("content", ["{1", "[]", '{"dates": 3}', ""])
def test_a_damaged_file_is_written_anew(tmp_path: Path, content: str):
    (tmp_path / "env.json").write_text(content)
    Run(tmp_path, "unfinished").begin({"seed": 0}, {})
    assert len(json.loads((tmp_path / "env.json").read_text())["dates"]) == 1


def test_the_report_shows_hardware_commit_date_and_precision(tmp_path: Path):
    facts = {"precision": "bf16-mixed", "commit": f"{'ab' * 20}-dirty", "dates": ["2026-01-02T03:04:05+00:00"]}
    hardware = {"gpus": ["NVIDIA H100 80GB HBM3, 85 GB"] * 4, "cpu": "some CPU"}
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "env.json").write_text(json.dumps({**facts, "hardware": hardware}))
    page = write_report(tmp_path).read_text()
    header = page.partition("<details>")[0]
    for text in ("bf16-mixed", "abababababab-dirty", "2026-01-02T03:04:05+00:00", "4 x NVIDIA H100 80GB HBM3, 85 GB"):
        assert text in header
    assert "ab" * 20 not in header
