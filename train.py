"""`python train.py model=slip_vitb16 data=...`: the same as `openslip train`, with -m as `openslip sweep`."""

import sys

from openslip import streams
from openslip.__main__ import main, prints_its_product

if __name__ == "__main__":
    words = ["train", *sys.argv[1:]]
    streams.prepare(stdout_is_product=prints_its_product(words))
    main(words)
