"""Stripping a published-format checkpoint of full size: sizes, peak memory, and what a killed process leaves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from published_files import write_whole

import openslip

pytestmark = pytest.mark.slow
MIB = 1 << 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SLIP ViT-B/16 of random weights with its optimizer's state, 1.9 GiB."""
    path = tmp_path_factory.mktemp("whole") / "slip_base.pt"
    write_whole(path, "SLIP_VITB16")
    assert round(path.stat().st_size / 1024**3, 1) == 1.9
    return path


def start_strip(*arguments: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "openslip", "strip", *map(str, arguments)])


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
@pytest.mark.parametrize(
    ("options", "mib"),
    [
        ([], 571),
        (["--keep-head"], 651),
        (["--dtype", "float16"], 571 / 2),
        (["--dtype", "bfloat16", "--keep-head"], 651 / 2),
    ],
)
def test_a_stripped_file_has_the_size_of_its_weights_and_needs_less_memory_than_its_source(
    whole: Path, tmp_path: Path, suffix: str, options: list[str], mib: float
):
    target = tmp_path / f"small.{suffix}"
    process = start_strip(whole, target, *options)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert target.stat().st_size / MIB == pytest.approx(mib, abs=0.5)
    assert usage.ru_maxrss * 1024 < 1.5 * whole.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_strip_that_is_killed_leaves_no_half_written_file(whole: Path, tmp_path: Path):
    target = tmp_path / "small.ckpt"
    process = start_strip(whole, target)
    while not any(path.stat().st_size > 50 * MIB for path in tmp_path.iterdir()):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    assert start_strip(whole, target).wait() == 0
    assert [path.name for path in tmp_path.iterdir()] == [target.name]  # nor does anything else stay
    openslip.load(target)
