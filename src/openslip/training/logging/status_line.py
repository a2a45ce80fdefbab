"""The status line, which shows the progress of a run."""

import sys
from collections.abc import Mapping


class StatusLine:
    """A line that is redrawn in place on a terminal; a log file gets about twenty lines per run.

    Args:
        every_n_steps: steps between calls of `show`.
    """

    def __init__(self, *, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self.live = sys.stderr.isatty()

    def show(self, step: int, total: int, logged: Mapping[str, float | int]) -> None:
        line = status(step, total, logged)
        if self.live:
            sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if step == total else ""))
        elif step == total or step == 1 or step % max(total // 20 // self.every_n_steps * self.every_n_steps, 1) == 0:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()


def status(step: int, total: int, logged: Mapping[str, float | int]) -> str:
    """Format the metrics of a step as one line; speeds that were not measured are omitted."""
    terms = [f"{key.removeprefix('train/')} {value:.4g}" for key, value in logged.items() if key.startswith("train/")]
    speed = {key.removeprefix("speed/"): value for key, value in logged.items() if key.startswith("speed/")}
    parts = [*terms, f"{speed['samples_per_second']:.0f} samples/s"]
    if speed["samples_per_second_per_device"] < speed["samples_per_second"]:
        parts[-1] += f" ({speed['samples_per_second_per_device']:.0f} per device)"
    if "data_wait_percent" in speed:
        parts.append(f"data {speed['data_wait_percent']:.0f} %")
    if "mfu_percent" in speed:
        parts.append(f"MFU {speed['mfu_percent']:.1f} %")
    parts += [f"{speed['peak_memory_gb']:.2f} GB", f"ETA {duration(3600 * speed['eta_hours'])}"]
    return f"step {step}/{total}  {'  '.join(parts)}"


def duration(seconds: float) -> str:
    """Format a duration as `1:02:03` or `2:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
