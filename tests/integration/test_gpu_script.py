"""The script for a new GPU: its parts by a stand-in for Python, and slowly by the real one on the CPU."""

import importlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from openslip.config.compose import compose_config

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"
PARTS = (
    *("environment and kernels", "verify float32", "verify bfloat16", "verify tf32", "no synchronisation in a step"),
    *("SLIP step, eager", "SLIP step, compiled", "automatic micro-batches at 2048", "DDP on one device"),
    *("fp16 with clipping", "profile", "CLIP step, eager"),
)


def run(folder: Path, **variables: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [SCRIPT, folder / "out"], env=os.environ | variables, capture_output=True, text=True, check=False
    )
    lines = (folder / "out" / "summary.txt").read_text().splitlines()
    assert done.stdout.splitlines() == lines
    assert done.stderr == ""
    return done.returncode, lines


def stand_in(folder: Path, *cases: str) -> str:
    """A program in Python's place that says `fine`, except where its arguments match a case of a shell."""
    program = folder / "python"
    program.write_text(f'#!/bin/sh\ncase "$*" in {" ".join(cases)} *) echo "fine: $*";; esac\n')
    program.chmod(0o755)
    return str(program)


def test_every_part_runs_in_order_of_importance(tmp_path: Path):
    code, lines = run(tmp_path, PYTHON=stand_in(tmp_path))
    assert code == 0
    assert [line.split(", 0 s:")[0].split(", 1 s:")[0] for line in lines[:-1]] == [f"done  {part}" for part in PARTS]
    log = (tmp_path / "out" / "log.txt").read_text()
    assert log.count("--compile") == 2  # in the command as it is noted, and as it arrived
    assert log.count("fine: ") == len(PARTS)


def test_a_part_that_fails_or_takes_too_long_stops_no_other(tmp_path: Path):
    program = stand_in(tmp_path, '*bfloat16*) echo "no kernel"; exit 3;;', "*sync_free*) exec sleep 100;;")
    code, lines = run(tmp_path, PYTHON=program, PATIENCE="2", SECONDS_ALLOWED="60")
    assert code == 1
    assert lines[2].startswith("failed with 3  verify bfloat16")
    assert lines[2].endswith("no kernel")
    assert lines[4].startswith("out of time  no synchronisation in a step")
    assert sum(line.startswith("done  ") for line in lines) == len(PARTS) - 2


def test_a_part_that_no_longer_fits_is_skipped_and_named(tmp_path: Path):
    code, lines = run(tmp_path, PYTHON=stand_in(tmp_path), SECONDS_ALLOWED="57")  # fits limits of 50 seconds alone
    assert code == 0
    done = [part for part, line in zip(PARTS, lines, strict=False) if line.startswith("done")]
    assert done == ["verify float32", "verify bfloat16", "verify tf32", "fp16 with clipping", "profile"]
    assert lines[0].startswith("skipped  environment and kernels: may take 60 s, 5")
    assert all(line.startswith("skipped") for part, line in zip(PARTS, lines, strict=False) if part not in done)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_setting_in_the_script_exists(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = stand_in(tmp_path, '*) printf "%s\\t" "$@" >>"$0.commands"; echo >>"$0.commands";;')
    run(tmp_path, PYTHON=program, DEVICE=device)
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    step, sync_free = importlib.import_module("step"), importlib.import_module("sync_free_step")
    compiled, models = [], []
    for line in Path(f"{program}.commands").read_text().splitlines():
        words = line.rstrip("\t").split("\t")
        program_name = Path(words[0]).name
        if words[:3] == ["-m", "openslip", "train"]:
            compiled.append(compose_config("train", words[3:])[0]["compile"])
        elif program_name == "sync_free_step.py":
            compiled.append(compose_config("train", [*sync_free.OPTIONS, *words[1:]])[0]["compile"])
        elif program_name in ("step.py", "profile_step.py"):
            flag = next(word for word in words if word in ("--models", "--model"))
            models.append(step.composed(words[words.index(flag) + 1])["objective"])
    assert compiled == ["auto", "auto", False, False]
    assert len(models) == 4


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path: Path):
    code, lines = run(tmp_path, DEVICE="cpu")
    assert [line for line in lines[:-1] if not line.startswith("done  ")] == []
    assert (code, len(lines)) == (0, len(PARTS) + 1)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    rows = {f"step_{name}.json" for name in ("slip_eager", "slip_compiled", "clip_eager")}
    assert files == {"summary.txt", "log.txt", "micro_batches.csv", "profile.txt"} | rows
    assert len(files) <= 8
    for name in rows:
        units = [row["unit"] for row in json.loads((tmp_path / "out" / name).read_text())]
        assert units == ["s", "samples/s", "% of peak"]
    assert "idle" in (tmp_path / "out" / "profile.txt").read_text()
