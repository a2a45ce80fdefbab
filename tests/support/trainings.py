"""Real training processes that can be killed: forked off one that has done the slow imports."""

import atexit
import csv
import hashlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from forked import fork
from wandb.sdk.data_types._private import MEDIA_TMP

from openslip import signals
from openslip.commands import train
from openslip.config.defaults import default_config
from openslip.errors import run_entry_point
from openslip.inference.files import read
from openslip.run.checkpoints import file_name, newest_whole, saved
from openslip.text.clip_bpe import ClipBpe
from openslip.training.checkpoint_io import DurableCheckpointIO

# A model that makes a step in some 10 ms; six steps an epoch on 100 samples.
SMALL = [
    *("trainer=cpu", "trainer.precision=32-true", "data=webdataset", "data.num_workers=0", "evaluation=none"),
    *("global_batch_size=16", "model.image_tower.arguments.embed_dim=24", "model.image_tower.arguments.depth=1"),
    *("model.text_tower.width=8", "model.text_tower.depth=1", "model.text_tower.heads=1", "model.embed_dim=8"),
    "+callbacks.disturb._target_=disturbances.Disturb",
    *("optim.warmup_steps=3", "callbacks.metrics.every_n_steps=1", "callbacks.snapshot.num_samples=4"),
]
STEPS = 30
RUN = [*SMALL, "data.source.shards=0.tar", f"trainer.max_steps={STEPS}", "callbacks.save.every_n_steps=4"]
CHOICES = tuple(word for word in RUN if word.partition("=")[0] in ("trainer", "data", "evaluation"))
# Kept, so that a process forked off this one need not compose the config and read the vocabulary.
default_config("train", CHOICES, ())
ClipBpe(context_length=77, truncation="keep_end", special_text="plain").tokenize("")

# Three evaluations: after steps 12 and 24, and at the end. What they find depends on no weights.
EVALUATED = [
    *("+evaluation.long.every_n_epochs=2", "+evaluation.long._target_=disturbances.LongEvaluation"),
    *(
        "+evaluation.long.source._target_=openslip.data.sources.shards.ShardSource",
        "+evaluation.long.source.shards=0.tar",
    ),
    "+evaluation.long.source.require=label",
]


def run(arguments: list[str], folder: str, log: str, environment: dict[str, str]) -> None:
    """Run the train command; a finished run's page, which takes as long as its steps, only where `REPORT` is set."""
    os.chdir(folder)
    if "REPORT" not in environment:
        train.write_report = Path
    os.environ.update(environment)
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    multiprocessing.set_start_method("fork", force=True)  # as without a fork server
    # The fork server has made W&B's folder for images, and the first process that ends deletes it.
    MEDIA_TMP.name = tempfile.mkdtemp(suffix="wandb-media")
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it is ignored where the tests themselves run under nohup
    signals.catch()
    try:
        sys.exit(run_entry_point(train.main, arguments))
    finally:
        atexit._run_exitfuncs()  # W&B ends its files there, and a fork server's processes would not


class Training:
    """One process of a run."""

    def __init__(self, folder: Path, *arguments: str, log: str = "log", **environment: str) -> None:
        self.log = folder / log
        given = {"OMP_NUM_THREADS": "1", **environment}
        self.process = fork(run, list(arguments), str(folder), str(self.log), given)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, seconds: float = 120) -> int:
        """Its exit code; what is still running by then is killed."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {seconds} s:\n{self.said()}")
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def wait_for(self, words: str, seconds: float = 120, file: Path | None = None) -> None:
        """Until the words stand in its log, or in that file."""
        deadline = time.monotonic() + seconds
        while words not in (self.said() if file is None else file.read_text() if file.exists() else ""):
            assert self.process.is_alive(), self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.01)

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def two_ranks(folder: Path | list[Path], *arguments: str, log: str = "log", **environment: str) -> list[Training]:
    """A run of two ranks, started as torchrun does; in folders of their own where the nodes share none."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        **{"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0", **environment},
    }
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
    arguments = tuple(word for word in arguments if word != "trainer=cpu")
    return [
        Training(
            folder[rank] if isinstance(folder, list) else folder,
            *two,
            *arguments,
            log=f"{log}{rank}",
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            **shared,
        )
        for rank in range(2)
    ]


def saving_for_ever(folder: Path) -> ForkServerProcess:
    """A process that saves weights which all equal the step, and changes them as soon as it may."""
    return fork(save_for_ever, folder)


def save_for_ever(folder: Path) -> None:
    io, step = DurableCheckpointIO(), max((checkpoint.step for checkpoint in saved(folder)), default=0)
    weights = {str(number): torch.zeros(1 << 20) for number in range(6)}
    (folder / "begun").write_bytes(bytes(step))
    while True:
        step += 1
        for weight in weights.values():
            weight.fill_(step)
        io.save_checkpoint({"openslip": {"step": step}, "state_dict": weights}, folder / file_name(step))
        with (folder / "begun").open("ab") as begun:
            begun.write(b".")


def newest(run_folder: Path) -> dict[str, Any]:
    """What stands in the newest checkpoint."""
    return read(newest_whole(run_folder / "checkpoints").path)


def weights_hash(run_folder: Path) -> str:
    """Of the newest checkpoint's weights, statistics and optimizer."""
    content = newest(run_folder)
    digest = hashlib.sha256()
    for name, tensor in sorted(content["state_dict"].items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    for number, state in sorted(content["optimizer_states"][0]["state"].items()):
        for name, tensor in sorted(state.items()):
            digest.update(f"{number}{name}".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def steps_saved(run_folder: Path) -> list[int]:
    return [checkpoint.step for checkpoint in saved(run_folder / "checkpoints")]


def figures(run_folder: Path) -> list[tuple[str, ...]]:
    """Step and loss of every row."""
    with (run_folder / "metrics.csv").open() as file:
        return [(row["step"], row["samples_seen"], row["train/loss"]) for row in csv.DictReader(file)]


def evaluations(run_folder: Path) -> list[tuple[str, str]]:
    """Step and figure of every evaluation of `EVALUATED`."""
    with (run_folder / "metrics.csv").open() as file:
        rows = csv.DictReader(file)
        return [(row["step"], row["eval/long/sum"]) for row in rows if row.get("eval/long/sum")]


def assert_ended_as(run_folder: Path, whole: Path) -> None:
    assert figures(run_folder) == figures(whole)
    assert [int(step) for step, _, _ in figures(run_folder)] == list(range(1, STEPS + 1))
    assert weights_hash(run_folder) == weights_hash(whole)
    assert steps_saved(run_folder)[0] == STEPS
    assert not list((run_folder / "checkpoints").glob(".*"))


def samples_of(record: Path) -> dict[int, list[int]]:
    """What every step trained on, over all ranks and all processes of a run that was started with that `RECORD`."""
    steps: dict[int, list[int]] = {}
    for file in record.parent.glob(f"{record.name}-rank*"):
        for line in map(json.loads, file.read_text().splitlines()):
            steps.setdefault(line["step"], []).extend(line["samples"])
    return {step: sorted(samples) for step, samples in sorted(steps.items())}


def weights_of(record: Path, rank: int) -> dict[int, str]:
    """Hash of a rank's weights and statistics after every step."""
    lines = map(json.loads, record.with_name(f"{record.name}-rank{rank}").read_text().splitlines())
    return {line["step"]: line["weights"] for line in lines}
