"""`env.json`: the command, commit, versions and hardware that a run's metrics come from."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from small_models import small_model

from openslip.commands import train
from openslip.report import write_report
from openslip.run import environment as module
from openslip.run.environment import command, commit, hardware, origin, versions
from openslip.run.folder import Run


def git(folder: Path, *words: str) -> str:
    """Run git without the user's settings, and never on a repository that the environment names."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


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
    (checkout / "notes.txt").write_text("")
    assert commit(checkout) == head
    (checkout / "__init__.py").write_text("changed = True\n")
    assert commit(checkout) == f"{head}-dirty"
    git(checkout, "checkout", "--", "__init__.py")
    assert commit(checkout) == head
    (checkout / "new.py").write_text("")
    assert commit(checkout) == f"{head}-dirty"


def test_another_repository_in_the_environment_is_not_asked(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    head = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(checkout / "elsewhere"))
    assert commit(checkout) == head


def test_a_package_that_git_does_not_track_has_no_commit(checkout: Path, tmp_path: Path):
    installed = checkout / "site-packages" / "openslip"  # inside another project's repository
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert commit(installed) is None
    assert commit(tmp_path) is None


def test_a_machine_without_git_gives_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert commit(checkout) is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/x/train.py", "model=clip_tiny", "name=a b"], "train.py model=clip_tiny 'name=a b'"),
        (["/x/openslip/__main__.py", "train", "seed=1"], "openslip train seed=1"),
        (["/bin/openslip", "train", "a=https://me:secret@host/0.tar?key=1"], "openslip train a=https://host/0.tar"),
        (["train.py", "a=[s3://K:S@b/0.tar,s3://K:S@b/1.tar]"], "train.py 'a=[s3://b/0.tar,s3://b/1.tar]'"),
        (["train.py", "a=https://h/s-{00..99}.tar?sig=S"], "train.py 'a=https://h/s-{00..99}.tar'"),
        (["train.py", "a=[https://u:p,w@h/x,https://u:p@h/y]"], "train.py 'a=[https://h/x,https://h/y]'"),
        (["train.py", "+a={token: abc, b: 1}"], "train.py '+a={token: ***, b: 1}'"),
        (["train.py", "tokenizer.mask_token=true"], "train.py tokenizer.mask_token=true"),
        (["train.py", "a={b: 'https://u:p@h/x'}"], "train.py 'a={b: '\"'\"'https://h/x'\"'\"'}'"),
        (
            ["train.py", "+logger.wandb.api_key=abc", "+x.hf_token=abc"],
            "train.py '+logger.wandb.api_key=***' '+x.hf_token=***'",
        ),
    ],
)
def test_the_command_can_be_pasted_and_holds_no_credentials(words: list[str], expected: str):
    assert command(words) == expected


class Gpu(NamedTuple):
    name: str = "NVIDIA H100"
    total_memory: int = 85 * 10**9


def test_versions_and_hardware_are_those_of_this_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Gpu())
    assert versions()["torch"] == importlib.metadata.version("torch")
    found = hardware()
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["memory_gb"] > 0.1
    assert found["gpus"] == ["NVIDIA H100, 85 GB"] * 2


def test_what_cannot_be_found_out_is_none_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CPUS", tmp_path / "none")
    monkeypatch.setattr(module, "DRIVER", tmp_path)
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.delattr(os, "sched_getaffinity")
    assert versions()["driver"] is None
    assert hardware()["memory_gb"] is None
    assert hardware()["cores"] == os.cpu_count()
    assert hardware()["cpu"]


def begin(folder: Path, **facts: Any) -> list[dict[str, Any]]:
    """Begin a run as a new process would; the records in its `env.json`."""
    origin.cache_clear()
    Run(folder, "unfinished").begin({"seed": 0}, facts)
    return json.loads((folder / "env.json").read_text())["starts"]


def test_each_start_that_differs_has_a_record_and_equal_ones_share_it(tmp_path: Path):
    assert [len(start["dates"]) for start in begin(tmp_path, ranks=1)] == [1]
    assert [len(start["dates"]) for start in begin(tmp_path, ranks=1)] == [2]
    starts = begin(tmp_path, ranks=8)
    assert [(start["ranks"], len(start["dates"])) for start in starts] == [(1, 2), (8, 1)]
    dates = [date for start in starts for date in start["dates"]]
    assert dates == sorted(dates)


def test_training_notes_its_origin_before_it_composes_a_config(monkeypatch: pytest.MonkeyPatch):
    def compose_config(*_: object) -> None:
        raise RuntimeError(f"{origin.cache_info().currsize} noted")

    origin.cache_clear()
    monkeypatch.setattr(train, "compose_config", compose_config)
    with pytest.raises(RuntimeError, match=r"^1 noted$"):
        train.main([])


def test_command_commit_and_date_are_those_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    origin.cache_clear()
    before = origin()
    monkeypatch.setattr(module, "commit", lambda _: "of files that changed later")
    monkeypatch.setattr(sys, "argv", ["other"])
    Run(tmp_path, "new").begin({"seed": 0}, {})
    (start,) = json.loads((tmp_path / "env.json").read_text())["starts"]
    assert {key: start[key] for key in before} == before


@pytest.mark.parametrize(
    "content", ["{1", "[]", '{"starts": 3}', '{"starts": [{}]}', '{"starts": [3]}', '{"torch": 1}', ""]
)
def test_a_damaged_file_is_written_anew(tmp_path: Path, content: str):
    (tmp_path / "env.json").write_text(content)
    assert len(begin(tmp_path)) == 1


def test_a_failing_probe_leaves_the_result_of_an_extended_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "result.json").write_text('{"step": 3, "metrics": {}, "lines": []}')
    monkeypatch.setattr("openslip.run.folder.with_this_start", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Run(tmp_path, "unfinished").begin({"seed": 0}, {})
    assert (tmp_path / "result.json").exists()


def test_parameters_of_all_parts_add_up():
    model, objective = small_model("slip")
    counts = train.parameters(model, objective)
    assert counts.keys() == {"image_tower", "text_tower", "projections", "objective"}
    whole = [*model.parameters(), *objective.parameters()]
    assert sum(counts.values()) == sum(parameter.numel() for parameter in whole)


def header_of(folder: Path, starts: object) -> str:
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "env.json").write_text(json.dumps({"starts": starts}))
    return write_report(folder).read_text().partition("<details>")[0]


def test_the_report_shows_devices_commit_date_and_precision(tmp_path: Path):
    start = {"precision": "bf16-mixed", "commit": f"{'ab' * 20}-dirty", "dates": ["2026-01-02T03:04:05+00:00"]}
    start |= {"ranks": 4, "device": "NVIDIA H100 80GB HBM3", "hardware": {"cpu": "some CPU"}}
    header = header_of(tmp_path, [start])
    for text in ("bf16-mixed", "abababababab-dirty", "2026-01-02T03:04:05+00:00", "4 x NVIDIA H100 80GB HBM3"):
        assert text in header
    assert "ab" * 20 not in header
    header = header_of(tmp_path, [start, {**start, "ranks": 2, "device": "cpu", "dates": ["later"]}])
    assert "several" in header
    assert "2026-01-02" in header
    assert "later" not in header
    assert "1 x some CPU" in header_of(tmp_path, [{**start, "ranks": 1, "device": "cpu"}])


@pytest.mark.parametrize("starts", [3, [], [3], [[]], [{"dates": 3, "hardware": [], "commit": {}, "ranks": None}]])
def test_records_of_another_form_cost_no_report(tmp_path: Path, starts: object):
    assert "facts" in header_of(tmp_path, starts)
