"""What goes wrong in a run, at a step that the environment names, because a run's config tells it from others."""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from openslip.data.source import Sample, Source
from openslip.data.sources.shards import ShardSource
from openslip.durable import finish_writes
from openslip.errors import DataError
from openslip.evaluation.evaluation import Evaluation
from openslip.evaluation.features import image_batches
from openslip.inference.bundle import Bundle
from openslip.objectives.slip import SLIP
from openslip.training import checkpoint_io


def own_rank() -> str:
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))


def here(kind: str, step: int) -> bool:
    """`DISTURB="signal 7 0"`: the kind, at that step, on that rank; `DISTURB="nan 3-5 1"` from step to step."""
    wanted, steps, rank = os.environ.get("DISTURB", "none 0 0").split()
    first, _, last = steps.partition("-")
    in_time = int(first) <= step <= int(last or first)
    return wanted == kind and in_time and rank in ("all", own_rank())


class Disturb(pl.Callback):
    """`signal`, `kill`, `kill_worker`, or `stuck`, in a step, or `stuck_setup`, `stuck_save`, `slow_save`.

    `stuck_write`, `slow_write` and `end_writer` happen in the thread that writes the checkpoint of that step.

    `STEPS_MADE` names a file that gets a byte for every step; `RECORD` begins the name of one for each rank, which
    gets the samples of every step and a hash of the weights after it.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if "IMPATIENT" in os.environ:  # a disk that is full in a test stays so
            checkpoint_io.PAUSES = (0.1, 0.1)
        if here("stuck_setup", 0):
            time.sleep(1000)
        write = checkpoint_io.write

        def disturbed(content: dict[str, Any], path: Path, step: int) -> None:
            if here("stuck_write", step):
                time.sleep(1000)
            if here("slow_write", step):
                time.sleep(3)
            if here("end_writer", step):
                raise SystemExit
            write(content, path, step)

        checkpoint_io.write = disturbed

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        step = pl_module.step + 1
        if here("signal", step):
            sys.stderr.write(f"signal at {time.monotonic()}\n")
            os.kill(os.getpid(), int(os.environ.get("SIGNAL", signal.SIGTERM)))
        if here("kill", step):
            os.kill(os.getpid(), signal.SIGKILL)
        if here("stuck", step):
            time.sleep(1000)
        if here("kill_worker", step):
            workers = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            os.kill(int(workers[0]), signal.SIGKILL)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if "STEPS_MADE" in os.environ:
            with Path(os.environ["STEPS_MADE"]).open("ab") as file:
                file.write(b".")
        if "RECORD" in os.environ:
            digest = hashlib.sha256()
            for tensor in pl_module.state_dict().values():
                digest.update(tensor.numpy().tobytes())
            line = {"step": pl_module.step, "samples": batch["index"].tolist(), "weights": digest.hexdigest()}
            with Path(f"{os.environ['RECORD']}-rank{os.environ.get('RANK', '0')}").open("a") as file:
                file.write(json.dumps(line) + "\n")

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if here("stuck_save", pl_module.step):
            time.sleep(1000)
        if here("slow_save", pl_module.step):
            time.sleep(3)


class SlowSource(ShardSource):
    """`slow_data`: the sample that a process reads as that one takes a quarter of an hour, or is a `data_error`."""

    samples = 0

    def __getitem__(self, index: int) -> Sample:
        self.samples += 1
        if here("slow_data", self.samples):
            time.sleep(900)
        if here("data_error", self.samples):
            raise DataError(f"sample {index} is broken")
        return super().__getitem__(index)


class LongEvaluation(Evaluation):
    """Goes through its batches as every evaluation does; `evaluation` or `stuck_evaluation` in one of them."""

    def __init__(self, *, source: Source) -> None:
        self.source = source

    def run(self, bundle: Bundle) -> dict[str, float]:
        total = 0.0
        batches = image_batches(bundle, self.source, batch_size=8, num_workers=0)
        for number, (image, _) in enumerate(batches):
            if here("evaluation", number):
                os.kill(os.getpid(), signal.SIGTERM)
            if here("stuck_evaluation", number):
                time.sleep(1000)
            total += float(image.double().sum())
        return {"sum": total}

    def headline(self, metrics: dict[str, float]) -> str:
        return f"sum {metrics['sum']}"


class NaN(SLIP):
    """`nan`: the loss of one rank is not finite, although its gradients would be."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.step = 0

    def loss(self, model: Any, features: dict[str, torch.Tensor], /) -> dict[str, torch.Tensor]:
        terms = super().loss(model, features)
        self.step += 1
        if here("nan", self.step):
            terms["loss"] = terms["loss"] + torch.nan
        return terms


class Broken(SLIP):
    """Fails in its first step."""

    def loss(self, model: Any, features: dict[str, torch.Tensor], /) -> dict[str, torch.Tensor]:
        raise ValueError("no such loss")


class Float64(SLIP):
    """The same in float64, where rounding is too small to be mistaken for a difference."""

    def setup(self, model: Any) -> None:
        super().setup(model)
        model.double()
        self.double()
        model.image_tower.register_forward_pre_hook(lambda tower, arguments: (arguments[0].double(),))


class Scale(Evaluation):
    """Measures the logit scale; `kill_NAME` ends the process in that call of it, where `step` counts the calls."""

    def __init__(self, *, name: str) -> None:
        self.name = name
        self.calls = 0

    def run(self, bundle: Bundle) -> dict[str, float]:
        self.calls += 1
        if here(f"kill_{self.name}", self.calls):
            finish_writes()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"scale": float(bundle.model.logit_scale)}


class Overwrite(pl.Callback):
    """Sets the logit scale at the end of each step to a number that tells the step, and counts the steps."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.count += 1
        pl_module.model.logit_scale.data.fill_(1 + pl_module.step / 64)

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.count = state_dict["count"]


class FailsToOpen(SlowSource):
    """`data_missing`: cannot be opened on one rank."""

    def __init__(self, **arguments: Any) -> None:
        if here("data_missing", 0):
            raise DataError("no such shard here")
        super().__init__(**arguments)


class Peak(Evaluation):
    """Measures how near the logit scale, as `Overwrite` sets it, is to that of step 8; `kill_peak` as in `Scale`."""

    headline_metric = "height"

    def __init__(self) -> None:
        self.calls = 0

    def run(self, bundle: Bundle) -> dict[str, float]:
        self.calls += 1
        if here("kill_peak", self.calls):
            finish_writes()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"height": 1 - abs(float(bundle.model.logit_scale) - 1 - 8 / 64)}
