"""OpenSLIP trains, reproduces, evaluates and serves the CLIP, SimCLR and SLIP family."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openslip import data
    from openslip.inference.bundle import Bundle
    from openslip.inference.classifier import ZeroShotClassifier
    from openslip.inference.load import load

__all__ = ["Bundle", "ZeroShotClassifier", "data", "load"]
__version__ = "0.1.0"

_HOMES = {"Bundle": "bundle", "ZeroShotClassifier": "classifier", "load": "load"}


def __getattr__(name: str) -> Any:
    # Lazy, because torch takes seconds to import, and `openslip --help` does not need it.
    if name in _HOMES:
        return getattr(importlib.import_module(f"openslip.inference.{_HOMES[name]}"), name)
    if name == "data":
        return importlib.import_module("openslip.data")
    raise AttributeError(f"module 'openslip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
