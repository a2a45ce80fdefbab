"""`python train.py model=slip_vitb16 data=...`: the same as `openslip train`, with -m as `openslip sweep`."""

import sys

from openslip import streams
from openslip.__main__ import main

if __name__ == "__main__":
    streams.prepare()
    main(["train", *sys.argv[1:]])
