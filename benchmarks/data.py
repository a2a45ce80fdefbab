"""The data path, from tar files to batches, beside what the published code and open_clip do: one table, one run.

    python benchmarks/data.py [--json FILE] [--quick]

One thread. Rates are per second of this and its worker processes' CPU time; what is compared takes turns in rounds,
and figures are medians over the rounds. `wall` rows, by the clock, need a machine that does nothing else.
"""

import argparse
import multiprocessing
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from peers import (
    MEAN,
    SIZE,
    STD,
    open_clip_pipeline,
    open_clip_transform,
    published_chain,
    published_slip,
    webdataset_samples,
    webdataset_with_ours,
)
from rates import Rates, Row, Work, show
from synthetic import Pair, make_captions, make_pairs, write_shards
from torchvision.transforms import Compose
from torchvision.transforms.functional import to_pil_image

from openslip.config.build import build
from openslip.config.compose import compose_config
from openslip.data.captions.choice import Caption
from openslip.data.datamodule import DataModule
from openslip.data.image.augment import SimCLRAugment
from openslip.data.image.crop import RandomResizedCrop
from openslip.data.image.decode import PillowDecoder, TurboDecoder
from openslip.data.sources.shards import ShardSource
from openslip.data.view import DecodedImage, DecodedSample, View
from openslip.text.clip_bpe import ClipBpe

PER_CORE = "images/s/core"

AUGMENT: SimCLRAugment = build(compose_config("train", [])[0]["views"]["strong"]["augment"])  # the published strengths
TOKENIZER = ClipBpe(context_length=77, truncation="keep_end", special_text="plain")


def crop(low: float, augment: SimCLRAugment | None = None) -> RandomResizedCrop:
    return RandomResizedCrop(size=SIZE, scale=(low, 1.0), augment=augment, mean=MEAN, std=STD)


STRONG, CAPTION = crop(0.08, AUGMENT), Caption(tokenizer=TOKENIZER)
THREE_VIEWS = {"image": crop(0.5), "aug1": STRONG, "aug2": STRONG, "text": CAPTION}
ONE_VIEW = {"image": crop(0.9), "text": CAPTION}  # open_clip's crop, which it scales bicubically


class Size(NamedTuple):
    """How much is measured."""

    pairs: int
    batch: int
    rounds: int
    captions: int
    indexed: int  # samples


FULL = Size(pairs=256, batch=32, rounds=9, captions=8192, indexed=20_000)
QUICK = Size(pairs=64, batch=16, rounds=3, captions=1024, indexed=4_000)


def tokenizer() -> ClipBpe:
    return ClipBpe(context_length=77, truncation="keep_end", special_text="plain")


def data_module(shards: Path, views: dict[str, View], batch: int, num_workers: int = 0) -> DataModule:
    return DataModule(
        source=ShardSource(shards=str(shards), require="caption"),
        views=views,
        decoder=TurboDecoder(),
        global_batch_size=batch,
        seed=0,
        shuffle_window=16,
        bad_sample_budget=0.0,
        bad_samples_file=None,
        num_workers=num_workers,
        prefetch_gb=3,
    )


def batches(module: DataModule) -> Iterator[dict[str, Any]]:
    """Endless, of uint8 views as they are sent to a GPU."""
    loader = module.train_dataloader()
    while True:
        yield from loader


def crops(shards: Path, views: dict[str, View], batch: int) -> Work:
    stream = batches(data_module(shards, views, batch))
    return lambda: len(next(stream)["index"])


def finished(shards: Path, views: dict[str, View], batch: int) -> Work:
    module = data_module(shards, views, batch)
    stream = batches(module)
    return lambda: len(module.on_after_batch_transfer(next(stream), 0)["index"])


def epochs(shards: Path, views: dict[str, View], batch: int, num_workers: int, count: int) -> Work:
    """Whole epochs; workers are started before them and ended after them, so that their CPU time is known."""
    module = data_module(shards, views, batch, num_workers)

    def work() -> int:
        loader = module.train_dataloader()
        num_samples = sum(len(each["index"]) for _ in range(count) for each in loader)
        del loader
        module.loader = None  # the other name of it: only then do its workers end
        assert not multiprocessing.active_children()
        return num_samples

    return work


def counted(stream: Iterator[torch.Tensor]) -> Work:
    return lambda: len(next(stream))


