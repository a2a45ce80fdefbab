"""Caption views: which caption, which tokens, which of them are masked; and the same whoever draws them."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from views import sample_of

from openslip.data.captions.augment import RandomEdits
from openslip.data.captions.choice import Caption
from openslip.data.captions.masked import NO_LABEL, MaskedCaption
from openslip.data.view import Columns, View, example_batch
from openslip.errors import UserError
from openslip.text.clip_bpe import ClipBpe

CAPTIONS = ("a small red ring", "one", "there is a large striped blue cross on a background here")
MASK, START, END = 49406, 49407, 49408


def tokenizer(context_length: int = 16, *, mask_token: bool = True) -> ClipBpe:
    return ClipBpe(context_length=context_length, truncation="keep_end", special_text="plain", mask_token=mask_token)


def masked_caption(probability: float = 0.15, mask_share: float = 0.8, random_share: float = 0.1) -> MaskedCaption:
    return MaskedCaption(
        tokenizer=tokenizer(), probability=probability, mask_share=mask_share, random_share=random_share
    )


def collated(view: View, count: int, captions: tuple[str, ...] = CAPTIONS) -> Columns:
    sample = sample_of(Image.new("RGB", (8, 8)), captions)
    return view.collate([view.draw(sample, np.random.default_rng(seed)) for seed in range(count)])


def one_of(text: str, seeds: int, *, delete: float = 0.1, swap: float = 0.1, synonyms: float = 0.1) -> list[str]:
    edits = RandomEdits(delete=delete, swap=swap, synonyms=synonyms, one_kind=True)
    return [edits(text, np.random.default_rng(seed)) for seed in range(seeds)]


def test_a_caption_gets_one_kind_of_edit():
    text = "a big dog on a big red sofa"
    kinds = Counter()
    for edited in one_of(text, 3000):
        words, before = edited.split(), text.split()
        if sorted(words) == sorted(before):
            kinds["swapped" if words != before else "same"] += 1
            assert sum(word != other for word, other in zip(words, before, strict=True)) in (0, 2)
        elif len(words) < len(before):
            kinds["shorter"] += 1
            assert set(words) <= set(before)
        else:  # one word is another one, in all its places
            kinds["renamed"] += 1
            changed = {old for old in before if old not in words}
            assert len(changed) == 1
    # Of eight words none is deleted with probability 0.43; two equal words are swapped, or no two are, with 0.07.
    assert 900 < kinds["renamed"] < 1100
    assert 870 < kinds["swapped"] < 1000
    assert 500 < kinds["shorter"] < 640


def test_one_kind_of_edit_leaves_a_word_and_draws_no_kind_of_share_0():
    assert {*one_of("red ring", 50, delete=1.0, swap=0.0, synonyms=0.0)} == {"red", "ring"}
    assert {*one_of("red ring", 50, delete=0.0, synonyms=0.0)} == {"red ring", "ring red"}
    assert one_of("red ring", 3, delete=0.0, swap=0.0, synonyms=0.0) == ["red ring"] * 3
    assert one_of("", 3) == [""] * 3


def test_each_caption_is_drawn_equally_often():
    view = Caption(tokenizer=tokenizer())
    sample = sample_of(Image.new("RGB", (8, 8)), CAPTIONS)
    drawn = Counter(view.draw(sample, np.random.default_rng(seed))["text"] for seed in range(3000))
    assert drawn.keys() == set(CAPTIONS)
    assert all(900 < count < 1100 for count in drawn.values())


def test_rows_are_the_tokenizers_cut_to_the_longest_caption():
    view, sample = Caption(tokenizer=tokenizer()), sample_of(Image.new("RGB", (8, 8)), CAPTIONS)
    columns = collated(view, 12)
    texts = [view.draw(sample, np.random.default_rng(seed)) for seed in range(12)]
    ids, lengths = tokenizer().encode([each["text"] for each in texts])
    assert torch.equal(columns["length"], lengths)
    assert torch.equal(columns[""], ids[:, : int(lengths.max())])
    assert not columns["truncated"].any()


def test_truncated_captions_are_told():
    columns = collated(Caption(tokenizer=tokenizer(8)), 3, ("one two three four five six seven",))
    assert columns["truncated"].tolist() == [True] * 3
    assert columns["length"].tolist() == [8] * 3


def test_edits_delete_and_swap_words_and_invent_none():
    text = "a small red ring on a large blue cross"
    edited = [RandomEdits(delete=0.3, swap=0.2)(text, np.random.default_rng(seed)).split() for seed in range(500)]
    words: Counter[str] = Counter(text.split())
    assert all(not Counter[str](each) - words and each for each in edited)
    mean = np.mean([len(each) for each in edited])
    assert 0.64 < mean / len(text.split()) < 0.76
    assert any(each != [word for word in text.split() if word in each] for each in edited)  # another order
    assert RandomEdits(delete=0.0, swap=0.0)(text, np.random.default_rng(0)) == text
    assert RandomEdits(delete=1.0, swap=0.0)(text, np.random.default_rng(0)) == "a"


def test_edits_reach_the_tokens():
    columns = collated(Caption(tokenizer=tokenizer(), augment=RandomEdits(delete=1.0, swap=0.0)), 2, ("red ring",))
    assert columns["length"].tolist() == [3, 3]


def test_labels_are_the_ids_that_were_masked_and_nothing_else():
    columns, plain = collated(masked_caption(0.5), 400), collated(Caption(tokenizer=tokenizer()), 400)
    labelled = columns["labels"] != NO_LABEL
    assert torch.equal(columns["labels"][labelled], plain[""][labelled])
    assert torch.equal(columns[""][~labelled], plain[""][~labelled])
    assert torch.equal(columns["length"], plain["length"])
    special = torch.isin(plain[""], torch.tensor([0, MASK, START, END]))
    assert not (labelled & special).any()


@pytest.mark.parametrize("probability", [0.15, 0.6])
def test_shares_of_masked_random_and_kept_tokens_are_those_of_the_paper(probability: float):
    columns, plain = collated(masked_caption(probability), 4000), collated(Caption(tokenizer=tokenizer()), 4000)
    ordinary = ~torch.isin(plain[""], torch.tensor([0, MASK, START, END]))
    labelled = columns["labels"] != NO_LABEL
    assert labelled[ordinary].double().mean().item() == pytest.approx(probability, abs=0.02)
    ids = columns[""][labelled]
    assert (ids == MASK).double().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (ids == columns["labels"][labelled]).double().mean().item() == pytest.approx(0.1, abs=0.02)


def test_a_masked_caption_needs_a_mask_token():
    with pytest.raises(UserError, match=r"ClipBpe has no mask token: set tokenizer\.mask_token=true"):
        MaskedCaption(tokenizer=tokenizer(mask_token=False), probability=0.15, mask_share=0.8, random_share=0.1)


@pytest.mark.parametrize("shares", [(0.0, 0.8, 0.1), (0.15, 0.8, 0.3), (0.15, -0.1, 0.1)])
def test_impossible_shares_are_refused(shares: tuple[float, float, float]):
    with pytest.raises(UserError, match="masked caption probability="):
        masked_caption(*shares)


@pytest.mark.parametrize("varied", [False, True])
def test_an_example_has_the_keys_of_a_batch_and_texts_of_the_wanted_lengths(varied: bool):
    batch = example_batch({"text": Caption(tokenizer=tokenizer()), "other": masked_caption(0.5)}, 20, varied=varied)
    assert batch.keys() == {"index", "text", "text_length", "other", "other_length", "other_labels"}
    for name in ("text", "other"):
        lengths = batch[f"{name}_length"].tolist()
        assert lengths == ([2 + place % 15 for place in range(20)] if varied else [16] * 20)
        assert batch[name].shape == (20, 16)
    assert (batch["text"][:, 0] == START).all()
    assert batch["text"].max() < tokenizer().vocab_size
    assert (batch["other_labels"] != NO_LABEL).any()


def test_a_view_of_ones_own_has_an_example_made_by_its_own_draw():
    class Words(View):
        def draw(self, sample, rng):
            return {"": np.array([len(sample.captions[0].split())]), "size": np.array(sample.image.size)}

    batch = example_batch({"words": Words()}, 3, varied=True)
    assert batch["words"].tolist() == [[1], [2], [3]]
    assert batch["words_size"].shape == (3, 2)
