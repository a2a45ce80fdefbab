"""`python eval_zeroshot.py checkpoint=runs/NAME evaluation=...`: the same as `openslip eval`."""

import sys

from openslip import streams
from openslip.__main__ import main

if __name__ == "__main__":
    streams.prepare()
    main(["eval", *sys.argv[1:]])
