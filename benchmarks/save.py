"""What a save costs training: how long it waits for the copy of its state, and what goes on beside it afterwards.

A training by Lightning's loop whose steps compute nothing: its model, objective and optimizer state are those of the
model that is named, and so are its checkpoints. In every round a plain copy of the same tensors, into memory that was
written before, is timed next to the save, so that what slows the machine slows both. Needs memory for the state three
times over.

    python benchmarks/save.py --json save.json
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytorch_lightning as pl
import torch
from rates import Row, show
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from openslip.config.build import build, build_parts, settled
from openslip.config.compose import compose_config
from openslip.data.datamodule import DataModule
from openslip.data.image.eval_transform import EvalTransform
from openslip.optim import WarmupCosine
from openslip.training.callbacks.save import begin_save, end_save
from openslip.training.checkpoint_io import DurableCheckpointIO
from openslip.training.lightning import SWITCHED_OFF, quiet_lightning
from openslip.training.pretrainer import Pretrainer

SPARE = 0.2  # seconds that a save may take training beside the copy
TICK = 0.001  # seconds that another thread sleeps between two looks at the clock


class EmptySteps(Pretrainer):
    """Every parameter gets a gradient of zeros, so that the optimizer has its whole state."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return torch.stack([(0 * parameter).sum() for parameter in self.parameters() if parameter.requires_grad]).sum()


class NoData(DataModule):
    """As many steps as rounds."""

    def __init__(self, steps: int) -> None:
        pl.LightningDataModule.__init__(self)
        self.order: Any = SimpleNamespace(global_batch_size=1, steps_per_epoch=steps)
        self.consumed, self.loader = 0, None

    def train_dataloader(self) -> DataLoader:
        return DataLoader([{"index": torch.zeros(1)}] * self.steps_per_epoch, batch_size=None)  # pyright: ignore[reportArgumentType]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {}


class Measure(pl.Callback):
    """Times a copy, a save and the writing after it, at the end of every step."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"copy": [], "stall": [], "write": [], "pause": []}
        self.gigabytes = 0.0
        self.kept: list[Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        state = [pl_module.state_dict(), [optimizer.state_dict() for optimizer in trainer.optimizers]]
        tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
        self.gigabytes = sum(tensor.nbytes for tensor in tensors) / 1e9
        self.kept = self.kept or [torch.zeros_like(tensor) for tensor in tensors]
        start = time.perf_counter()
        for kept, tensor in zip(self.kept, tensors, strict=True):
            kept.copy_(tensor)
        copied = time.perf_counter()
        begin_save(trainer, pl_module)
        begun = time.perf_counter()
        pause = longest_pause(trainer)
        end_save(trainer)
        taken = {"copy": copied - start, "stall": begun - copied, "write": time.perf_counter() - begun, "pause": pause}
        for name, seconds in taken.items():
            self.seconds[name].append(seconds)


def longest_pause(trainer: pl.Trainer) -> float:
    """Seconds that the interpreter was kept at most from this thread while another one writes."""
    longest, last = 0.0, time.perf_counter()
    while any(thread.name == "checkpoint writer" for thread in threading.enumerate()):
        time.sleep(TICK)
        now = time.perf_counter()
        longest, last = max(longest, now - last - TICK), now
    return longest


def measure(name: str, rounds: int, folder: Path) -> Iterator[Row]:
    (folder / "checkpoints").mkdir()
    config = settled(compose_config("train", [f"model={name}"])[0])
    parts, optim = build_parts(config), config["optim"]
    pretrainer = EmptySteps(
        model=parts.model,
        objective=parts.objective,
        optimizer=build(optim["optimizer"], "optim.optimizer"),
        weight_decay=optim["weight_decay"],
        layer_decay=None,
        clip_norm=None,
        ema_decay=None,
        schedule=WarmupCosine(lr_start=0.0, lr=0.0, lr_end=0.0, warmup_steps=1, max_steps=rounds + 1),
        architecture=config["model"],
        tokenizer=parts.tokenizer,
        transform=EvalTransform(size=config["image_size"], mean=config["mean"], std=config["std"]),
    )
    measured = Measure()
    trainer = pl.Trainer(
        **SWITCHED_OFF,
        max_steps=rounds + 1,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[measured],
        plugins=[DurableCheckpointIO({})],
        default_root_dir=folder,
    )
    trainer.fit(pretrainer, datamodule=NoData(rounds + 1))
    first = {key: seconds[0] for key, seconds in measured.seconds.items()}
    later = {key: seconds[1:] for key, seconds in measured.seconds.items()}
    copy, stall, write = (f"{name}, {what}" for what in ("copy of its tensors", "training waits", "written beside it"))
    yield Row(f"{name}, a checkpoint's tensors", measured.gigabytes, "GB")
    yield Row(copy, statistics.median(later["copy"]), "s")
    for row, key in ((stall, "stall"), (write, "write")):
        ratio = statistics.median(a / b for a, b in zip(later[key], later["copy"], strict=True))
        yield Row(row, statistics.median(later[key]), "s", copy, ratio)
    yield Row(f"{stall}, first save", first["stall"], "s")
    yield Row(f"{name}, longest pause of another thread", max(later["pause"]), "s")
    spare = [a + SPARE - b for a, b in zip(later["copy"], later["stall"], strict=True)]
    yield Row(f"{name}, seconds to spare of the copy + {SPARE}", statistics.median(spare), "s", bar=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--models", nargs="+", default=["slip_vitb16"])
    parser.add_argument("--rounds", type=int, default=5, help="after a first save, whose memory is fresh")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quiet_lightning()
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / str(number) for number in range(len(options.models))]
        for place in places:
            place.mkdir()
        parts = zip(options.models, places, strict=True)
        show(*(measure(name, options.rounds, place) for name, place in parts), file=options.json)


if __name__ == "__main__":
    main()
