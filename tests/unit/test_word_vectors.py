"""Word vectors: learned from captions, as a file, as a tokenizer, as a text tower that answers questions."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_models import image_tower, transform
from shard_files import write_pairs

import openslip
from openslip.commands import data
from openslip.config.build import build_parts
from openslip.config.compose import compose_config
from openslip.errors import UserError
from openslip.evaluation.features import text_features
from openslip.inference.bundle import Bundle
from openslip.inference.classifier import ZeroShotClassifier
from openslip.inference.formats import openslip as ours
from openslip.inference.formats import word_vectors as format_of_vectors
from openslip.models.bag_of_tokens import BagOfTokens
from openslip.models.dual_encoder import DualEncoder
from openslip.models.text_encoder import TextEncoder
from openslip.text.clip_bpe import ClipBpe
from openslip.text.ppmi import factorise, learn, ppmi
from openslip.text.word_vectors import WordVectors, is_word_vectors, read_vectors, words_in, write_vectors
from openslip.text.words import Words
from openslip.training.initial_weights import InitialWeights

CAPTIONS = ["A red ring.", "a blue ring", "a red, red cross!", "a blue cross", "a red square", "a ring"]
GLOVE = "the 0.5 -0.25 1\ncat 1 0 0.125\n's 0 0 1e-3\nsat 0.1 0.2 0.3\n"


@pytest.fixture
def glove(tmp_path: Path) -> Path:
    path = tmp_path / "glove.txt"
    path.write_text(GLOVE)
    return path


# Learned from captions


def naive_ppmi(captions: list[str], words: list[str]) -> list[list[float]]:
    sets = [set(words_in(caption)) for caption in captions]

    def information(first: str, second: str) -> float:
        alone, other, both = (
            sum(wanted <= present for present in sets) / len(sets) for wanted in ({first}, {second}, {first, second})
        )
        return max(0.0, math.log(both / (alone * other))) if both else 0.0

    return [[information(first, second) for second in words] for first in words]


def test_dot_products_of_all_columns_are_the_ppmi_of_a_loop_over_captions():
    words, vectors = learn(CAPTIONS, width=6, min_count=1, max_words=10)
    assert words == ["a", "red", "ring", "blue", "cross", "square"]
    truth = np.array(naive_ppmi(CAPTIONS, words))
    values = np.linalg.eigvalsh(truth)
    assert values.min() > -1e-9  # otherwise the product is the nearest matrix without the negative part
    np.testing.assert_allclose(vectors @ vectors.T, truth, atol=1e-6)
    assert not vectors[0].any()  # a word of every caption says nothing
    assert truth[2, 2] == pytest.approx(math.log(2))  # ring: three of six captions


def test_fewer_columns_are_those_of_the_largest_eigenvalues():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(5, 5))
    matrix = matrix + matrix.T
    values, columns = np.linalg.eig(matrix)
    best = sorted(range(5), key=lambda place: -values[place])[:2]
    expected = sum(values[place] * np.outer(columns[:, place], columns[:, place]) for place in best)
    found = factorise(matrix, 2)
    np.testing.assert_allclose(found @ found.T, expected, atol=1e-10)
    assert (found[np.abs(found).argmax(axis=0), [0, 1]] > 0).all()
    np.testing.assert_array_equal(factorise(matrix, 2), factorise(matrix, 2))
    wide = factorise(matrix, 7)
    positive = int((values > 0).sum())
    assert wide.shape == (5, 7)
    assert (wide.any(axis=0) == (np.arange(7) < positive)).all()


def test_a_word_that_never_meets_another_has_no_information_with_it():
    counts = np.array([[2, 0], [0, 1]])
    assert np.array_equal(ppmi(counts, 4), np.diag([math.log(2), math.log(4)]))


def test_rare_words_and_words_beyond_the_most_frequent_get_no_vector():
    assert learn(CAPTIONS, width=2, min_count=2, max_words=10).words == ["a", "red", "ring", "blue", "cross"]
    assert learn(CAPTIONS, width=2, min_count=1, max_words=3).words == ["a", "red", "ring"]
    with pytest.raises(UserError, match="min_count=7: no word occurs in so many of 6 captions"):
        learn(CAPTIONS, width=2, min_count=7, max_words=10)


def test_the_order_of_captions_changes_nothing():
    first = learn(CAPTIONS, width=4, min_count=1, max_words=10)
    second = learn(reversed(CAPTIONS), width=4, min_count=1, max_words=10)
    assert first.words == second.words
    assert np.array_equal(first.vectors, second.vectors)


def test_the_command_writes_the_same_file_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shard = write_pairs(tmp_path / "0.tar", 12)
    for name in ("one.txt", "two.txt"):
        assert data.main(["vectors", str(shard), "--output", str(tmp_path / name), "--width", "5", "--quiet"]) == 0
    assert (tmp_path / "one.txt").read_bytes() == (tmp_path / "two.txt").read_bytes()
    words, vectors = read_vectors(tmp_path / "one.txt")
    assert (len(words), vectors.shape) == (14, (14, 5))
    assert "14 words, 5 of 5 columns not zero" in capsys.readouterr().out


# As a file


def test_a_file_in_gloves_format_is_read_with_and_without_its_sizes(glove: Path, tmp_path: Path):
    words, vectors = read_vectors(glove)
    assert words == ["the", "cat", "'s", "sat"]
    np.testing.assert_array_equal(
        vectors, np.array([[0.5, -0.25, 1], [1, 0, 0.125], [0, 0, 1e-3], [0.1, 0.2, 0.3]], dtype=np.float32)
    )
    (tmp_path / "word2vec.txt").write_text(f"4 3\n{GLOVE}")
    assert read_vectors(tmp_path / "word2vec.txt").words == words


def test_a_written_file_keeps_seven_digits(tmp_path: Path):
    vectors = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    write_vectors(tmp_path / "v.txt", WordVectors(["a", "b", "größe"], vectors))
    words, read = read_vectors(tmp_path / "v.txt")
    assert words == ["a", "b", "größe"]
    np.testing.assert_allclose(read, vectors, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat 1 2\ndog 1\n", "the line of 'dog' has 1 numbers: expected 2 finite ones"),
        ("cat 1 2\nnew york 1 2\n", "the line of 'new' holds no numbers"),
        ("cat 1 2\ndog 1 nan\n", "the line of 'dog' has 2 numbers: expected 2 finite ones"),
        ("cat 1 2\ndog 1 2\ncat 3 4\n", "the word 'cat' has several vectors"),
        ("a caption\n", "is no file of word vectors; expected lines such as `cat 0.1 -0.2`; openslip data vectors"),
        ("", "is no file of word vectors"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_line(tmp_path: Path, text: str, message: str):
    path = tmp_path / "bad.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_vectors(path)


def test_a_missing_file_is_named_with_the_command(tmp_path: Path):
    said = r"v\.txt: no such file; openslip data get glove_6b_50d .*; openslip data vectors SHARDS --output FILE"
    with pytest.raises(UserError, match=said):
        Words(context_length=3, vectors=str(tmp_path / "v.txt"))
    assert not is_word_vectors(tmp_path)


# As a tokenizer


def test_words_become_ids_and_unknown_ones_a_special_id(glove: Path):
    tokenizer = Words(context_length=4, vectors=str(glove))
    ids, lengths = tokenizer.encode(["The CAT sat.", "a dog sat, the cat sat", "...", "cat's"])
    assert ids.tolist() == [[2, 3, 5, 0], [1, 1, 5, 2], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert lengths.tolist() == [3, 4, 1, 1] == tokenizer.lengths(ids).tolist()
    assert tokenizer.vocab_size == 6
    assert tokenizer.decode([2, 3, 1, 0]) == "the cat"
    assert tokenizer.num_tokens("a dog sat, the cat sat") == 6
    again = Words(**tokenizer.settings())
    assert again.encode(["the cat"])[0].tolist() == [[2, 3, 0, 0]]


@pytest.mark.parametrize("given", [{}, {"words": "a", "vectors": "b"}, {"words": "a\na"}])
def test_a_vocabulary_comes_from_one_place_and_has_each_word_once(given: dict[str, Any]):
    with pytest.raises(UserError, match=r"expected a file of word vectors|occurs twice"):
        Words(context_length=3, **given)


# As a text tower


def test_a_loaded_file_encodes_the_mean_of_its_words(glove: Path):
    bundle = openslip.load(glove)
    mean = (np.array([0.5, -0.25, 1]) + np.array([1, 0, 0.125])) / 2
    np.testing.assert_allclose(bundle.encode_text(["the cat the"])[0], mean / np.linalg.norm(mean), rtol=1e-6)
    ids, lengths = bundle.need_tokenizer().encode(["a cat"])  # as a caption in training, where `a` is unknown
    np.testing.assert_array_equal(bundle.model.encode_text(ids, lengths).detach(), [[1, 0, 0.125]])
    with pytest.raises(UserError, match="images need an image tower, and TextEncoder has none"):
        bundle.encode_image(torch.zeros(1, 3, 1, 1))


def answering(glove: Path) -> Bundle:
    """A model with the vectors as its text tower, as DeViSE trains it."""
    vectors = openslip.load(glove)
    torch.manual_seed(0)
    model = DualEncoder(
        image_tower=image_tower(),
        text_tower=BagOfTokens(vocab_size=6, width=3),
        embed_dim=3,
        logit_scale_init=2.0,
        projects_text=False,
    )
    initial = InitialWeights(model, Words(context_length=77, vectors=str(glove)), transform().settings())
    towers: dict[str, Any] = {"text": {"weights": str(glove)}}
    for options in towers.values():
        options |= {"activation": None, "image_heads": None, "text_heads": None}
    initial.load(None, towers)
    model.text_tower.lock()
    tower = {"_target_": "openslip.models.timm_tower.TimmTower", "name": "vit_small_patch16_224", "image_size": 16}
    arguments = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    architecture = {
        "_target_": "openslip.models.dual_encoder.DualEncoder",
        "image_tower": {**tower, "arguments": arguments},
        "text_tower": vectors.architecture["text_tower"],
        "embed_dim": 3,
        "logit_scale_init": 2.0,
        "projects_text": False,
    }
    return Bundle(model.eval(), vectors.tokenizer, transform(), architecture, torch.device("cpu"))


def test_a_stored_model_answers_without_the_file(glove: Path, tmp_path: Path):
    bundle = answering(glove)
    ours.write(bundle, tmp_path / "model.ckpt")
    ours.write(bundle, tmp_path / "model.safetensors")
    expected = bundle.encode_text(["the cat", "sat"])
    assert torch.equal(expected, openslip.load(glove).encode_text(["the cat", "sat"]))
    glove.unlink()
    for name in ("model.ckpt", "model.safetensors"):
        loaded = openslip.load(tmp_path / name)
        assert torch.equal(loaded.encode_text(["the cat", "sat"]), expected)
        assert dict(ZeroShotClassifier(loaded, ["cat", "sat"], ["{}"])(torch.zeros(3, 8, 8))).keys() == {"cat", "sat"}  # pyright: ignore


def test_an_unseen_word_is_refused_by_its_name_and_never_left_out(glove: Path):
    bundle = answering(glove)
    for texts in itertools.permutations(["cat", "the zebra and the dog."]):
        with pytest.raises(
            UserError, match=r"has not learned zebra, and, dog of the text 'the zebra and the dog.': take"
        ):
            bundle.encode_text(texts)
    with pytest.raises(UserError, match="has not learned any word of the text ''"):
        bundle.encode_text([""])
    with pytest.raises(UserError, match=r"has not learned a, photo, of, a of the text .* templates without such words"):
        ZeroShotClassifier(bundle, ["cat", "sat"])
    with pytest.raises(UserError, match="has not learned dog of"):
        text_features(bundle, ["dog"])
    assert torch.equal(bundle.encode_text(["the cat."]), bundle.encode_text(["the cat"]))


def test_a_word_that_training_has_not_learned_yet_is_told_and_ends_no_run(
    glove: Path, capsys: pytest.CaptureFixture[str]
):
    bundle = replace(answering(glove), in_training=True)
    assert torch.equal(bundle.encode_text(["the cat", "the zebra cat"])[1], bundle.encode_text(["the cat"])[0])
    assert "has not learned zebra of the text 'the zebra cat': the evaluation uses the words" in capsys.readouterr().err


def test_a_token_of_punctuation_may_be_unknown_and_counts_nothing():
    tokenizer = ClipBpe(context_length=9, truncation="keep_end", special_text="plain")
    tower = BagOfTokens(vocab_size=tokenizer.vocab_size, width=3)
    ids = tokenizer.encode(["a red cross"])[0][0, :5]
    for buffer in (tower.token_weight, tower.is_known):
        buffer.zero_()
        buffer[ids] = 1
    bundle = Bundle(TextEncoder(text_tower=tower), tokenizer, transform(), {}, torch.device("cpu"))
    assert torch.equal(bundle.encode_text(["a red cross."]), bundle.encode_text(["a red cross"]))
    with pytest.raises(UserError, match=r"has not learned green of the text 'a green cross\.'"):
        bundle.encode_text(["a red cross.", "a green cross."])


def test_a_file_of_another_width_is_refused(glove: Path):
    model = DualEncoder(
        image_tower=image_tower(),
        text_tower=BagOfTokens(vocab_size=6, width=4),
        embed_dim=4,
        logit_scale_init=2.0,
        projects_text=False,
    )
    initial = InitialWeights(model, Words(context_length=77, vectors=str(glove)), transform().settings())
    with pytest.raises(UserError, match=r"towers\.text\.weights=.*its text tower differs from this run's .*\[6, 3\]"):
        initial.load(
            None, {"text": {"weights": str(glove), "activation": None, "image_heads": None, "text_heads": None}}
        )


@pytest.mark.parametrize("options", [{"embed_dim": 4}, {"embed_dim": 3, "projection_bias": "text"}])
def test_a_tower_without_projection_has_the_width_of_the_joint_space(options: dict[str, Any]):
    with pytest.raises(UserError, match=r"projects_text=false with projection_bias=.* and a text tower of width 3"):
        DualEncoder(
            image_tower=image_tower(),
            text_tower=BagOfTokens(vocab_size=6, width=3),
            logit_scale_init=2.0,
            projects_text=False,
            **options,
        )


def test_the_method_devise_locks_the_text_tower_with_the_file_of_its_tokenizer(glove: Path):
    config, _ = compose_config("train", ["model=devise_tiny", f"tokenizer.vectors={glove}", "model.embed_dim=3"])
    assert config["towers"]["text"]["weights"] == str(glove)
    parts = build_parts(config)
    assert isinstance(parts.model, DualEncoder)
    assert parts.model.text_tower.locked
    assert parts.model.text_projection is None
    parts.objective.setup(parts.model)
    trained = {name.partition(".")[0] for name, p in parts.model.named_parameters() if p.requires_grad}
    assert trained == {"image_tower", "image_projection"}
    with pytest.raises(UserError, match=r"config key tokenizer\.vectors has no value: add tokenizer\.vectors=VALUE"):
        compose_config("train", ["model=devise_tiny"])


def test_no_other_file_of_a_model_looks_like_word_vectors(tmp_path: Path):
    for name, content in {
        "a.json": b'{"a": 1}',
        "b.pt": bytes(range(256)),
        "c.csv": b"a,1,2\n",
        "d.txt": b"1 2\n",
    }.items():
        (tmp_path / name).write_bytes(content)
        assert not format_of_vectors.detect(tmp_path / name), name


def test_new_rows_start_as_clips_token_embedding():
    torch.manual_seed(0)
    rows = BagOfTokens(vocab_size=500, width=64).token_embedding.weight.detach()
    assert float(rows.std()) == pytest.approx(0.02, rel=0.02)  # openai/CLIP, initialize_parameters
