"""What happens to a run's folder while it runs, at a step that the environment names."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from disturbances import here

from openslip.training.callbacks import snapshot


class DisturbFolder(pl.Callback):
    """`pause`: the step waits for the file `RESUME`; `fill`: `FILL` fills the disk; `WRITERS`: list of writers."""

    def __init__(self) -> None:
        if "WRITERS" in os.environ:
            write_arrays = snapshot.write_arrays

            def noted(path: Path, arrays: dict[str, np.ndarray]) -> None:
                with Path(os.environ["WRITERS"]).open("a") as file:
                    file.write(os.environ["RANK"] + "\n")
                write_arrays(path, arrays)

            snapshot.write_arrays = noted

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if here("pause", pl_module.step + 1):
            while not Path(os.environ["RESUME"]).exists():
                time.sleep(0.01)
        if here("fill", pl_module.step + 1):
            try:
                with Path(os.environ["FILL"]).open("wb", buffering=0) as file:
                    while file.write(bytes(512)):
                        pass
            except OSError:
                return
