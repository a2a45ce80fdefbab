"""Token ids of a batch of captions, and random token ids of the same form."""

import torch
from torch import Tensor

from openslip.text.tokenizer import Tokenizer


def tokenize(texts: list[str], tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Columns of a batch of texts: ids as wide as the longest text, lengths, and whether each text was truncated."""
    ids, lengths = tokenizer.encode(texts)
    truncated = [tokenizer.num_tokens(text) > tokenizer.context_length for text in texts]
    return {"": ids[:, : int(lengths.max())].contiguous(), "length": lengths, "truncated": torch.tensor(truncated)}


def random_tokens(tokenizer: Tokenizer, size: int, generator: torch.Generator, *, varied: bool) -> dict[str, Tensor]:
    """Draw random token ids and lengths; with `varied`, lengths count up from 2, else all are the context length."""
    context = tokenizer.context_length
    lengths = [2 + place % (context - 1) if varied else context for place in range(size)]
    length = torch.tensor(lengths)
    special = torch.tensor(sorted(tokenizer.special_ids.values()), dtype=torch.int64)
    ids = torch.randint(tokenizer.vocab_size, (size, max(lengths)), generator=generator)
    ordinary = next(i for i in range(tokenizer.vocab_size) if i not in special)
    ids[torch.isin(ids, special)] = ordinary
    if "start" in tokenizer.special_ids:
        ids[:, 0] = tokenizer.special_ids["start"]
    if "end" in tokenizer.special_ids:
        ids[torch.arange(size), length - 1] = tokenizer.special_ids["end"]
    return {"": ids, "length": length}