def measure_loading(folder: Path, pairs: list[Pair], size: Size) -> Iterator[Row]:
    originals, small = folder / "originals", folder / "small"
    captions = [pair.caption for pair in pairs]
    original_pictures, small_pictures = [pair.original for pair in pairs], [pair.small for pair in pairs]
    write_shards(originals, original_pictures, captions, num_shards=4, with_json=False)
    write_shards(small, small_pictures, captions, num_shards=4, with_json=False)
    original_tars, small_tars = (sorted(map(str, tars.glob("*.tar"))) for tars in (originals, small))

    published = "published SLIP, 3 views, originals"
    published_small = "published SLIP, 3 views, 256 px"
    transform = "open_clip transform, 1 view, originals"
    transform_small = "open_clip transform, 1 view, 256 px"
    pipeline = "open_clip webdataset pipeline, 1 view, originals"
    pipeline_small = "open_clip webdataset pipeline, 1 view, 256 px"
    works: dict[str, Work] = {
        published: counted(published_slip(original_pictures, captions, size.batch)),
        published_small: counted(published_slip(small_pictures, captions, size.batch)),
        transform: counted(open_clip_transform(original_pictures, captions, size.batch)),
        transform_small: counted(open_clip_transform(small_pictures, captions, size.batch)),
        pipeline: counted(open_clip_pipeline(original_tars, size.batch)),
        pipeline_small: counted(open_clip_pipeline(small_tars, size.batch)),
    }
    for number, views in (("3 views", THREE_VIEWS), ("1 view", ONE_VIEW)):
        for pictures, shards in (("originals", originals), ("256 px", small)):
            works[f"ours, {number}, {pictures}, crops"] = crops(shards, views, size.batch)
            works[f"ours, {number}, {pictures}, finished on the CPU"] = finished(shards, views, size.batch)
    rates = Rates(works, size.rounds)

    yield rates.row(published, PER_CORE)
    yield rates.row(published_small, PER_CORE)
    yield rates.row("ours, 3 views, originals, crops", PER_CORE, published, 4.5)
    yield rates.row("ours, 3 views, originals, finished on the CPU", PER_CORE, published, 2.5)
    yield rates.row("ours, 3 views, 256 px, crops", PER_CORE, published, 9)
    yield rates.row(
        "ours, 3 views, 256 px, crops", PER_CORE, published_small, 7, "ours, 3 views, 256 px, crops, like for like"
    )
    yield rates.row("ours, 3 views, 256 px, finished on the CPU", PER_CORE, published_small)
    yield rates.row(transform, PER_CORE)
    yield rates.row(transform_small, PER_CORE)
    yield rates.row(pipeline, PER_CORE)
    yield rates.row(pipeline_small, PER_CORE)
    yield rates.row("ours, 1 view, originals, crops", PER_CORE, transform, 2.2)
    yield rates.row("ours, 1 view, 256 px, crops", PER_CORE, transform_small)
    for pictures, baseline in (("originals", pipeline), ("256 px", pipeline_small)):
        name = f"ours, 1 view, {pictures}, crops"
        bar = 2.5 if baseline == pipeline else None
        yield rates.row(name, PER_CORE, baseline, bar, f"ours, 1 view, {pictures}, tar to batch")
        yield rates.row(f"ours, 1 view, {pictures}, finished on the CPU", PER_CORE, baseline)


def measure_workers(folder: Path, size: Size) -> Iterator[Row]:
    alone = "ours, 3 views, originals, no worker"
    names = [alone, "ours, 3 views, originals, 1 worker", "ours, 3 views, originals, 2 workers"]
    works = {
        name: epochs(folder / "originals", THREE_VIEWS, size.batch, num_workers, count=4)
        for num_workers, name in enumerate(names)
    }
    rates = Rates(works, 3)
    for name in works:
        yield rates.row(name, PER_CORE, None if name == alone else alone)
        yield rates.wall_row(name, "images/s")


def measure_overhead(folder: Path, size: Size) -> Iterator[Row]:
    """Our index, order and batches against webdataset's stream, around one and the same decoder, crop and tokenizer."""
    tars = sorted(map(str, (folder / "small").glob("*.tar")))
    ids, decoder = tokenizer(), TurboDecoder()
    theirs, ours = "webdataset around our decoder, 1 view, 256 px", "ours around the same, 1 view, 256 px"
    works: dict[str, Work] = {
        theirs: lambda: sum(map(len, webdataset_with_ours(tars, size.batch, ONE_VIEW["image"], decoder, ids))),
        ours: epochs(folder / "small", ONE_VIEW, size.batch, num_workers=0, count=1),
    }
    rates = Rates(works, 2 * size.rounds)
    yield rates.row(theirs, PER_CORE)
    yield rates.row(ours, PER_CORE, theirs, 1)


def measure_parts(pairs: list[Pair], size: Size) -> Iterator[Row]:
    """Decoding alone and augmentation alone."""
    for pictures, encoded in (("originals", [p.original for p in pairs]), ("256 px", [p.small for p in pairs])):
        pillow, turbo = f"decode by Pillow, {pictures}", f"decode by TurboDecoder, {pictures}"
        works: dict[str, Work] = {
            pillow: for_each(encoded, lambda data: PillowDecoder().decode(data, "")),
            turbo: for_each(encoded, lambda data: TurboDecoder().decode(data, "")),
        }
        rates = Rates(works, size.rounds)
        yield rates.row(pillow, PER_CORE)
        yield rates.row(turbo, PER_CORE, pillow)

    # The same crops for both, as the augmentation draws its own parameters for each.
    rng = np.random.default_rng(0)
    decoder = TurboDecoder()
    decoded = [DecodedImage(decoder.decode(pair.original, ""), decoder) for pair in pairs[: size.batch]]
    columns = STRONG.collate([STRONG.draw(DecodedSample(0, "", image, (), None), rng) for image in decoded])
    images = columns[""]
    as_pillow = [to_pil_image(image) for image in images]
    published_augment = Compose(published_chain())

    def finish() -> int:
        parameters = torch.from_numpy(np.stack([AUGMENT.draw(rng) for _ in images]))
        return len(STRONG.finish({"": images, "parameters": parameters})[""])

    published, ours = "published augmentation of a crop", "our augmentation of a crop, on the CPU"
    rates = Rates({published: for_each(as_pillow, published_augment), ours: finish}, 2 * size.rounds)
    yield rates.row(published, "views/s/core")
    yield rates.row(ours, "views/s/core", published)


