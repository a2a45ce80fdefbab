"""Image-text retrieval: recall at K and ranks in both directions. Karpathy and Fei-Fei 2015, arXiv:1412.2306.

A query's rank is the place of its best correct candidate among all candidates, most similar first, counted from 1.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from openslip.data.source import Source
from openslip.errors import UserError
from openslip.evaluation.captions import captions_of
from openslip.evaluation.evaluation import Evaluation
from openslip.evaluation.features import text_features
from openslip.evaluation.image_features import joint_features
from openslip.evaluation.split_size import samples_note
from openslip.inference.bundle import Bundle, evaluating

PLACES = (1, 5, 10)
WAYS = {"image_to_text": "image to text", "text_to_image": "text to image"}
CHUNK = 1024  # queries, and candidates, whose similarities are in memory at a time


class Retrieval(Evaluation):
    """Recall at K: share of queries with a correct match among the K most similar candidates, in per cent.

    Images are queries for captions and captions for images. Metrics for `image_to_text` and `text_to_image`:
    `WAY_recall_K` for K of 1, 5 and 10 if there are more than K candidates, `WAY_mean_rank` and `WAY_median_rank`; and
    `num_images` and `num_texts`. With an image as query, each of its captions counts as correct, and the best one
    decides the rank. Every caption is a query and a candidate, so the source should keep equal captions of an image
    (`equal_captions=keep`). A caption matches its own image only: an equal caption of another image counts as wrong.

    Args:
        title: name of the evaluation in its headline.
        source: images with one or more captions.
        batch_size: images per forward pass.
        num_workers: processes that decode images; 0 decodes in this process.
        expected_samples: number of images of the published split, as in `ZeroShot`.

    Raises:
        UserError: the constructor gets fewer than two samples, or more than expected; `run` meets a sample without a
            caption, or the model has no text tower.
    """

    headline_metric = "image_to_text_recall_1"

    def __init__(
        self, *, title: str, source: Source, batch_size: int, num_workers: int, expected_samples: int | None = None
    ) -> None:
        if len(source) < 2:
            raise UserError(f"retrieval: the source has {len(source)} samples: expected at least 2 to choose from")
        self.title = title
        self.source = source
        self.batch_size = batch_size
        self.num_workers = num_workers
        if samples := samples_note(title, len(source), expected_samples):
            self.notes = {"samples": samples}

    def headline(self, metrics: dict[str, float]) -> str:
        shares = [f"{way} {metrics[f'{name}_recall_1']:.1f} %" for name, way in WAYS.items()]
        incomplete = [f"{self.notes['samples']} samples"] if "samples" in self.notes else []
        return f"{self.title} recall@1: {', '.join(shares + incomplete)}"

    def run(self, bundle: Bundle) -> dict[str, float]:
        bundle.need_tokenizer()
        captions = captions_of(self.source, "retrieval")
        counts = torch.tensor([len(texts) for texts in captions])
        of_image = torch.arange(len(captions), device=bundle.device)
        of_text = of_image.repeat_interleave(counts.to(bundle.device))
        with evaluating(bundle.model, bundle.device):
            texts = text_features(bundle, [text for texts in captions for text in texts])
            images, _ = joint_features(
                bundle, self.source, batch_size=self.batch_size, num_workers=self.num_workers, labels=False
            )
            to_text = ranks(images, of_image, texts, of_text, chunk=CHUNK)
            to_image = ranks(texts, of_text, images, of_image, chunk=CHUNK)
        metrics = {
            f"{way}_{name}": value
            for way, of_query, num_candidates in zip(WAYS, (to_text, to_image), (len(texts), len(images)), strict=True)
            for name, value in rank_metrics(of_query, num_candidates).items()
        }
        return {**metrics, "num_images": float(len(images)), "num_texts": float(len(texts))}


def rank_metrics(ranks: Int64[Tensor, " queries"], num_candidates: int) -> dict[str, float]:
    """Summarise ranks: recall at each K in per cent, if there are more than K candidates, and mean and median rank.

    If the number of queries is even, the median is the mean of the middle two ranks.
    """
    recalls = {f"recall_{place}": recall_at(ranks, place) for place in PLACES if place < num_candidates}
    values = ranks.cpu().numpy()
    return {**recalls, "mean_rank": float(values.mean()), "median_rank": float(np.median(values))}


def recall_at(ranks: Int64[Tensor, " queries"], place: int) -> float:
    """Return the share of queries, in per cent, whose best correct candidate is among the first `place` ones."""
    return 100 * int((ranks <= place).sum()) / len(ranks)


def ranks(
    queries: Float[Tensor, "queries embed"],
    of_query: Int64[Tensor, " queries"],
    candidates: Float[Tensor, "candidates embed"],
    of_candidate: Int64[Tensor, " candidates"],
    *,
    chunk: int,
) -> Int64[Tensor, " queries"]:
    """Return the rank of each query's best correct candidate: 1 plus the number of candidates that come before it.

    Candidates of equal similarity are ranked in their order. A query without a correct candidate gets a rank after all
    candidates. Similarities are counted and not sorted, so memory holds chunk x chunk of them at a time.

    Args:
        queries: features of the queries; similarity is their dot product with the candidates'.
        of_query: index of each query's image.
        candidates: features of the candidates.
        of_candidate: index of each candidate's image; a candidate is correct if it is that of the query.
        chunk: queries, and candidates, that are compared at a time.
    """
    counted = [
        1 + num_before(rows, answers, candidates, of_candidate, chunk)
        for rows, answers in zip(queries.split(chunk), of_query.split(chunk), strict=True)
    ]
    return torch.cat(counted)


def num_before(
    queries: Float[Tensor, "rows embed"],
    of_query: Int64[Tensor, " rows"],
    candidates: Float[Tensor, "candidates embed"],
    of_candidate: Int64[Tensor, " candidates"],
    chunk: int,
) -> Int64[Tensor, " rows"]:
    """Count for each query the candidates that are ranked before its best correct one."""
    best, place = best_correct(queries, of_query, candidates, of_candidate, chunk)
    count = torch.zeros_like(of_query)
    for start, rows, of_row in chunks(candidates, of_candidate, chunk):
        similarity = similarities(queries, rows, chunk)
        places = torch.arange(start, start + len(rows), device=place.device)
        before = (similarity > best[:, None]) | ((similarity == best[:, None]) & (places < place[:, None]))
        # No correct candidate is before the best one, even if this product rounds otherwise than the one before.
        count += (before & (of_row != of_query[:, None])).sum(dim=1)
    return count


def best_correct(
    queries: Float[Tensor, "rows embed"],
    of_query: Int64[Tensor, " rows"],
    candidates: Float[Tensor, "candidates embed"],
    of_candidate: Int64[Tensor, " candidates"],
    chunk: int,
) -> tuple[Float[Tensor, " rows"], Int64[Tensor, " rows"]]:
    """Return the highest similarity of each query with a correct candidate, and the first candidate that has it."""
    best = queries.new_full((len(queries),), -math.inf)
    place = torch.full_like(of_query, len(candidates))
    for start, rows, of_row in chunks(candidates, of_candidate, chunk):
        is_correct = of_row == of_query[:, None]
        if is_correct.any():  # in a source's order, only a few chunks have any
            highest, first = similarities(queries, rows, chunk).masked_fill(~is_correct, -math.inf).max(dim=1)
            place = torch.where(highest > best, start + first, place)
            best = best.maximum(highest)
    return best, place


def similarities(
    queries: Float[Tensor, "queries embed"], candidates: Float[Tensor, "candidates embed"], chunk: int
) -> Float[Tensor, "queries candidates"]:
    """Return all dot products, computed with `chunk` candidates, some of them zeros if there are fewer.

    Matrix products of another shape may round differently, and equal candidates of two chunks would not tie.
    """
    padded = F.pad(candidates, (0, 0, 0, chunk - len(candidates)))
    return (queries @ padded.T)[:, : len(candidates)]


def chunks(
    candidates: Float[Tensor, "candidates embed"], of_candidate: Int64[Tensor, " candidates"], chunk: int
) -> Iterator[tuple[int, Float[Tensor, "rows embed"], Int64[Tensor, " rows"]]]:
    """Yield the index of each chunk's first candidate, the chunk's features, and their images."""
    starts = range(0, len(candidates), chunk)
    yield from zip(starts, candidates.split(chunk), of_candidate.split(chunk), strict=True)
