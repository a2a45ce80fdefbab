"""Print the metrics of the runs of `make real`: mean and spread of the seeds, and the controls.

python benchmarks/laptop_lit.py [FOLDER_OF_RUNS]
"""

import json
import statistics
import sys
from pathlib import Path

ROWS = {
    "seen names, held-out drawings": ("top1_seen", "chance_seen"),
    "unseen names": ("top1_unseen", "chance_unseen"),
    "seen names, all names as candidates": ("top1_seen_of_all", None),
    "unseen names, all names as candidates": ("top1_unseen_of_all", None),
    "harmonic mean of these two": ("harmonic_mean", None),
}


def metrics_of(run: Path, evaluation: str) -> dict[str, float]:
    """Read an evaluation's metrics from a finished run: those of its end, or those that openslip eval stored."""
    if evaluation == "openclipart":
        return json.loads((run / "result.json").read_text())["metrics"][evaluation]
    (stored,) = run.rglob(f"{evaluation}.json")
    return json.loads(stored.read_text())["metrics"]


def main(runs: Path) -> None:
    seeds = [metrics_of(run, "openclipart") for run in sorted(runs.glob("laptop_lit_seed?"))]
    shuffled = metrics_of(runs / "laptop_lit_shuffled", "openclipart")
    print(f"top-1 in per cent    mean (lowest to highest) of {len(seeds)} seeds, shuffled captions, chance")
    for title, (metric, chance) in ROWS.items():
        values = [metrics[metric] for metrics in seeds]
        spread = f"{statistics.mean(values):5.1f} ({min(values):.1f} to {max(values):.1f})"
        print(f"{title:38} {spread:22} {shuffled[metric]:5.1f}  {f'{seeds[0][chance]:5.1f}' if chance else ''}")
    baseline = metrics_of(runs / "laptop_lit_seed0", "openclipart_mean")
    print(f"{'seen names, nearest class mean':38} {baseline['top1']:5.1f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
