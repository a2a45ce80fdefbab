"""The linear text tower against the matrix product that it stands for."""

import torch

from openslip.models.bag_of_words import BagOfWords


def test_a_caption_is_its_token_counts_times_the_vectors():
    torch.manual_seed(0)
    tower = BagOfWords(vocab_size=20, width=6).double()
    ids = torch.tensor([[3, 5, 5, 19], [19, 2, 0, 0], [5, 3, 5, 19]])
    lengths = torch.tensor([4, 2, 4])
    counts = torch.zeros(3, 20, dtype=torch.float64)
    for row, length in enumerate(lengths.tolist()):
        for place in range(length):
            counts[row, ids[row, place]] += 1
    expected = counts @ tower.token_embedding.weight
    torch.testing.assert_close(tower(ids, lengths), expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(tower(ids, lengths)[0], tower(ids, lengths)[2])  # whatever the order
    tokens = tower.tokens(ids, lengths)
    assert tokens.mask.tolist() == [[True] * 4, [True, True, False, False], [True] * 4]
    assert tower.width == tokens.features.shape[-1] == 6
