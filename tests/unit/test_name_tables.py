"""Published class names, templates and configs of the evaluation sets, and how names are matched with a dataset's."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from evaluation_models import CLASSNAMES, Pictures, bundle, dual_encoder
from torchvision.datasets import MNIST, Flowers102

from openslip.config.compose import compose_config
from openslip.config.folder import config_folder
from openslip.data.class_names import letters
from openslip.data.sources.image_folder import ImageFolder
from openslip.data.sources.subset import Subset
from openslip.data.sources.torchvision_set import LOCATIONS
from openslip.errors import UserError
from openslip.evaluation.class_names import class_names
from openslip.evaluation.features import text_features
from openslip.evaluation.zeroshot import ZeroShot
from openslip.inference.imagenet_classes import imagenet_ids
from openslip.inference.imagenet_prompts import imagenet_classnames
from openslip.inference.prompts import class_embeddings, ensemble, template_features, texts_of
from openslip.inference.tables import ClassTable, class_table, table_names, template_table

# facebookresearch/SLIP c6faf5d: number and hash of each set's names (labels.json; several names of a class joined by
# " + ") and templates (templates.json), the split that dataset_catalog.json and datasets.py evaluate, and the metric of
# eval_zeroshot.py.
SLIP = {
    "food101": (101, "9c0eeb5a368baacb", 1, "77a79bac7d9cf25b", "test", "top1"),
    "cifar10": (10, "bb3914949cecedee", 18, "9bbf912e1144ca4c", "test", "top1"),
    "cifar100": (100, "60ae3a3ac1355fcf", 18, "9bbf912e1144ca4c", "test", "top1"),
    "cub200": (200, "a7bc058a7a945cf8", 1, "f3126b8375a9e07a", "val", "top1"),
    "sun397": (397, "dd1277b1cfcf09ba", 2, "c97a3d1ad5819800", "test_images.npy", "top1"),
    "cars": (196, "93d089469409bbd0", 8, "255ecc632c41182c", "test", "top1"),
    "aircraft": (100, "e1c9e72060e63d52", 2, "91522de75ad44711", "test", "mean_per_class"),
    "dtd": (47, "681d23b9cd3c2ede", 8, "1f6888d2130f62a4", "test", "top1"),
    "pets": (37, "c6f4365ced9dc96f", 1, "16a0790f0e45e97e", "test", "mean_per_class"),
    "caltech101": (102, "e0ecbf33d0f07158", 34, "90561580b7ea5dba", "test", "mean_per_class"),
    "flowers": (102, "5429e1ef6e0e5aa3", 1, "bfcd4bbb214d5015", "test", "mean_per_class"),
    "mnist": (10, "29dd21f55e4611d4", 1, "c0341e0a1fdfd8fb", "test", "top1"),
    "fer2013": (7, "595e836f12eae32d", 6, "ae805dccc6d01c6a", "test", "top1"),
    "stl10": (10, "08b234ce7b11dbd3", 2, "c97a3d1ad5819800", "test", "top1"),
    "eurosat": (10, "ee2e41b9973e7206", 3, "9bc85d9f1798d03b", "val", "top1"),
    "resisc45": (45, "3c2177013901f0ef", 18, "8f390b8578e5c3bf", "test", "top1"),
    "gtsrb": (43, "953036bc5aedbe6b", 3, "a6794061485dcfa2", "test", "top1"),
    "kitti_distance": (4, "1fb4e100139fbd3f", 1, "44136fa355b3678a", "val", "top1"),
    "country211": (211, "027b30d283f3a153", 5, "038d0d5e084b6ee1", "test", "top1"),
    "patch_camelyon": (2, "27352df7ede1fd87", 1, "7c7758b084ef77fa", "val", "top1"),
    "ucf101_frames": (101, "4c5f54cb419a8393", 48, "d1fceafd76c54a5f", "val", "top1"),
    "kinetics700_frames": (700, "a34c9fed41f5f9ed", 28, "820c23cc30bda2e5", "val_images", "mean_of_top1_top5"),
    "clevr_counts": (8, "3c9410fd14f4550f", 1, "da3770f103c74310", "val_images.npy", "top1"),
    "hateful_memes": (2, "62a880e9ac288c0e", 1, "16a7fa63385bbf56", "dev", "roc_auc"),
    "rendered_sst2": (2, "2e61aa7558046c2c", 1, "9034019e8a14384c", "test", "top1"),
}
# clip_benchmark 1.6.2: hashes of en_classnames.json, and numbers and hashes of its templates ({c} written as {}).
CLIP_BENCHMARK_NAMES = {
    "flowers": "5429e1ef6e0e5aa3",
    "gtsrb": "953036bc5aedbe6b",
    "country211": "027b30d283f3a153",
    "eurosat": "ee2e41b9973e7206",
    "fer2013": "0fece1ddf1a3ebf7",  # the first of SLIP's names
    "caltech101": "e0ecbf33d0f07158",
    "mnist": "29dd21f55e4611d4",
    "patch_camelyon": "27352df7ede1fd87",
    "imagenet": "571ae1c583b4be7d",
    "clevr_distance": "747824b2730ecf44",
    "svhn": "dfab20279a085795",
    "dmlab": "e16a64c8859bb2bb",
    "diabetic_retinopathy": "4c2896af07cd8e30",
}
CLIP_BENCHMARK_ORDERS = {  # of the same classes
    "caltech101": "8cd73f5d8e14e75f",
    "pets": "50be1443390f8a02",
    "kitti_distance": "ecc16a4f92ee9fb1",
    "clevr_counts": "d949e12b895f424a",
}
CLIP_BENCHMARK_TEMPLATES = {
    "svhn": (6, "89f08e8bbeaa6bd5"),
    "dmlab": (1, "44136fa355b3678a"),
    "diabetic_retinopathy": (1, "6873b80434f5ed05"),
    "clevr_distance": (1, "0d1d916c64bc15b7"),
    "dsprites_label_orientation": (4, "5db50af4199c1ba6"),
    "dsprites_label_x_position": (1, "b4d0482f31d6a38d"),
    "smallnorb_azimuth": (4, "5db50af4199c1ba6"),
    "smallnorb_elevation": (4, "5db50af4199c1ba6"),
    "voc2007": (1, "e8e367e769f86c27"),
    "imagenet80": (80, "a8a4822f2921936e"),  # sorted
}
NUMBERED = {  # label numbers as names: ClassLabel(num_classes=...) in tensorflow_datasets
    "dsprites_label_orientation": 40,
    "dsprites_label_x_position": 32,
    "smallnorb_azimuth": 18,
    "smallnorb_elevation": 9,
}
SAMPLES = {  # mlfoundations/datacomp tasklist.yml, of the splits that SLIP evaluates or that only wds_* folders have
    **{"food101": 25250, "cifar10": 10000, "cifar100": 10000, "cars": 8041, "aircraft": 3333, "dtd": 1880},
    **{"pets": 3669, "caltech101": 6085, "flowers": 6149, "mnist": 10000, "stl10": 8000, "gtsrb": 12630},
    **{"kitti_distance": 711, "country211": 21100, "patch_camelyon": 32768, "rendered_sst2": 1821, "svhn": 26032},
    **{"imagenet1": 50000, "imagenet80": 50000, "imagenetv2": 10000, "imagenet_a": 7500, "imagenet_o": 2000},
    **{"imagenet_r": 30000, "imagenet_sketch": 50889, "objectnet": 18574, "voc2007": 14976, "clevr_distance": 15000},
}
BY_HAND = {
    path.stem: yaml.safe_load(path.read_text())[path.stem]
    for path in sorted((config_folder() / "evaluation").glob("*.yaml"))
    if "first_found" in path.read_text()
}
CONFIGS = {name: settings for name, settings in BY_HAND.items() if isinstance(settings.get("classnames"), str)}


def table(name: str) -> ClassTable:
    found = class_table(name)
    assert found is not None
    return found


def names_of(name: str) -> list[str]:
    return [names[0] for names in table(name).names]


def digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def write_folders(root: Path, names: Sequence[str]) -> ImageFolder:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "1.png").write_bytes(Pictures(1)[0].image)
    return ImageFolder(root=str(root))


def zero_shot(source: Any, name: str, **settings: Any) -> ZeroShot:
    arguments = {"classnames": name, "templates": ["a {}."], "batch_size": 4, "num_workers": 0}
    return ZeroShot(title=name, source=source, **(arguments | settings))


class Named(Pictures):
    """Pictures whose label numbers are stored in the dataset, with names for them."""

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(3)
        self.classes = classes


@pytest.mark.parametrize("name", SLIP)
def test_names_and_templates_are_those_of_slip(name: str):
    num_classes, names, num_templates, templates, *_ = SLIP[name]
    assert (len(table(name).names), digest([" + ".join(of) for of in table(name).names])) == (num_classes, names)
    assert (len(template_table(name) or []), digest(template_table(name) or [])) == (num_templates, templates)


def test_names_and_orders_are_those_of_clip_benchmark_where_the_two_agree():
    assert {name: digest(names_of(name)) for name in CLIP_BENCHMARK_NAMES} == CLIP_BENCHMARK_NAMES
    assert {name: digest(table(name).other_order) for name in CLIP_BENCHMARK_ORDERS} == CLIP_BENCHMARK_ORDERS
    for name, (count, templates) in CLIP_BENCHMARK_TEMPLATES.items():
        ours = template_table(name) or []
        assert (len(ours), digest(sorted(ours) if name == "imagenet80" else ours)) == (count, templates)
    for name, count in NUMBERED.items():
        assert names_of(name) == [str(label) for label in range(count)]


def test_subsets_of_imagenet_are_wordnet_ids_with_clips_names():
    info = Path(timm.__file__).parent / "data" / "_info"
    for name in ("imagenet_a", "imagenet_r"):
        ids = (info / f"{name}_synsets.txt").read_text().split()
        assert [spellings[-1] for spellings in table(name).spellings] == ids
        assert names_of(name) == [imagenet_classnames()[imagenet_ids()[identifier]] for identifier in ids]
    ids = [spellings[-1] for spellings in table("imagenet_o").spellings]
    assert digest(ids) == "39f8e64e8f89efad"  # clip_benchmark 1.6.2, datasets/builder.py
    assert [imagenet_ids()[identifier] for identifier in ids] == sorted(
        imagenet_ids()[identifier] for identifier in ids
    )


def test_other_tables_have_the_published_number_of_classes():
    assert digest(names_of("objectnet")) == "6f31c7eebfd7cd1d"  # ObjectNet's mappings in mlfoundations/wise-ft
    assert len(table("objectnet").names) == 113
    codes = [spellings[-1] for spellings in table("country211").spellings]
    assert codes == sorted(set(codes))  # folders of ISO codes, whose order is the published one
    assert (len(table("voc2007").names), names_of("voc2007")) == (20, sorted(names_of("voc2007")))
    assert len(table("imagenet").names) == 1000


@pytest.mark.parametrize("name", sorted({*table_names("classnames")} - {"imagenet"}))
def test_no_spelling_names_two_classes(name: str):
    counts = Counter(chain.from_iterable(set(map(letters, spellings)) for spellings in table(name).spellings))
    assert {spelling for spelling, count in counts.items() if count > 1} == set()
    assert [line for names in table(name).names for line in names if line != line.strip() or "|" in line] == []


@pytest.mark.parametrize("name", table_names("templates"))
def test_templates_are_used_as_published(name: str):
    assert texts_of(texts_of(name, "templates"), "templates") == template_table(name)  # none repeated, each with {}


@pytest.mark.parametrize("name", table_names("classnames"))
def test_a_source_without_names_counts_in_the_published_order_unless_there_are_two(name: str):
    """FER2013 of torchvision has label numbers alone, in the order that SLIP does not have."""
    if table(name).other_order:
        with pytest.raises(UserError, match="label numbers without names, and there are two published label orders"):
            class_names(name, None)
    else:
        assert class_names(name, None).names == names_of(name)


@pytest.mark.parametrize("name", sorted({*table_names("classnames")} - {"imagenet", "clevr_distance"}))
def test_folders_are_matched_by_name_in_any_order_and_stored_numbers_only_in_a_published_one(name: str):
    folders = [spellings[-1] for spellings in table(name).spellings]
    reverse = [*reversed(folders)]
    assert class_names(name, reverse).names == names_of(name)[::-1]
    assert class_names(name, folders, labels_are_sorted_names=False).names == names_of(name)
    with pytest.raises(
        UserError, match=rf"another order than .* \(label 0 is .*, published .*; {len(folders) // 2 * 2}"
    ):
        class_names(name, reverse, labels_are_sorted_names=False)


@pytest.mark.parametrize("name", [name for name in table_names("classnames") if table(name).other_order])
def test_another_published_order_is_accepted_and_names_stay_with_their_labels(name: str):
    order = table(name).other_order
    chosen = class_names(name, order, labels_are_sorted_names=False)
    assert sorted(chosen.places) == list(range(len(order)))
    assert chosen.places != sorted(chosen.places)
    for label, place in enumerate(chosen.places):
        assert letters(order[label]) in set(map(letters, table(name).spellings[place]))
    swapped = [order[1], order[0], *order[2:]]
    with pytest.raises(UserError, match="another order"):
        class_names(name, swapped, labels_are_sorted_names=False)
    with pytest.raises(UserError, match=r"classes are numbers .* two published label orders|not published: 0"):
        class_names(name, [str(label) for label in range(len(order))])


def test_the_names_of_torchvisions_classes_are_known():
    assert class_names("flowers", Flowers102.classes, labels_are_sorted_names=False).names == names_of("flowers")
    assert class_names("mnist", MNIST.classes, labels_are_sorted_names=False).names == names_of("mnist")
    sun = ["abbey", "apartment_building/outdoor"]
    assert [letters(name) in set(map(letters, names_of("sun397"))) for name in sun] == [True, True]


def test_folders_with_other_punctuation_or_a_leading_number_are_the_class(tmp_path: Path):
    assert class_names("ucf101_frames", [name.replace(" ", "") for name in names_of("ucf101_frames")]).places[:2] == [
        0,
        1,
    ]
    birds = [f"{number:03d}.{name.replace(' ', '_')}" for number, name in enumerate(names_of("cub200"), 1)]
    assert class_names("cub200", birds[::-1]).names == names_of("cub200")[::-1]
    folders = [name.replace(" ", "_") for name in names_of("dtd")]
    mine = zero_shot(write_folders(tmp_path, folders), "dtd")
    assert mine.classnames == names_of("dtd")
    assert "polka-dotted" in mine.classnames


def test_the_folders_of_eurosat_are_its_classes():
    """EuroSAT.zip of Helber et al. 2019, as its site and torchvision unpack it."""
    folders = [
        *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
        *("Pasture", "PermanentCrop", "Residential", "River", "SeaLake"),
    ]
    assert class_names("eurosat", folders).names == names_of("eurosat")
    assert class_names("eurosat", folders).names[2] == "brushland or shrubland"


@pytest.mark.parametrize("first", [0, 1])
def test_folders_that_are_label_numbers_have_the_published_names(first: int):
    numbers = [str(label + first) for label in range(102)]
    assert class_names("flowers", numbers).names == names_of("flowers")
    assert class_names("flowers", sorted(numbers)).places == [int(number) - first for number in sorted(numbers)]
    with pytest.raises(UserError, match=r"numbers in another order \(.*\): expected"):
        class_names("flowers", sorted(numbers), labels_are_sorted_names=False)
    with pytest.raises(UserError, match="101 classes for 102 published ones"):
        class_names("flowers", numbers[:-1])


def test_a_missing_an_extra_and_a_renamed_class_are_each_named_with_both_sides(tmp_path: Path):
    folders = [name.replace(" ", "_") for name in names_of("eurosat")]
    with pytest.raises(
        UserError, match="9 classes for 10 published ones; missing in the dataset: forest; the dataset "
    ):
        zero_shot(write_folders(tmp_path / "missing", [name for name in folders if name != "forest"]), "eurosat")
    both = (
        r"the dataset has .*, \.\.\. 8 more, the table annual crop land, forest, brushland or shrubland, \.\.\. 7 more"
    )
    with pytest.raises(UserError, match=f"11 classes for 10 published ones; not published: misc; {both}"):
        zero_shot(write_folders(tmp_path / "extra", [*folders, "misc"]), "eurosat")
    with pytest.raises(UserError, match="missing in the dataset: river; not published: stream"):
        zero_shot(write_folders(tmp_path / "other", [*(set(folders) - {"river"}), "stream"]), "eurosat")
    with pytest.raises(UserError, match="11 classes for 10 published ones: some of them repeated"):
        zero_shot(write_folders(tmp_path / "twice", [*folders, "AnnualCrop"]), "eurosat")


def test_shuffled_names_of_stored_labels_are_refused():
    assert zero_shot(Named(["negative", "positive"]), "rendered_sst2").classnames == ["negative", "positive"]
    with pytest.raises(UserError, match="label 0 is positive, published negative; label 1 is negative, published pos"):
        zero_shot(Named(["positive", "negative"]), "rendered_sst2")
    names = names_of("imagenet")
    with pytest.raises(UserError, match=r"another order .*; 2 in all\)"):
        class_names("imagenet", [*names[:5], names[6], names[5], *names[7:]], labels_are_sorted_names=False)
    with pytest.raises(UserError, match="999 classes for 1000 published ones; missing in the dataset: tench"):
        class_names("imagenet", names[1:], labels_are_sorted_names=False)


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_o", "imagenet_r"])
def test_a_subset_of_imagenet_must_be_exactly_its_ids(name: str):
    ids = [spellings[-1] for spellings in table(name).spellings]
    assert class_names(name, ids).names == names_of(name)
    other = next(identifier for identifier in imagenet_ids() if identifier not in ids)
    with pytest.raises(UserError, match=f"201 classes for 200 published ones; not published: {other}; "):
        class_names(name, sorted([*ids, other]))
    with pytest.raises(
        UserError, match=f"199 classes for 200 published ones; missing in the dataset: {names_of(name)[0]}"
    ):
        class_names(name, ids[1:])
    with pytest.raises(UserError, match="1000 classes for 200 published ones"):
        class_names(name, [*imagenet_ids()])


def test_some_of_imagenets_folders_are_the_only_candidates_and_the_headline_says_so(tmp_path: Path):
    ids = [*imagenet_ids()]
    mine = zero_shot(write_folders(tmp_path, [ids[3], ids[17]]), "imagenet", expected_samples=50000)
    assert mine.classnames == [imagenet_classnames()[3], imagenet_classnames()[17]]
    assert mine.headline(mine.run(bundle(dual_encoder()))).endswith(", 2 of 1000 classes")


def test_prompts_of_several_names_of_a_class_are_averaged():
    model = dual_encoder().double()
    names, templates = [["happy", "smiling"], ["neutral"]], ["a {} face.", "they look {}."]
    ours = ensemble(template_features(lambda texts: text_features(bundle(model), texts), names, templates))
    for row, of_class in zip(ours, names, strict=True):
        prompts = [template.replace("{}", name) for template in templates for name in of_class]
        rows = [text_features(bundle(model), [prompt])[0].tolist() for prompt in prompts]
        mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        norm = math.sqrt(sum(value * value for value in mean))
        assert row.tolist() == pytest.approx([value / norm for value in mean], abs=1e-12)
    single = class_embeddings(lambda texts: text_features(bundle(model), texts), ["happy", "neutral"], templates)
    torch.testing.assert_close(ours[1], single[1], rtol=0, atol=1e-12)
    assert not torch.allclose(ours[0], single[0], atol=1e-3)


def test_all_names_of_a_class_reach_the_classifier(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def encode(_: Any, texts: list[str]) -> torch.Tensor:
        asked.extend(texts)
        return torch.nn.functional.normalize(torch.ones(len(texts), 12), dim=-1)

    monkeypatch.setattr("openslip.evaluation.zeroshot.text_features", encode)
    pictures = Pictures(3)
    pictures.classes = names_of("fer2013")
    zero_shot(pictures, "fer2013", templates="fer2013").run(bundle(dual_encoder()))
    assert len(asked) == 6 * 12  # 6 templates, 12 names of 7 classes
    assert {"they look smiling.", "they look happy.", "look at how spooked they are."} <= set(asked)


def test_another_number_of_samples_than_published_is_noted_or_refused():
    def sized(expected: Any, source: Any = None) -> ZeroShot:
        return zero_shot(source or Pictures(7), "x", classnames=CLASSNAMES, expected_samples=expected)

    for complete in (7, [5, 7], None):
        assert "samples" not in sized(complete).notes
    few = sized([9, 20])
    assert few.notes == {"samples": "7 of 9"}
    assert few.headline(few.run(bundle(dual_encoder()))).endswith(", 7 of 9 samples")
    assert sized(7, Subset(Pictures(7), 3)).notes == {"samples": "3 of 7"}
    assert sized([5, 9]).notes == {"samples": "7 of 9"}
    with pytest.raises(
        UserError, match=r"x: the source has 7 samples, the published split has 5 or 6: .*expected_samples"
    ):
        sized([5, 6])


def test_an_unknown_table_names_the_nearest_ones():
    for given, key, nearest in (("flower", "classnames", "flowers"), ("cifar1000", "templates", "cifar10 or cifar100")):
        with pytest.raises(UserError, match=f"{key}={given}: no such file; expected .* one per line, {nearest}, or"):
            texts_of(given, key)
    with pytest.raises(UserError, match=r"one per line, a dataset's name \(food101\), or a list"):
        texts_of("qqqq", "templates")


def test_a_file_with_the_name_of_a_table_is_read_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("dtd").write_text("cat\ndog\n")
    assert texts_of("./dtd", "classnames") == ["cat", "dog"]
    assert texts_of("dtd", "classnames") == names_of("dtd")
    for name in ("pets.other_order", "../names/pets"):
        with pytest.raises(UserError, match="no such file"):
            texts_of(name, "classnames")


def test_every_set_has_a_config_that_composes_and_names_tables():
    assert {*SLIP, *CLIP_BENCHMARK_TEMPLATES, *SAMPLES} - {"voc2007"} <= {*CONFIGS, "imagenet80"}
    config, _ = compose_config("eval", ["checkpoint=FILE", f"evaluation=[{','.join(BY_HAND)}]"])
    assert sorted(config["evaluation"]) == sorted(BY_HAND)
    suite, _ = compose_config("eval", ["checkpoint=FILE", "evaluation=suite"])
    assert sorted(suite["evaluation"]) == sorted([*SLIP, "imagenet"])
    for name in CONFIGS:
        settings = config["evaluation"][name]
        assert class_table(settings["classnames"]) is not None, name
        assert texts_of(settings["templates"], "templates"), name
        assert settings["source"]["name"] in (name, "imagenet")
        for place in settings["source"]["places"].values():
            assert place["_partial_"] is True
            assert str(place["root"]).startswith(("data/evaluation", "data/imagenet"))


@pytest.mark.parametrize("name", SLIP)
def test_a_config_has_the_metric_and_the_split_of_slip(name: str):
    *_, split, metric = SLIP[name]
    assert CONFIGS[name]["metric"] == metric
    assert (CONFIGS[name]["classnames"], CONFIGS[name]["templates"]) == (name, name)
    places = CONFIGS[name]["source"]["places"]
    folders = places.get("folders", {}).get("root", "")
    assert folders.endswith(f"/{name}/{split}") or places["lists"]["images"] == split
    stated = {"split": split} if name not in ("cifar10", "cifar100", "mnist") else {"train": False}
    if "torchvision" in places and name != "sun397":
        arguments = places["torchvision"]["arguments"]
        assert {key: value for key, value in arguments.items() if key != "annotation_level"} == stated


def test_folders_of_classes_are_not_taken_for_torchvisions_layout():
    both = [config["source"]["places"] for config in CONFIGS.values() if "torchvision" in config["source"]["places"]]
    folders = {
        places["torchvision"]["dataset"]: places["folders"]["root"].partition("}/")[2]
        for places in both
        if "folders" in places
    }
    assert len(folders) > 10
    taken = {name for name, folder in folders.items() if Path(folder).is_relative_to(LOCATIONS[name])}
    assert taken == {"Country211"}  # of which torchvision reads the same folders


def test_configs_expect_the_published_numbers_of_samples():
    assert {name: CONFIGS[name]["expected_samples"] for name in SAMPLES} == SAMPLES
    assert CONFIGS["sun397"]["expected_samples"] == [19850, 108754]


def test_labels_of_slips_lists_are_in_the_order_of_its_code():
    counts = CONFIGS["clevr_counts"]["source"]["places"]["lists"]["classes"]
    chosen = class_names("clevr_counts", counts, labels_are_sorted_names=False)
    assert chosen.names == ["10", "3", "4", "5", "6", "7", "8", "9"]
