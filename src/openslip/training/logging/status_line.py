"""The status line, which shows the progress of a run."""

from collections.abc import Mapping
from contextlib import ExitStack

from openslip.progress import Row, bottom, duration, fitting, on_terminal, progress, redraw, width
from openslip.terminal import mention


class StatusLine(Row):
    """A line that is redrawn in place on a terminal; a log file gets about twenty lines per run.

    Args:
        every_n_steps: steps between calls of `show`.
    """

    def __init__(self, *, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self.fields: list[str] = []
        self.is_shown = False
        self.stack = ExitStack()

    def begin(self) -> None:
        """Show that training starts, until the first step is shown."""
        self.stack.enter_context(progress("starting training"))

    def show(self, step: int, total: int, logged: Mapping[str, float | int]) -> None:
        """Show the metrics of a step."""
        self.fields = status(step, total, logged)
        if self.is_shown:
            redraw()
            return
        self.stack.close()
        if on_terminal():
            self.is_shown = True
            self.stack.enter_context(bottom(self))
        elif step == total or step == 1 or step % max(total // 20 // self.every_n_steps * self.every_n_steps, 1) == 0:
            mention("  ".join(self.fields))

    def line(self, width: int) -> str:
        return fitting(self.fields, width)

    def close(self, error: BaseException | None = None) -> None:
        """End the line; its last state stays above what is printed next.

        Args:
            error: exception that ends the training. If no step was shown before it, the phase "starting training" is
                then not reported as done.
        """
        last = [self.line(width())] if self.is_shown and on_terminal() else []
        self.is_shown = False
        self.stack.__exit__(error and type(error), error, error and error.__traceback__)
        mention(*last)


def status(step: int, total: int, logged: Mapping[str, float | int]) -> list[str]:
    """Format the metrics of a step, the most important first, without speeds that were not measured."""
    terms = {key.removeprefix("train/"): value for key, value in logged.items() if key.startswith("train/")}
    speed = {key.removeprefix("speed/"): value for key, value in logged.items() if key.startswith("speed/")}
    skipped, lr = terms.pop("skipped", 0), terms.pop("lr", None)
    fields = [f"step {step}/{total}"]
    if "loss" in terms:
        fields.append(f"loss {terms.pop('loss'):.4g}")
    fields += [f"ETA {duration(3600 * speed['eta_hours'])}", f"{speed['samples_per_second']:.0f} samples/s"]
    if skipped:
        fields.append(f"skipped {skipped:.0f}")
    if bad := logged.get("data/bad_samples"):
        fields.append(f"bad samples {bad:.0f}")
    if "data_wait_percent" in speed:
        fields.append(f"data wait {speed['data_wait_percent']:.0f} %")
    if "mfu_percent" in speed:
        fields.append(f"MFU {speed['mfu_percent']:.1f} %")
    fields += [f"{name} {value:.4g}" for name, value in terms.items()]
    if lr is not None:
        fields.append(f"lr {lr:.4g}")
    fields.append(f"{speed['peak_memory_gb']:.2f} GB")
    if speed["samples_per_second_per_device"] < speed["samples_per_second"]:
        fields.append(f"{speed['samples_per_second_per_device']:.0f} samples/s per device")
    return fields
