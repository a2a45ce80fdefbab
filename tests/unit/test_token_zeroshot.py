"""Zero-shot classification by token-wise similarity, against the formula as a loop."""

import numpy as np
import pytest
import torch
from evaluation_models import (
    CLASSNAMES,
    TEMPLATES,
    Pictures,
    bundle,
    dual_encoder,
    image_tower,
    token_zero_shot_figures,
)
from ranks import Ranks
from torch.nn.functional import normalize

from openslip.errors import NonFiniteError, UserError
from openslip.evaluation.token_zeroshot import TokenZeroShot
from openslip.inference.bundle import Bundle
from openslip.models.dual_encoder import DualEncoder
from openslip.models.text_transformer import TextTransformer


def model(token_dim: int | None = 10) -> DualEncoder:
    torch.manual_seed(0)
    text = TextTransformer(vocab_size=49408, context_length=24, width=16, depth=2, heads=2)
    return DualEncoder(
        image_tower=image_tower(), text_tower=text, embed_dim=12, logit_scale_init=2.6593, token_dim=token_dim
    ).eval()


def evaluation(*, count_padding: bool = False, labels: list[int | None] | None = None) -> TokenZeroShot:
    return TokenZeroShot(
        title="by tokens",
        source=Pictures(9, labels=labels),
        classnames=CLASSNAMES,
        templates=TEMPLATES,
        count_padding=count_padding,
        batch_size=4,
        num_workers=0,
    )


@torch.no_grad()
def naive_scores(trained: Bundle, count: int, *, count_padding: bool) -> np.ndarray:
    encoder, source = trained.model, Pictures(count)
    scores = np.zeros((count, len(CLASSNAMES)))
    for row in range(count):
        sample = source[row]
        image = trained.transform.read(sample.image, sample.key)[None]
        patches = encoder.image_tower.tokens(image).features[0, 1:]
        patches = normalize(encoder.image_token_projection(patches), dim=-1)
        for column, name in enumerate(CLASSNAMES):
            for template in TEMPLATES:
                ids, lengths = trained.need_tokenizer().encode([template.replace("{}", name)])
                if count_padding:
                    lengths = torch.full_like(lengths, 24)
                words = encoder.text_tower.tokens(ids, lengths).features[0, : int(lengths[0])]
                words = normalize(encoder.text_token_projection(words), dim=-1)
                scores[row, column] += float((patches @ words.T).max(dim=1).values.mean()) / len(TEMPLATES)
    return scores


@pytest.mark.parametrize("count_padding", [False, True])
def test_a_class_scores_the_mean_over_its_prompts_of_the_similarity_by_tokens(count_padding: bool):
    trained = bundle(model())
    predicted = naive_scores(trained, 9, count_padding=count_padding).argmax(axis=1)
    assert len(set(predicted)) > 1 or count_padding
    labels = [int(label) for label in predicted]
    labels[3] = (labels[3] + 1) % 7
    figures = evaluation(count_padding=count_padding, labels=[*labels]).run(trained)
    assert figures["top1"] == pytest.approx(100 * 8 / 9)
    assert (figures["chance"], figures["num_samples"]) == (pytest.approx(100 / 7), 9)


def test_two_ranks_have_the_figures_of_one_process(two_ranks: Ranks):
    assert two_ranks(token_zero_shot_figures) == [token_zero_shot_figures()] * 2


def test_a_model_without_a_joint_space_of_tokens_is_refused():
    for encoder in (dual_encoder(), model(token_dim=None)):
        with pytest.raises(UserError, match=r"its tokens have no joint space.* train with objective=filip"):
            evaluation().run(bundle(encoder))


def test_a_label_without_a_name_is_refused():
    with pytest.raises(UserError, match="label 7 is outside the 7 class names"):
        evaluation(labels=[7, *range(6), 0, 1]).run(bundle(model()))


def test_features_that_are_not_finite_are_refused():
    broken = model()
    broken.get_parameter("image_token_projection.bias").data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="its token features are not finite"):
        evaluation().run(bundle(broken))
