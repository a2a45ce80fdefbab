"""OpenSLIP trains, reproduces, evaluates and serves the CLIP, SimCLR and SLIP family."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openslip.inference.predict import ZeroShotClassifier, load

__all__ = ["ZeroShotClassifier", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: only who predicts waits for it
    if name in __all__:
        from openslip.inference import predict

        return getattr(predict, name)
    raise AttributeError(f"module 'openslip' has no attribute {name!r}")
