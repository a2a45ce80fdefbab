"""What a run's folder says, for recording a run or comparing it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from openslip.errors import UserError
from openslip.evaluation import stored
from openslip.reproduce.curves import Columns, Recorded, read_columns
from openslip.reproduce.rungs import Entry
from openslip.run.environment import read_seconds, read_starts
from openslip.run.identity import differences, identity, length, read_config

LOCAL = ("seed", "trainer.precision")  # may differ between runs of one recipe: the hardware chooses the precision
EVALUATED = "evaluation_samples"  # not in the identity, but figures of a part of the test set cannot be compared
PART = ("classes", "samples")  # notes of a stored result that is of a part of the test set
FEWEST = 3  # seeds of a recording: the spread of two says almost nothing


class Finished(NamedTuple):
    """A run, finished or not.

    Attributes:
        folder: `runs/NAME`.
        config: settings that identify the run, by dotted key, and `EVALUATED` unless it is null.
        columns: its curves and figures.
        is_finished: whether it has trained all of its steps.
    """

    folder: Path
    config: dict[str, Any]
    columns: Columns
    is_finished: bool

    @property
    def step(self) -> int:
        """The last logged step."""
        return max(max(values) for values in self.columns.values())


def read_run(folder: Path, entry: Entry) -> Finished:
    """Read a run's folder.

    Args:
        folder: `runs/NAME`.
        entry: the run of the ladder that this run repeats; its figures are read.

    Raises:
        UserError: the folder is no run's, or it has logged nothing yet.
    """
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {problem}; give the folder of a run, runs/NAME")
    config = read_config(folder / "config.yaml")
    if config is None:
        runs = [file.parent.name for file in sorted(folder.glob("*/config.yaml"))]
        hint = f"; it holds the runs {', '.join(runs[:3])}" if runs else ""
        raise UserError(f"{folder} has no config.yaml{hint}: give the folder of a run, runs/NAME")
    columns = {**stored_figures(folder, entry), **read_columns(folder / "metrics.csv", [*entry.figures])}
    if not any(columns.values()):
        raise UserError(f"{folder} has logged no metrics yet: wait for its first steps")
    settings = identity(config)
    if (samples := config.get(EVALUATED)) is not None:
        settings[EVALUATED] = samples
    return Finished(folder, settings, columns, (folder / "result.json").is_file())


def stored_figures(folder: Path, entry: Entry) -> Columns:
    """Return the figures that `openslip eval` has computed of a run's checkpoints, on the whole test set."""
    columns: Columns = {}
    for result in (result for place in sorted(folder.glob(f"{stored.FOLDER}/*/")) for result in stored.read_all(place)):
        if result.get("problems") or any(note in result["notes"] for note in PART):
            continue
        for metric, value in result["metrics"].items():
            column = f"eval/{result['evaluation']}/{metric}"
            if column in entry.figures and isinstance(result.get("step"), int):
                columns.setdefault(column, {})[result["step"]] = float(value)
    return columns


def record(folders: Sequence[Path], entry: Entry, given: Mapping[str, Any]) -> Recorded:
    """Return the curves of finished runs that differ only in their seeds.

    Args:
        folders: folders of the runs.
        entry: the run of the ladder that these runs repeat.
        given: its config.

    Raises:
        UserError: there are fewer than three runs, two have the same seed, one is unfinished, lacks a figure, has a
            value that is not finite, or has another config.
    """
    if len(folders) < FEWEST:
        raise UserError(f"--record: {len(folders)} runs given, expected {FEWEST} or more, each with another seed")
    curves, about = {}, []
    for folder in folders:
        run = read_run(folder, entry)
        seed = run.config["seed"]
        if not run.is_finished:
            raise UserError(f"{folder} is at step {run.step} and not finished: the command that began it resumes it")
        if different := config_differences(run.config, given):
            raise UserError(f"{folder} is not a run of {entry.name}: {'; '.join(described(different))}")
        if missing := [column for column in entry.figures if column not in run.columns]:
            raise UserError(f"{folder} has no {missing[0]} in its metrics.csv: train it with that evaluation")
        if broken := [name for name, values in run.columns.items() if not all(map(math.isfinite, values.values()))]:
            raise UserError(f"{folder} has values of {broken[0]} that are not finite: record a run without them")
        if seed in curves:
            raise UserError(f"{folder} has the seed {seed} of another run: train it with another seed=")
        curves[seed] = run.columns
        about.append({"seed": seed, **circumstances(folder)})
    shared = {key: value for key, value in identity(dict(given)).items() if key not in LOCAL}
    return Recorded(curves, shared, sorted(about, key=lambda facts: facts["seed"]))


def circumstances(folder: Path) -> dict[str, Any]:
    """Return where and when a run was trained, as far as its `env.json` says it."""
    start = ([{}, *read_starts(folder)])[-1]
    versions, data, date = start.get("versions", {}), start.get("data", {}), start.get("dates", [""])[-1]
    return {
        "machine": machine(start.get("hardware", {}), start.get("ranks", 1)),
        "precision": start.get("precision"),
        "seconds": read_seconds(folder),
        "date": date[:10],
        "openslip": start.get("openslip"),
        "torch": versions.get("torch"),
        "data": data.get("fingerprint"),
    }


def machine(hardware: Mapping[str, Any], ranks: int) -> str:
    """Describe the hardware of a run, such as `2 cores of AMD EPYC (threads: 1)`."""
    if gpus := hardware.get("gpus"):
        return f"{ranks} x {gpus[0]}"
    cores, cpu, threads = (hardware.get(key, "unknown") for key in ("cores", "cpu", "cpu_threads"))
    return f"{cores} cores of {cpu} (threads: {threads})"


def config_differences(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which a run differs from a run of the ladder, each with both values.

    Paths of data and weights may have other folders if the name of the last file or folder is the same. `EVALUATED` is
    compared too.

    Args:
        config: identity of the run.
        given: config of the run of the ladder, or its identity; the identity of an identity is the same.
    """
    different = differences(dict(config), dict(given))
    lengths = length(dict(config)), length(dict(given))
    different |= {f"trainer.{key}": tuple(part.get(key) for part in lengths) for key in lengths[0] | lengths[1]}
    different[EVALUATED] = (config.get(EVALUATED), given.get(EVALUATED))
    return {
        key: (value, wanted)
        for key, (value, wanted) in different.items()
        if key not in LOCAL and value != wanted and not is_moved(value, wanted)
    }


def is_moved(value: Any, wanted: Any) -> bool:
    """Whether two values are paths of the same file in different folders."""
    return isinstance(value, str) and isinstance(wanted, str) and Path(value).name == Path(wanted).name


def described(different: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Describe settings that differ, as `KEY: VALUE, expected VALUE`."""
    return [f"{key}: {value}, expected {wanted}" for key, (value, wanted) in different.items()]
