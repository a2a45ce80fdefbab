"""The import of PyTorch, which commands show as a phase, since it takes seconds."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from openslip.progress import progress


@contextmanager
def importing_pytorch() -> Iterator[None]:
    """Show the phase, and import without garbage collections, which find nothing and take a tenth of the time.

    Later collections skip what was imported: all modules stay until the process ends.
    """
    with progress("importing PyTorch"):
        if "torch" in sys.modules:  # a library's caller has its own garbage, which must be collected
            yield
            return
        gc.disable()
        try:
            yield
        finally:
            gc.freeze()
            gc.enable()
