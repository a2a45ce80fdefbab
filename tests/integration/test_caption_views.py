"""Views of captions in the loader, rewritten captions, and runs of FILIP and NegCLIP that are stopped and resumed."""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from data_modules import data_module, trainer_of
from on_ranks import step_gradients_in_tiles
from pretraining import fit, pretrainer
from ranks import Ranks
from shard_files import jpeg, write_pairs, write_tar
from trainings import SMALL, Training
from views import flattened

from openslip.data.captions.augment import RandomEdits
from openslip.data.captions.choice import Caption
from openslip.data.captions.hard import HardCaption
from openslip.data.captions.shortened import ShortenedCaption
from openslip.data.sources.shards import ShardSource
from openslip.inference.load import load
from openslip.text.clip_bpe import ClipBpe

TOKENIZER = ClipBpe(context_length=32, truncation="keep_end", special_text="plain")
REWRITTEN = ["three big dogs", "some large red dogs near the old house", "dogs"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ShardSource:
    """24 images, whose captions are an original and three rewritten ones, as LaCLIP has them."""
    members = []
    for number in range(24):
        fields = {"caption": f"{number} original", "captions": [f"{number} {text}" for text in REWRITTEN]}
        members += [(f"{number}.jpg", jpeg(number)), (f"{number}.txt", f"{number} original".encode())]
        members += [(f"{number}.json", json.dumps(fields).encode())]
    path = write_tar(tmp_path_factory.mktemp("shards") / "0.tar", members)
    return ShardSource(shards=str(path), require="caption")


def batches(source: ShardSource, num_workers: int, epochs: int = 1) -> list[dict[str, Any]]:
    views = {
        "hard": HardCaption(tokenizer=TOKENIZER),
        "short": ShortenedCaption(tokenizer=TOKENIZER, tokens=5, way="random"),
        "edited": Caption(tokenizer=TOKENIZER, augment=RandomEdits(delete=0.1, swap=0.2, synonyms=0.3)),
        "plain": Caption(tokenizer=TOKENIZER),
    }
    data = data_module(source, num_workers, views=views, global_batch_size=8, shuffle_window=1)
    data.trainer = trainer_of(0, 1)
    found = []
    for _ in range(epochs):
        found += map(flattened, data.train_dataloader())
        data.consumed = len(found)
    return found


def test_the_number_of_workers_does_not_change_captions(source: ShardSource):
    for one, other in zip(batches(source, 0), batches(source, 2), strict=True):
        assert one.keys() == other.keys()
        for name, column in one.items():
            if isinstance(column, torch.Tensor):
                assert torch.equal(column, other[name]), name


def test_each_epoch_draws_one_of_the_original_and_the_rewritten_captions_of_each_image(source: ShardSource):
    assert len(source[0].captions) == 1 + len(REWRITTEN)
    kinds: Counter[str] = Counter()
    of_image = defaultdict[int, set[str]](set)
    for batch in batches(source, 0, epochs=15):
        for index, ids in zip(batch["index"].tolist(), batch["plain"], strict=True):
            # Each digit is a token.
            digits, text = re.findall(r"^([\d ]+) (\D.*)", TOKENIZER.decode(ids.tolist()))[0]
            assert digits.replace(" ", "") == source[index].key.rpartition(":")[2]
            kinds[text] += 1
            of_image[index].add(text)
    assert kinds.keys() == {"original", *REWRITTEN}
    assert all(60 < count < 120 for count in kinds.values())  # of 360, in four kinds
    assert min(map(len, of_image.values())) > 1


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*")
@pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("method", ["filip", "neg_clip"])
def test_a_resumed_run_is_the_whole_run_to_the_bit(tmp_path: Path, method: str):
    whole = pretrainer(method, steps=5)
    fit(whole, 5, folder=tmp_path)
    stopped = pretrainer(method, steps=5)
    fit(stopped, 2, folder=tmp_path).save_checkpoint(tmp_path / "stopped.ckpt")
    resumed = pretrainer(method, steps=5)
    resumed.model.get_parameter("logit_scale").data.fill_(0.0)  # the checkpoint gives it back
    fit(resumed, 5, folder=tmp_path, checkpoint=tmp_path / "stopped.ckpt")
    found, expected = resumed.state_dict(), whole.state_dict()
    assert found.keys() == expected.keys()
    assert not torch.equal(stopped.state_dict()["model.text_projection"], expected["model.text_projection"])
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.slow
def test_a_run_with_few_tokens_goes_on_with_all_of_them(tmp_path: Path):
    write_pairs(tmp_path / "0.tar", 100)
    run = [*SMALL, "data.source.shards=0.tar", "trainer.max_steps=4"]
    few = Training(tmp_path, *run, "model=clipa_tiny", "name=few", "image_size=16", "views.shortened_caption.tokens=4")
    assert few.wait() == 0, few.said()
    start = [
        "init_from.checkpoint=runs/few",
        "init_from.resize=true",
        "optim.schedule.lr_start=1e-12",
        "optim.lr=1e-12",
    ]
    whole = Training(
        tmp_path, *run, *start, "model=clip_tiny", "name=all", "image_size=32", "optim.schedule.lr_end=1e-12"
    )
    assert whole.wait() == 0, whole.said()
    first, second = (load(tmp_path / "runs" / name) for name in ("few", "all"))
    grids = [each.model.image_tower.trunk.pos_embed.shape[1] - 1 for each in (first, second)]
    assert grids == [2 * 2, 4 * 4]  # patches of 8 pixels
    texts = ["picture number 7", "a caption of more words than the first run has ever seen"]
    torch.testing.assert_close(second.encode_text(texts), first.encode_text(texts), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def three_ranks():
    ranks = Ranks(3)
    yield ranks
    ranks.close()


@pytest.mark.slow
@pytest.mark.parametrize("tile", [None, 5])
@pytest.mark.parametrize("gather_with_grad", [True, False])
@pytest.mark.parametrize("method", ["filip", "neg_clip"])
def test_three_ranks_equal_one_process(three_ranks: Ranks, method: str, gather_with_grad: bool, tile: int | None):
    whole = step_gradients_in_tiles(tile, method, gather_with_grad, 15, [15])
    for sizes in ([5], [3, 2], [1, 1, 1, 1, 1]):
        for found in three_ranks(step_gradients_in_tiles, tile, method, gather_with_grad, 15, sizes):
            assert found.keys() == whole.keys()
            for name, value in whole.items():
                torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-12, msg=f"{name} differs")
