"""`python train.py model=slip_vitb16 data=...`: the entry point is openslip.commands.train."""

import sys

from openslip import signals, streams

if __name__ == "__main__":
    streams.prepare()
    signals.catch()  # the imports take seconds, in which a scheduler's signal would kill the process
    from openslip.commands.train import main
    from openslip.errors import run_entry_point

    sys.exit(run_entry_point(main, sys.argv[1:]))
