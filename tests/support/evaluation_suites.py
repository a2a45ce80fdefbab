"""A checkpoint, images and configs of several evaluations in a folder, and real processes that evaluate them."""

import os
import socket
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
import yaml
from evaluation_models import CLASSNAMES, Pictures
from forked import fork
from stored_models import write_checkpoint

from openslip.commands import eval as command
from openslip.data.source import Sample, Source
from openslip.data.sources.image_folder import ImageFolder
from openslip.distributed import rank
from openslip.errors import MissingData, UserError, run_entry_point
from openslip.evaluation.evaluation import Evaluation
from openslip.evaluation.image_features import raw_joint_features
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


def first_of_two(root: str) -> dict[str, Any]:
    """Return the config of a source in one of two layouts, of which the second is there."""
    folder = {"_target_": "openslip.data.sources.image_folder.ImageFolder", "_partial_": True}
    target = "openslip.data.sources.first_found.first_found"
    return {"_target_": target, "name": "x", "places": {"a": {**folder, "root": "no"}, "b": {**folder, "root": root}}}


def on_rank_1(when: str) -> dict[str, Any]:
    """Return the config of an evaluation that fails on rank 1 alone, at one of its stages."""
    config = zero_shot("images")
    return {**config, "source": {"_target_": "evaluation_suites.OnRank1", "root": "images", "when": when}}


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
        "found": zero_shot("other", source=first_of_two("other")),
        "waits": {"_target_": "evaluation_suites.Waits"},
        "missing": {"_target_": "evaluation_suites.Waits", "source": {"_target_": "evaluation_suites.Missing"}},
        "wrong": zero_shot("images", classnames=["a", "b"]),
        "fails": {"_target_": "evaluation_suites.Fails", "ranks": [0, 1, 2]},
        "fails_on_1": {"_target_": "evaluation_suites.Fails", "ranks": [1]},
        "out_of_memory": {"_target_": "evaluation_suites.Breaks", "error": "torch.OutOfMemoryError"},
        "no_memory": {"_target_": "evaluation_suites.Breaks", "error": "builtins.MemoryError"},
        "no_file": {"_target_": "evaluation_suites.Breaks", "error": "builtins.OSError"},
        **{f"{when}_on_1": on_rank_1(when) for when in ("opened", "listed", "read")},
        "encoded_on_1": {"_target_": "evaluation_suites.EncodesOnRank0", "source": zero_shot("images")["source"]},
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


class Breaks(Evaluation):
    """Fails with an error that is none of ours."""

    def __init__(self, error: str) -> None:
        self.error = error

    def run(self, bundle: Bundle) -> dict[str, float]:
        kind: Any = locate(self.error)
        raise kind("first line\nsecond line")


class OnRank1(ImageFolder):
    """A dataset that rank 1 alone cannot open, list or read."""

    def __init__(self, root: str, when: str) -> None:
        super().__init__(root=root)
        self.when = when
        self.fail("opened")

    def fail(self, when: str) -> None:
        if self.when == when and rank() == 1:
            raise OSError(f"cannot be {when}")

    def __getitem__(self, index: int, /) -> Sample:
        self.fail("read")
        return super().__getitem__(index)

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.fail("listed")
        return super().fingerprint


class EncodesOnRank0(Evaluation):
    """Encodes images with a model for whose last batch rank 1 has too little memory."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def run(self, bundle: Bundle) -> dict[str, float]:
        calls = []

        def fail(*_: Any) -> None:
            calls.append(rank())
            if calls == [1, 1]:
                raise torch.OutOfMemoryError("too little memory")

        hook = bundle.model.image_tower.register_forward_pre_hook(fail)
        try:
            rows, _ = raw_joint_features(bundle, self.source, batch_size=3, num_workers=0)
        finally:
            hook.remove()
        return {"num_samples": float(len(rows))}


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
        place |= {"OPENSLIP_CACHE": str(folder / "cache"), "EVALUATION_DATA": str(folder / "sets")}
        log = folder / f"log{number}"
        log.unlink(missing_ok=True)
        started.append(Process(fork(run, arguments, str(folder), str(log), place), log))
    return started
