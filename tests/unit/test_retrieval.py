"""Image-text retrieval against loops and recorded figures, on one process and on two."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluation_models import Pictures, bundle, dual_encoder, image_encoder
from ranks import Ranks
from retrieval_models import CAPTIONS, Captioned, retrieve, retrieve_on_this_rank
from shard_files import jpeg, write_tar
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from openslip.data.sources.shards import ShardSource
from openslip.errors import UserError
from openslip.evaluation.evaluation import with_unit
from openslip.evaluation.retrieval import Retrieval, rank_metrics, ranks

RECORDED = Path(__file__).parents[1] / "data" / "retrieval"  # by clip_benchmark
KINDS = ("image", "text")


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


@pytest.mark.parametrize("name", ["five", "uneven"])
def test_recalls_are_those_that_clip_benchmark_gave(name: str):
    arrays = np.load(RECORDED / "features.npz", allow_pickle=False)
    figures = json.loads((RECORDED / "figures.json").read_text())[name]
    images, texts = (F.normalize(torch.from_numpy(arrays[f"{name}/{kind}_features"]), dim=1) for kind in KINDS)
    of_text = torch.from_numpy(arrays[f"{name}/image_of_text"])
    of_image = torch.arange(len(images))
    for chunk in (7, 1024):
        to_text = rank_metrics(ranks(images, of_image, texts, of_text, chunk=chunk), len(texts))
        to_image = rank_metrics(ranks(texts, of_text, images, of_image, chunk=chunk), len(images))
        for place in (1, 5, 10):
            for ours, theirs in ((to_text, "text"), (to_image, "image")):
                expected = 100 * figures[f"{theirs}_retrieval_recall@{place}"]
                assert ours[f"recall_{place}"] == pytest.approx(expected, abs=1e-4)  # the recorded means are float32


def integers(*shape: int) -> Tensor:
    """Features whose dot products are exact in float32, so that a loop finds the same ties."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(sum(shape))).float()


def ranks_by_loop(queries: Tensor, of_query: Tensor, candidates: Tensor, of_candidate: Tensor) -> list[int]:
    """Walk down each query's list of candidates, most similar first, the first of equal ones first."""
    found = []
    for row, own in zip(queries.double() @ candidates.double().T, of_query.tolist(), strict=True):
        order = sorted(range(len(candidates)), key=lambda place: -float(row[place]))
        found.append(1 + [int(of_candidate[place]) for place in order].index(own))
    return found


@pytest.mark.parametrize("chunk", [1, 7, 64, 500])
def test_ranks_equal_a_loop_with_ties_for_any_chunk(chunk: int):
    images, texts = integers(40, 6), integers(200, 6)
    of_image, of_text = torch.arange(40), torch.arange(200) % 40  # captions of an image lie in several chunks
    for given in ((images, of_image, texts, of_text), (texts, of_text, images, of_image)):
        assert ranks(*given, chunk=chunk).tolist() == ranks_by_loop(*given)


def test_equal_candidates_tie_in_every_chunk():
    query = F.normalize(torch.randn(1, 512), dim=1).expand(137, -1)
    candidates = F.normalize(torch.randn(1, 512), dim=1).expand(137, -1).contiguous()
    places = torch.arange(137)
    assert torch.equal(ranks(query, places, candidates, places, chunk=64), places + 1)


def test_a_query_without_a_correct_candidate_comes_after_all():
    features, places = integers(5, 3), torch.arange(5)
    assert ranks(features, places + 5, features, places, chunk=2).tolist() == [6] * 5


def test_ranks_become_shares_a_mean_and_a_median():
    metrics = rank_metrics(torch.tensor([1, 2, 6, 11]), 12)
    shares = {"recall_1": 25.0, "recall_5": 50.0, "recall_10": 75.0}
    assert metrics == {**shares, "mean_rank": 5.0, "median_rank": 4.0}
    assert rank_metrics(torch.tensor([1, 3, 5]), 5) == {"recall_1": 100 / 3, "mean_rank": 3.0, "median_rank": 3.0}


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        if isinstance(returned, Tensor) and not returned._is_view():
            self.elements = max(self.elements, returned.numel())
        return returned


def test_no_more_similarities_than_a_chunk_of_both_are_in_memory():
    images, texts = integers(300, 4), integers(1500, 4)
    of_image = torch.arange(300)
    with Largest() as largest:
        ranks(texts, of_image.repeat_interleave(5), images, of_image, chunk=50)
        ranks(images, of_image, texts, of_image.repeat_interleave(5), chunk=50)
    assert largest.elements == 50 * 50


def kilobytes(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


@pytest.mark.slow
def test_coco_sized_retrieval_is_exact_in_less_than_a_gigabyte():
    images, texts = integers(5_000, 512), integers(25_000, 512)
    of_image = torch.arange(5_000)
    of_text = of_image.repeat_interleave(5)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of the memory starts again
    before = kilobytes("VmRSS")
    to_image = ranks(texts, of_text, images, of_image, chunk=1024)
    to_text = ranks(images, of_image, texts, of_text, chunk=1024)
    assert 1024 * (kilobytes("VmHWM") - before) < 1e9
    some = torch.arange(0, 25_000, 1_000)
    assert to_image[some].tolist() == ranks_by_loop(texts[some], of_text[some], images, of_image)
    some = torch.arange(0, 5_000, 500)
    assert to_text[some].tolist() == ranks_by_loop(images[some], of_image[some], texts, of_text)


def test_more_images_than_published_are_another_split():
    with pytest.raises(UserError, match="has 7 samples, the published split has 5"):
        Retrieval(title="COCO", source=Pictures(7), batch_size=4, num_workers=0, expected_samples=5)
    few = Retrieval(title="COCO", source=Pictures(7), batch_size=4, num_workers=0, expected_samples=9)
    assert few.headline({"image_to_text_recall_1": 1.0, "text_to_image_recall_1": 2.0}).endswith(", 7 of 9 samples")
