"""Views that change the words of captions: synonyms, hard negatives, shortened captions."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from views import sample_of

from openslip.data.captions.augment import RandomEdits
from openslip.data.captions.choice import Caption
from openslip.data.captions.drawn_words import DrawnWords, word_key
from openslip.data.captions.hard import HardCaption, hard_negative, read_classes
from openslip.data.captions.shortened import ShortenedCaption
from openslip.data.captions.thesaurus import PACKAGED, STOP_WORDS, synonyms
from openslip.data.view import Columns, DecodedSample, View, example_batch
from openslip.errors import UserError
from openslip.text.clip_bpe import ClipBpe

TOKENIZER = ClipBpe(context_length=16, truncation="keep_end", special_text="plain")
TEXT = "one two three four five six seven eight nine ten"
# The format of wndb(5): offset, file, kind, number of words in hex, pairs of a word and its id, pointers, gloss.
WORDNET = {
    "data.noun": "  1 The licence\n00001740 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 000 | x\n",
    "data.verb": "00000001 38 v 02 chase 0 dog 1 001 @ 00000002 v 0000 01 + 08 00 | y\n",
    "data.adj": "00000003 00 a 02 red(a) 0 reddish 0 000 | z\n",
    "data.adv": "00000004 02 r 01 quickly 0 000 | z\n",
}


def edited(text: str, *, share: float = 0.1, thesaurus: str | None = None, count: int = 60) -> list[str]:
    edit = RandomEdits(delete=0.0, swap=0.0, synonyms=share, thesaurus=thesaurus)
    return [edit(text, np.random.default_rng(seed)) for seed in range(count)]


def sample(*captions: str) -> DecodedSample:
    return sample_of(Image.new("RGB", (8, 8)), captions)


def collated(view: View, *captions: str, count: int = 1) -> Columns:
    return view.collate([view.draw(sample(*captions), np.random.default_rng(seed)) for seed in range(count)])


# ---- synonyms


def test_one_word_of_ten_is_replaced_by_a_synonym_and_keeps_its_punctuation():
    found = edited("the Dog, who is big")
    assert set(found) == {
        *("the hound, who is big", "the canine, who is big"),
        *("the Dog, who is large", "the Dog, who is huge"),
    }


def differing(first: list[str], second: list[str]) -> int:
    return sum(a != b for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("share", "count"), [(0.1, 1), (0.5, 2), (1.0, 4)])
def test_a_share_of_the_words_is_replaced(share: float, count: int):
    words = ["dog", "cat", "young", "old"]
    assert {differing(each.split(), words) for each in edited(" ".join(words), share=share)} == {count}


def test_a_caption_without_a_known_word_stays():
    assert edited("zyx, 12 !", count=1) == ["zyx, 12 !"]
    assert edited("", count=1) == [""]


def test_edits_without_synonyms_draw_as_they_did():
    def draw(*, named: bool) -> list[str]:
        edit = RandomEdits(delete=0.2, swap=0.3, synonyms=0.0) if named else RandomEdits(delete=0.2, swap=0.3)
        return [edit(TEXT, np.random.default_rng(seed)) for seed in range(20)]

    assert draw(named=True) == draw(named=False)
    assert draw(named=True)[0] == "eight two nine six seven one five ten"


def test_the_list_of_the_package_has_groups_of_different_words():
    groups = [line.split(", ") for line in PACKAGED.read_text().splitlines() if not line.startswith("#")]
    assert len(groups) >= 150
    assert all(len(set(group)) == len(group) >= 2 for group in groups)
    assert not synonyms(None).keys() & {*STOP_WORDS.read_text().split()}


def test_synonyms_of_wordnets_files(tmp_path: Path):
    for name, text in WORDNET.items():
        (tmp_path / name).write_text(text)
    assert synonyms(str(tmp_path)) == {
        "dog": ("domestic dog", "canis familiaris", "chase"),
        "chase": ("dog",),
        "red": ("reddish",),
        "reddish": ("red",),
    }
    assert set(edited("a dog", thesaurus=str(tmp_path))) == {"a domestic dog", "a canis familiaris", "a chase"}


def test_a_list_of_ones_own(tmp_path: Path):
    (tmp_path / "own.txt").write_text("# mine\nDog , hound\n\n")
    assert synonyms(str(tmp_path / "own.txt")) == {"dog": ("hound",), "hound": ("dog",)}


@pytest.mark.parametrize("text", [None, "dog\n", b"\xff\xfe\x00"])
def test_a_thesaurus_that_is_none_is_refused_by_its_name(tmp_path: Path, text: str | bytes | None):
    file = tmp_path / "own.txt"
    if isinstance(text, str):
        file.write_text(text)
    elif text is not None:
        file.write_bytes(text)
    with pytest.raises(UserError, match=r"thesaurus=.*own\.txt: .*expected .*groups such as `big, large, huge`"):
        synonyms(str(file))


def test_a_folder_without_wordnet_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"data\.noun.*apt-get install wordnet-base"):
        synonyms(str(tmp_path))


# ---- hard negatives


def negatives(text: str) -> set[str | None]:
    return {hard_negative(text, read_classes(None), np.random.default_rng(seed)) for seed in range(200)}


def test_two_words_of_a_class_are_exchanged():
    assert negatives("a Black cat, and the white dog.") == {
        *("a white cat, and the black dog.", "a Black dog, and the white cat.")
    }


def test_a_word_without_a_partner_is_replaced_by_another_of_its_class():
    found = negatives("a small red ring")
    assert {differing(str(text).split(), ["a", "small", "red", "ring"]) for text in found} == {1}
    assert {"a large red ring", "a small blue ring", "a small red cross"} <= found


def test_words_of_the_same_meaning_are_not_exchanged():
    assert "the purple dress and the violet hat" not in negatives("the violet dress and the purple hat")
    for text in negatives("a little house"):
        assert text not in ("a tiny house", "a small house", "a little home")


def test_a_caption_without_a_known_word_has_no_hard_negative():
    assert negatives("hello world") == {None}
    columns = collated(HardCaption(tokenizer=TOKENIZER), "hello world", count=2)
    assert columns["has_hard"].tolist() == [False, False]
    assert torch.equal(columns["hard"], columns[""])


def test_a_hard_caption_is_made_from_the_caption_that_was_drawn():
    view = HardCaption(tokenizer=TOKENIZER)
    columns = collated(view, "a red ring", "the blue cross is big", count=30)
    assert columns["has_hard"].all()
    for row, hard in zip(columns[""], columns["hard"], strict=True):
        words, others = (set(TOKENIZER.decode(ids.tolist()).split()) for ids in (row, hard))
        assert len(words - others) == 1


def test_the_keys_of_a_batch_with_hard_captions():
    batch = example_batch({"text": HardCaption(tokenizer=TOKENIZER)}, 3, varied=True)
    assert batch.keys() == {"index", "text", "text_length", "text_hard", "text_hard_length", "text_has_hard"}


def test_word_classes_of_ones_own(tmp_path: Path):
    (tmp_path / "own.txt").write_text("# mine\nab, cd/ef\n")
    classes = read_classes(str(tmp_path / "own.txt"))
    assert {hard_negative("ab ef", classes, np.random.default_rng(seed)) for seed in range(20)} == {"ef ab"}
    (tmp_path / "other.txt").write_text("ab\n")
    for name in ("other.txt", "none.txt"):
        with pytest.raises(UserError, match=rf"word_classes=.*{name}: .*`red, green, blue`"):
            read_classes(str(tmp_path / name))


def test_a_word_without_another_of_its_class_and_blank_entries_are_no_words(tmp_path: Path):
    (tmp_path / "own.txt").write_text("red, green,\nfoo/bar\nup, /down\n")
    classes = read_classes(str(tmp_path / "own.txt"))
    made = {hard_negative("a red car", classes, np.random.default_rng(seed)) for seed in range(20)}
    assert made == {"a green car"}
    assert hard_negative("a foo", classes, np.random.default_rng(0)) is None
    assert hard_negative("up", classes, np.random.default_rng(0)) == "down"


def test_a_file_of_word_classes_that_is_missing_is_refused_before_any_sample_is_drawn(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.txt: cannot be read"):
        HardCaption(tokenizer=TOKENIZER, word_classes=str(tmp_path / "none.txt"))


def test_views_tell_the_content_of_their_lists_of_words(tmp_path: Path):
    found = []
    for number, words in enumerate(("big, large", "big, huge")):
        file = tmp_path / f"{number}.txt"
        file.write_text(words + "\n")
        edits = RandomEdits(delete=0.0, swap=0.0, synonyms=0.1, thesaurus=str(file))
        found += [
            HardCaption(tokenizer=TOKENIZER, word_classes=str(file)).fingerprint,
            Caption(tokenizer=TOKENIZER, augment=edits).fingerprint,
            ShortenedCaption(tokenizer=TOKENIZER, tokens=6, way="block", augment=edits).fingerprint,
        ]
    assert all(found)
    assert all(one != other for one, other in zip(found[:3], found[3:], strict=True))
    assert Caption(tokenizer=TOKENIZER, augment=RandomEdits(delete=0.1, swap=0.1)).fingerprint == ""
    assert Caption(tokenizer=TOKENIZER, augment=lambda text, rng: text).fingerprint == ""


# ---- shortened captions


def shortened(way: str, tokens: int = 6, text: str = TEXT, count: int = 400) -> list[list[str]]:
    columns = collated(ShortenedCaption(tokenizer=TOKENIZER, tokens=tokens, way=way), text, count=count)
    assert (columns[""][:, 0] == TOKENIZER.special_ids["start"]).all()
    ends = columns[""].gather(1, columns["length"][:, None] - 1)
    assert (ends == TOKENIZER.special_ids["end"]).all()
    return [TOKENIZER.decode(row.tolist()).split() for row in columns[""]]


def test_the_first_tokens_stay():
    assert shortened("truncate", count=1) == [["one", "two", "three", "four"]]


def test_a_block_begins_anywhere():
    words = TEXT.split()
    counted = Counter(" ".join(row) for row in shortened("block", count=1400))
    assert counted.keys() == {" ".join(words[place : place + 4]) for place in range(7)}
    assert all(140 < count < 260 for count in counted.values())


def test_random_tokens_stay_in_their_order():
    words = TEXT.split()
    rows = shortened("random")
    assert all(len(row) == 4 and sorted(row, key=list[str](words).index) == row for row in rows)
    counted = Counter(word for row in rows for word in row)
    assert all(110 < counted[word] < 210 for word in words)  # of 160


@pytest.mark.parametrize("way", ["truncate", "random", "block"])
def test_a_caption_that_is_short_enough_stays(way: str):
    view, plain = ShortenedCaption(tokenizer=TOKENIZER, tokens=6, way=way), Caption(tokenizer=TOKENIZER)
    for text in ("one two three four", "one", ""):
        found, whole = collated(view, text), collated(plain, text)
        assert torch.equal(found[""], whole[""])
        assert torch.equal(found["length"], whole["length"])
        assert not found["truncated"].any()
    assert collated(view, "one two three four five")["truncated"].all()


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="way=syntax: expected one of truncate, random, block"):
        ShortenedCaption(tokenizer=TOKENIZER, tokens=6, way="syntax")
    for tokens in (2, 17):
        with pytest.raises(UserError, match=rf"tokens={tokens}: expected 3 .* to 16 \(tokenizer\.context_length\)"):
            ShortenedCaption(tokenizer=TOKENIZER, tokens=tokens, way="block")


# ---- all of them


@pytest.mark.parametrize(
    "view",
    [
        HardCaption(tokenizer=TOKENIZER),
        ShortenedCaption(tokenizer=TOKENIZER, tokens=5, way="random"),
        ShortenedCaption(tokenizer=TOKENIZER, tokens=5, way="block"),
        Caption(tokenizer=TOKENIZER, augment=RandomEdits(delete=0.1, swap=0.1, synonyms=0.3)),
    ],
)
def test_a_row_depends_only_on_its_own_sample_and_seed(view: View):
    captions = ("a big dog near the red car", "three old men walking on the street", "red")
    drawn = [view.draw(sample(text), np.random.default_rng(seed)) for seed, text in enumerate(captions)]
    again = [view.draw(sample(text), np.random.default_rng(seed)) for seed, text in enumerate(captions)]
    together = view.collate(again)
    for row, each in enumerate(drawn):
        for suffix, column in view.collate([each]).items():
            whole = together[suffix][row]
            if suffix in view.padding:
                assert torch.equal(whole[: column.shape[1]], column[0])
                assert (whole[column.shape[1] :] == view.padding[suffix]).all()
            else:
                assert torch.equal(whole, column[0])


def test_one_kind_of_edit_deletes_the_share_of_words_that_is_asked_for():
    words = [str(number) for number in range(1000)]
    edits = RandomEdits(delete=0.1, swap=0.0, one_kind=True)
    kept = edits(" ".join(words), np.random.default_rng(0)).split()
    assert 860 < len(kept) < 940  # four standard deviations
    assert kept == [word for word in words if word in set(kept)]


def test_drawn_words_are_a_share_of_all_distinct_words_in_their_order():
    view = DrawnWords(tokenizer=TOKENIZER, share=0.5)
    two = sample("Two red Cats", "cats, one dog")
    texts = [view.draw(two, np.random.default_rng(seed))["text"].split() for seed in range(100)]
    words = ["two", "red", "cats", "one", "dog"]
    assert all(len(text) == 3 for text in texts)  # half of five, rounded up
    assert all(text == [word for word in words if word in text] for text in texts)
    counts = Counter(word for text in texts for word in text)
    assert counts.keys() == set(words)
    # A word is drawn with probability 0.6: six standard deviations of 100 draws are 30.
    assert all(abs(count - 60) < 30 for count in counts.values())
    assert len({tuple(text) for text in texts}) == 10
    assert view.draw(two, np.random.default_rng(3))["text"].split() == texts[3]
    assert DrawnWords(tokenizer=TOKENIZER, share=1).draw(two, np.random.default_rng(0))["text"].split() == words
    columns = view.collate([{**view.draw(two, np.random.default_rng(0)), "text": "two red cats"}])
    assert TOKENIZER.decode(columns[""][0, 1 : int(columns["length"][0]) - 1].tolist()).strip() == "two red cats"
    with pytest.raises(UserError, match=r"share=0: expected a share of the words"):
        DrawnWords(tokenizer=TOKENIZER, share=0)


def test_drawn_words_say_which_words_a_sample_has_and_which_were_drawn():
    view = DrawnWords(tokenizer=TOKENIZER, share=0.5)
    for seed in range(9):
        drawn = view.draw(sample("Two red Cats", "cats, one dog"), np.random.default_rng(seed))
        assert drawn["words"][:5].tolist() == [word_key(word) for word in ("two", "red", "cats", "one", "dog")]
        assert not drawn["words"][5:].any()
        assert drawn["words"][drawn["drawn"]].tolist() == [word_key(word) for word in drawn["text"].split()]
