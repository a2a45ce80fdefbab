"""Names of classes, matched with the class folders of a dataset."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from evaluation_models import CLASSNAMES, Pictures, bundle, dual_encoder, image_encoder, knn, zero_shot

from openslip.data.sources.image_folder import ImageFolder
from openslip.errors import UserError
from openslip.evaluation.class_names import class_names
from openslip.evaluation.zeroshot import ZeroShot
from openslip.inference.classifier import ZeroShotClassifier
from openslip.inference.imagenet_classes import imagenet_ids
from openslip.inference.imagenet_prompts import imagenet_classnames, imagenet_templates
from openslip.inference.prompts import class_embeddings

NUMBERS = [str(number) for number in range(12)]
IDS = sorted(imagenet_ids())


def write_folder(root: Path, classes: Sequence[str]) -> ImageFolder:
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        (root / name / "a.png").write_bytes(Pictures(12)[place % 12].image)
    return ImageFolder(root=str(root))


def evaluation(source: Any, **settings: Any) -> ZeroShot:
    defaults = {"classnames": None, "templates": ["a {}."], "batch_size": 8, "num_workers": 0}
    return ZeroShot(title="mine", source=source, **(defaults | settings))


def test_names_of_numeric_folders_go_in_the_order_of_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = [f"thing {letter}" for letter in "abcdefghijkl"]
    mine = evaluation(write_folder(tmp_path, NUMBERS), classnames=names)
    mine.run(bundle(dual_encoder()))
    of_folder = [mine.classnames[mine.source[place].label or 0] for place in range(12)]
    folders = [Path(mine.source[place].key).parent.name for place in range(12)]
    assert dict(zip(folders, of_folder, strict=True)) == dict(zip(NUMBERS, names, strict=True))
    shown = capsys.readouterr().err
    assert all(f"{label}: {label} -> {name}\n" in shown for label, name in enumerate(names)), "the pairing is shown"


def test_another_number_of_names_than_of_folders_is_refused(tmp_path: Path):
    source = write_folder(tmp_path, ["b", "d", "f", "h"])
    with pytest.raises(UserError, match=r"12 names for 4 class folders; no folder for: a, c, e, \.\.\.: .*\(b, d, f"):
        evaluation(source, classnames=list("abcdefghijkl"))
    with pytest.raises(UserError, match="3 names for 4 class folders; no name for: h"):
        evaluation(source, classnames=["b", "d", "f"])


@pytest.mark.parametrize("names", [["dog", "cat", "red fox"], ["Red_Fox", "cat", "dog"], ["dog", "red fox", "pony"]])
def test_the_folders_own_names_in_another_order_are_refused(tmp_path: Path, names: list[str]):
    with pytest.raises(
        UserError, match=f"another order \\(folder cat would be {names[0]}; .*list them in the folders'"
    ):
        evaluation(write_folder(tmp_path, ["cat", "dog", "red_fox"]), classnames=names)


def test_names_in_another_unicode_form_are_the_same_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = write_folder(tmp_path, ["caf\u00e9", "ma\u00f1ana"])
    assert evaluation(source, classnames=["cafe\u0301", "man\u0303ana"]).classnames == ["cafe\u0301", "man\u0303ana"]
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="another order"):
        evaluation(source, classnames=["man\u0303ana", "cafe\u0301"])


def test_names_behind_a_number_are_the_folders_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = write_folder(tmp_path, ["001.Black_footed", "002.Laysan", "003-sooty"])
    assert evaluation(source, classnames=["black footed", "Laysan", "sooty"]).classnames[0] == "black footed"
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"another order \(folder 001.Black_footed would be Laysan"):
        evaluation(source, classnames=["Laysan", "Black footed", "Sooty"])
    evaluation(source)
    assert "leading numbers become part of the prompts (001.Black footed); classnames=FILE" in capsys.readouterr().err


def test_a_folder_with_the_name_of_another_folder_is_refused(tmp_path: Path):
    source = write_folder(tmp_path, ["cat", "dog", "fox"])
    with pytest.raises(UserError, match=r"some of them repeated \(folder dog would be cat; 1 in all\)"):
        evaluation(source, classnames=["cat", "cat", "fox"])
    assert evaluation(source, classnames=["pet", "pet", "fox"]).classnames == ["pet", "pet", "fox"]


def test_a_pairing_shows_the_names_that_are_not_the_folders_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    evaluation(write_folder(tmp_path, ["cat", "dog", "fox"]), classnames=["cat", "hound", "fox"])
    title, pair = capsys.readouterr().err.splitlines()
    assert title.endswith("are paired with the class folders in their order, of which 2 match by name:")
    assert pair == "  1: dog -> hound"


@pytest.mark.parametrize("shuffled", [sorted(imagenet_classnames()), imagenet_classnames()[::-1], IDS[::-1]])
def test_imagenets_names_in_another_order_are_refused(shuffled: list[str]):
    for folders in (IDS, IDS[10:13]):
        with pytest.raises(UserError, match="the folders' own names, in another order"):
            class_names(shuffled, folders)
    with pytest.raises(UserError, match=r"another order \(folder n01530575 would be house finch"):
        class_names([imagenet_classnames()[label] for label in (12, 10, 11)], IDS[10:13])


def test_another_list_of_imagenets_names_is_shown_beside_the_folders():
    names = [f"{name}, as others call it" for name in imagenet_classnames()]
    (notice,) = class_names(names, IDS[10:12]).notices
    assert notice.splitlines()[1:] == [f"  {place}: {IDS[10 + place]} -> {names[10 + place]}" for place in range(2)]
    assert class_names([imagenet_classnames()[label] for label in (10, 11)], IDS[10:12]).notices == []


@pytest.mark.parametrize("names", [None, ["cat", "dog", "red fox"], ["Cat", "dog", "red_fox"]])
def test_names_that_are_the_folders_say_nothing(tmp_path: Path, names: Any, capsys: pytest.CaptureFixture[str]):
    mine = evaluation(write_folder(tmp_path, ["cat", "dog", "red_fox"]), classnames=names)
    assert [name.lower() for name in mine.classnames] == ["cat", "dog", "red fox"]
    assert "->" not in capsys.readouterr().err


def test_an_underscore_is_a_space_unless_it_is_to_be_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = write_folder(tmp_path, ["cat", "large_blue_ring"])
    assert evaluation(source).classnames == ["cat", "large blue ring"]
    assert capsys.readouterr().err.count("`_` is read as a space") == 1
    assert evaluation(source, underscores="keep").classnames == ["cat", "large_blue_ring"]
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="underscores=dash: expected space"):
        evaluation(source, underscores="dash")


def test_a_part_of_imagenet_is_matched_by_wordnet_ids(tmp_path: Path):
    chosen = [3, 17, 500, 999]
    source, names = write_folder(tmp_path, [IDS[label] for label in chosen]), imagenet_classnames()
    for given in ("imagenet", None, names):
        mine = evaluation(source, classnames=given)
        assert mine.classnames == [names[label] for label in chosen]
        metrics = mine.run(bundle(dual_encoder()))
        assert metrics["chance"] == 25
        assert mine.notes == {"classes": "4 of 1000"}
        assert mine.headline(metrics).endswith("(chance 25.0 %), 4 of 1000 classes")


def test_all_of_imagenet_is_matched_in_label_order():
    names = class_names("imagenet", IDS)
    assert names.names == imagenet_classnames()
    assert (names.places, names.num_known) == (list(range(1000)), 1000)
    assert (IDS[0], names.names[0], IDS[207], names.names[207]) == (
        "n01440764",
        "tench",
        "n02099601",
        "Golden Retriever",
    )


def test_folders_that_are_no_classes_of_imagenet_are_named():
    with pytest.raises(UserError, match="1001 classes for 1000 published ones; not published: misc;"):
        class_names("imagenet", [*IDS, "misc"])
    with pytest.raises(UserError, match="n00000001 is a WordNet id, but not of an ImageNet-1k class"):
        class_names(None, [IDS[0], "n00000001"])


def test_attributes_follow_their_class_names(tmp_path: Path):
    parity = {"odd": ["no", "yes"] * 500}
    mine = evaluation(write_folder(tmp_path, [IDS[3], IDS[4]]), classnames="imagenet", attributes=parity)
    assert mine.attributes == {"odd": ["yes", "no"]}


def test_names_and_templates_come_from_files(tmp_path: Path):
    (tmp_path / "names.txt").write_text("\n".join(CLASSNAMES) + "\n")
    (tmp_path / "templates.txt").write_text("a {}.\nthe {}.\n")
    files = {"classnames": str(tmp_path / "names.txt"), "templates": str(tmp_path / "templates.txt")}
    mine = evaluation(Pictures(3), **files)
    assert (mine.classnames, mine.templates) == (CLASSNAMES, ["a {}.", "the {}."])
    for count in (7, 80):
        assert evaluation(Pictures(3), classnames=CLASSNAMES, templates=f"imagenet{count}").templates == (
            imagenet_templates(count)
        )


def test_names_that_read_the_same_are_named_once(capsys: pytest.CaptureFixture[str]):
    evaluation(Pictures(3), classnames=["missile", "dog", "Missile", "sun_glasses", "sun  glasses"])
    lines = [line for line in capsys.readouterr().err.splitlines() if "several labels" in line]
    assert len(lines) == 1
    assert "missile, sun glasses name several labels" in lines[0]
    ZeroShotClassifier(bundle(dual_encoder()), ["cat", "dog", "Cat"])
    assert capsys.readouterr().err == "labels: cat given several times: they share the probability\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classnames": "cat, dog"}, r"classnames=cat, dog: no such file; .* or a list such as \[cat, dog\]"),
        ({"templates": "a photo of a {}."}, r"one string, not a list: write templates=\['a photo of a {}\.'\]"),
        ({"templates": "imagenet81"}, "templates=imagenet81: no such file; expected .* imagenet7 or imagenet80"),
        ({"classnames": ["cat", True]}, r"classnames\[1\] is True: expected text; in a config, put it in quotes"),
        ({"classnames": ["cat", " "]}, r"classnames\[1\] is blank"),
        ({"classnames": {"cat", "dog"}}, "classnames is a set: expected a list"),
        ({"classnames": None}, "classnames=null: this dataset only has label numbers"),
    ],
)
def test_what_gives_no_list_of_names_is_refused(settings: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        evaluation(Pictures(3), **({"classnames": CLASSNAMES} | settings))


def test_one_string_is_no_list_of_labels_and_generators_are_one():
    model = bundle(dual_encoder())
    for text in ("cat, dog", b"cat, dog"):
        with pytest.raises(UserError, match=r"labels='cat, dog' is one string, not a list: write \['cat', 'dog'\]"):
            ZeroShotClassifier(model, text)  # pyright: ignore[reportArgumentType]
    for arguments in ((["cat"], "a {}."), ("cat", ["a {}."])):
        with pytest.raises(UserError, match="is one string, not a list"):
            class_embeddings(model.encode_text, *arguments)
    lists = ZeroShotClassifier(model, ["cat", "dog"], ["a {}.", "the {}."])
    generators = ZeroShotClassifier(
        model, (name for name in ("cat", "dog")), (f"{word} {{}}." for word in ("a", "the"))
    )
    assert generators(Pictures(1)[0].image) == lists(Pictures(1)[0].image)
    assert evaluation(Pictures(3), classnames=iter(CLASSNAMES), templates=iter(["{}"])).classnames == CLASSNAMES


def test_nearest_neighbours_of_other_class_folders_are_refused(tmp_path: Path):
    train, test = write_folder(tmp_path / "train", ["a", "b", "c"]), write_folder(tmp_path / "test", ["b", "c"])
    with pytest.raises(UserError, match=r"different classes \(3 and 2; a is not in both\)"):
        knn(train, test, k=1)
    assert knn(train, train, k=1).run(bundle(image_encoder()))["top1"] == 100


def test_a_source_without_class_folders_checks_labels_alone():
    assert zero_shot(Pictures(3)).classnames == CLASSNAMES
