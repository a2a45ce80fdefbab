"""A text tower of word vectors and a small network, against plain loops; what its file sets, and what is trained."""

import math
from pathlib import Path

import pytest
import torch

from openslip.inference.load import load
from openslip.models.dual_encoder import DualEncoder
from openslip.models.timm_tower import TimmTower
from openslip.models.word_vector_network import WordVectorNetwork
from openslip.text.words import Words
from openslip.training.initial_weights import InitialWeights
from openslip.training.towers import prepare_towers

TOWER = {"name": "vit_small_patch16_224", "image_size": 16, "arguments": {"embed_dim": 8, "depth": 1, "num_heads": 1}}
NO_OPTION = {"weights": None, "locked": False, "gradient_checkpointing": False}


def test_the_feature_is_gelu_of_a_linear_map_of_the_mean_of_distinct_vectors():
    torch.manual_seed(0)
    tower = WordVectorNetwork(vocab_size=9, vector_width=3, width=5).double()
    ids, lengths = torch.tensor([[2, 3, 2, 0], [4, 5, 6, 7]]), torch.tensor([3, 4])
    table, weight, bias = (
        tensor.tolist() for tensor in (tower.vectors.token_embedding.weight, tower.hidden.weight, tower.hidden.bias)
    )
    features = tower(ids, lengths)
    assert features.shape == (2, tower.width)
    for row, words in enumerate([{2, 3}, {4, 5, 6, 7}]):
        mean = [sum(table[word][column] for word in words) / len(words) for column in range(3)]
        for unit in range(5):
            x = bias[unit] + sum(w * m for w, m in zip(weight[unit], mean, strict=True))
            assert features[row, unit].item() == pytest.approx(x * (1 + math.erf(x / math.sqrt(2))) / 2, rel=1e-12)
    assert tower.tokens(ids, lengths).mask.tolist() == [[True] * 3 + [False], [True] * 4]


def test_the_file_sets_the_vectors_and_locking_leaves_the_layer_trainable(tmp_path: Path):
    file = tmp_path / "vectors.txt"
    file.write_text("cat 1 2 3\ndog -1 0 4\n")
    tokenizer = Words(context_length=77, vectors=str(file))
    text = WordVectorNetwork(vocab_size=tokenizer.vocab_size, vector_width=3, width=5)
    model = DualEncoder(image_tower=TimmTower(**TOWER), text_tower=text, embed_dim=4, logit_scale_init=1.0)
    options = {"text": {**NO_OPTION, "weights": str(file), "locked": True}}
    prepare_towers(model, options)
    transform = {"size": 16, "mean": [0.5] * 3, "std": [0.5] * 3}
    InitialWeights(model, tokenizer, transform).load(None, options)
    stored = load(str(file)).model.text_tower.state_dict()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in text.vectors.state_dict().items())
    model.train()
    trained = {name for name, weight in text.named_parameters() if weight.requires_grad}
    assert trained == {"hidden.weight", "hidden.bias"}
    assert not text.vectors.training
    assert text.known_ids().tolist() == [False, False, True, True]  # padding, unknown words, cat, dog
