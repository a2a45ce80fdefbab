"""`python eval_zeroshot.py checkpoint=runs/NAME evaluation=...`: the same as `openslip eval`."""

import sys

from openslip import streams
from openslip.__main__ import main, prints_its_product

if __name__ == "__main__":
    words = ["eval", *sys.argv[1:]]
    streams.prepare(stdout_is_product=prints_its_product(words))
    main(words)
