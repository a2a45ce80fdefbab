"""A checkpoint, images and configs of several evaluations in a folder, and real processes that evaluate them."""

import os
import socket
import sys
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import yaml
from evaluation_models import CLASSNAMES, Pictures
from stored_models import write_checkpoint
from trainings import fork

from openslip.commands import eval as command
from openslip.data.source import Source
from openslip.distributed import rank
from openslip.errors import MissingData, UserError, run_entry_point
from openslip.evaluation.evaluation import Evaluation
from openslip.inference.bundle import Bundle
from openslip.inference.files import read, write

CLASSES = CLASSNAMES[:5]


def zero_shot(root: str, **changes: Any) -> dict[str, Any]:
    return {
        "_target_": "openslip.evaluation.zeroshot.ZeroShot",
        "title": "zero-shot",
        "source": {"_target_": "openslip.data.sources.image_folder.ImageFolder", "root": root},
        "classnames": None,
        "templates": ["a {}.", "a photo of a {}."],
        "batch_size": 3,
        "num_workers": 0,
        **changes,
    }


def knn(train: str, test: str) -> dict[str, Any]:
    source = {"_target_": "openslip.data.sources.image_folder.ImageFolder"}
    return {
        "_target_": "openslip.evaluation.knn.KNN",
        "title": "k-NN",
        "train": {**source, "root": train},
        "test": {**source, "root": test},
        "k": 3,
        "temperature": 0.07,
        "batch_size": 3,
        "num_workers": 0,
    }


def write_place(folder: Path) -> Path:
    """Write a checkpoint of a run, a copy outside of it, 13 and 7 images, and the configs of evaluations."""
    run = folder / "runs" / "one"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("format: 2\nglobal_batch_size: 8\n")
    content = read(write_checkpoint(folder / "model.ckpt"))
    content["openslip"] |= {"step": 3, "run": {"format": 2, "global_batch_size": 8}}
    write(run / "checkpoints" / "step-000003.ckpt", content)
    (run / "checkpoints" / "last.ckpt").symlink_to("step-000003.ckpt")
    for name, count in (("images", 13), ("other", 7)):
        for index in range(count):
            place = folder / name / CLASSES[index % len(CLASSES)] / f"{index}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(Pictures(count, seed=len(name))[index].image)
    configs = {
        "first": zero_shot("images"),
        "second": knn("images", "other"),
        "third": zero_shot("other"),
        "waits": {"_target_": "evaluation_suites.Waits"},
        "missing": {"_target_": "evaluation_suites.Waits", "source": {"_target_": "evaluation_suites.Missing"}},
        "wrong": zero_shot("images", classnames=["a", "b"]),
        "fails": {"_target_": "evaluation_suites.Fails", "ranks": [0, 1, 2]},
        "fails_on_1": {"_target_": "evaluation_suites.Fails", "ranks": [1]},
    }
    (folder / "configs" / "evaluation").mkdir(parents=True)
    for name, config in configs.items():
        (folder / "configs" / "evaluation" / f"{name}.yaml").write_text(yaml.safe_dump({name: config}))
    return folder


def words(evaluations: str, *arguments: str, checkpoint: str = "runs/one") -> list[str]:
    return ["--config-dir=configs", f"checkpoint={checkpoint}", f"evaluation=[{evaluations}]", "device=cpu", *arguments]


class Waits(Evaluation):
    """Returns one metric; while the file `wait` exists, it says that it has begun and does not end."""

    def __init__(self, source: Source | None = None) -> None:
        self.source = source

    def run(self, bundle: Bundle) -> dict[str, float]:
        Path("begun").touch()
        while Path("wait").exists():
            time.sleep(0.01)
        return {"top1": 50.0, "num_samples": 2.0}


class Fails(Evaluation):
    """Fails on some ranks; the others wait for the end of all, as in an exchange."""

    def __init__(self, ranks: list[int]) -> None:
        self.ranks = ranks

    def run(self, bundle: Bundle) -> dict[str, float]:
        if rank() in self.ranks:
            raise UserError(f"this evaluation fails on rank {rank()}")
        torch.distributed.barrier()
        return {}


class Missing(Source):
    """A dataset whose files are not there."""

    def __init__(self) -> None:
        raise MissingData("data/evaluation/nothing: no such folder; openslip data get nothing")

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int, /) -> Any: ...

    @property
    def fingerprint(self) -> str:
        return ""


def run(arguments: list[str], folder: str, log: str, environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    torch.set_num_threads(1)
    sys.exit(run_entry_point(command.main, arguments))


@dataclass
class Process:
    """One process of the command and its log."""

    process: ForkServerProcess
    log: Path

    def wait(self, seconds: float = 60) -> int:
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {seconds} s:\n{self.said()}")
        return self.process.exitcode

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def start(folder: Path, arguments: list[str], ranks: int = 1) -> list[Process]:
    """Start the command, with several ranks as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for number in range(ranks):
        place = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(ranks)}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        place["OPENSLIP_CACHE"] = str(folder / "cache")
        log = folder / f"log{number}"
        log.unlink(missing_ok=True)
        started.append(Process(fork(run, arguments, str(folder), str(log), place), log))
    return started
