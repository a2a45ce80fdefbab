"""`openslip verify` on metrics of other libraries: tests/data/zero_shot, and folders of other sizes and settings."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from metric_files import Sizes, write_metrics

from openslip.__main__ import run as openslip
from openslip.errors import UserError
from openslip.evaluation.logistic import fit_logistic
from openslip.evaluation.retrieval import ranks
from openslip.verify import classification, compare, probes, recorded_retrieval
from openslip.verify.deviation import Row
from openslip.verify.recorded_figures import Ours, array_row

RECORDED = Path(__file__).parents[1] / "data" / "zero_shot"
OTHERS = {
    "many": Sizes(
        classes=9,
        samples=131,
        probe_classes=6,
        cs=(0.05, 3.0),
        neighbours=((3, 0.1), (11, 0.05)),
        captions={"single": (1, 1), "several": (1, 6)},
        places=(1, 3, 10),
    ),
    "few": Sizes(  # too few classes for top-5, and fewer images than places
        classes=3,
        samples=40,
        probe_classes=4,
        cs=(1.0,),
        neighbours=((90, 0.3),),
        captions={"pairs": (2, 2)},
        places=(2, 30),
    ),
    "two": Sizes(
        classes=3,
        samples=40,
        probe_classes=2,
        cs=(0.5, 20.0),
        neighbours=((3, 0.1),),
        captions={"pairs": (2, 2)},
        places=(1,),
    ),
}
NOT_COMPARED = {
    "binary: roc_auc_if_scored_by_logit_1_alone",
    "multilabel: largest_difference",
    "prompts: largest_classifier_difference_then",
    "prompts: top1_if_prompts_not_normalised_first",
    "retrieval_five: true_recall_of_captions@5_not_used",
    "retrieval_uneven: true_recall_of_captions@5_not_used",
    *(f"probe.npz: adamw/{name}" for name in ("bias", "init_bias", "init_weight", "weight")),
    *(f"linear_probe: {kind}/C{c}/iterations" for kind in ("raw", "normalized") for c in (0.01, 10.0)),
    "linear_probe: raw/C0.316/iterations",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in OTHERS}
    for seed, (name, folder) in enumerate(folders.items()):
        write_metrics(folder, OTHERS[name], seed)
    return folders


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, dirs_exist_ok=True)
    return to


def out_of_tolerance(rows: list[Row]) -> set[str]:
    return {row.quantity for row in rows if not row.ok}


def quantities(rows: list[Row], *, compared: bool) -> set[str]:
    return {row.quantity for row in rows if (row.deviation is not None) == compared}


def change_metrics(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "metrics.json"
    content = json.loads(path.read_text())
    change(content["metrics"])
    path.write_text(json.dumps(content))


def change_array(folder: Path, file: str, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    arrays = dict(np.load(folder / file))
    np.savez(folder / file, allow_pickle=False, **(arrays | {name: change(arrays[name])}))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_recorded_metrics_agree_and_what_is_not_compared_is_listed(dtype: str):
    rows = compare(RECORDED, "cpu", dtype)
    assert [row.line(0) for row in rows if not row.ok] == []
    assert quantities(rows, compared=False) == NOT_COMPARED
    assert all(row.note for row in rows if row.deviation is None)
    assert len(quantities(rows, compared=True)) == 91


@pytest.mark.parametrize("name", OTHERS)
def test_folders_of_other_sizes_and_settings_agree(others: dict[str, Path], name: str):
    rows = compare(others[name], "cpu", "float32")
    assert [row.line(0) for row in rows if not row.ok] == []
    skipped = {row.quantity.split("/")[-1] for row in rows if row.deviation is None}
    assert skipped == {"iterations", "binary: roc_auc_if_scored_by_logit_1_alone"}
    figures = json.loads((others[name] / "metrics.json").read_text())["metrics"]
    assert f"knn: k{OTHERS[name].neighbours[0][0]}_T{OTHERS[name].neighbours[0][1]}/top1" in quantities(
        rows, compared=True
    )
    assert {row.quantity.split(": ")[0] for row in rows} >= set(figures)


def test_elements_that_are_nan_in_both_arrays_agree():
    """As the recall of a class without samples."""
    recorded = np.array([0.5, np.nan, 1.0])
    assert array_row("", recorded, Ours(recorded.copy())).ok
    assert not array_row("", recorded, Ours(np.array([0.5, 0.0, 1.0]))).ok
    assert not array_row("", np.array([0.5, 0.0, 1.0]), Ours(recorded)).ok
    assert not array_row("", recorded, Ours(np.array([0.6, np.nan, 1.0]))).ok


def test_one_per_mille_on_any_recorded_figure_is_seen(others: dict[str, Path], tmp_path: Path):
    folder = copied(others["many"], tmp_path)

    def enlarge(figures: dict[str, Any]) -> None:
        for key, value in figures.items():
            if isinstance(value, dict):
                enlarge(value)
            elif key not in ("k", "temperature"):
                figures[key] = value * 1.001

    before = quantities(compare(folder, "cpu", "float32"), compared=True)
    change_metrics(folder, enlarge)
    seen = out_of_tolerance(compare(folder, "cpu", "float32"))
    assert seen == {quantity for quantity in before if ".npz: " not in quantity and quantity != "arrays.json"}


def test_one_changed_element_of_any_recorded_array_is_seen(others: dict[str, Path], tmp_path: Path):
    folder = copied(others["many"], tmp_path)
    rows = compare(folder, "cpu", "float32")
    arrays = {row.quantity for row in rows if ".npz: " in row.quantity and row.deviation is not None}
    assert len(arrays) == 5 + 2 + 4 * 3 + 2

    def enlarge_largest(array: np.ndarray) -> np.ndarray:
        changed = array.copy()
        changed.flat[np.abs(array).argmax()] += 1 if array.dtype.kind == "i" else changed.flat[np.abs(array).argmax()]
        return changed

    for quantity in arrays:
        file, name = quantity.split(": ")
        change_array(folder, file, name, enlarge_largest)
    assert out_of_tolerance(compare(folder, "cpu", "float32")) == arrays


@pytest.mark.parametrize(
    ("module", "name", "fault", "seen"),
    [
        (classification, "roc_auc", lambda scores, is_positive: 50.0, {"binary: slip_roc_auc_percent"}),
        (
            classification,
            "best_classes",
            lambda scores, k: scores.sort(dim=1, stable=True).indices[:, :k],
            {"classification: top1", "classification: top5", "prompts: acc1", "classification.npz: confusion"},
        ),
        (
            classification,
            "class_embeddings",
            lambda encode, names, templates: F.normalize(
                torch.stack([encode([t.replace("{}", name) for t in templates])[0] for name in names]), dim=-1
            ),
            {"prompts: acc1", "classification.npz: prompt_classifier", "classification.npz: prompt_logits"},
        ),
        (
            recorded_retrieval,
            "ranks",
            lambda *arguments, chunk: ranks(*arguments, chunk=chunk) + 1,
            {"retrieval_several: image_retrieval_recall@1", "retrieval_single: text_retrieval_recall@3"},
        ),
        (
            probes,
            "vote",
            lambda cosines, places, num_classes, temperature: F.one_hot(places, num_classes).sum(dim=1).double(),
            {"probe.npz: knn/k3_T0.1/votes", "probe.npz: knn/k11_T0.05/votes"},
        ),
        (
            probes,
            "fit_logistic",
            lambda features, labels, c, **settings: fit_logistic(features, labels, c / len(features), **settings),
            {"linear_probe: raw/C3.0/objective", "probe.npz: normalized/C0.05/coef"},
        ),
    ],
)
def test_a_fault_in_ours_is_seen(
    others: dict[str, Path], monkeypatch: pytest.MonkeyPatch, module: Any, name: str, fault: Any, seen: set[str]
):
    monkeypatch.setattr(module, name, fault)
    assert out_of_tolerance(compare(others["many"], "cpu", "float32")) >= seen


@pytest.mark.parametrize(("samples", "is_seen"), [(2, False), (3, True)])
def test_the_accuracy_of_a_fit_that_stops_early_may_differ_by_two_samples(tmp_path: Path, samples: int, is_seen: bool):
    folder, key = copied(RECORDED, tmp_path), "accuracy_default_tolerance_1000_iterations"
    row = f"linear_probe: raw/C10.0/{key}"
    (note,) = (one.note for one in compare(folder, "cpu", "float32") if one.quantity == row)
    ours = float(note.rpartition(" ")[2])  # may itself differ from the recorded one by a sample or two

    def shift(figures: dict[str, Any]) -> None:
        figures["linear_probe"]["raw/C10.0"][key] = ours + samples / 160

    change_metrics(folder, shift)
    assert (row in out_of_tolerance(compare(folder, "cpu", "float32"))) == is_seen


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "code", "said"),
    [
        (lambda folder: None, 0, "arrays.json"),
        (lambda folder: (folder / "retrieval.npz").unlink(), 0, "retrieval_pairs: image_retrieval_recall@2"),
        (lambda folder: cut(folder / "retrieval.npz"), 1, "BadZipFile"),
        (lambda folder: cut(folder / "arrays.json"), 1, "JSONDecodeError"),
        (
            lambda folder: change_array(folder, "classification.npz", "binary_logits", lambda x: x.astype(np.float64)),
            1,
            "differ: ",
        ),
        (lambda folder: change_array(folder, "classification.npz", "targets", lambda x: x[:-1]), 1, "Error: "),
        (lambda folder: change_metrics(folder, lambda figures: figures.update(new={"f1": 1.0})), 0, "new: f1"),
    ],
)
def test_files_that_are_absent_or_damaged_are_rows_and_the_others_are_compared(
    others: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], Any],
    code: int,
    said: str,
):
    damage(folder := copied(others["few"], tmp_path))
    assert openslip(["verify", str(folder)]) == code
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if said in line]
    assert lines
    assert any(" OUT " in line for line in lines) == bool(code)
    assert "knn: k90_T0.3/top1" in printed
    assert "quantities within tolerance (cpu, float32" in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "metrics.json cannot be read as JSON"),
        ("[1]", "metrics.json has no object `metrics`"),
        ('{"metrics": {"knn": 3}}', "metrics.json has no object `metrics`"),
        ('{"metrics": {"mine": {"f1": 3}}}', "metrics.json holds nothing that can be compared"),
    ],
)
def test_a_folder_without_figures_is_refused(tmp_path: Path, content: str, message: str):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(UserError, match=message):
        compare(tmp_path, "cpu", "float32")


def test_formats_in_which_a_count_would_change_are_refused():
    with pytest.raises(UserError, match="dtype='bfloat16' is too coarse to compare metrics"):
        compare(RECORDED, "cpu", "bfloat16")
