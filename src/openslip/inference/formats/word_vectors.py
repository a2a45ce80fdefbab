"""Files of word vectors, such as GloVe's and those of `openslip data vectors`: a text tower without an image tower."""

from pathlib import Path

import torch

from openslip.data.image.eval_transform import EvalTransform
from openslip.inference.bundle import Bundle
from openslip.inference.choices import Choices
from openslip.inference.stated import refuse_other
from openslip.models.bag_of_tokens import BagOfTokens
from openslip.models.text_encoder import TextEncoder
from openslip.text.word_vectors import is_word_vectors, read_vectors
from openslip.text.words import Words

CONTEXT_LENGTH = 77  # as CLIP's
UNREAD = EvalTransform(size=1, mean=[0.0] * 3, std=[1.0] * 3)  # a bundle has a transform; TextEncoder refuses images


def detect(path: Path) -> bool:
    """Tell whether the file's first line is a word and its numbers."""
    return is_word_vectors(path)


def read(path: Path, choices: Choices) -> Bundle:
    """Read the vectors as a tower that averages those of a text's words.

    Args:
        path: the file.
        choices: must be empty, because the file has nothing to choose.
    """
    words, vectors = read_vectors(path)
    tokenizer = Words(context_length=CONTEXT_LENGTH, words="\n".join(words))
    size = {"vocab_size": tokenizer.vocab_size, "width": vectors.shape[1]}
    tower = BagOfTokens(**size)
    num_special = len(tokenizer.special_ids)
    with torch.no_grad():
        tower.token_embedding.weight[:num_special] = 0
        tower.token_embedding.weight[num_special:] = torch.from_numpy(vectors)
    tower.token_weight[:num_special] = 0
    tower.is_known[:num_special] = False
    architecture = {
        "_target_": "openslip.models.text_encoder.TextEncoder",
        "text_tower": {"_target_": "openslip.models.bag_of_tokens.BagOfTokens", **size},
    }
    model = TextEncoder(text_tower=tower)
    refuse_other(choices, model)
    return Bundle(model, tokenizer, UNREAD, architecture, torch.device("cpu"))
