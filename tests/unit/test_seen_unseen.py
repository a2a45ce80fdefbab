"""Zero-shot among seen and unseen names, and the nearest class mean, against plain loops."""

import numpy as np
import pytest
import torch
from evaluation_models import Pictures, bundle, dual_encoder, image_encoder, transform
from jaxtyping import UInt8

from openslip.data.source import Source
from openslip.errors import UserError
from openslip.evaluation.nearest_mean import NearestMean
from openslip.evaluation.seen_unseen import SeenUnseen
from openslip.inference.bundle import Bundle
from openslip.models.dual_encoder import DualEncoder

SEEN, UNSEEN = ["red cross", "green ring", "dot", "line"], ["arc", "big blue square"]


class Named(Pictures):
    """Random pictures without labels, each with one or more of some names."""

    def __init__(self, count: int, names: list[str], seed: int = 0) -> None:
        super().__init__(count, seed, labels=[None] * count)
        rng = np.random.default_rng(seed)
        self.vectors = (rng.random((count, len(names))) < 0.3).astype(np.uint8)
        self.vectors[np.arange(count), rng.integers(len(names), size=count)] = 1
        self.classes = names

    @property
    def label_vectors(self) -> UInt8[np.ndarray, "images classes"]:
        return self.vectors


def evaluation(seen: Source, unseen: Source | None) -> SeenUnseen:
    return SeenUnseen(title="names", seen=seen, unseen=unseen, templates=["a {}"], batch_size=4, num_workers=0)


def centred(source: Source) -> Bundle:
    """A model whose image features have mean 0, so that it does not choose the same name for all images."""
    given = dual_encoder()
    model = DualEncoder(
        image_tower=given.image_tower,
        text_tower=given.text_tower,
        embed_dim=12,
        logit_scale_init=2.6593,
        projection_bias=True,
    )
    images = torch.stack([transform().read(source[index].image, "image") for index in range(len(source))])
    texts = bundle(model).need_tokenizer().encode([f"a {name}" for name in SEEN + UNSEEN])
    assert model.image_projection_bias is not None
    assert model.text_projection_bias is not None
    with torch.no_grad():
        model.image_projection_bias.copy_(-model.eval().encode_image(images).mean(dim=0))
        model.text_projection_bias.copy_(-model.encode_text(*texts).mean(dim=0))
    return bundle(model)


def share_right(model: Bundle, source: Named, names: list[str], candidates: list[str]) -> float:
    texts = model.encode_text([f"a {name}" for name in candidates])
    right = 0
    for index in range(len(source)):
        (cosines,) = (model.encode_image([source[index].image]) @ texts.T).tolist()
        chosen = candidates[cosines.index(max(cosines))]
        right += chosen in [name for name, has in zip(names, source.vectors[index], strict=True) if has]
    return 100 * right / len(source)


def test_accuracies_equal_a_loop_over_images_and_names():
    seen, unseen = Named(37, SEEN), Named(29, UNSEEN, seed=1)
    model = centred(seen)
    metrics = evaluation(seen, unseen).run(model)
    of_all = [share_right(model, source, names, SEEN + UNSEEN) for source, names in ((seen, SEEN), (unseen, UNSEEN))]
    assert metrics == pytest.approx(
        {
            "top1_seen": share_right(model, seen, SEEN, SEEN),
            "chance_seen": 100 * seen.vectors.sum() / (37 * 4),
            "top1_unseen": share_right(model, unseen, UNSEEN, UNSEEN),
            "chance_unseen": 100 * unseen.vectors.sum() / (29 * 2),
            "top1_seen_of_all": of_all[0],
            "top1_unseen_of_all": of_all[1],
            "harmonic_mean": 2 * of_all[0] * of_all[1] / sum(of_all),
            "num_samples": 66,
        }
    )
    assert metrics["top1_seen"] > metrics["top1_seen_of_all"] > 0
    assert metrics["top1_unseen"] > metrics["top1_unseen_of_all"] > 0


def test_without_unseen_names_only_the_seen_ones_are_reported():
    one = evaluation(Named(9, SEEN), None)
    metrics = one.run(bundle(dual_encoder()))
    assert metrics.keys() == {"top1_seen", "chance_seen", "num_samples"}
    assert one.headline(metrics) == (
        f"names: seen names {metrics['top1_seen']:.1f} % (chance {metrics['chance_seen']:.1f} %)"
    )


def test_sources_without_names_or_with_common_ones_are_refused():
    with pytest.raises(UserError, match="seen: the source has no names"):
        evaluation(Pictures(3), None)
    with pytest.raises(UserError, match="'dot' is a seen and an unseen name"):
        evaluation(Named(3, SEEN), Named(3, ["dot", "arc"]))


def test_the_nearest_mean_equals_a_loop_over_images_and_classes():
    train, test, model = Named(31, SEEN, seed=2), Named(23, SEEN, seed=3), bundle(image_encoder())
    train.vectors[:, 2] = 0  # a name without training images is never chosen
    metrics = NearestMean(title="mean", train=train, test=test, batch_size=4, num_workers=0).run(model)
    features = model.encode_image([train[index].image for index in range(31)])
    right = 0
    for index in range(23):
        (query,) = model.encode_image([test[index].image])
        scores = [-2.0] * 4
        for place in (0, 1, 3):
            mean = torch.stack([row for row, has in zip(features, train.vectors[:, place], strict=True) if has]).mean(0)
            scores[place] = float(query @ mean / mean.norm())
        right += int(test.vectors[index, scores.index(max(scores))])
    assert metrics == pytest.approx({"top1": 100 * right / 23, "chance": 100 * test.vectors.mean(), "num_samples": 23})
