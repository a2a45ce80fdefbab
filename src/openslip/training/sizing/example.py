"""A batch like those of a run, of noise: what costs and equalities need no pictures to be known."""

import torch
from torch import Tensor

from openslip.data.image.crop import View
from openslip.text.clip_bpe import Tokenizer


def example_batch(
    views: dict[str, View], tokenizer: Tokenizer | None, size: int, *, lengths: list[int] | None = None
) -> dict[str, Tensor]:
    """Normalised views, and token ids where there is a tokenizer, on the CPU; the same ones every time.

    Args:
        views: batch key to view.
        tokenizer: of the captions.
        size: number of samples.
        lengths: tokens of each caption; None for captions that fill the context, the most that any can cost.
    """
    generator = torch.Generator().manual_seed(0)
    batch = {name: torch.randn(size, 3, view.size, view.size, generator=generator) for name, view in views.items()}
    batch["index"] = torch.arange(size)
    if tokenizer is not None:
        length = torch.tensor(lengths or size * [tokenizer.context_length])
        text = torch.randint(1, tokenizer.start_token, (size, int(length.max())), generator=generator)
        text[:, 0] = tokenizer.start_token
        text[torch.arange(size), length - 1] = tokenizer.end_token
        batch |= {"text": text, "text_length": length}
    return batch
