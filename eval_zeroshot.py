"""`python eval_zeroshot.py checkpoint=runs/NAME evaluation=...`: the entry point is openslip.eval_zeroshot."""

import sys

from openslip.config import run_entry_point
from openslip.eval_zeroshot import main

if __name__ == "__main__":
    sys.exit(run_entry_point(main, sys.argv[1:]))
