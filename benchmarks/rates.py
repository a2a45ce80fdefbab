"""How fast things are beside one another: works that take turns, and the table of what came out."""

import json
import resource
import statistics
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

Work = Callable[[], int]  # does something and tells how many


class Row(NamedTuple):
    """A line of the table; `bar` is the least ratio that we ask for, or the least value where there is no ratio."""

    name: str
    value: float
    unit: str
    baseline: str | None = None
    ratio: float | None = None
    bar: float | None = None


class Rates:
    """Things per second: each work in turn in every round, so that what slows the machine slows all of them.

    Args:
        works: by name.
        rounds: after one that warms up.
        clock: what ratios are of; None for processor time, which says nothing of a GPU's work.
    """

    def __init__(self, works: dict[str, Work], rounds: int, clock: Callable[[], float] | None = None) -> None:
        clock = clock or cpu_seconds
        self.cpu: dict[str, list[float]] = {name: [] for name in works}
        self.wall: dict[str, list[float]] = {name: [] for name in works}
        for work in works.values():
            work()
        for _ in range(rounds):
            for name, work in works.items():
                cpu, wall = clock(), time.perf_counter()
                count = work()
                self.cpu[name].append(count / (clock() - cpu))
                self.wall[name].append(count / (time.perf_counter() - wall))

    def row(
        self, name: str, unit: str, baseline: str | None = None, bar: float | None = None, label: str | None = None
    ) -> Row:
        """Median rate and, beside a baseline, median ratio; `label` is for a work that is compared with several."""
        ratio = None
        if baseline is not None:
            ratio = statistics.median(a / b for a, b in zip(self.cpu[name], self.cpu[baseline], strict=True))
        return Row(label or name, statistics.median(self.cpu[name]), unit, baseline, ratio, bar)

    def wall_row(self, name: str, unit: str) -> Row:
        return Row(f"{name}, wall", statistics.median(self.wall[name]), unit)


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def show(*parts: Iterable[Row], file: Path | None = None, needs_bars: bool = False) -> None:
    """Print each row as soon as it is measured, and keep it in a file; a bar that is not reached gets a mark.

    A part that fails is named and ends alone: the rows before it are kept and the other parts still run.

    Args:
        parts: independent measurements.
        file: JSON, a list of objects with name, value, unit, baseline and ratio; None writes none.
        needs_bars: whether a bar that is not reached is a failure.

    Raises:
        SystemExit: with 1, at the end, where a part failed, or a bar was not reached that had to be.
    """
    print(f"{'':56}{'':12}{'':16}{'ratio':>7}{'bar':>9}")
    shown: list[Row] = []
    failures: list[str] = []
    for part in parts:
        try:
            for row in part:
                print(line(row), flush=True)
                shown.append(row)
                if file is not None:
                    write_json(file, shown)
        except Exception as error:
            traceback.print_exc()
            failures.append(f"{getattr(part, '__name__', 'a part')}: {type(error).__name__}: {error}")
    if needs_bars:
        failures += [f"{row.name}: below its bar of {row.bar:g}" for row in shown if not is_reached(row)]
    if failures:
        print("\n".join(("failed:", *failures)), flush=True)
        raise SystemExit(1)


def is_reached(row: Row) -> bool:
    """Whether the ratio, or the value where there is none, is at least the bar."""
    return row.bar is None or (row.value if row.ratio is None else row.ratio) >= row.bar


def line(row: Row) -> str:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    bar = "" if row.bar is None else f"{row.bar:g}{'' if is_reached(row) else ' !'}"
    against = "" if row.baseline is None else f"   x {row.baseline}"
    value = f"{row.value:11.1f}" if row.value >= 10 else f"{row.value:11.3f}"
    return f"{row.name:56}{value} {row.unit:16}{ratio:>7}{bar:>9}{against}"


def write_json(file: Path, rows: list[Row]) -> None:
    """Write rows whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = [{key: value for key, value in row._asdict().items() if key != "bar"} for row in rows]
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    temporary.replace(file)
