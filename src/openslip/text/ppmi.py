"""Word vectors from captions: positive pointwise mutual information (PPMI), factorised.

PPMI: Bullinaria and Levy 2007, Behavior Research Methods 39, 510-526. Root of the eigenvalues: Levy, Goldberg and
Dagan 2015, TACL 3, section 3.3. Two words occur together if a caption has both. A word occurs together with itself in
all of its captions, so the diagonal is log(captions / captions with the word): words that are used alike, such as two
colours, keep vectors of their own, and words of nearly every caption have short vectors.
"""

from array import array
from collections import Counter
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float64, Int64

from openslip.errors import UserError
from openslip.text.word_vectors import WordVectors, words_in


def learn(captions: Iterable[str], *, width: int, min_count: int, max_words: int) -> WordVectors:
    """Return vectors of the words of captions, whose dot products approximate the words' PPMI; the same at every call.

    Args:
        captions: each is read once.
        width: numbers per vector. If fewer eigenvalues are positive, the last columns are 0.
        min_count: rarer words get no vector.
        max_words: only so many of the most frequent words get one; memory and time grow with its square and cube.

    Raises:
        UserError: no word occurs often enough.
    """
    words, together, num_captions = count(captions, min_count=min_count, max_words=max_words)
    return WordVectors(words, factorise(ppmi(together, num_captions), width).astype(np.float32))


def count(
    captions: Iterable[str], *, min_count: int, max_words: int
) -> tuple[list[str], Int64[np.ndarray, "words words"], int]:
    """Count in how many captions two words occur together; on the diagonal, in how many a word occurs.

    Returns:
        The words, most frequent first and then in alphabetical order, the counts, and the number of captions.
    """
    numbers: dict[str, int] = {}
    frequency: Counter[int] = Counter()
    tokens, ends = array("I"), array("Q")
    for caption in captions:
        distinct = {numbers.setdefault(word, len(numbers)) for word in words_in(caption)}
        frequency.update(distinct)
        tokens.extend(distinct)
        ends.append(len(tokens))
    kept = sorted(word for word, number in numbers.items() if frequency[number] >= min_count)
    kept = sorted(kept, key=lambda word: -frequency[numbers[word]])[:max_words]
    if not kept:
        raise UserError(f"min_count={min_count}: no word occurs in so many of {len(ends)} captions; expected captions")
    place = np.full(len(numbers), -1)
    place[[numbers[word] for word in kept]] = np.arange(len(kept))
    together = np.zeros((len(kept), len(kept)), dtype=np.int64)
    start = 0
    for end in ends:
        present = place[tokens[start:end]]
        present = present[present >= 0]
        together[np.ix_(present, present)] += 1
        start = end
    return kept, together, len(ends)


def ppmi(together: Int64[np.ndarray, "words words"], num_captions: int) -> Float64[np.ndarray, "words words"]:
    """Return max(0, log(p(a, b) / (p(a) p(b)))) of all pairs of words, with p the share of captions."""
    alone = together.diagonal().astype(np.float64)
    with np.errstate(divide="ignore"):
        return np.maximum(0.0, np.log(together * num_captions / np.outer(alone, alone)))


def factorise(matrix: Float64[np.ndarray, "words words"], width: int) -> Float64[np.ndarray, "words width"]:
    """Return the rows U sqrt(L) of a symmetric matrix's largest positive eigenvalues L and their eigenvectors U.

    The sign of an eigenvector is that in which its number of the largest size is positive.
    """
    values, columns = np.linalg.eigh(matrix)
    values, columns = values[::-1][:width], columns[:, ::-1][:, :width]
    largest = columns[np.abs(columns).argmax(axis=0), np.arange(columns.shape[1])]
    rows = columns * np.sign(largest) * np.sqrt(np.maximum(values, 0.0))
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1])))
