"""Training steps with no waits except events of the step before: PyTorch raises an error at a synchronisation.

`openslip train` itself runs, with gradient clipping, EMA weights, the check for non-finite steps, augmentation and a
row of metrics at every step; towers and augmentation are compiled where `compile=auto` is on. The first steps may wait:
they choose kernels and sizes. PyTorch's detection is experimental and does not know every kind of synchronisation, nor
waits for events, such as for the metrics of the step before. Without a GPU the steps run and nothing is detected.

    python benchmarks/sync_free_step.py model=slip_vitb16 global_batch_size=64 trainer.max_epochs=null evaluation=none
"""

# pyright: reportIncompatibleMethodOverride=false

import sys
from typing import Any

import pytorch_lightning as pl
import torch

from openslip.commands.train import main as train
from openslip.errors import run_entry_point
from openslip.training.pretrainer import Pretrainer

FIRST, LAST, STEPS = 3, 6, 8  # steps that may not synchronise, and all
OPTIONS = (
    *("optim.clip_norm=1.0", "optim.ema_decay=0.99", "callbacks.metrics.every_n_steps=1"),
    *(f"trainer.max_steps={STEPS}", "+callbacks.sync_free._target_=sync_free_step.SyncFree"),
)


class SyncFree(pl.Callback):
    """Has PyTorch raise an error at a synchronisation from the end of one step to the end of a later one."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Pretrainer, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.device.type != "cuda":
            return
        if pl_module.step == FIRST - 1:
            torch.cuda.set_sync_debug_mode("error")
            self.try_detection(pl_module.device)
        elif pl_module.step == LAST:
            torch.cuda.set_sync_debug_mode("default")
            print(f"steps {FIRST} to {LAST}: no waits except events of the step before", flush=True)

    def try_detection(self, device: torch.device) -> None:
        """Ends the run where a synchronisation is not detected."""
        try:
            torch.ones((), device=device).item()
        except RuntimeError:
            return
        raise SystemExit("set_sync_debug_mode('error') lets .item() pass: this run would prove nothing")


def main() -> int:
    code = run_entry_point(train, [*OPTIONS, "debug=true", *sys.argv[1:]])
    if code == 0 and not torch.cuda.is_available():
        print("no GPU: the steps ran, and nothing was detected")
    return code


if __name__ == "__main__":
    sys.exit(main())
