"""`python train.py model=slip_vitb16 data=...`: the entry point is openslip.train."""

import sys

from openslip.config import run_entry_point
from openslip.train import main

if __name__ == "__main__":
    sys.exit(run_entry_point(main, sys.argv[1:]))
