"""Workers send batches through /dev/shm, of which a container has 64 MB."""

import os
import subprocess
import sys
from pathlib import Path

import evaluation_models as models
import pytest
from marks import slow

from openslip.data import loader
from openslip.data.loader import check_shared_memory
from openslip.errors import UserError
from openslip.evaluation.features import image_batches

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}

SENDS = """
import sys
import torch
from openslip import signals, streams
from openslip.data.loader import Loader, start_worker
from openslip.errors import run_entry_point

class Large(torch.utils.data.Dataset):
    def __len__(self): return 8
    def __getitem__(self, index): return {"x": MAKE}

def main(words):
    for batch in Loader(Large(), num_workers=2, worker_init_fn=start_worker, **BATCH):
        print("batch", flush=True)

sys.exit(run_entry_point(main, []))
"""


def with_shared_memory(size: str, *command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that sees a /dev/shm of that size."""
    script = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system (root)")
    return subprocess.run(
        [*words, *command], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("batch", [{"batch_size": None}, {"batch_size": 2}])  # sent by a thread, or made in the worker
def test_a_batch_that_does_not_fit_ends_with_one_line(tmp_path: Path, batch: dict[str, int | None]):
    (tmp_path / "sends.py").write_text(SENDS.replace("MAKE", "torch.zeros(4 << 20)").replace("BATCH", str(batch)))
    ended = with_shared_memory("8m", sys.executable, "sends.py", folder=tmp_path)
    assert ended.returncode == 1
    expected = "error: /dev/shm is full, through which data.num_workers send batches: "
    assert ended.stderr == f"{expected}docker run --shm-size=8g, or data.num_workers=0\n"


def test_what_cannot_be_sent_for_another_reason_ends_with_that(tmp_path: Path):
    (tmp_path / "sends.py").write_text(SENDS.replace("MAKE", "lambda: 0").replace("BATCH", "{'batch_size': None}"))
    ended = subprocess.run(
        [sys.executable, "sends.py"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert "lambda" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_run_whose_batches_do_not_fit_is_refused_before_its_first_step(tmp_path: Path):
    words = ["trainer=cpu", "model=clip_vits16", "data=builtin", "data.num_workers=2", "global_batch_size=256"]
    words += ["evaluation=none", "trainer.max_steps=2", "name=large"]
    ended = with_shared_memory("48m", sys.executable, str(ROOT / "train.py"), *words, folder=tmp_path)
    assert ended.returncode == 1, ended.stderr
    expected = "error: /dev/shm has 48 MiB free, but data.num_workers needs 55 MiB, 3 x 18.5: "
    assert expected in ended.stderr
    assert "docker run --shm-size=8g, or data.num_workers=0" in ended.stderr.splitlines()[-1]


def test_batches_that_fit_exactly_are_let_through(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loader, "shared_memory", lambda: 64.0 * 2**20)
    check_shared_memory(8, 8 * 2**20)
    with pytest.raises(UserError, match=r"/dev/shm has 64 MiB free, .* 64 MiB, 8 x 8\.0: docker run --shm-size"):
        check_shared_memory(8, 8 * 2**20 + 1)


JOINS = """
import os, sys, torch
from data_modules import data_module
from numbered import Numbered
from views import caption_view, crop_view
free = lambda: os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize
views = {"image": crop_view(224, (0.5, 1.0)), "text": caption_view()}
module = data_module(Numbered(512), 2, views=views, global_batch_size=128, prefetch_gb=float(sys.argv[1]))
before = least = free()
for epoch in range(2):
    for batch in module.train_dataloader() if module.loader is None else module.loader:
        least = min(least, free())
print((before - least) / 1e6)
"""


@pytest.mark.parametrize("limit", [0.05, slow(0.1)])
def test_batches_take_no_more_shared_memory_than_they_may(tmp_path: Path, limit: float):
    """Two epochs of 4 batches of 19 MB, in chunks of 64 samples, of which one per worker and one more take 29 MB."""
    (tmp_path / "joins.py").write_text(JOINS)
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests" / "support")])
    environment = ["env", f"PYTHONPATH={path}"]
    ended = with_shared_memory("1g", *environment, sys.executable, "joins.py", str(limit), folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert 0.55 * limit < float(ended.stdout) / 1e3 < limit


def test_an_evaluation_whose_batches_do_not_fit_is_refused_before_its_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loader, "shared_memory", lambda: 2.0**20)
    bundle = models.bundle(models.image_encoder())
    with pytest.raises(UserError, match=r"/dev/shm has 1 MiB free.*docker run --shm-size=8g, or the evaluation's num_"):
        next(image_batches(bundle, models.Pictures(400), batch_size=200, num_workers=2))
