"""The drawings of openclipart as sources: their names, their captions, and the control with shuffled captions."""

from pathlib import Path

import pytest
from shard_files import jpeg, write_tar

from openslip.data.sources.openclipart import named, openclipart
from openslip.data.sources.single_label import SingleLabel
from openslip.errors import UserError

DRAWINGS = [("tabby", "animal, cat"), ("a cathedral", "building"), ("rings", "ring, gold"), ("stray", "cat, night")]


@pytest.fixture
def root(tmp_path: Path) -> str:
    for split in ("train", "val", "unseen"):
        members = []
        for place, (title, keywords) in enumerate(DRAWINGS):
            fields = f'{{"captions": ["{title}", "{keywords}"]}}'
            members += [(f"s{place}.jpg", jpeg(place)), (f"s{place}.json", fields.encode())]
        (tmp_path / split).mkdir()
        write_tar(tmp_path / split / "0.tar", members)
    (tmp_path / "seen-names.txt").write_text("cat\nring\n")
    (tmp_path / "unseen-names.txt").write_text("building\n")
    return str(tmp_path)


def test_whole_keywords_are_names_and_drawings_without_one_are_left_out(root: str):
    source = named(root, "val")
    assert source.classes == ["cat", "ring"]
    assert [source[index].captions[0] for index in range(len(source))] == ["tabby", "rings", "stray"]
    assert source.label_vectors is not None
    assert source.label_vectors.tolist() == [[1, 0], [0, 1], [1, 0]]
    unseen = named(root, "unseen")
    assert [unseen[index].captions[0] for index in range(len(unseen))] == ["a cathedral"]
    assert named(root, "train").fingerprint != openclipart(root, "train").fingerprint


def test_shuffled_captions_are_those_of_other_drawings_and_another_dataset(root: str):
    plain, shuffled = (openclipart(root, "train", shuffle_captions=shuffle) for shuffle in (False, True))
    assert len(shuffled) == len(plain)
    pairs = [[(one[index].image, one[index].captions) for index in range(len(one))] for one in (plain, shuffled)]
    images, captions = zip(*(zip(*one, strict=True) for one in pairs), strict=True)
    assert images[0] == images[1]
    assert captions[0] != captions[1]
    assert sorted(captions[0]) == sorted(captions[1])
    assert plain.fingerprint != shuffled.fingerprint
    again = openclipart(root, "train", shuffle_captions=True)
    assert [again[index].captions for index in range(4)] == list(captions[1])


def test_what_is_missing_is_named_with_the_command_that_gets_it(root: str, tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere: no drawings there; openslip data get openclipart fetches them"):
        openclipart(str(tmp_path / "nowhere"), "train")
    (tmp_path / "seen-names.txt").unlink()
    with pytest.raises(UserError, match=r"seen-names\.txt is missing.*delete it, and repeat"):
        named(root, "val")


def test_drawings_of_a_single_name_are_labelled_with_it(root: str):
    (Path(root) / "seen-names.txt").write_text("cat\nring\ngold\n")
    source = SingleLabel(named(root, "val"))
    labelled = [(source[index].captions[0], source[index].label) for index in range(len(source))]
    assert labelled == [("tabby", 0), ("stray", 0)]  # "rings" is a ring and gold
    assert source.classes == ["cat", "ring", "gold"]
    assert source.fingerprint != named(root, "val").fingerprint
    with pytest.raises(UserError, match="the source has no label vectors; expected a multi-label dataset"):
        SingleLabel(openclipart(root, "val"))
