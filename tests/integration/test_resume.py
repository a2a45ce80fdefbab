"""Whatever the ranks and workers, and wherever a run is stopped, the samples and their pixels are the same."""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from data_modules import data_module, trainer_of
from marks import slow
from on_ranks import bad_samples_of_an_epoch
from ranks import Ranks
from shard_files import jpeg, write_pairs, write_tar
from small_models import small_model
from views import MEAN, STD, caption_view, crop_view, flattened

from openslip.data.captions.hard import HardCaption
from openslip.data.datamodule import DataModule
from openslip.data.image.decode import PillowDecoder, TurboDecoder
from openslip.data.image.eval_transform import EvalTransform
from openslip.data.source import Source
from openslip.data.sources.mixture import Mixture
from openslip.data.sources.shards import ShardSource
from openslip.errors import DataError, UserError
from openslip.optim import WarmupCosine
from openslip.training.pretrainer import Pretrainer

BATCH = 12
Seen = list[tuple[int, str, str]]  # step of the run, sample, hash of its pixels, parameters and text


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ShardSource:
    folder = tmp_path_factory.mktemp("shards")
    for number, (first, size) in enumerate(((0, 10), (10, 50), (60, 1), (61, 30), (91, 9))):  # uneven on purpose
        write_pairs(folder / f"{number}.tar", size, first)
    return ShardSource(shards=str(folder), require="caption")


pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")


def play(
    datamodule: DataModule, steps: int, *, rank: int = 0, world_size: int = 1, start_method: str | None = None
) -> Seen:
    """Some steps from where the data module stands, across epochs; the trainer is played by hand."""
    datamodule.trainer = trainer_of(rank, world_size)
    loader: Any = datamodule.train_dataloader()
    if start_method is not None:
        loader.multiprocessing_context = start_method
    seen: Seen = []
    stop = datamodule.consumed + steps
    while datamodule.consumed < stop:
        for raw in itertools.islice(loader, stop - datamodule.consumed):
            batch = flattened(raw)
            assert (batch["notes"].epoch, batch["notes"].step) == divmod(
                datamodule.consumed, datamodule.steps_per_epoch
            )
            ready = datamodule.on_after_batch_transfer(raw, 0)  # as on the device: part of what is compared
            for place, sample in enumerate(batch["index"].tolist()):
                digest = hashlib.sha256()
                for name in ("image", "aug1"):
                    digest.update(batch[name][place].numpy().tobytes())
                    digest.update(ready[name][place].numpy().tobytes())
                if "text" in batch:
                    digest.update(batch["text"][place, : int(batch["text_length"][place])].numpy().tobytes())
                seen.append((datamodule.consumed, datamodule.source[sample].key, digest.hexdigest()))
            datamodule.consumed += 1
    return seen


def test_the_same_seed_gives_the_same_samples_and_pixels(source: ShardSource):
    assert play(data_module(source), 16) == play(data_module(source), 16)


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_any_number_of_workers_gives_the_same_samples_and_pixels(source: ShardSource, num_workers: int):
    assert play(data_module(source, num_workers), 10) == play(data_module(source), 10)


@pytest.mark.parametrize("start_method", ["fork", slow("spawn"), slow("forkserver")])
def test_two_ranks_share_an_epoch_whatever_starts_their_workers(source: ShardSource, start_method: str):
    whole = play(data_module(source), 8)
    parts = [play(data_module(source, 1), 8, rank=rank, world_size=2, start_method=start_method) for rank in range(2)]
    keys = [{key for _, key, _ in part} for part in parts]
    assert not keys[0] & keys[1]
    assert sorted(parts[0] + parts[1]) == sorted(whole)


@pytest.mark.slow
def test_uneven_shards_give_every_rank_and_worker_the_same_number_of_steps(source: ShardSource):
    parts = [play(data_module(source, 4), 8, rank=rank, world_size=2) for rank in range(2)]
    assert [len(part) for part in parts] == [48, 48]
    assert {step for part in parts for step, _, _ in part} == set(range(8))


def test_one_two_one_ranks_see_the_same_samples_at_every_step(source: ShardSource):
    whole = play(data_module(source), 16)
    state = data_module(source).state_dict()
    seen: Seen = []
    for steps, world_size in ((5, 1), (6, 2), (5, 1)):
        states = []
        for rank in range(world_size):
            part = data_module(source)
            part.load_state_dict(state)
            seen += play(part, steps, rank=rank, world_size=world_size)
            states.append(part.state_dict())
        state = states[0]
    assert sorted(seen) == sorted(whole)