def for_each(things: Sequence[Any], function: Callable[[Any], Any]) -> Work:
    def work() -> int:
        for thing in things:
            function(thing)
        return len(things)

    return work


def measure_index(folder: Path, pairs: list[Pair], size: Size) -> Iterator[Row]:
    """Many samples of small pictures, since an index looks at headers and captions alone."""
    thumbnail = pairs[0].small[:4096]
    captions = [pairs[place % len(pairs)].caption for place in range(size.indexed)]
    write_shards(folder / "many", [thumbnail] * size.indexed, captions, num_shards=4, with_json=True)
    tars = sorted(map(str, (folder / "many").glob("*.tar")))

    def build() -> int:
        shutil.rmtree(folder / "many" / ".openslip-index", ignore_errors=True)
        return len(ShardSource(shards=tars, require="caption"))

    source = ShardSource(shards=tars, require="caption")
    shuffled = np.random.default_rng(0).permutation(len(source)).tolist()
    stream = "webdataset, reading the same shards"
    works: dict[str, Work] = {
        stream: lambda: sum(1 for _ in webdataset_samples(tars)),
        "index, reading in sequence": for_each(range(len(source)), source.__getitem__),
        "index, reading at random": for_each(shuffled, source.__getitem__),
        "index, opening": for_each([tars] * 10, lambda each: ShardSource(shards=each, require="caption")),
        "index, building": build,
    }
    rates = Rates(works, 3)
    yield rates.row(stream, "samples/s/core")
    yield rates.row("index, reading in sequence", "samples/s/core", stream)
    yield rates.row("index, reading at random", "samples/s/core", stream)
    yield rates.row("index, opening", "times/s/core")
    yield rates.row("index, building", "samples/s/core", bar=30_000)


def measure_tokenizer(size: Size) -> Iterator[Row]:
    """Cold: a tokenizer that has seen nothing yet; warm: one that has seen the same texts."""
    templates = open_clip.OPENAI_IMAGENET_TEMPLATES[::10]
    prompts = [template(name) for name in open_clip.IMAGENET_CLASSNAMES for template in templates]
    prose = make_captions(size.captions, seed=0)
    rounds = 3
    for name, texts, bar in (("prompts", prompts, 15), ("prose", prose, 4)):
        parts = [texts[place : place + 256] for place in range(0, len(texts), 256)]
        fresh_theirs = iter([SimpleTokenizer() for _ in range(rounds + 1)])  # one for the warm-up
        fresh_ours = iter([tokenizer().encode for _ in range(rounds + 1)])
        cold, warm = f"{name}, cold", f"{name}, warm"
        works: dict[str, Work] = {
            f"open_clip tokenizer, {cold}": partial(tokenize, fresh_theirs, parts),
            f"our tokenizer, {cold}": partial(tokenize, fresh_ours, parts),
            f"open_clip tokenizer, {warm}": partial(tokenize, cycle([SimpleTokenizer()]), parts),
            f"our tokenizer, {warm}": partial(tokenize, cycle([tokenizer().encode]), parts),
        }
        rates = Rates(works, rounds)
        for state in (cold, warm):
            yield rates.row(f"open_clip tokenizer, {state}", "captions/s/core")
            yield rates.row(f"our tokenizer, {state}", "captions/s/core", f"open_clip tokenizer, {state}", bar)


def tokenize(tokenizers: Iterator[Callable[[list[str]], Any]], parts: list[list[str]]) -> int:
    encode = next(tokenizers)
    for part in parts:
        encode(part)
    return sum(map(len, parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--quick", action="store_true", help="fewer pictures and rounds: whether it runs, roughly")
    options = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    size = QUICK if options.quick else FULL

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = make_pairs(size.pairs, seed=0)
        originals, small = (
            [len(data) for data in encoded] for encoded in zip(*[pair[:2] for pair in pairs], strict=True)
        )
        print(f"{size.pairs} pictures of {np.mean(originals) / 1000:.0f} kB and {np.mean(small) / 1000:.0f} kB")
        show(
            measure_loading(folder, pairs, size),
            measure_workers(folder, size),
            measure_overhead(folder, size),
            measure_parts(pairs, size),
            measure_index(folder, pairs, size),
            measure_tokenizer(size),
            file=options.json,
        )


if __name__ == "__main__":
    main()
