"""Every zero-shot set in made-up copies of its published layouts, by one command, on one, two and three ranks."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import evaluation_layouts as layouts
import numpy as np
import pytest
import yaml
from evaluation_layouts import colour, put
from evaluation_suites import start, words, write_place
from PIL import Image
from sklearn import metrics as sklearn_metrics

from openslip.config.folder import config_folder
from openslip.inference.tables import class_table

CONFIGS = {
    path.stem: yaml.safe_load(path.read_text())[path.stem]
    for path in sorted((config_folder() / "evaluation").glob("*.yaml"))
    if "first_found" in path.read_text()
}
SETS = {name: config for name, config in CONFIGS.items() if "templates" in config and config["classnames"]}
SETS.pop("voc2007_multilabel")  # its labels are vectors
# Torchvision compares published checksums of the other sets' files, also in the processes that evaluate.
TORCHVISION = ("Country211", "DTD", "FGVCAircraft", "Food101", "GTSRB", "MNIST", "OxfordIIITPet", "RenderedSST2")
LAYOUTS = ("folders", "lists", "wds", "torchvision")
RESULTS = Path("runs/one/evaluations/step-000003")


def folder_of(root: str, place: Path) -> Path:
    """The folder that a config names by an environment variable, of which only EVALUATION_DATA is set."""
    variable, _, rest = root.removeprefix("${oc.env:").partition("}")
    name, _, default = variable.partition(",")
    return place / {"EVALUATION_DATA": "sets"}.get(name, default) / rest.lstrip("/")


def image(label: int, number: int) -> Image.Image:
    """An image of noise in the colour of its class."""
    noise = np.random.default_rng([label, number]).integers(0, 90, (24, 20, 3))
    return Image.fromarray(((np.array(colour(label, number)) + noise) % 256).astype(np.uint8))


def classes_of(config: dict[str, Any]) -> list[str]:
    """A name of each class that stands for it in the dataset's files, in the published label order."""
    table = class_table(config["classnames"])
    assert table is not None
    return [next((name for name in reversed(spellings) if name), "") for spellings in table.spellings]


def write_set(config: dict[str, Any], layout: str, place: Path) -> bool:
    """Write a copy with one or two images of each class; False for a set that is not read from this layout."""
    source = config["source"]["places"].get(layout)
    if source is None or source.get("dataset", "MNIST") not in TORCHVISION or "objectnet" in source["_target_"]:
        return False
    root, classes = folder_of(source["root"], place), classes_of(config)
    if layout in ("folders", "wds") and root.exists():
        return True  # written for another evaluation of ImageNet
    every = [(label, number) for label in range(len(classes)) for number in range(label % 2 + 1)]
    if layout == "torchvision":
        layouts.TORCHVISION[source["dataset"]][1](root, classes)
    elif layout == "wds":
        layouts.wds(root, classes, num_shards=3)
    elif layout == "folders":
        if "NumberedFolder" in source["_target_"]:
            classes = [str(label) for label in range(len(classes))]
        for label, number in every:
            put(root / classes[label].replace("/", " ") / f"{number}.png", image(label, number))
    else:
        names = [f"images/{label}_{number}.png" for label, number in every]
        for (label, number), name in zip(every, names, strict=True):
            put(root / name, image(label, number))
        in_list = source.get("classes") or range(len(classes))
        np.save(root / source["images"], np.array(names))
        np.save(root / source["labels"], np.array([in_list[label] for label, _ in every]))
    return True


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_sets_of_a_layout_have_the_same_files_on_any_number_of_ranks(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place = write_place(tmp_path / "place")
    monkeypatch.chdir(place)
    names = [name for name, config in SETS.items() if write_set(config, layout, place)]
    files = []
    for ranks in (1, 2, 3):
        settings = [f"evaluation.{name}.{key}" for name in names for key in ("num_workers=0", "templates=[a {}.]")]
        processes = start(place, words(",".join(names), "feature_cache=null", *settings), ranks)
        codes = [process.wait(900) for process in processes]
        assert codes == [0] * ranks, [process.said() for process in processes]
        files.append({path.name: path.read_bytes() for path in RESULTS.iterdir()})
        shutil.rmtree(RESULTS)
    assert {f"{name}.json" for name in names} <= files[0].keys()
    assert files[0] == files[1] == files[2]
    for name in names:
        check_metrics(json.loads(files[0][f"{name}.json"])["metrics"], files[0][f"{name}.npz"])


def check_metrics(metrics: dict[str, float], content: bytes) -> None:
    """Compare with scikit-learn's metrics of the stored predictions."""
    arrays = np.load(io.BytesIO(content))
    labels, predictions = arrays["labels"], arrays["predictions"]
    assert metrics["num_samples"] == len(labels)
    truth = 100 * sklearn_metrics.accuracy_score(labels, predictions)
    np.testing.assert_allclose(metrics["top1"], truth, rtol=1e-12)
    per_class = 100 * sklearn_metrics.balanced_accuracy_score(labels, predictions)
    np.testing.assert_allclose(metrics["mean_per_class"], per_class, rtol=1e-12)
