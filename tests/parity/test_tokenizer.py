# ruff: noqa: RUF001
import html
import pickle
import random
from typing import Any

import ftfy
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from openslip.errors import UserError
from openslip.text import clip_bpe as module
from openslip.text.clip_bpe import ClipBpe
from openslip.verify.files import RECORDINGS, read_json

RECORDED = read_json(RECORDINGS / "tokenizer.json")
WORDS = ["a", "photo", "of", "Dogs'", "isn't", "we'll", "3.14", "50%", "A_1.jpg", "#tag", "@you", "{}", "--", "..."]
ODD = [
    "naïve café", "東京タワーの夜景", "한국어 문장", "Привет, мир", "مرحبا بالعالم", "שלום עולם", "हिन्दी",
    "ไทย", "👩\u200d👩\u200d👧\u200d👦", "🏳️\u200d🌈", "👍🏽", "e\u0301\u0345", "\u0345",
    "&amp;amp;lt;b&amp;amp;gt;", "&lt;i&gt;x&lt;/i&gt;", "&#x1F600;", "&#0;", "&#28;", "&nbsp;", "&bogus;",
    "&", "ﬁne ﬂow ﬃ", "Ｆｕｌｌ", "Ã©tÃ©", "ï¿½", "â€œquotedâ€\x9d", "“curly”", "\x00", "\x07",
    "\x1b[31mred\x1b[0m", "\x0b", "\x0c", "\x1c", "\x1f", "\x7f", "\x85", "\u2028", "\u200b", "\ufeff",
    "\u202e", "\r\n", "\t", "\u00a0", "\u3000", "½²³①", "İstanbul", "ẞ", "ǅ", "ΟΔΟΣ", "ſ's", "'ſ", "ⅷ",
    "\ud800", "\U0010ffff", "a" * 300, "<start_of", "_text>", "http://x.y/z?a=1&b=2", "\\n", "`~^|",
]  # fmt: skip
SPELLED = ("<start_of_text>", "<end_of_text>")


def odd_captions(num_captions: int) -> list[str]:
    rng = random.Random(2)
    captions = ["", " ", "\x00", "a" * 300, "A" * 10_000, "ab" * 500, "word " * 2_000, "é" * 1_000]
    captions.append("&lt;" * 500)
    captions.append("".join(rng.choices("abcdefghijklmnop", k=1_000)))
    captions += ODD
    while len(captions) < num_captions + 20:  # some spell open_clip's special tokens and are left out below
        kind = rng.randrange(3)
        if kind == 0:
            ranges = rng.choices((0x20, 0x300, 0x11_0000), k=rng.randrange(1, 60))
            captions.append("".join(chr(rng.randrange(stop)) for stop in ranges))
        else:
            parts = rng.choices(WORDS if kind == 1 else WORDS + ODD, k=rng.randrange(1, 30))
            captions.append("".join(part + rng.choice(("", " ", "  ")) for part in parts))
    return [caption for caption in captions if not any(s in caption.lower() for s in SPELLED)][:num_captions]


@pytest.fixture(scope="module")
def published() -> ClipBpe:
    return ClipBpe(context_length=77, truncation="drop_end", special_text="token")


@pytest.fixture(scope="module")
def plain() -> ClipBpe:
    return ClipBpe(context_length=77, truncation="keep_end", special_text="plain")


def test_every_recorded_caption_has_the_published_ids(published: ClipBpe):
    assert len(RECORDED["captions"]) == 36
    assert torch.equal(published.encode(RECORDED["captions"])[0], torch.tensor(RECORDED["ids"]))


