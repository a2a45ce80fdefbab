"""What a large index costs at a start: seconds from the command to the first step, at 10,000 and at 3 million samples.

The run on 3 million is stopped after some steps by the signal that a scheduler sends, and started again by the same
command. That no step of an epoch takes longer to be found than another is measured by large_index.py. The shards are
hard links to one tar.

    python benchmarks/restart.py [--json FILE] [--shards 300]
"""

import argparse
import csv
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from rates import Row, show
from synthetic import write_small_shard

SAMPLES_PER_SHARD = 10_000
GLOBAL_BATCH_SIZE = 2048
STEPS = 8  # before the stop
OPENSLIP = [sys.executable, "-m", "openslip"]
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
MOST_SECONDS = 5.0  # that a start on the large index may take more

# A model so small that starts, and not steps, are what takes time.
SMALL = [
    *("trainer=cpu", "trainer.precision=32-true", "data=webdataset", "data.num_workers=0", "evaluation=none"),
    *("model=clip_tiny", f"global_batch_size={GLOBAL_BATCH_SIZE}", "image_size=16"),
    *("model.image_tower.arguments.embed_dim=24", "model.image_tower.arguments.depth=1"),
    *("model.text_tower.width=8", "model.text_tower.depth=1", "model.text_tower.heads=1", "model.embed_dim=8"),
    *("callbacks.metrics.every_n_steps=1", "callbacks.save.every_n_steps=1000000", "trainer.max_steps=1000000"),
]


class Run:
    """A training process, told by the rows of its `metrics.csv`."""

    def __init__(self, folder: Path, name: str, shards: str) -> None:
        self.rows = folder / "runs" / name / "metrics.csv"
        self.log = folder / f"{name}.log"
        self.begun = self.last_step()
        command = [*OPENSLIP, "train", *SMALL, f"data.source.shards={shards}", f"name={name}"]
        self.start = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=ONE_THREAD)

    def last_step(self) -> int:
        if not self.rows.exists():
            return 0
        with self.rows.open() as file:
            return max((int(row["step"]) for row in csv.DictReader(file) if row["step"].isdigit()), default=0)

    def reach(self, step: int) -> float:
        """Seconds from the command until the row of that step is there."""
        while self.last_step() < step:
            if self.process.poll() is not None:
                raise SystemExit(f"the run ended:\n{self.log.read_text()}")
            time.sleep(0.02)
        return time.monotonic() - self.start

    def stop(self) -> None:
        """As a scheduler does; the run saves and ends."""
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait() != 143:
            raise SystemExit(f"the run did not end with 143:\n{self.log.read_text()}")


def first_step(folder: Path, name: str, shards: str, until: int | None = None) -> float:
    """Starts or goes on, says how long the first step took to come, and stops; after that step or a later one."""
    run = Run(folder, name, shards)
    seconds = run.reach(run.begun + 1)
    run.reach(until or run.begun + 1)
    run.stop()
    return seconds


def measure(folder: Path, num_shards: int) -> Iterator[Row]:
    (folder / "few").mkdir()
    (folder / "many").mkdir()
    picture = io.BytesIO()
    Image.linear_gradient("L").resize((16, 16)).convert("RGB").save(picture, "JPEG")
    write_small_shard(folder / "few" / "000000.tar", picture.getvalue(), SAMPLES_PER_SHARD)
    for number in range(num_shards):
        os.link(folder / "few" / "000000.tar", folder / "many" / f"{number:06}.tar")
    few, many = "few/000000.tar", f"many/{{000000..{num_shards - 1:06}}}.tar"
    start = time.monotonic()
    for shards in (few, many):
        subprocess.run([*OPENSLIP, "data", "index", shards], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    yield Row("index of all, scanned once", time.monotonic() - start, "s")
    first_step(folder, "warm_up", few)
    small = first_step(folder, "few", few)
    yield Row(f"start to first step, {SAMPLES_PER_SHARD:,} samples", small, "s")
    start_of_many = f"start to first step, {num_shards * SAMPLES_PER_SHARD:,} samples"
    fresh = first_step(folder, "many", many, until=STEPS)
    yield Row(f"{start_of_many}, new", fresh, "s")
    resumed = first_step(folder, "many", many)
    yield Row(f"{start_of_many}, resumed", resumed, "s")
    yield Row("seconds to spare of those allowed", MOST_SECONDS - (max(fresh, resumed) - small), "s", bar=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--shards", type=int, default=300, help=f"of {SAMPLES_PER_SHARD} samples each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        show(measure(Path(folder), options.shards), file=options.json)


if __name__ == "__main__":
    main()
