"""An index of 15 million samples: how long it takes to open and to find a step, and the memory of all processes.

    python benchmarks/large_index.py [--json FILE] [--shards 1500]

The shards are hard links to one tar of 10,000 samples, so that nothing but the index is large. Memory is what the
main process and its loader workers have more of than before (PSS: of a page that n processes map each has 1/n), after
every worker has read rows and keys all over the table.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
from rates import Row, show
from synthetic import write_small_shard

from openslip.data.captions.policy import UniformCaption
from openslip.data.index import build as index_build
from openslip.data.index.build import open_index
from openslip.data.index.index import Index, Shard
from openslip.data.index.scan import ShardSamples, scan_shard
from openslip.data.order import Order
from openslip.data.source import Collection

SAMPLES_PER_SHARD = 10_000
GLOBAL_BATCH_SIZE = 4096
WORKERS = 4
READS = 100_000  # rows per worker


def memory_of(process: int) -> int:
    """Proportional set size in bytes."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def read_all_over(index: Index, seed: int, ready: multiprocessing.Queue, stop: Event) -> None:
    for place in np.random.default_rng(seed).integers(0, len(index), READS).tolist():
        index.find(place)
        index.rows[place].item()
        index.key(place)
    ready.put(os.getpid())
    stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--shards", type=int, default=1500, help=f"of {SAMPLES_PER_SHARD} samples each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        show(measure(Path(folder), options.shards), file=options.json)


def measure(folder: Path, num_shards: int) -> Iterator[Row]:
    write_small_shard(folder / "first", b"x", SAMPLES_PER_SHARD)
    shards = []
    for number in range(num_shards):
        path = folder / f"{number:06}.tar"
        os.link(folder / "first", path)
        shards.append(Shard(str(path), path, "", ""))
    captions = UniformCaption()
    once: ShardSamples = scan_shard(folder / "first", "first", captions)
    index_build.scan_shard = lambda file, name, captions: once  # all shards are this one
    index_build.WORTH_PROCESSES = 1 << 62
    home = folder / index_build.NAME
    home.mkdir()

    def open_it() -> Index:
        return open_index(
            shards,
            captions,
            "caption",
            cache_folder=home,
            fetch=lambda address: (-1, address),
            progress=lambda done, samples: None,
        )

    open_it()
    base = memory_of(os.getpid())
    start = time.perf_counter()
    index = open_it()
    yield Row("open", 1000 * (time.perf_counter() - start), "ms")
    yield Row("samples in the index", len(index), "samples")
    yield Row("its files", sum(path.stat().st_size for path in index.folder.iterdir()) / 1e6, "MB")
    order = Order(
        collections=(Collection(index.parts, 1.0),), global_batch_size=GLOBAL_BATCH_SIZE, seed=0, shuffle_window=16
    )
    steps = np.random.default_rng(0).integers(0, order.steps_per_epoch, 20).tolist()
    seeks = []
    for number, step in enumerate(steps):
        start = time.perf_counter()
        order.global_batch(number, step)
        seeks.append(time.perf_counter() - start)
    yield Row("find a step of an epoch, slowest of 20", 1000 * max(seeks), "ms")

    context = multiprocessing.get_context("fork")
    ready, stop = context.Queue(), context.Event()
    workers = [
        context.Process(target=read_all_over, args=(index, seed, ready, stop), daemon=True) for seed in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    processes = [os.getpid(), *(ready.get() for _ in workers)]
    together = sum(memory_of(process) for process in processes) - base
    stop.set()
    for worker in workers:
        worker.join()
    yield Row(f"memory of this process and {WORKERS} workers", together / 1e6, "MB")


if __name__ == "__main__":
    main()
