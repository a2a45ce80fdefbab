"""The wheel works without the clone: it carries its configs and recordings, trains, predicts and verifies."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_source_distribution_has_the_files_that_git_tracks(tmp_path: Path):
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True)
    wanted = {name for name in tracked.stdout.splitlines() if not name.startswith((".", "Dockerfile"))}
    assert wanted - packed == set()
    assert packed - wanted <= {"PKG-INFO", ".gitignore"}


@pytest.mark.slow
def test_the_wheel_trains_and_predicts_outside_the_clone(tmp_path: Path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True)
    assert (site / "openslip" / "py.typed").is_file()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def openslip(*arguments: str) -> str:
        command = [sys.executable, "-m", "openslip", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import openslip; print(openslip.__file__)"
    found = subprocess.run([sys.executable, "-c", where], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert str(site) in found.stdout
    assert "report: runs/w/report.html" in openslip("train", "trainer=cpu", "trainer.max_steps=3", "name=w")
    predicted = openslip("predict", "red.png", "--checkpoint", "runs/w", "--labels", "red ring,blue ring")
    assert "red ring" in predicted
    assert "%" in predicted
    assert " 3 seeds\n" in openslip("reproduce")
    assert "97 of 97 quantities within tolerance" in openslip("verify")
