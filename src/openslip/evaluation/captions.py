"""Captions of a source, for evaluations that compare images with texts."""

from openslip.data.source import Source
from openslip.distributed import on_every_rank
from openslip.errors import UserError


def captions_of(source: Source, evaluation: str) -> list[tuple[str, ...]]:
    """Return the captions of every sample, in the source's order; all ranks must call this.

    Args:
        source: images with captions.
        evaluation: name of the evaluation, for the error message.

    Raises:
        UserError: a sample has no caption.
    """

    def read() -> list[tuple[str, ...]]:
        captions = []
        for index in range(len(source)):
            sample = source[index]
            if not sample.captions:
                raise UserError(f"sample {sample.key!r} has no caption: {evaluation} needs one for every image")
            captions.append(sample.captions)
        return captions

    return on_every_rank(read)
