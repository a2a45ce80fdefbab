"""W&B without its server: the run is offline, says how to upload it, and goes on."""

import os
import re
import subprocess
import sys
from pathlib import Path

START = """
import sys
from openslip.training.wandb_logger import wandb_logger
logger = wandb_logger(project="p", name="n", version="same-id", save_dir=sys.argv[1], timeout=2.0)
logger.log_metrics({"train/loss": 1.0, "samples_seen": 64}, 1)
logger.log_table("eval/a/predictions", columns=["sample", "label"], data=[[0, "ant"]], step=1)
print(logger.experiment.id, logger.experiment.settings.mode)
"""


def test_an_unreachable_server_makes_the_run_offline_with_the_command_to_sync(tmp_path: Path):
    environment = {**os.environ, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    done = subprocess.run(
        [sys.executable, "-c", START, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "same-id offline" in done.stdout
    said = re.search(r"W&B is offline \(.+\): later, wandb sync (\S+)", done.stderr)
    assert said, done.stderr
    folder = Path(said[1])
    assert folder.name.startswith("offline-run-")
    assert list(folder.glob("run-same-id.wandb"))
    assert list(folder.glob("files/media/table/eval/a/*.json"))
