"""What tests run in processes of their own."""

import time
from multiprocessing.synchronize import Event

from openslip import signals


def work(ready: Event) -> None:
    """A process that decodes, as far as signals are concerned."""
    signals.ignore(0)
    ready.set()
    time.sleep(60)
