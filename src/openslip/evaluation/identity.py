"""Identity of an evaluation's result: a hash of all that its metrics depend on, without the hardware they ran on."""

import hashlib
import json
from pathlib import Path
from typing import Any

from openslip import __version__
from openslip.evaluation.evaluation import Evaluation
from openslip.evaluation.feature_cache import VERSIONS
from openslip.inference.bundle import Bundle
from openslip.inference.embedding_cache import is_known, kind
from openslip.inference.wrapped import WrappedModel

# Keys of an evaluation's config that change no metric.
NO_RESULT = ("title", "batch_size", "num_workers", "every_n_epochs", "every_n_steps")


def identity(bundle: Bundle, evaluation: Evaluation, config: dict[str, Any], weights: str) -> str | None:
    """Return the hash by which a result that was stored before is found; None if it must always be computed.

    Code of yours may change without a trace, so no result of your own model, evaluation or source is reused.

    Args:
        bundle: the model, with its transform and tokenizer.
        evaluation: the evaluation, before its `run`.
        config: its config; instead of the settings of its sources, their fingerprints count.
        weights: hash of the model's weights.
    """
    sources = evaluation.sources()
    is_wrapped = isinstance(bundle.model, WrappedModel)
    if not all(kind(part).startswith("openslip.") for part in (evaluation, *sources.values())):
        return None
    if not (is_wrapped or is_known(bundle)):
        return None
    counts = [
        __version__,
        VERSIONS,
        kind(bundle.model),
        bundle.architecture,
        weights,
        # Another library's transform and tokenizer have no settings: the model's address stands for them.
        [bundle.origin, bundle.transform.to_rgb.settings()] if is_wrapped else bundle.transform.settings(),
        None if is_wrapped or bundle.tokenizer is None else [kind(bundle.tokenizer), bundle.tokenizer.settings()],
        kind(evaluation),
        {key: value for key, value in config.items() if key not in (*NO_RESULT, *sources)},
        # What the constructor has read from files that the config names, such as class names.
        {name: value for name, value in vars(evaluation).items() if name not in NO_RESULT and is_plain(value)},
        {name: source.fingerprint for name, source in sources.items()},
    ]
    return hashlib.sha256(json.dumps(counts, sort_keys=True, default=str).encode()).hexdigest()


def is_plain(value: Any) -> bool:
    """Whether a value consists of texts, numbers, lists and dicts, which are equal in every process."""
    if isinstance(value, dict):
        return all(map(is_plain, [*value, *value.values()]))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, str | int | float | Path)