@pytest.mark.parametrize("stops", [[4], [8], [3, 3, 11], *map(slow, ([1], [7], [9], [1, 2, 3, 5, 6]))])
def test_a_run_that_is_stopped_goes_on_with_the_next_sample(source: ShardSource, stops: list[int]):
    whole = play(data_module(source), 16)
    state, seen = data_module(source).state_dict(), []
    for start, stop in itertools.pairwise([0, *stops, 16]):
        part = data_module(source)
        part.load_state_dict(json.loads(json.dumps(state)))
        seen += play(part, stop - start)
        state = part.state_dict()
    assert seen == whole


def test_the_state_is_small_and_the_same_on_all_ranks(source: ShardSource):
    datamodule = data_module(source, global_batch_size=100)
    datamodule.consumed = 10**7
    assert len(json.dumps(datamodule.state_dict())) < 200
    states = []
    for rank in range(2):
        part = data_module(source)
        play(part, 3, rank=rank, world_size=2)
        states.append(part.state_dict())
    assert states[0] == states[1]
    assert states[0]["step"] == 3


def test_other_data_is_refused_by_both_values(source: ShardSource, tmp_path: Path):
    state = data_module(source).state_dict()
    write_pairs(tmp_path / "0.tar", 100)
    other = ShardSource(shards=str(tmp_path), require="caption")
    changes: list[tuple[dict[str, Any], str]] = [
        ({"seed": 1}, "seed: then 0, now 1"),
        ({"global_batch_size": 24}, "global_batch_size: then 12, now 24"),
        ({"decoder": PillowDecoder()}, "data.decoder: then turbo, now pillow"),
        ({"shuffle_window": 3}, "data.shuffle_window: then 2, now 3"),
        ({"source": other}, "fingerprint of data.source: then "),
    ]
    for change, message in changes:
        with pytest.raises(UserError, match=f"cannot resume with other data .*{message}"):
            data_module(**({"source": source} | change)).load_state_dict(state)  # pyright: ignore[reportArgumentType]
    listed = {"text": HardCaption(tokenizer=caption_view().tokenizer)}
    with pytest.raises(UserError, match=r"word lists of text: then None, now [0-9a-f]{16}"):
        data_module(source, views=listed).load_state_dict(state)
    write_pairs(tmp_path / "1.tar", 1, first=200)
    more = ShardSource(shards=str(tmp_path), require="caption")
    with pytest.raises(
        UserError, match=r"samples in data.source: then 100, now 101; fingerprint of data.source: then "
    ):
        data_module(more).load_state_dict(state)


