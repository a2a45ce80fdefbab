import io
from collections import Counter
from collections.abc import Iterator
from itertools import combinations as choose
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_iterator

from openslip.data.sources import builtin
from openslip.data.sources.builtin import attributes, classnames, is_unseen, write
from openslip.errors import UserError

NUM: dict[builtin.Split, int] = {"train": 600, "unseen": 60, "seen": 60}  # enough for every combination to be drawn


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(builtin, "NUM_IMAGES", NUM)
    patch.setattr(builtin, "IMAGES_PER_SHARD", 256)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def root(small: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("builtin")
    write(path)
    return path


def is_trained(combination: builtin.Combination) -> bool:
    return not is_unseen(combination)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_two_writings_have_the_same_bytes(root: Path, tmp_path: Path) -> None:
    assert content(write(tmp_path)) == content(write(root))


def test_a_written_set_is_left_alone(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in write(root).iterdir()}
    assert {path: path.stat().st_mtime_ns for path in write(root).iterdir()} == before


def test_a_writing_that_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: np.ndarray) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(builtin, "_jpeg", fail)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_write_one_set(root: Path, tmp_path: Path) -> None:
    processes = [get_context("fork").Process(target=write, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == [write(root).name]
    assert content(write(tmp_path)) == content(write(root))


def test_a_damaged_set_is_refused(root: Path, tmp_path: Path) -> None:
    shard = next(write(tmp_path).glob("train-*.tar"))
    shard.write_bytes(shard.read_bytes()[:-20_000])
    with pytest.raises(UserError, match=rf"{shard.name} is cut off"):
        builtin.builtin(str(tmp_path), "train")


def test_a_set_that_has_lost_a_shard_is_refused(root: Path, tmp_path: Path) -> None:
    folder = write(tmp_path)
    num_shards = len(list(folder.glob("train-*.tar")))
    (folder / "train-0001.tar").unlink()
    said = rf"{folder} holds {num_shards - 1} of the {num_shards} shards train-\*\.tar: delete the folder"
    with pytest.raises(UserError, match=said):
        builtin.builtin(str(tmp_path), "train")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.source\.root .*file"):
        write(tmp_path / "file")


def test_unseen_combinations_are_absent_from_training(root: Path) -> None:
    unseen = {label for label, each in enumerate(builtin.combinations()) if is_unseen(each)}
    labels = {}
    for split, number in NUM.items():
        source = builtin.builtin(str(root), split)
        labels[split] = [source[place].label for place in range(number)]
    assert set(labels["train"]).isdisjoint(unseen)
    assert set(labels["seen"]).isdisjoint(unseen)
    assert set(labels["train"]) | unseen == set(range(len(classnames())))
    assert set(labels["unseen"]) == unseen
    assert max(Counter(labels["unseen"]).values()) - min(Counter(labels["unseen"]).values()) <= 1


def test_no_training_caption_tells_an_unseen_combination(root: Path) -> None:
    plain = {word: value for value, words in builtin.SYNONYMS.items() for word in words}
    source = builtin.builtin(str(root), "train")
    names = [set(name.split()) for name in classnames()]
    for place in range(len(source)):
        sample = source[place]
        (caption,) = sample.captions
        told = {plain.get(word, word) for word in caption.split()} & set().union(*names)
        assert sample.label is not None
        assert told <= names[sample.label]
        assert len(told) >= 3


def test_any_three_values_meet_in_training() -> None:
    every = builtin.combinations()
    for places in choose(range(4), 3):
        triples = [
            {tuple(each[place] for place in places) for each in some} for some in (every, filter(is_trained, every))
        ]
        assert triples[0] == triples[1]


def test_candidates_are_all_combinations_by_name() -> None:
    names = classnames()
    assert len(set(names)) == len(names)
    assert 100 / len(names) <= 5
    columns = attributes()
    assert [" ".join(values) for values in zip(*columns.values(), strict=True)] == names


def read(path: Path) -> list[dict]:
    with path.open("rb") as stream:
        members = tar_file_iterator(stream)  # pyright: ignore[reportArgumentType] (its annotation is wrong)
        return list(group_by_keys({**member, "__url__": str(path)} for member in members))


def test_all_members_are_read_by_webdataset(root: Path) -> None:
    folder = write(root)
    for split, num in NUM.items():
        shards = sorted(folder.glob(f"{split}-*.tar"))
        samples = [sample for path in shards for sample in read(path)]
        assert len(samples) == num
        for sample in samples:
            with Image.open(io.BytesIO(sample["jpg"])) as image:
                assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (builtin.PIXELS, builtin.PIXELS))
                image.load()
            assert 0 <= int(sample["cls"]) < len(classnames())
            assert ("txt" in sample) == (split == "train")


def test_captions_vary(root: Path) -> None:
    source = builtin.builtin(str(root), "train")
    assert len({source[place].captions[0] for place in range(len(source))}) > len(source) / 2


def test_one_caption_in_twenty_omits_an_attribute_and_a_quarter_has_another_order() -> None:
    """Of three attributes before the shape, one in six random orders is the usual one: 0.3 * 5 / 6 is a quarter."""
    rng, kind = np.random.default_rng(0), {}
    for name in ("size", "texture", "colour"):
        for value in builtin.ATTRIBUTES[name]:
            kind |= dict.fromkeys(builtin.SYNONYMS.get(value, (value,)), name)
    told = []
    for combination in builtin.combinations() * 40:
        words = builtin.caption(combination, rng).split()
        told.append([kind[word] for word in words if word in kind])
    whole = [kinds for kinds in told if len(kinds) == 3]
    assert 1 - len(whole) / len(told) == pytest.approx(0.05, abs=0.015)
    moved = [kinds for kinds in whole if kinds != ["size", "texture", "colour"]]
    assert len(moved) / len(whole) == pytest.approx(0.25, abs=0.03)


def test_shuffled_captions_are_the_same_captions_elsewhere(root: Path) -> None:
    paired, shuffled = (builtin.builtin(str(root), "train", shuffle_captions=flag) for flag in (False, True))
    told = [[source[place].captions[0] for place in range(len(source))] for source in (paired, shuffled)]
    assert sorted(told[0]) == sorted(told[1])
    assert sum(one == other for one, other in zip(*told, strict=True)) < 0.05 * len(paired)
    assert all(paired[place].image == shuffled[place].image for place in range(0, len(paired), 50))


@pytest.mark.parametrize("shape", builtin.ATTRIBUTES["shape"])
def test_a_large_shape_covers_more_than_a_small_one(shape: str) -> None:
    place = builtin.ATTRIBUTES["shape"].index(shape)
    small, large = (builtin.draw(np.array([[size, 0, 0, place]] * 20), np.random.default_rng(0)) for size in (0, 1))
    red = [((image[..., 0].astype(int) - image[..., 2]) > 60).mean() for image in (small, large)]
    assert red[1] > 1.8 * red[0]
