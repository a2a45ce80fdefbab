"""What `openslip data check` prints: datasets of which every number is known."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_files import jpeg

from openslip.data.check import check
from openslip.data.check.contact_sheet import SIDE, draw_contact_sheet, write_contact_sheet
from openslip.data.check.report import quantiles, shortened
from openslip.data.source import Sample, Source
from openslip.errors import UserError
from openslip.text.clip_bpe import ClipBpe

TOKENIZER = ClipBpe(context_length=8, truncation="keep_end", special_text="plain")


class Listed(Source):
    """Samples from a list; None cannot be read."""

    def __init__(
        self, samples: list[Sample | None], problems: tuple[str, ...] = (), expected: int | None = None
    ) -> None:
        self.samples = samples
        self.expected_samples = expected
        self.problems = problems

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> Sample:
        sample = self.samples[index]
        if sample is None:
            raise UserError("shard a.tar has become shorter")
        return sample

    @property
    def fingerprint(self) -> str:
        return "listed"


def look(
    source: Source,
    *,
    decode: bool = False,
    limit: int | None = None,
    num_workers: int = 0,
    contact_sheet: Path | None = None,
) -> list[tuple[str, str]]:
    lines = check(source, TOKENIZER, decode=decode, limit=limit, num_workers=num_workers, contact_sheet=contact_sheet)
    return [(line[:22].strip(), line[22:]) for line in lines]


def known() -> Listed:
    """Eight samples: two equal images twice over, two that are damaged, captions of 3 to 12 tokens."""
    images = [jpeg(0, 300, 240), jpeg(1, 300, 240), jpeg(0, 300, 240), jpeg(2, 100, 500), jpeg(1, 300, 240)]
    damaged = [jpeg(3)[:-200], jpeg(4)[:-210], jpeg(5, 300, 224)]
    captions = [
        ("a dog", "a cat"),
        ("a dog",),
        ("a dog",),
        (),
        ("one two three four five six seven eight nine ten",),
        ("a cat",),
        ("six words are in this caption",),
        ("dog",),
    ]
    return Listed(
        [
            Sample(key=f"k{place}", image=image, captions=texts, label=None)
            for place, (image, texts) in enumerate(zip(images + damaged, captions, strict=True))
        ],
        problems=("2 x no image, first a.tar:x",),
        expected=12,
    )


def test_every_line_of_a_known_dataset():
    lines = look(known(), decode=True)
    sizes = sorted(len(sample.image) for sample in known().samples if sample is not None)
    assert lines[:-4] == [
        ("samples", "8 of 12 samples, 66 %"),
        ("skipped", "2 x no image, first a.tar:x"),
        ("captions per sample", "0 to 2, mean 1.00; 1 samples have none"),
        # 4, 4, 4, 4, 12, 4, 8, 3 tokens.
        ("tokens per caption", "mean 5.4, median 4, p90 12, p99 12, longest 12; start and end included"),
        ("cut off", "1 of 8, 12.5 %: captions of more than 8 tokens"),
        ("distinct captions", "5 of 8, 62.5 %"),
        ("most frequent", "3 x a dog"),
        ("most frequent", "2 x a cat"),
        ("duplicate images", "2 of 8, 25.0 %: the same bytes as an earlier one"),
        ("the same", "k2 = k0"),
        ("the same", "k4 = k1"),
        (
            "image bytes",
            f"median {sizes[3] / 1000:.1f} kB, p99 {sizes[-1] / 1000:.1f} kB, all {sum(sizes) / 1000:.1f} kB",
        ),
        ("image pixels", "median 300 x 240; 1 of 6, 16.7 %, have a side under 224"),
    ]
    assert lines[-4] == ("unreadable", "2 of 8, 25.0 %")
    assert lines[-3][0] == "reason"
    assert lines[-3][1].startswith("2 x cannot be decoded (")  # one reason, although the missing bytes differ
    assert [text.partition(":")[0] for _, text in lines[-2:]] == ["k5", "k6"]


def test_without_decoding_nothing_is_said_of_what_decoding_would_show():
    lines = look(known())
    assert lines[0] == ("samples", "8 of 12 samples, 66 %")
    assert lines[-1] == ("unreadable", "not known: the images were not decoded")
    assert "image pixels" not in dict(lines)


def test_worker_processes_find_the_same():
    rng = np.random.default_rng(0)
    samples = [
        Sample(key=f"k{place}", image=rng.bytes(int(size)), captions=(f"number {number}",) * int(times), label=None)
        for place, (size, number, times) in enumerate(
            zip(rng.integers(1, 4, 1000), rng.integers(0, 50, 1000), rng.integers(0, 3, 1000), strict=True)
        )
    ]
    source = Listed([*samples, None])
    assert look(source, num_workers=2) == look(source)


def test_numbers_equal_those_of_a_loop():
    rng = np.random.default_rng(1)
    samples = [
        Sample(key=f"k{place}", image=rng.bytes(1), captions=(f"word {number}",), label=None)
        for place, number in enumerate(rng.integers(0, 30, 500))
    ]
    lines = look(Listed(list(samples)))
    texts = [sample.captions[0] for sample in samples]
    first_at: dict[bytes, str] = {}
    pairs = []
    for sample in samples:
        if first_at.setdefault(sample.image, sample.key) != sample.key:
            pairs.append(f"{sample.key} = {first_at[sample.image]}")
    assert [text for label, text in lines if label == "the same"] == pairs[:5]
    assert dict(lines)["duplicate images"].startswith(f"{len(pairs)} of 500")
    assert dict(lines)["distinct captions"].startswith(f"{len(set(texts))} of 500")
    ranked = sorted(set(texts), key=lambda text: (-texts.count(text), texts.index(text)))
    frequent = [f"{texts.count(text)} x {text}" for text in ranked[:5]]
    assert [text for label, text in lines if label == "most frequent"] == frequent


def test_a_quick_look_says_so_in_every_line():
    samples: list[Sample | None] = [
        Sample(key=str(place), image=bytes([place]), captions=(f"caption {place}",), label=None) for place in range(100)
    ]
    lines = look(Listed(samples, expected=100), limit=10)
    assert lines[0] == ("samples", "100 of 100 samples, 100 %")
    assert all(text.endswith("(of 10 evenly spaced samples)") for _, text in lines[1:])
    assert dict(lines)["distinct captions"].startswith("10 of 10")
    with pytest.raises(UserError, match="limit=0: expected"):
        look(Listed(samples), limit=0)


def test_samples_that_cannot_be_read_are_counted_and_the_first_ones_named():
    samples: list[Sample | None] = [
        Sample(key=f"a.tar:{place}", image=b"no picture", captions=("x",), label=None) for place in range(12)
    ]
    samples[3] = None
    lines = look(Listed(samples), decode=True)
    assert dict(lines)["unreadable"] == "12 of 12, 100.0 %"
    first = [text.partition(": ") for label, text in lines if label == "first"]
    assert [key for key, _, _ in first] == ["sample 3" if n == 3 else f"a.tar:{n}" for n in range(10)]
    assert first[3][2] == "shard a.tar has become shorter"
    assert "not an image" in first[0][2]


def test_a_dataset_with_labels_alone_has_no_caption_lines():
    source = Listed([Sample(key="a", image=jpeg(0), captions=(), label=3)])
    assert ("captions", "none") in look(source)


def test_an_empty_dataset_is_reported():
    assert look(Listed([]), decode=True)[0] == ("samples", "0")


def test_texts_cannot_command_the_terminal():
    assert shortened("red \x1b[31m\nand\x07 \u202e") == "red  [31m and   "
    assert len(shortened("x" * 500)) == 70


def test_quantiles_are_values_that_occur():
    values = np.array([1, 2, 3, 10])
    assert quantiles(values, 25, 50, 51, 75, 90, 100) == [1, 2, 3, 3, 10, 10]


CAPTIONS = (
    "",
    "short",
    "x" * 5000,
    "\u732b\u306e\u5199\u771f " * 60,
    "a \U0001f431 \U0001f468\u200d\U0001f469",
    "\x00\t\n",
    "\u0301" * 9,
)


def test_the_contact_sheet_shows_the_images_in_order(tmp_path: Path):
    def plain(colour: tuple[int, int, int]) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (50, 100), colour).save(file, "PNG")
        return file.getvalue()

    colours = [(place * 5, 255 - place * 5, 77) for place in range(48)]
    source = Listed(
        [
            Sample(key=str(place), image=plain(colour), captions=(CAPTIONS[place % len(CAPTIONS)],), label=None)
            for place, colour in enumerate(colours)
        ]
    )
    look(source, contact_sheet=tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        middle = np.asarray(sheet)[16 + 12 + SIDE // 2]
    for column in range(6):
        assert tuple(middle[16 + column * (SIDE + 24 + 16) + 12 + SIDE // 2]) == colours[2 * column]
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_small_broken_and_captionless_datasets_have_a_contact_sheet(tmp_path: Path):
    samples = [Sample(key="a", image=b"none", captions=(), label=1), None]
    write_contact_sheet(Listed(samples), tmp_path / "sheet.jpg")
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.format == "JPEG"
    assert draw_contact_sheet(Listed(samples[:1])).width < draw_contact_sheet(Listed(samples)).width
    with pytest.raises(UserError, match=r"ends in \.png or \.jpg"):
        write_contact_sheet(Listed(samples), tmp_path / "sheet.pdf")
    with pytest.raises(UserError, match="cannot be written"):
        write_contact_sheet(Listed(samples), tmp_path / "none" / "sheet.png")