@pytest.mark.parametrize("num_captions", [2_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_odd_captions_have_the_ids_of_open_clip(plain: ClipBpe, num_captions: int):
    captions = odd_captions(num_captions)
    assert len(captions) == num_captions
    reference = SimpleTokenizer(context_length=77)
    assert [caption for caption in captions if plain.tokenize(caption) != reference.encode(caption)] == []
    assert torch.equal(plain.encode(captions[:300])[0], reference(captions[:300]))


def test_a_second_pass_through_the_cache_changes_nothing(plain: ClipBpe):
    captions = odd_captions(120)
    fresh = ClipBpe(context_length=77, truncation="keep_end", special_text="plain")
    assert torch.equal(fresh.encode(captions)[0], plain.encode(captions)[0])
    assert torch.equal(fresh.encode(captions)[0], plain.encode(captions)[0])


def test_the_cache_stays_bounded_and_exact(monkeypatch: pytest.MonkeyPatch, plain: ClipBpe):
    limit = len(module._read_vocabulary().words) + 8
    monkeypatch.setattr(module, "_MAX_CACHED", limit)
    small = ClipBpe(context_length=77, truncation="keep_end", special_text="plain")
    captions = odd_captions(120)
    assert torch.equal(small.encode(captions)[0], plain.encode(captions)[0])
    assert len(small._cache) == limit


def test_the_quick_cleaning_leaves_the_words_of_the_full_one():
    rng = random.Random(3)
    symbols = [*map(chr, range(0x80)), "&amp;", "&LT;", "&eacute", "&#65", "&nbsp;", "&", ";"]
    quick = 0
    for _ in range(3_000):
        caption = "".join(rng.choices(symbols if rng.random() < 0.5 else symbols[0x20:0x7F], k=rng.randrange(40)))
        fixed = ftfy.fix_text(caption)
        quick += fixed == caption
        assert module._clean(caption).split() == html.unescape(html.unescape(fixed)).lower().split()
    assert 1_000 < quick < 2_800


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\t", " & more", ""])
def test_most_captions_need_no_full_cleaning(monkeypatch: pytest.MonkeyPatch, ending: str):
    monkeypatch.setattr(ftfy, "fix_text", None)
    assert module._clean(f"Salt{ending}").split()[0] == "salt"


START, END = 49406, 49407


@pytest.mark.parametrize("literal", ["<|endoftext|>", "<|startoftext|>", "<|EndOfText|>", *SPELLED])
def test_special_tokens_in_a_caption_stay_plain_text(plain: ClipBpe, literal: str):
    ids = plain.tokenize(f"a {literal} b")
    assert max(ids) < START
    assert plain.encode([f"a {literal} b"])[1].tolist() == [len(ids) + 2]


def test_special_tokens_in_a_caption_become_ids_where_asked(published: ClipBpe):
    assert published.tokenize("<|startoftext|> <|EndOfText|>") == [START, END]
    assert max(published.tokenize("<start_of_text> <end_of_text>")) < START


def test_an_over_long_caption_keeps_its_end_token(plain: ClipBpe):
    ids, lengths = plain.encode(["a dog " * 60])
    assert ids.shape == (1, 77)
    assert ids[0, -1] == END
    assert lengths.tolist() == [77]


def test_the_published_cut_pools_over_long_captions_at_the_start_token(published: ClipBpe):
    ids, lengths = published.encode(["a dog " * 60, "a dog"])
    assert END not in ids[0]
    assert lengths.tolist() == [1, 4]


@pytest.mark.parametrize("truncation", ["keep_end", "drop_end"])
def test_a_caption_is_truncated_where_it_has_more_tokens_than_the_context(truncation: str):
    tokenizer = ClipBpe(context_length=8, truncation=truncation, special_text="plain")
    captions = ["", "dog " * 6, "dog " * 7, "a dog " * 500, "dog-dog-dog", "dog-dog-dog-dog", "x" * 10_000]
    truncated = [tokenizer.num_tokens(caption) > tokenizer.context_length for caption in captions]
    assert truncated == [len(tokenizer.tokenize(caption)) > 6 for caption in captions]
    assert truncated == [False, False, True, True, False, True, True]


def test_the_mask_token_stands_before_the_start_and_the_end_as_in_declip():
    masking = ClipBpe(context_length=8, truncation="keep_end", special_text="plain", mask_token=True)
    ids, lengths = masking.encode(["a dog"])
    assert masking.special_ids == {"pad": 0, "mask": 49406, "start": 49407, "end": 49408}
    assert masking.vocab_size == 49409
    assert ids.tolist() == [[49407, 320, 1929, 49408, 0, 0, 0, 0]]
    assert lengths.tolist() == [4]
    assert masking.decode([49407, 320, 49406, 1929, 49408, 0]) == "a dog"


@pytest.mark.parametrize(
    "caption",
    ["", " \t\n", "\x00", "&#0;", "\x00" * 10_000, "x" * 10_000, "a dog " * 2_000, "😀" * 10_000, "&amp;" * 2_000,
     "<end_of_text>", "<|endoftext|>", "a <|startoftext|><|endoftext|> b", "<end_of_text> " * 1_000],
)  # fmt: skip
def test_any_caption_ends_with_its_only_end_token(plain: ClipBpe, caption: str):
    text, lengths = plain.encode([caption])
    assert text.shape == (1, 77)
    length = int(lengths)
    assert (text == END).nonzero().tolist() == [[0, length - 1]]
    assert text[0, length:].count_nonzero() == 0


def test_a_caption_that_just_fits_is_cut_nowhere(plain: ClipBpe, published: ClipBpe):
    assert len(plain.tokenize("dog " * 75)) == 75
    assert torch.equal(plain.encode(["dog " * 75])[0], published.encode(["dog " * 75])[0])
    assert torch.equal(plain.encode(["dog " * 76])[0], plain.encode(["dog " * 75])[0])


def test_ids_are_int64_rows_padded_with_zeros():
    text = ClipBpe(context_length=8, truncation="keep_end", special_text="plain").encode(["a dog", ""])[0]
    assert text.dtype == torch.int64
    assert text.tolist() == [[49406, 320, 1929, 49407, 0, 0, 0, 0], [49406, 49407, 0, 0, 0, 0, 0, 0]]


def test_no_caption_makes_no_row(plain: ClipBpe):
    assert plain.encode([])[0].shape == (0, 77)


def test_settings_rebuild_the_tokenizer_and_so_does_pickle(published: ClipBpe):
    settings: Any = published.settings()
    assert ClipBpe(**settings).encode(RECORDED["captions"])[0].equal(published.encode(RECORDED["captions"])[0])
    packed = pickle.dumps(published)
    assert len(packed) < 500  # neither the vocabulary nor the cache travels to a worker
    assert pickle.loads(packed).settings() == published.settings()


def test_a_merge_makes_symbols_of_higher_rank_only():
    merges = module._read_vocabulary().merges
    assert len(set(merges.values())) == len(merges) == START - 512
    assert all(half < joined for pair, joined in merges.items() for half in pair if half >= 512)


def test_a_word_of_one_symbol_is_what_its_letters_merge_to():
    vocabulary = module._read_vocabulary()
    assert len(vocabulary.words) > 30_000
    wrong = [w for w, ids in vocabulary.words.items() if module._pack(module._merge(w, vocabulary)) != ids]
    assert wrong == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_length": 1}, "tokenizer.context_length=1"),
        ({"truncation": "keep"}, "tokenizer.truncation='keep'"),
        ({"special_text": "id"}, "tokenizer.special_text='id'"),
    ],
)
def test_a_wrong_setting_is_named(change: dict, message: str):
    settings: dict[str, Any] = {"context_length": 77, "truncation": "keep_end", "special_text": "plain"}
    with pytest.raises(UserError, match=message):
        ClipBpe(**settings | change)
