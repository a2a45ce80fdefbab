"""W&B without its server: the run is offline, says how to upload it, and goes on."""

import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from openslip.training.logging.wandb_logger import valid_id

START = """
import sys
import numpy as np
import pytorch_lightning as pl
from openslip.training.logging.metrics import log
from openslip.training.logging.predictions import log_predictions
from openslip.training.logging.wandb_logger import wandb_logger
print("imported", flush=True)
logger = wandb_logger(project="p", name="n", version="same-id", save_dir=sys.argv[1], timeout=float(sys.argv[2]))
trainer = pl.Trainer(logger=logger, accelerator="cpu", enable_checkpointing=False)
log(trainer, {"train/loss": 1.0, "samples_seen": 64}, 1)
log_predictions(trainer, "a", {"labels": np.array([0, 1]), "predictions": np.array([0, 0])}, 1)
print(logger.experiment.id, logger.experiment.settings.mode)
"""


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(params=["silent", "refusing"])
def unreachable_server(request: pytest.FixtureRequest, silent_server: str) -> str:
    return silent_server if request.param == "silent" else "http://127.0.0.1:9"


def run(tmp_path: Path, timeout: float, **environment: str) -> tuple[str, str, float]:
    """What a small run printed and said, and the seconds from the logger's start to the end of the process."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    command = [sys.executable, "-c", START, str(tmp_path), str(timeout)]
    with (
        (tmp_path / "said").open("w+") as said,
        subprocess.Popen(
            command, env={**kept, **environment}, stdout=subprocess.PIPE, stderr=said, text=True
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == "imported\n"
        started = time.monotonic()
        printed, _ = process.communicate(timeout=120)
        seconds = time.monotonic() - started
        said.seek(0)
        assert process.returncode == 0, said.read()
    return printed, (tmp_path / "said").read_text(), seconds


def check_offline(tmp_path: Path, url: str, timeout: float) -> None:
    """The run is offline long before W&B's own 90 seconds are over, and names a folder that can be uploaded."""
    printed, said, seconds = run(tmp_path, timeout, WANDB_BASE_URL=url, WANDB_API_KEY="0" * 40)
    assert "same-id offline" in printed
    command = re.search(r"W&B is offline \(.+\); upload the run later: wandb sync (\S+)", said)
    assert command, said
    folder = Path(command[1])
    assert folder.name.startswith("offline-run-")
    assert list(folder.glob("run-same-id.wandb"))
    assert seconds < timeout + 30  # the start of W&B's service takes 5 to 13 of them


def test_an_unreachable_server_makes_the_run_offline_with_the_command_to_sync(tmp_path: Path, unreachable_server: str):
    check_offline(tmp_path, unreachable_server, 2.0)


def test_a_run_of_any_name_has_an_id_that_wandb_takes():
    for name in ("it's a,b;c:d#e?f [g]{h}=~-0a1b2c", "größe-0a1b2c"):
        assert wandb.Settings(run_id=valid_id(name)).run_id == valid_id(name)
    assert valid_id("slip_tiny-builtin-2687d929-0a1b2c") == "slip_tiny-builtin-2687d929-0a1b2c"


@pytest.mark.slow
def test_a_silent_server_costs_less_than_20_seconds(tmp_path: Path, silent_server: str):
    check_offline(tmp_path, silent_server, 10.0)


def test_a_run_holds_its_axis_its_figures_and_its_table_of_predictions(tmp_path: Path):
    run(tmp_path, 2.0, WANDB_MODE="offline")
    (file,) = tmp_path.glob("wandb/offline-run-*/run-same-id.wandb")
    axes, figures = {}, {}
    for record in records(file):
        if record.HasField("metric"):
            axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        for item in record.history.item:
            figures["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    assert "samples_seen" in axes
    assert axes["*"] == "samples_seen"
    assert (figures["train/loss"], figures["samples_seen"]) == (1.0, 64)
    table = json.loads((file.parent / "files" / figures["eval/a/predictions/path"]).read_text())
    assert table["columns"] == ["sample", "label", "prediction", "right"]
    assert table["data"] == [[0, 0, 0, True], [1, 1, 0, False]]


def records(file: Path) -> Iterator[Any]:
    """Of a run's file: a header, then LevelDB's log format, whose blocks of 32 KiB these few never fill."""
    content = file.read_bytes()
    at, messages = 7, vars(wandb_internal_pb2)
    assert len(content) < 32768
    while at < len(content):
        _, length, kind = struct.unpack_from("<IHB", content, at)
        assert kind == 1  # whole
        yield messages["Record"].FromString(content[at + 7 : at + 7 + length])
        at += 7 + length
