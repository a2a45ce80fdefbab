"""Zero-shot figures against loops, on one process and on two."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_models import (
    ATTRIBUTES,
    CLASSNAMES,
    CPU,
    TEMPLATES,
    Pictures,
    bundle,
    dual_encoder,
    image_encoder,
    run_on_this_rank,
    transform,
    zero_shot,
)
from ranks import Ranks
from sklearn.metrics import roc_auc_score

from openslip.data.image.decode import open_image
from openslip.data.source import Sample
from openslip.errors import UserError
from openslip.evaluation import features as module
from openslip.evaluation.features import rank_batches, text_features
from openslip.evaluation.metrics import possible_metrics
from openslip.evaluation.zeroshot import ZeroShot
from openslip.inference.bundle import evaluating
from openslip.inference.prompts import class_embeddings


def naive_ranking(count: int) -> tuple[list[list[int]], list[list[float]]]:
    """Per picture all classes from the most similar, and their probabilities; in float64, one picture at a time."""
    model = dual_encoder().double().eval()
    classes = class_embeddings(lambda texts: text_features(bundle(model), texts), CLASSNAMES, TEMPLATES).tolist()
    rankings, probabilities = [], []
    for index in range(count):
        image = transform()(open_image(Pictures(count)[index].image, "")).double()
        with torch.no_grad():
            feature = model.encode_image(image[None])[0].tolist()
        norm = math.sqrt(sum(x * x for x in feature))
        cosines = [sum(a * b for a, b in zip(feature, row, strict=True)) / norm for row in classes]
        ranking = sorted(range(len(classes)), key=lambda place, cosines=cosines: (-cosines[place], place))
        weights = [math.exp(cosine * math.exp(model.logit_scale.item())) for cosine in cosines]
        rankings.append(ranking)
        probabilities.append([weights[place] / sum(weights) for place in ranking])
    return rankings, probabilities


def test_figures_and_arrays_equal_a_naive_loop():
    evaluation = zero_shot(Pictures(26))
    figures = evaluation.run(bundle(dual_encoder()))
    rankings, probabilities = naive_ranking(26)
    labels = [index % 7 for index in range(26)]
    pairs = list(zip(rankings, labels, strict=True))
    odd = ATTRIBUTES["odd"]
    top1, top5 = (100 * sum(label in ranking[:k] for ranking, label in pairs) / 26 for k in (1, 5))
    recalls = [[ranking[0] == label for ranking, label in pairs if label == true] for true in range(7)]
    for name in ("calibration_error_percent", "ensemble_gain", "ensemble_gain_over_best"):
        del figures[name]  # tests/unit/test_diagnosis.py
    assert figures == {
        "top1": top1,
        "top5": top5,
        "mean_of_top1_top5": (top1 + top5) / 2,
        "mean_per_class": pytest.approx(100 * sum(sum(hits) / len(hits) for hits in recalls) / 7),
        "chance": 100 / 7,
        "num_samples": 26.0,
        "top1_odd": 100 * sum(odd[ranking[0]] == odd[label] for ranking, label in pairs) / 26,
    }
    assert 0 < figures["top1"] < figures["top5"] < 100, "a test in which all or nothing is right tells little"
    arrays = evaluation.arrays
    assert arrays["labels"].tolist() == labels
    assert arrays["predictions"].tolist() == [ranking[0] for ranking in rankings]
    assert arrays["top_classes"].tolist() == [ranking[:5] for ranking in rankings]
    np.testing.assert_allclose(arrays["top_probabilities"], [row[:5] for row in probabilities], atol=1e-5)


def test_arrays_have_the_documented_types_and_survive_a_file(tmp_path: Path):
    evaluation = zero_shot(Pictures(26))
    evaluation.run(bundle(dual_encoder()))
    np.savez(tmp_path / "arrays.npz", **evaluation.arrays)  # pyright: ignore[reportArgumentType]
    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as file:
        arrays = dict(file)
    shapes = {name: (array.dtype.kind + str(array.dtype.itemsize), array.shape) for name, array in arrays.items()}
    texts = {name: arrays[name].tolist() for name, (kind, _) in list(shapes.items()) if kind.startswith("U")}
    assert texts == {
        "classnames": CLASSNAMES,
        "templates": TEMPLATES,
        "attribute_names": ["odd"],
        "attribute_values": [ATTRIBUTES["odd"]],
    }
    assert {name: shape for name, shape in shapes.items() if name not in texts} == {
        "labels": ("i8", (26,)),
        "predictions": ("i8", (26,)),
        "top_classes": ("i8", (26, 5)),
        "top_probabilities": ("f4", (26, 5)),
        "template_top1": ("f8", (3,)),
        "images": ("u1", (16, 3, 16, 16)),
        "image_indices": ("i8", (16,)),
    }


def test_kept_pictures_are_the_ones_the_model_sees():
    evaluation = zero_shot(Pictures(26))
    evaluation.run(bundle(dual_encoder()))
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (transform().mean, transform().std))
    for pixels, index in zip(evaluation.arrays["images"], evaluation.arrays["image_indices"], strict=True):
        seen = transform()(open_image(Pictures(26)[int(index)].image, ""))
        torch.testing.assert_close((torch.from_numpy(pixels).float() / 255 - mean) / std, seen, rtol=0, atol=1e-5)


def test_few_classes_have_no_top5():
    evaluation = ZeroShot(
        title="t",
        source=Pictures(6, labels=[0, 1, 0, 1, 1, 1]),
        classnames=["one", "two"],
        templates=["{}"],
        batch_size=4,
        num_workers=0,
    )
    figures = evaluation.run(bundle(dual_encoder()))
    names = {"top1", "mean_per_class", "roc_auc", "chance", "num_samples", "calibration_error_percent"}
    assert set(figures) == names
    assert figures["chance"] == 50
    assert evaluation.arrays["top_classes"].shape == (6, 2)
    assert "attribute_names" not in evaluation.arrays


def of_classes(count: int, labels: list[int], metric: str) -> ZeroShot:
    return ZeroShot(
        title="memes",
        source=Pictures(len(labels), labels=labels),
        classnames=CLASSNAMES[:count],
        templates=TEMPLATES,
        batch_size=4,
        num_workers=0,
        metric=metric,
    )


def test_two_classes_have_the_roc_auc_of_the_difference_of_their_cosines():
    labels = [0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0]
    evaluation, model = of_classes(2, labels, "roc_auc"), dual_encoder()
    metrics = evaluation.run(bundle(model))
    classes = class_embeddings(lambda texts: text_features(bundle(model), texts), CLASSNAMES[:2], TEMPLATES)
    images = [Pictures(13)[index].image for index in range(13)]
    cosines = bundle(model).encode_image(images) @ classes.T
    expected = 100 * roc_auc_score(labels, (cosines[:, 1] - cosines[:, 0]).numpy())
    assert metrics["roc_auc"] == pytest.approx(expected, abs=1e-9)
    assert abs(metrics["roc_auc"] - 100 * roc_auc_score(labels, cosines[:, 1].numpy())) > 1, "by logit 1 alone"
    assert evaluation.headline(metrics) == f"memes: ROC-AUC {expected:.1f} % (chance 50.0 %)"


def test_the_headline_shows_the_metric_of_the_set():
    metrics = {"top1": 20.0, "top5": 60.0, "mean_per_class": 25.0, "mean_of_top1_top5": 40.0, "chance": 100 / 7}
    labels = [index % 7 for index in range(9)]
    lines = {metric: of_classes(7, labels, metric).headline(metrics) for metric in possible_metrics(7)}
    assert lines == {
        "top1": "memes: 20.0 % (chance 14.3 %)",
        "top5": "memes: top-5 60.0 % (chance 71.4 %)",
        "mean_per_class": "memes: mean per class 25.0 % (chance 14.3 %)",
        "mean_of_top1_top5": "memes: mean of top-1 and top-5 40.0 % (chance 42.9 %)",
    }
    assert of_classes(7, labels, "mean_per_class").headline_metric == "mean_per_class"


@pytest.mark.parametrize(
    ("count", "metric", "possible"),
    [
        (3, "roc_auc", "top1, mean_per_class for 3 classes"),
        (4, "mean_of_top1_top5", "top1, mean_per_class for 4 classes"),
        (5, "f1", "top1, top5, mean_per_class, mean_of_top1_top5 for 5 classes"),
    ],
)
def test_a_metric_that_such_a_set_cannot_have_is_refused(count: int, metric: str, possible: str):
    with pytest.raises(UserError, match=f"metric={metric}: expected {possible}$"):
        of_classes(count, [0, 1], metric)


def test_roc_auc_of_one_class_is_refused_if_it_is_the_metric_and_else_left_out():
    assert "roc_auc" not in of_classes(2, [1, 1, 1], "top1").run(bundle(dual_encoder()))
    with pytest.raises(UserError, match="every sample of memes has label 1; expected samples of both classes"):
        of_classes(2, [1, 1, 1], "roc_auc").run(bundle(dual_encoder()))


def test_equal_cosines_rank_by_index():
    model = dual_encoder()
    model.get_parameter("text_projection").data.zero_()
    evaluation = ZeroShot(
        title="t",
        source=Pictures(6, labels=[0] * 6),
        classnames=["one", "two", "three"],
        templates=["{}"],
        batch_size=4,
        num_workers=0,
    )
    assert evaluation.run(bundle(model))["top1"] == 100
    assert evaluation.arrays["top_classes"].tolist() == [[0, 1, 2]] * 6


def test_same_figures_with_loader_processes():
    alone, workers = zero_shot(Pictures(11)), zero_shot(Pictures(11), num_workers=2)
    assert alone.run(bundle(dual_encoder())) == workers.run(bundle(dual_encoder()))
    np.testing.assert_array_equal(alone.arrays["top_probabilities"], workers.arrays["top_probabilities"])


def test_figures_in_training_equal_those_afterwards():
    model = dual_encoder().train()
    model.image_tower.eval()
    modes = {name: part.training for name, part in model.named_modules()}
    with torch.autocast("cpu", torch.bfloat16):
        in_training = zero_shot(Pictures(11))
        figures = in_training.run(bundle(model))
    assert {name: part.training for name, part in model.named_modules()} == modes, "the mode of every module is back"
    afterwards = zero_shot(Pictures(11))
    assert afterwards.run(bundle(dual_encoder().eval())) == figures
    for name in in_training.arrays:
        np.testing.assert_array_equal(in_training.arrays[name], afterwards.arrays[name], err_msg=name)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_randomness_is_untouched(num_workers: int):
    model, evaluation = dual_encoder(), zero_shot(Pictures(11), num_workers=num_workers)
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # pyright: ignore
    evaluation.run(bundle(model))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # pyright: ignore
    assert torch.is_grad_enabled()


def test_modes_come_back_after_an_error():
    model = dual_encoder().train()

    def fail() -> None:
        with evaluating(model, CPU):
            assert not any(part.training for part in model.modules())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize(("count", "batch_size", "world"), [(11, 4, 2), (3, 4, 3), (12, 4, 3), (17, 4, 3), (8, 4, 2)])
def test_ranks_cover_every_row_once_without_padding(
    monkeypatch: pytest.MonkeyPatch, count: int, batch_size: int, world: int
):
    alone = rank_batches(count, batch_size)
    monkeypatch.setattr(module, "world_size", lambda: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(module, "rank", lambda rank=rank: rank)
        shares.append(rank_batches(count, batch_size))
    assert sorted(row for share in shares for batch in share for row in batch) == list(range(count))
    assert sorted(batch for share in shares for batch in share) == alone, "batches are those of one process"

    # What every rank would send, put back in order on each.
    sent: list[torch.Tensor] = []
    rows: list[list[torch.Tensor]] = [[torch.tensor(batch).view(-1, 1) for batch in share] for share in shares]
    monkeypatch.setattr(module, "of_all_ranks", lambda own: [own, (torch.Size([1]), torch.int64)])
    monkeypatch.setattr(module, "gather", lambda x, with_grad: sent.append(x) or x.repeat(world, 1))
    for own in rows:
        module.gather_batches(own, count, batch_size, CPU)
    monkeypatch.setattr(module, "gather", lambda x, with_grad: torch.cat(sent))
    assert module.gather_batches(rows[-1], count, batch_size, CPU).flatten().tolist() == list(range(count))


@pytest.mark.parametrize("name", ["zeroshot", "knn"])
@pytest.mark.parametrize("count", [11, 3])
def test_two_ranks_equal_one_process_to_the_last_bit(two_ranks: Ranks, tmp_path: Path, name: str, count: int):
    figures, arrays, _ = run_on_this_rank(name, count, str(tmp_path / "log"))
    answers = two_ranks(run_on_this_rank, name, count, str(tmp_path / "log"))
    for other_figures, other_arrays, _ in answers:
        assert other_figures == figures
        assert other_arrays.keys() == arrays.keys()
        for key in arrays:
            np.testing.assert_array_equal(other_arrays[key], arrays[key], err_msg=key)
    if name == "knn":  # zero-shot also reads the pictures it keeps, on every rank
        read = [row for _, _, rows in answers for row in rows]
        assert sorted(map(int, read)) == list(range(count))


def test_headline_names_chance():
    figures = {"top1": 63.75, "chance": 0.5208, "num_samples": 1520.0}
    assert zero_shot(Pictures(3)).headline(figures) == "zero-shot top-1: 63.8 % (chance 0.5 %)"


def test_a_label_beyond_the_names_is_refused_with_both_numbers():
    with pytest.raises(UserError, match=r"label 7 is outside the 7 class names \(0 to 6\)"):
        zero_shot(Pictures(3, labels=[0, 7, 1])).run(bundle(dual_encoder()))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(("label", "message"), [(None, "has no label"), (-1, "has label -1: expected 0 or more")])
def test_a_sample_without_a_label_is_named_in_one_line(num_workers: int, label: int | None, message: str):
    with pytest.raises(UserError, match=message) as caught:
        zero_shot(Pictures(3, labels=[0, label, 1]), num_workers=num_workers).run(bundle(dual_encoder()))
    assert "'picture1'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_picture_is_named():
    class Damaged(Pictures):
        def __getitem__(self, index: int, /) -> Sample:
            sample = super().__getitem__(index)
            return Sample(sample.key, sample.image[:40] if index == 2 else sample.image, (), sample.label)

    with pytest.raises(UserError, match="picture2: cannot be decoded"):
        zero_shot(Damaged(3)).run(bundle(dual_encoder()))


def test_a_model_without_text_tower_is_refused():
    with pytest.raises(UserError, match="need a text tower and a tokenizer, and ImageEncoder has neither"):
        zero_shot(Pictures(3)).run(bundle(image_encoder()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classnames": []}, "classnames is empty"),
        ({"templates": ["a photo"]}, "'a photo' has no {}"),
        ({"attributes": {"colour": ["red"]}}, "'colour' has 1 values for 7 classes"),
        ({"source": Pictures(0)}, "no samples"),
    ],
)
def test_a_useless_setting_is_refused_before_anything_runs(change: dict, message: str):
    settings = {
        "title": "t",
        "source": Pictures(3),
        "classnames": CLASSNAMES,
        "templates": TEMPLATES,
        "batch_size": 4,
        "num_workers": 0,
    }
    with pytest.raises(UserError, match=message):
        ZeroShot(**(settings | change))


def test_chance_counts_the_names_and_not_the_labels_that_occur():
    labels = [0, 1, 0, 1, 1, 0]
    mine = zero_shot(Pictures(6, labels=labels))
    metrics = mine.run(bundle(dual_encoder()))
    assert metrics["chance"] == 100 / 7
    assert mine.notes == {"classes with samples": "2 of 7"}
    assert mine.headline(metrics).endswith("(chance 14.3 %)")
