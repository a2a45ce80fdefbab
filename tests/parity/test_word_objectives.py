"""DeViSE and SuperClass against loops and torch's own loss, on any split, and resumed in the middle of an epoch."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from data_modules import data_module
from marks import slow
from ranks import Ranks
from shard_files import write_pairs
from torch import Tensor
from views import MEAN, STD, crop_view
from word_models import BATCH, METHODS, word_batch, word_model, word_steps

from openslip.data.captions.choice import Caption
from openslip.data.image.eval_transform import EvalTransform
from openslip.data.sources.shards import ShardSource
from openslip.errors import UserError
from openslip.models.bag_of_tokens import BagOfTokens, distinct
from openslip.models.text_transformer import TextTransformer
from openslip.objectives.devise import hinge_rank
from openslip.objectives.similarity import Features
from openslip.optim import WarmupCosine
from openslip.text.words import Words
from openslip.training.pretrainer import Pretrainer

SPLITS = [[BATCH], [15, 15], [7, 3, 9, 1, 10]]
OF_TWO = [[15], [7, 8], [4, 1, 5, 2, 3]]
OF_THREE = [[10], [5, 5], [3, 1, 2, 3, 1]]
TILES = [None, 4]


def features(rows: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    image, text = (torch.randn(rows, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    return image, text


def test_the_hinge_rank_loss_is_equation_1_and_torchs_multi_margin_loss():
    image, text = features()
    model, objective = word_model("devise")
    given = {"image": image.clone().requires_grad_(), "text": text.clone().requires_grad_()}
    loss = objective.loss(model, given)["loss"]
    cosines = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=2)
    total = sum(
        max(0.0, 0.1 - float(cosines[i, i]) + float(cosines[i, j])) for i in range(9) for j in range(9) if i != j
    )
    assert loss.item() == pytest.approx(total / 9, rel=1e-12)
    same = {name: x.detach().clone().requires_grad_() for name, x in given.items()}
    cosines = torch.nn.functional.cosine_similarity(same["image"][:, None], same["text"][None], dim=2)
    reference = torch.nn.MultiMarginLoss(p=1, margin=0.1)(cosines, torch.arange(9)) * 9  # it divides by the classes
    assert loss.item() == pytest.approx(reference.item(), rel=1e-12)
    loss.backward()
    reference.backward()
    for name, x in given.items():
        torch.testing.assert_close(x.grad, same[name].grad, rtol=1e-10, atol=1e-14)


def test_an_equal_caption_adds_the_margin_and_no_gradient():
    image, text = features(4)
    text[3] = text[0]
    image.requires_grad_()
    hinge_rank(Features(image, gather_with_grad=True), Features(text, gather_with_grad=True), 0.1).backward()
    assert image.grad is not None
    with_equal = image.grad[0].clone()
    cosines = torch.nn.functional.cosine_similarity(image.detach()[:, None], text[None], dim=2)
    alone = image.detach()[:1].clone().requires_grad_()
    unit = torch.nn.functional.normalize
    for j in (1, 2):
        if 0.1 - cosines[0, 0] + cosines[0, j] > 0:
            ((unit(alone) @ (unit(text[j : j + 1]) - unit(text[:1])).T).squeeze() / 4).backward()
    assert alone.grad is not None
    torch.testing.assert_close(with_equal, alone.grad[0], rtol=1e-10, atol=1e-14)


def naive_superclass(steps: int) -> list[float]:
    """The losses of untrained steps: targets by the counts of all captions so far, one image at a time."""
    model, _ = word_model("superclass")
    rows, scale = model.get_parameter("text_tower.token_embedding.weight").detach(), math.exp(2.6593)
    seen, number, losses = Counter[int](), 0, []
    for step in range(steps):
        batch = word_batch(step)
        captions = [
            set(row[:length]) for row, length in zip(batch["text"].tolist(), batch["text_length"].tolist(), strict=True)
        ]
        number += len(captions)
        for caption in captions:
            seen.update(caption)
        images = model.encode_image(batch["image"]).detach()
        total = 0.0
        for image, caption in zip(images, captions, strict=True):
            weights = {token: math.log((number + 1) / (seen[token] + 1)) for token in caption}
            logits = [scale * float(row @ image) / float(image.norm()) for row in rows]
            normaliser = math.log(sum(map(math.exp, logits)))
            shares = {token: weight / (sum(weights.values()) or 1) for token, weight in weights.items()}
            total -= sum(share * (logits[token] - normaliser) for token, share in shares.items())
        losses.append(total / len(captions))
    return losses


def test_superclass_is_the_cross_entropy_with_tokens_weighted_by_all_captions_so_far():
    model, objective = word_model("superclass")
    losses = []
    for step in range(3):
        losses.append(objective.terms(model, objective.encode(model, word_batch(step)))["loss"].item())
        objective.after_step(model)
    assert losses == pytest.approx(naive_superclass(3), rel=1e-7)


def test_a_skipped_step_counts_no_captions():
    model, objective = word_model("superclass")
    for step, skipped in enumerate((False, True)):
        objective.terms(model, objective.encode(model, word_batch(step)))
        objective.skipped.fill_(skipped)
        objective.after_step(model)
    once, first = word_model("superclass")
    first.terms(once, first.encode(once, word_batch(0)))
    first.after_step(once)
    for name, value in once.state_dict().items() | first.state_dict().items():
        assert torch.equal({**model.state_dict(), **objective.state_dict()}[name], value), name


def test_after_a_step_the_text_tower_weighs_the_tokens_of_captions_and_knows_no_others():
    model, objective = word_model("superclass")
    model.logit_scale.data.fill_(9.0)
    objective.terms(model, objective.encode(model, word_batch(0)))
    objective.after_step(model)
    batch = word_batch(0)
    captions = [row[:length].tolist() for row, length in zip(batch["text"], batch["text_length"], strict=True)]
    for token in range(50):
        number = sum(token in caption for caption in captions)
        assert model.text_tower.get_buffer("is_known")[token] == (number > 0)
        expected = math.log((BATCH + 1) / (number + 1)) if number else 0.0
        assert model.text_tower.get_buffer("token_weight")[token].item() == pytest.approx(expected)
    assert model.logit_scale.item() == pytest.approx(4.6052)


def test_a_text_is_the_weighted_mean_of_its_distinct_tokens():
    tower = BagOfTokens(vocab_size=6, width=2)
    tower.token_weight.copy_(torch.tensor([0.0, 1.0, 3.0, 0.5, 1.0, 1.0]))
    rows = tower.token_embedding.weight.detach()
    ids = torch.tensor([[2, 1, 2, 0], [3, 3, 3, 3], [0, 5, 4, 4]])
    found = tower(ids, torch.tensor([4, 1, 1])).detach()
    expected = torch.stack([(3 * rows[2] + rows[1]) / 4, rows[3], torch.zeros(2)])
    torch.testing.assert_close(found, expected)
    assert distinct(ids, torch.tensor([4, 1, 1])).tolist() == [
        [True, True, False, True],
        [True, False, False, False],
        [True, False, False, False],
    ]


def test_the_best_word_for_an_image_is_the_same_by_cosine_and_by_probability():
    # Rows of one length: then the classifier's most probable token is the class that zero-shot finds.
    model, _ = word_model("superclass")
    weight = model.get_parameter("text_tower.token_embedding.weight")
    weight.data = torch.nn.functional.normalize(weight.data, dim=1)
    image = model.encode_image(word_batch(0)["image"])
    text = model.encode_text(torch.arange(50)[:, None], torch.ones(50, dtype=torch.int64))
    cosines = torch.nn.functional.normalize(image, dim=1) @ torch.nn.functional.normalize(text, dim=1).T
    assert torch.equal(cosines.argmax(dim=1), (image @ weight.T).argmax(dim=1))


def test_superclass_names_the_tower_that_it_needs():
    model, objective = word_model("superclass")
    model.text_tower = TextTransformer(vocab_size=5, context_length=3, width=4, depth=1, heads=1)
    with pytest.raises(UserError, match=r"TextTransformer is no BagOfTokens; add model/tower@model\.text_tower="):
        objective.setup(model)


# Splits


@pytest.fixture(scope="module")
def three_ranks() -> Iterator[Ranks]:
    ranks = Ranks(3)
    yield ranks
    ranks.close()


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-12, msg=f"{name} differs")


FEW = [("devise", 4), ("superclass", 4)]
OTHERS = [slow(*case) for case in itertools.product(METHODS, TILES) if case not in FEW]


@pytest.mark.parametrize(("method", "tile"), [*FEW, *OTHERS])
def test_micro_batches_and_two_ranks_equal_the_whole_batch(two_ranks: Ranks, method: str, tile: int | None):
    whole = word_steps(3, None, method, [BATCH])
    for sizes in SPLITS:
        assert_equal(word_steps(3, tile, method, sizes), whole)
    for sizes in OF_TWO:
        for rank in two_ranks(word_steps, 3, tile, method, sizes):
            assert_equal(rank, whole)


@pytest.mark.slow
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("method", METHODS)
def test_three_ranks_equal_one_process(three_ranks: Ranks, method: str, tile: int | None):
    whole = word_steps(3, None, method, [BATCH])
    for sizes in OF_THREE:
        for rank in three_ranks(word_steps, 3, tile, method, sizes):
            assert_equal(rank, whole)


# Resume


def pretrainer(method: str) -> Pretrainer:
    model, objective = word_model(method)
    torch.manual_seed(5)
    return Pretrainer(
        model=model.float(),
        objective=objective.float(),
        optimizer=torch.optim.AdamW,
        weight_decay=0.1,
        layer_decay=None,
        clip_norm=None,
        ema_decay=None,
        schedule=WarmupCosine(warmup_steps=1, max_steps=12, lr=1e-3, lr_start=1e-6, lr_end=1e-5),
        architecture={},
        tokenizer=words(),
        transform=EvalTransform(size=16, mean=MEAN, std=STD),
    )


def words() -> Words:
    return Words(context_length=5, words="\n".join(["picture", "number", *map(str, range(46))]))


def fit(folder: Path, method: str, steps: int, checkpoint: Path | None = None) -> tuple[Pretrainer, pl.Trainer]:
    views = {"image": crop_view(16, (0.5, 1.0)), "text": Caption(tokenizer=words())}
    made = pretrainer(method)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    data = data_module(ShardSource(shards=str(folder), require="caption"), views=views)
    trainer.fit(made, datamodule=data, ckpt_path=checkpoint)
    return made, trainer


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*")
@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
@pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("method", ["superclass", slow("devise locked")])
def test_a_run_resumed_in_the_middle_of_an_epoch_ends_with_the_same_bits(tmp_path: Path, method: str):
    write_pairs(tmp_path / "0.tar", 60)  # five steps an epoch
    whole, _ = fit(tmp_path, method, 12)
    _, stopped = fit(tmp_path, method, 7)
    stopped.save_checkpoint(tmp_path / "stopped.ckpt")
    again, _ = fit(tmp_path, method, 12, tmp_path / "stopped.ckpt")
    expected: dict[str, Any] = whole.state_dict()
    for name, value in again.state_dict().items():
        assert torch.equal(value, expected[name]), name
    if method == "superclass":
        assert expected["objective.num_documents"] == 12 * 12
        assert expected["objective.document_counts"][2] == 12 * 12  # `picture` stands in every caption
        assert expected["model.text_tower.token_weight"][2] == 0


def test_a_run_is_not_resumed_with_other_words():
    made = pretrainer("superclass")
    stored: dict[str, Any] = {}
    made.on_save_checkpoint(stored)
    made.on_load_checkpoint(stored)
    made.tokenizer = Words(context_length=5, words="number\npicture")
    with pytest.raises(UserError, match=r"its words differ from those of the checkpoint: the file that it reads"):
        made.on_load_checkpoint(stored)