class Keys(pl.Callback):
    """Keeps which samples the steps were made of."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch["index"].tolist())


def pretrainer() -> Pretrainer:
    model, objective = small_model("simclr")
    return Pretrainer(
        model=model.float(),
        objective=objective.float(),
        optimizer=torch.optim.AdamW,
        weight_decay=0.1,
        layer_decay=None,
        clip_norm=None,
        ema_decay=None,
        schedule=WarmupCosine(warmup_steps=1, max_steps=20, lr=1e-3, lr_start=1e-6, lr_end=1e-5),
        architecture={},
        tokenizer=None,
        transform=EvalTransform(size=16, mean=MEAN, std=STD),
    )


def pairs(source: Source, num_workers: int = 0) -> DataModule:
    view = crop_view(16, (0.08, 1.0))
    return data_module(source, num_workers, views={"aug1": view, "aug2": view})


def trainer(tmp_path: Path, steps: int, keys: Keys) -> pl.Trainer:
    return pl.Trainer(
        callbacks=[keys],
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*")
@pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize(("stop", "num_workers"), [(3, 0), (8, 0), slow(11, 0), (11, 2)])
def test_training_resumes_in_the_middle_of_an_epoch(source: ShardSource, tmp_path: Path, stop: int, num_workers: int):
    whole, first, second = Keys(), Keys(), Keys()
    trainer(tmp_path, 20, whole).fit(pretrainer(), datamodule=pairs(source))
    order = pairs(source).order
    assert whole.seen == [order.global_batch(*divmod(step, 8)).tolist() for step in range(20)]
    stopped = trainer(tmp_path, stop, first)
    stopped.fit(pretrainer(), datamodule=pairs(source))
    stopped.save_checkpoint(tmp_path / "stopped.ckpt")
    again = trainer(tmp_path, 20, second)
    again.fit(pretrainer(), datamodule=pairs(source, num_workers), ckpt_path=tmp_path / "stopped.ckpt")
    assert first.seen + second.seen == whole.seen


# Faulty pictures


def faulty(number: int, picture: bytes) -> bytes:
    kinds = [picture[: len(picture) // 2], b"<html>404</html>", b"", picture[:2] + bytes(64) + picture[66:]]
    return kinds[number % len(kinds)]


@pytest.mark.parametrize(
    ("num_workers", "decoder"),
    [(2, PillowDecoder()), (0, TurboDecoder()), slow(0, PillowDecoder()), slow(2, TurboDecoder())],
)
def test_bad_pictures_are_replaced_counted_and_change_nothing_else(
    tmp_path: Path, num_workers: int, decoder: PillowDecoder | TurboDecoder
):
    clean, broken = [], []
    bad = {37, 137, 237, 337}
    for number in range(400):
        picture, caption = jpeg(number), (f"s{number:04}.txt", f"picture {number}".encode())
        clean += [(f"s{number:04}.jpg", picture), caption]
        broken += [(f"s{number:04}.jpg", faulty(number // 100, picture) if number in bad else picture), caption]
    sources = {}
    for name, members in (("clean", clean), ("broken", broken)):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "a.tar", members[:500])
        write_tar(tmp_path / name / "b.tar", members[500:])
        sources[name] = ShardSource(shards=str(tmp_path / name), require="caption")
    file = tmp_path / "bad_samples.jsonl"
    settings = {"num_workers": num_workers, "decoder": decoder, "bad_sample_budget": 0.02, "bad_samples_file": file}
    runs, modules = {}, {}
    for name, source in sources.items():
        modules[name] = data_module(source, **settings, global_batch_size=20)
        runs[name] = [(step, key.split(":")[1], pixels) for step, key, pixels in play(modules[name], 40)]
    assert modules["clean"].steps_per_epoch == modules["broken"].steps_per_epoch == 20
    assert modules["clean"].metrics()["data/bad_samples"] == 0
    assert modules["broken"].metrics()["data/bad_samples"] == 4  # of this epoch
    assert modules["broken"].bad_samples.total() == 8
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 8  # two epochs
    assert {line["sample"] for line in lines} == bad
    assert all("cannot be decoded" in line["reason"] and line["key"] in line["reason"] for line in lines)
    differing = [(old, new) for old, new in zip(runs["clean"], runs["broken"], strict=True) if old != new]
    assert [int(old[1][1:]) in bad for old, _ in differing] == [True] * 8
    assert [line["substitute"].split(":")[1] for line in lines] == [new[1] for _, new in differing]


def test_more_bad_pictures_than_the_budget_end_the_run_with_their_file(tmp_path: Path):
    members = []
    for number in range(100):
        picture = jpeg(number)[: 300 if number % 10 == 0 else None]
        members += [(f"{number}.jpg", picture), (f"{number}.txt", b"a picture")]
    source = ShardSource(shards=str(write_tar(tmp_path / "a.tar", members)), require="caption")
    file = tmp_path / "bad_samples.jsonl"
    with pytest.raises(DataError, match=rf"bad samples in epoch 0, 4 allowed .*listed in {file}") as stop:
        play(data_module(source, bad_sample_budget=0.05, bad_samples_file=file), 8)
    assert stop.value.exit_code == 4
    assert len(file.read_text().splitlines()) > 4


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_that_is_no_samples_says_what_it_is(source: ShardSource, num_workers: int):
    class Broken(Source):
        @property
        def fingerprint(self) -> str:
            return "broken"

        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int, /) -> Any:
            raise KeyError("no such field")

    with pytest.raises((KeyError, RuntimeError), match="no such field") as error:
        next(iter(data_module(Broken(), num_workers).train_dataloader()))
    assert "Traceback" not in str(error.value)


def test_ranks_add_up_their_bad_samples_and_stop_together(two_ranks: Ranks, tmp_path: Path):
    members = []
    for number in range(240):
        picture = jpeg(number)[: 300 if number in (3, 7, 20, 40, 60) else None]
        members += [(f"{number}.jpg", picture), (f"{number}.txt", b"a picture")]
    write_tar(tmp_path / "a.tar", members)
    for budget, stopped in ((5 / 240, ["", ""]), (4 / 240, ["5 bad samples in epoch 0, 4 allowed"] * 2)):
        said = two_ranks(bad_samples_of_an_epoch, str(tmp_path), budget)
        assert [text[: len(expected)] for text, expected in zip(said, stopped, strict=True)] == stopped
        assert [bool(text) for text in said] == [bool(expected) for expected in stopped]


def test_two_ranks_write_their_bad_samples_to_two_files(tmp_path: Path):
    members = []
    for number in range(48):
        picture = jpeg(number)[: 300 if number % 6 == 0 else None]
        members += [(f"{number}.jpg", picture), (f"{number}.txt", b"a picture")]
    source = ShardSource(shards=str(write_tar(tmp_path / "a.tar", members)), require="caption")
    for rank in range(2):
        play(data_module(source, bad_samples_file=tmp_path / "bad_samples.jsonl"), 4, rank=rank, world_size=2)
    found = [(tmp_path / name).read_text().splitlines() for name in ("bad_samples.jsonl", "bad_samples-rank1.jsonl")]
    assert {json.loads(line)["sample"] for lines in found for line in lines} == set(range(0, 48, 6))


def test_odd_captions_become_ids_that_end_at_the_pooled_position(tmp_path: Path):
    captions = [
        *["word " * 2000, "x" * 10_000, "\N{GRINNING FACE}" * 50, "a\x01b", "\N{ZERO WIDTH SPACE}", "&nbsp;"],
        *[
            "a dog <end_of_text> secretly a cat",
            "a dog <|endoftext|> secretly a cat",
            "\N{GRINNING FACE}",
            "ok",
            "ok",
            "ok",
        ],
    ]
    members = []
    for number, caption in enumerate(captions):
        members += [(f"{number:02}.jpg", jpeg(number)), (f"{number:02}.txt", caption.encode())]
    source = ShardSource(shards=str(write_tar(tmp_path / "a.tar", members)), require="caption")
    assert len(source) == BATCH
    loader = data_module(source).train_dataloader()
    batch = flattened(next(iter(loader)))
    assert batch["text"].shape[1] <= 77
    for text, length in zip(batch["text"], batch["text_length"].tolist(), strict=True):
        ends = (text == caption_view().tokenizer.special_ids["end"]).nonzero().flatten().tolist()
        assert ends == [length - 1]
    assert int(batch["text_truncated"].sum()) == 2


def test_a_mixture_draws_its_shares_with_the_same_pixels_after_a_stop(source: ShardSource, tmp_path: Path):
    write_pairs(tmp_path / "0.tar", 40, first=500)
    mixture = Mixture(
        sources={"a": source, "b": ShardSource(shards=str(tmp_path), require="caption")}, weights={"a": 0.5, "b": 1.0}
    )
    whole = play(data_module(mixture), 14)
    assert data_module(mixture).steps_per_epoch == 7  # (50 + 40) / 12
    part = data_module(mixture)
    first = play(part, 9)
    rest = data_module(mixture)
    rest.load_state_dict(part.state_dict())
    assert first + play(rest, 5) == whole
    for epoch in range(2):
        keys = [key for step, key, _ in whole if step // 7 == epoch]
        assert len(set(keys)) == len(keys)
        assert 34 <= sum(str(tmp_path) in key for key in keys) <= 40  # all but what the dropped tail held


@pytest.mark.slow
def test_200_random_stops_over_two_epochs_with_changing_ranks_and_workers(tmp_path: Path):
    members = []
    bad = set(np.random.default_rng(1).permutation(620)[:6].tolist())
    for number in range(620):
        picture = jpeg(number)[: 300 if number in bad else None]
        members += [(f"s{number:04}.jpg", picture), (f"s{number:04}.txt", f"picture number {number}".encode())]
    for shard in range(8):
        write_tar(tmp_path / f"{shard}.tar", members[shard * 156 : (shard + 1) * 156])
    source = ShardSource(shards=str(tmp_path), require="caption")
    steps = data_module(source, global_batch_size=6).steps_per_epoch
    whole = play(data_module(source, global_batch_size=6), 2 * steps)
    rng = np.random.default_rng(0)
    stops = sorted(rng.choice(np.arange(1, 2 * steps), size=200, replace=False).tolist())
    state: dict[str, Any] = data_module(source, global_batch_size=6).state_dict()
    seen: Seen = []
    for number, (start, stop) in enumerate(itertools.pairwise([0, *stops, 2 * steps])):
        world_size = int(rng.choice([1, 2, 3]))
        num_workers = int(rng.choice([1, 2])) if number % 20 == 0 else 0
        states = []
        for rank in range(world_size):
            part = data_module(source, num_workers, global_batch_size=6)
            part.load_state_dict(state)
            seen += play(part, stop - start, rank=rank, world_size=world_size)
            states.append(part.state_dict())
        state = states[0]
    assert sorted(seen) == sorted(whole)
    for epoch in range(2):
        keys = [key for step, key, _ in whole if step // steps == epoch]
        readable = [key for key in keys if int(key.rpartition("s")[2]) not in bad]
        assert len(keys) == steps * 6
        planned = {int(key.rpartition("s")[2]) for key in readable}
        assert len(planned) >= steps * 6 - len(bad)
