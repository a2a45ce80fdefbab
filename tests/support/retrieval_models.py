"""Captioned pictures for tests of retrieval; importable, because ranks run them too."""

from dataclasses import replace

from evaluation_models import Pictures, bundle, dual_encoder
from torch import Tensor

from openslip.data.source import Sample, Source
from openslip.evaluation import features
from openslip.evaluation.retrieval import Retrieval

CAPTIONS = [("a red ring",), ("two dots", "dots on a line", "a line"), ("größe", "a big blue square")]


class Captioned(Pictures):
    """Pictures with one caption or several, all of them different unless one is given."""

    def __init__(self, count: int, caption: str | None = None) -> None:
        super().__init__(count)
        self.caption = caption

    def __getitem__(self, index: int, /) -> Sample:
        own = tuple(f"{text}, number {index}" for text in CAPTIONS[index % len(CAPTIONS)])
        return replace(super().__getitem__(index), captions=(self.caption,) if self.caption else own)


def retrieve(source: Source) -> Retrieval:
    return Retrieval(title="mine", source=source, batch_size=4, num_workers=0)


def retrieve_on_this_rank(count: int) -> dict[str, float]:
    return retrieve(Captioned(count)).run(bundle(dual_encoder()))


def text_features_on_this_rank(texts: list[str], texts_per_batch: int) -> Tensor:
    before, features.TEXTS_PER_BATCH = features.TEXTS_PER_BATCH, texts_per_batch
    try:
        return features.text_features(bundle(dual_encoder()), texts)
    finally:
        features.TEXTS_PER_BATCH = before
