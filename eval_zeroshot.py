"""`python eval_zeroshot.py checkpoint=runs/NAME evaluation=...`: the entry point is openslip.commands.eval."""

import sys

from openslip import streams

if __name__ == "__main__":
    streams.prepare()
    from openslip.commands.eval import main
    from openslip.errors import run_entry_point

    sys.exit(run_entry_point(main, sys.argv[1:]))
