"""Recall of image-text retrieval against loops, on one process and on two."""

from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_models import Pictures, bundle, dual_encoder, image_encoder
from ranks import Ranks
from retrieval_models import CAPTIONS, Captioned, retrieve, retrieve_on_this_rank
from shard_files import jpeg, write_tar

from openslip.data.sources.shards import ShardSource
from openslip.errors import UserError
from openslip.evaluation.evaluation import with_unit


def naive_recall(count: int, place: int) -> tuple[float, float]:
    """Image to text and text to image, by counting who is more similar than the best of one's own."""
    model, source = bundle(dual_encoder()), Captioned(count)
    owners = [index for index in range(count) for _ in source[index].captions]
    texts = [text for index in range(count) for text in source[index].captions]
    cosines = model.similarity([source[index].image for index in range(count)], texts).tolist()
    to_text = 0
    for index, row in enumerate(cosines):
        own = max(cosine for cosine, owner in zip(row, owners, strict=True) if owner == index)
        to_text += sum(cosine > own for cosine in row) < place
    to_image = 0
    for column, owner in enumerate(owners):
        to_image += sum(row[column] > cosines[owner][column] for row in cosines) < place
    return 100 * to_text / count, 100 * to_image / len(texts)


@pytest.mark.parametrize("count", [7, 26])
def test_recalls_of_several_captions_an_image_equal_a_loop(count: int):
    metrics = retrieve(Captioned(count)).run(bundle(dual_encoder()))
    for place in (1, 5) if count == 7 else (1, 5, 10):
        to_text, to_image = naive_recall(count, place)
        assert metrics[f"image_to_text_recall_{place}"] == to_text
        assert metrics[f"text_to_image_recall_{place}"] == to_image
    assert metrics["num_images"] == count
    assert metrics["num_texts"] == sum(len(CAPTIONS[index % len(CAPTIONS)]) for index in range(count))
    assert "text_to_image_recall_10" not in metrics or count > 10, "ten of seven are all"


def test_every_caption_of_an_image_is_a_query_even_if_it_is_given_twice(tmp_path: Path):
    members: list[tuple[str, bytes]] = []
    for number in range(3):
        members += [(f"{number}.jpg", jpeg(number)), (f"{number}.json", b'{"captions": ["a ring", "a ring", "dots"]}')]
    path = str(write_tar(tmp_path / "a.tar", members))
    kept = ShardSource(shards=path, require="caption", equal_captions="keep")
    assert retrieve(kept).run(bundle(dual_encoder()))["num_texts"] == 9


def test_of_equally_similar_candidates_the_first_counts():
    metrics = retrieve(Captioned(4, caption="the same")).run(bundle(dual_encoder()))
    assert metrics["image_to_text_recall_1"] == 25
    assert metrics["text_to_image_recall_1"] == 25


def test_two_ranks_have_the_recalls_of_one_process(two_ranks: Ranks):
    alone = retrieve_on_this_rank(26)
    assert two_ranks(retrieve_on_this_rank, 26) == [alone, alone]


def test_what_cannot_be_retrieved_is_refused():
    with pytest.raises(UserError, match="the source has 1 samples: expected at least 2"):
        retrieve(Captioned(1))
    with pytest.raises(UserError, match=r"sample 'picture0' has no caption: retrieval needs one for every image"):
        retrieve(Pictures(3)).run(bundle(dual_encoder()))
    with pytest.raises(UserError, match="ImageEncoder has neither"):
        retrieve(Captioned(3)).run(bundle(image_encoder()))


def test_the_headline_and_the_table_are_in_per_cent():
    metrics: dict[str, Any] = {"image_to_text_recall_1": 12.5, "text_to_image_recall_1": 50.0, "num_texts": 8.0}
    assert retrieve(Captioned(2)).headline(metrics) == "mine recall@1: image to text 12.5 %, text to image 50.0 %"
    assert {name: with_unit(name, value) for name, value in metrics.items()} == {
        **{"image_to_text_recall_1": "12.50 %", "text_to_image_recall_1": "50.00 %", "num_texts": "8"}
    }


def test_weights_that_are_not_finite_give_no_recall():
    model = dual_encoder()
    with torch.no_grad():
        assert model.image_projection is not None
        model.image_projection[0, 0] = float("nan")
    with pytest.raises(UserError, match="image features are not finite"):
        retrieve(Captioned(3)).run(bundle(model))
