"""Identity of an evaluation's result: a hash of all that its metrics depend on, without the hardware they ran on."""

import functools
import hashlib
import json
import sys
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

from openslip import __version__
from openslip.evaluation.evaluation import Evaluation
from openslip.evaluation.feature_cache import VERSIONS
from openslip.evaluation.stored import NO_RESULT
from openslip.inference.bundle import Bundle
from openslip.inference.embedding_cache import is_known, kind
from openslip.inference.wrapped import WrappedModel

# Packages whose code is taken to be the same in every process.
PACKAGES = {
    *sys.stdlib_module_names,
    *("openslip", "numpy", "torch", "torchvision", "PIL", "sklearn", "scipy", "h5py", "fsspec"),
}


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
    if not is_code_of_packages(evaluation):
        return None
    if not (is_wrapped or is_known(bundle)):
        return None
    counts = [
        __version__,
        VERSIONS,
        kind(bundle.model),
        bundle.architecture,
        weights,
        # Another library's transform and tokenizer have no settings: the architecture has the library's version and
        # what it says of them.
        [bundle.origin, bundle.transform.to_rgb.settings()] if is_wrapped else bundle.transform.settings(),
        None if is_wrapped or bundle.tokenizer is None else [kind(bundle.tokenizer), bundle.tokenizer.settings()],
        kind(evaluation),
        {key: value for key, value in config.items() if key not in (*NO_RESULT, *sources)},
        # What the constructor has read from files that the config names, such as class names.
        {name: value for name, value in vars(evaluation).items() if name not in NO_RESULT and is_plain(value)},
        {name: source.fingerprint for name, source in sources.items()},
    ]
    return hashlib.sha256(json.dumps(counts, sort_keys=True, default=str).encode()).hexdigest()


def is_code_of_packages(whole: Any) -> bool:
    """Whether an object, and all that it holds, is ours, the standard library's or of a package that we build upon."""
    waiting, seen = [whole], set[int]()
    while waiting:
        part = waiting.pop()
        if part is None or isinstance(part, str | int | float | Path) or id(part) in seen:
            continue
        seen.add(id(part))
        named = part if isinstance(part, type | FunctionType | MethodType) else type(part)
        package = named.__module__.partition(".")[0]
        if package not in PACKAGES:
            return False
        if isinstance(part, dict):
            waiting += [*part, *part.values()]
        elif isinstance(part, list | tuple | set | frozenset):
            waiting += part
        elif isinstance(part, functools.partial):
            waiting += [part.func, part.args, part.keywords]
        elif isinstance(part, MethodType):
            waiting.append(part.__self__)
        elif package == "openslip" and named is not part:
            waiting += getattr(part, "__dict__", {}).values()
    return True


def is_plain(value: Any) -> bool:
    """Whether a value consists of texts, numbers, lists and dicts, which are equal in every process."""
    if isinstance(value, dict):
        return all(map(is_plain, [*value, *value.values()]))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, str | int | float | Path)
