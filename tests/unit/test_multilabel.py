"""Mean average precision of multi-label evaluation against scikit-learn, on one process and on two."""

import io
from pathlib import Path

import numpy as np
import pytest
from evaluation_models import CLASSNAMES, TEMPLATES, Pictures, bundle, dual_encoder, image_encoder
from multilabel_models import Labelled, multilabel, multilabel_on_this_rank
from ranks import Ranks
from shard_files import jpeg, write_tar
from sklearn.metrics import average_precision_score

from openslip.config.build import build_evaluations
from openslip.config.compose import compose_config
from openslip.errors import UserError
from openslip.evaluation.features import text_features
from openslip.evaluation.multilabel import MultiLabel
from openslip.inference.prompts import class_embeddings, texts_of


def test_map_equals_scikit_learns_on_the_same_cosines():
    evaluation, model = multilabel(Labelled(23)), bundle(dual_encoder())
    metrics = evaluation.run(model)
    classes = class_embeddings(lambda texts: text_features(model, texts), CLASSNAMES, TEMPLATES)
    cosines = (model.encode_image([Labelled(23)[index].image for index in range(23)]) @ classes.T).numpy()
    vectors = Labelled(23).label_vectors
    np.testing.assert_allclose(evaluation.arrays["cosines"], cosines, atol=1e-6)
    of_class = [100 * average_precision_score(*columns) for columns in zip(vectors.T, cosines.T, strict=True)]
    assert evaluation.arrays["average_precisions"] == pytest.approx(of_class, abs=1e-9)
    assert metrics["mean_average_precision"] == pytest.approx(np.mean(of_class), abs=1e-9)
    assert metrics["mean_average_precision"] < metrics["mean_average_precision_11_point"] < 100
    assert metrics["chance"] == pytest.approx(100 * vectors.mean())
    assert metrics["num_samples"] == 23
    assert evaluation.headline_metric in metrics
    mean, chance = metrics["mean_average_precision"], metrics["chance"]
    assert evaluation.headline(metrics) == f"several: mAP {mean:.1f} % (chance {chance:.1f} %)"


def test_two_ranks_have_the_metrics_and_arrays_of_one_process(two_ranks: Ranks):
    metrics, arrays = multilabel_on_this_rank(11)
    for other_metrics, other_arrays in two_ranks(multilabel_on_this_rank, 11):
        assert other_metrics == metrics
        for name, array in arrays.items():
            np.testing.assert_array_equal(other_arrays[name], array, err_msg=name)


def test_classes_that_no_image_shows_are_left_out_and_noted():
    source = Labelled(12)
    source.vectors[:, 2] = 0
    evaluation = multilabel(source)
    metrics = evaluation.run(bundle(dual_encoder()))
    of_class = evaluation.arrays["average_precisions"]
    assert np.isnan(of_class).tolist() == [place == 2 for place in range(7)]
    assert metrics["mean_average_precision"] == np.delete(of_class, 2).mean()
    assert metrics["chance"] == pytest.approx(100 * np.delete(source.vectors, 2, axis=1).mean())
    assert evaluation.notes == {"classes with samples": "6 of 7"}


def test_sources_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="several: the source has one label per image; expected label vectors"):
        multilabel(Pictures(5))
    source = Labelled(5)
    source.vectors = source.vectors[:, :6]
    with pytest.raises(UserError, match="label vectors of 6 classes for 5 images; expected 7 classes"):
        multilabel(source)
    source.vectors = np.zeros((5, 7), np.uint8)
    with pytest.raises(UserError, match="no image shows any of the 7 classes"):
        multilabel(source)
    with pytest.raises(UserError, match="ImageEncoder has neither"):
        multilabel(Labelled(3)).run(bundle(image_encoder()))


def test_names_in_another_order_than_the_sources_classes_are_refused():
    source = Labelled(5)
    source.classes = CLASSNAMES[::-1]
    with pytest.raises(UserError, match="in another order"):
        MultiLabel(
            title="several", source=source, classnames=CLASSNAMES, templates=TEMPLATES, batch_size=4, num_workers=0
        )


def write_voc(folder: Path, names: list[str]) -> np.ndarray:
    """Write a made-up `wds_voc2007_multilabel` folder, and return its label vectors."""
    vectors = (np.random.default_rng(0).random((9, len(names))) < 0.4).astype(np.int64)
    members = []
    for number, vector in enumerate(vectors):
        np.save(file := io.BytesIO(), vector)
        members += [(f"s{number:07}.jpg", jpeg(number)), (f"s{number:07}.npy", file.getvalue())]
    (folder / "test").mkdir(parents=True)
    write_tar(folder / "test" / "0.tar", members)
    (folder / "test" / "nshards.txt").write_text("1")
    (folder / "dataset_type.txt").write_text("multilabel")
    (folder / "classnames.txt").write_text("\n".join(names))
    return vectors


def test_the_config_of_voc2007_reads_a_wds_folder_and_refuses_another_order_of_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    names = texts_of("voc2007", "classnames")
    vectors = write_voc(tmp_path / "wds_voc2007_multilabel", names)
    monkeypatch.setenv("EVALUATION_DATA", str(tmp_path))
    words = ["checkpoint=x", "evaluation=voc2007_multilabel", "evaluation.voc2007_multilabel.num_workers=0"]
    config, _ = compose_config("eval", words)
    (evaluation,) = build_evaluations(config["evaluation"]).values()
    metrics = evaluation.run(bundle(dual_encoder()))
    assert evaluation.arrays["classnames"].tolist() == names
    np.testing.assert_array_equal(evaluation.arrays["label_vectors"], vectors)
    mean = average_precision_score(vectors, evaluation.arrays["cosines"], average="macro")
    assert metrics["mean_average_precision"] == pytest.approx(100 * mean, abs=1e-9)
    assert evaluation.notes["samples"] == "9 of 4952"
    assert evaluation.headline(metrics).endswith(", 9 of 4952 samples")

    (tmp_path / "wds_voc2007_multilabel" / "classnames.txt").write_text("\n".join(names[::-1]))
    with pytest.raises(UserError, match="in another order than the published ones"):
        build_evaluations(config["evaluation"])
