"""Runs evaluations of one checkpoint, and finds the results that an earlier command has stored."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openslip import __version__
from openslip.distributed import from_first_rank, on_every_rank
from openslip.evaluation import stored
from openslip.evaluation.evaluation import Evaluation
from openslip.evaluation.feature_cache import FeatureCache
from openslip.evaluation.identity import identity
from openslip.inference.bundle import Bundle
from openslip.run.checkpoints import entry_of
from openslip.run.identity import without_secrets


class Suite:
    """The evaluations of one checkpoint; all ranks must make the same calls.

    Args:
        bundle: the model.
        checkpoint: the checkpoint as the user named it.
        features: cache of image features, which also hashes the model's weights.
    """

    def __init__(self, bundle: Bundle, checkpoint: str, features: FeatureCache) -> None:
        self.bundle = bundle
        self.checkpoint = checkpoint
        self.weights = features.weights(bundle)
        self.step, self.samples_seen = training_of(bundle.file)

    def known(self, folder: Path, name: str, evaluation: Evaluation, config: dict[str, Any]) -> dict[str, Any] | None:
        """Return the stored result of an evaluation if it has the same identity as a new one; else None.

        Args:
            folder: folder of the checkpoint's results.
            name: name of the evaluation.
            evaluation: the evaluation.
            config: its config.
        """
        wanted = on_every_rank(lambda: identity(self.bundle, evaluation, config, self.weights))
        record = stored.read(folder / f"{name}.json")
        is_same = record is not None and wanted is not None and record.get("identity") == wanted
        return from_first_rank(record if is_same else None)  # other ranks may not see the folder

    def run(self, name: str, evaluation: Evaluation, config: dict[str, Any]) -> dict[str, Any]:
        """Run an evaluation and return its result, as `stored` writes it.

        Args:
            name: name of the evaluation.
            evaluation: the evaluation; its `arrays` are those of this result afterwards.
            config: its config.
        """
        result_identity = identity(self.bundle, evaluation, config, self.weights)  # before `run`, which adds attributes
        sources = evaluation.sources()
        metrics = evaluation.run(self.bundle)
        return {
            "evaluation": name,
            "checkpoint": self.checkpoint,
            "step": self.step,
            "samples_seen": self.samples_seen,
            "headline": evaluation.headline(metrics),
            "headline_metric": evaluation.headline_metric,
            "metrics": metrics,
            "notes": {role: part.layout for role, part in sources.items() if part.layout} | evaluation.notes,
            "problems": evaluation.problems(),
            "config": without_secrets(config),
            "data": {role: part.fingerprint for role, part in sources.items()},
            "weights": self.weights,
            "openslip": __version__,
            "identity": result_identity,
        }


def training_of(file: Path | None) -> tuple[int | None, int | None]:
    """Return the step of a run's checkpoint and the number of samples seen by then; None if the file does not say."""
    entry = (entry_of(file) if file is not None and file.is_file() else None) or {}
    step, config = entry.get("step"), entry.get("run")
    size = config.get("global_batch_size") if isinstance(config, dict) else None
    step = step if isinstance(step, int) else None
    return step, step * size if isinstance(step, int) and isinstance(size, int) else None


def in_order_of_sources(evaluations: Mapping[str, Evaluation]) -> list[tuple[str, Evaluation]]:
    """Return evaluations so that those of one source follow each other, because the cache keeps few in memory."""
    first = {name: next((s.fingerprint for s in part.sources().values()), name) for name, part in evaluations.items()}
    places = {fingerprint: place for place, fingerprint in reversed([*enumerate(first.values())])}
    return sorted(evaluations.items(), key=lambda item: places[first[item[0]]])
