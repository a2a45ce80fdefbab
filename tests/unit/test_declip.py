"""DeCLIP's objective beside formulas written out for one process, and what its switches change."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from declip_models import FAITHFUL, declip_batch, declip_model
from torch import Tensor

from openslip.config.build import build, build_parts, settled
from openslip.config.compose import compose_config
from openslip.data.view import example_batch
from openslip.errors import UserError
from openslip.models.text_transformer import TextTransformer
from openslip.objectives.declip import DeCLIP
from openslip.objectives.declip_slip import DeclipSLIP
from openslip.objectives.defilip import DeFILIP
from openslip.training.microbatch import loss_in_micro_batches


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def cross_entropy(logits: Tensor) -> Tensor:
    """Mean over rows of logsumexp minus the diagonal."""
    return (torch.logsumexp(logits, dim=1) - logits.diagonal()).mean()


def batch_norm(layer: Any, x: Tensor) -> Tensor:
    return (x - x.mean(dim=0)) / (x.var(dim=0, unbiased=False) + 1e-5).sqrt() * layer.weight + layer.bias


def apply(head: Any, x: Tensor) -> Tensor:
    for layer in head:
        x = batch_norm(layer, x) if hasattr(layer, "running_mean") else layer(x)
    return x


def paper_terms(objective: DeCLIP, model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The four terms in one process, section 3 of the paper, from unmasked captions."""
    ids = torch.where(batch["text_labels"] == -100, batch["text"], batch["text_labels"])
    raw = [model.encode_image(batch[name]) for name in ("image", "image2")]
    images = [unit(x) for x in raw]
    texts = [
        unit(model.encode_text(x, batch[f"{name}_length"])) for name, x in (("text", ids), ("text2", batch["text2"]))
    ]
    factor = model.logit_scale.exp()
    queue = objective.queue.features
    found = [queue[(text @ queue.T).argmax(dim=1)] for text in texts]
    z = [apply(objective.simsiam.projector, x) for x in raw]
    p = [apply(objective.simsiam.predictor, x) for x in z]
    words = model.text_tower.tokens(batch["text"], batch["text_length"]).features
    masked = batch["text_labels"] != -100
    pairs = [(image, text) for image in images for text in texts]
    neighbours = [cross_entropy(factor * image @ unit(text).T) for image in images for text in found]
    return {
        "clip_loss": sum(cross_entropy(factor * a @ b.T) + cross_entropy(factor * b @ a.T) for a, b in pairs) / 8,
        "neighbour_loss": sum(neighbours) / 4,
        "simsiam_loss": -sum((unit(p[i]) * unit(z[1 - i])).sum(dim=1).mean() for i in (0, 1)) / 2,
        "masked_loss": F.cross_entropy(objective.vocabulary(words[masked]), batch["text_labels"][masked]),
    }  # pyright: ignore[reportReturnType]


def test_the_terms_are_those_of_the_paper():
    model, objective = declip_model("declip")
    assert isinstance(objective, DeCLIP)
    batch = declip_batch(12)
    for _ in range(2):  # the second time with captions in the queue
        terms = loss_in_micro_batches(objective, model, batch, [12])
        expected = paper_terms(objective, model, batch)
        for name, value in expected.items():
            assert terms[name].item() == pytest.approx(value.item(), rel=1e-10), name
        total = 0.4 * expected["clip_loss"] + 0.2 * sum(expected[n] for n in list(expected)[1:])
        assert terms["loss"].item() == pytest.approx(total.item(), rel=1e-10)
        objective.after_step(model)


def test_the_queue_gets_the_second_captions_and_then_the_first():
    model, objective = declip_model("declip")
    assert isinstance(objective, DeCLIP)
    batch = declip_batch(12)
    features = objective.encode(model, batch)
    objective.terms(model, features)
    objective.after_step(model)
    expected = torch.cat([unit(features["text2"]), unit(features["text"])])
    torch.testing.assert_close(objective.queue.features[:24], expected.detach(), rtol=0, atol=1e-7)


def test_defilip_limits_both_temperatures():
    model, objective = declip_model("defilip")
    loss_in_micro_batches(objective, model, declip_batch(12), [12])  # of which the queue gets its rows
    for before, after, token_after in ((-1.0, 2.0, 0.0), (3.0, 3.0, 3.0), (9.0, 4.6052, 4.6052)):
        for parameter in (model.logit_scale, model.token_logit_scale):
            torch.nn.init.constant_(parameter, before)
        objective.after_step(model)
        assert model.logit_scale.item() == pytest.approx(after, abs=1e-4)
        assert model.token_logit_scale.item() == pytest.approx(token_after)


def test_slip_of_declips_repository_adds_an_epsilon_to_the_norms_of_captions():
    model, objective = declip_model("declip_slip")
    assert isinstance(objective, DeclipSLIP)
    objective.text_epsilon = 0.5
    views = {name: torch.randn(12, 24, dtype=torch.float64) for name in ("aug1", "aug2")}
    image, text = torch.randn(2, 12, 12, dtype=torch.float64)
    similar = model.logit_scale.exp() * unit(image) @ (text / (text.norm(dim=1, keepdim=True) + 0.5)).T
    expected = (cross_entropy(similar) + cross_entropy(similar.T)) / 2
    terms = objective.loss(model, {"image": image, "text": text, **views})
    assert terms["clip_loss"].item() == pytest.approx(expected.item(), rel=1e-10)


def test_published_features_of_captions_are_those_of_their_masked_tokens():
    model, objective = declip_model("declip", **FAITHFUL)
    batch = declip_batch(12)
    plain = torch.where(batch["text_labels"] == -100, batch["text"], batch["text_labels"])
    masked, unmasked = (model.encode_text(x, batch["text_length"]) for x in (batch["text"], plain))
    torch.testing.assert_close(objective.encode(model, batch)["text"], masked)
    assert not torch.allclose(masked, unmasked)
    correct = declip_model("declip")[1]
    torch.testing.assert_close(correct.encode(model, batch)["text"], unmasked)


@pytest.mark.parametrize(("published", "start", "after"), [(True, 7.0, 6.0), (False, 7.0, 4.605170185988092)])
def test_the_logit_scale_is_limited_as_the_mode_says(published: bool, start: float, after: float):
    model, objective = declip_model("declip", published_limits=published)
    with torch.no_grad():
        model.logit_scale.fill_(start)
    objective.terms(model, objective.encode(model, declip_batch(4)))
    assert model.logit_scale.item() == (6.0 if published else start)
    objective.after_step(model)
    assert model.logit_scale.item() == pytest.approx(after, rel=1e-6)


def test_bounds_that_are_no_range_are_refused():
    with pytest.raises(UserError, match=r"logit_scale_bounds=\[6.0, 3.0\]: expected two ascending numbers"):
        declip_model("declip", logit_scale_bounds=(6.0, 3.0))


@pytest.mark.parametrize("factor", [7.0, 0.0])
def test_a_largest_factor_below_the_lower_bound_is_refused(factor: float):
    with pytest.raises(UserError, match=rf"largest_factor={factor}: expected at least .* = 7\.389 .*=\[2\.0, 6\.0\]"):
        declip_model("declip", largest_factor=factor)
    declip_model("declip", largest_factor=7.4)


class Unnamed(TextTransformer):
    """A text tower that calls its embedding otherwise."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.words = self.token_embedding
        del self.token_embedding


def test_a_text_tower_without_a_vocabulary_is_refused():
    model, objective = declip_model("declip")
    model.text_tower = Unnamed(vocab_size=50, context_length=9, width=16, depth=1, heads=2)
    with pytest.raises(UserError, match=r"model\.text_tower: Unnamed has no nn\.Embedding named token_embedding"):
        objective.setup(model)


@pytest.mark.parametrize("sizes", [[6], [2, 4]])
@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["model=declip_tiny", "objective.views.text=${views.caption}"], "text_labels"),
        (["model=defilip_tiny", "objective.views.text=${views.edited_caption}"], "text_labels"),
        (["model=filip_tiny", "~objective.views.text"], "text"),
    ],
)
def test_a_batch_key_that_no_view_makes_is_named(words: list[str], key: str, sizes: list[int]):
    config, _ = compose_config("train", words)
    parts = build_parts(config)
    parts.objective.prepare(parts.model)
    with pytest.raises(UserError, match=rf"objective\.views makes index, image.*, but the objective also reads {key}:"):
        loss_in_micro_batches(parts.objective, parts.model, example_batch(parts.views, 6), sizes)


@pytest.mark.parametrize("mode", ["correct", "faithful"])
@pytest.mark.parametrize("method", ["declip", "declip_slip", "defilip"])
def test_the_tiny_models_make_a_step(method: str, mode: str):
    config, _ = compose_config("train", [f"model={method}_tiny", f"mode={mode}"])
    parts = build_parts(config)
    parts.objective.prepare(parts.model)
    terms = loss_in_micro_batches(parts.objective, parts.model, example_batch(parts.views, 6, varied=True), [2, 4])
    terms["loss"].backward()
    parts.objective.after_step(parts.model)
    modules = (parts.model, parts.objective)
    assert all(x.grad is not None and x.grad.isfinite().all() for part in modules for x in part.parameters())
    assert parts.model.get_parameter("logit_scale").item() == pytest.approx(3.0)  # lifted from 2.66


@pytest.mark.parametrize(
    ("method", "lr", "weight_decay"), [("declip", 1e-3, 0.1), ("declip_slip", 5e-4, 0.5), ("defilip", 1e-3, 0.1)]
)
def test_the_published_settings(method: str, lr: float, weight_decay: float):
    config, _ = compose_config("train", [f"model={method}_vitb16"])
    optim, objective = config["optim"], config["objective"]
    assert (optim["lr"], optim["weight_decay"], optim["warmup_steps"]) == (lr, weight_decay, 2500)
    assert (optim["schedule"]["lr_start"], optim["schedule"]["lr_end"]) == (1e-4, 0.0)
    views = objective["views"]
    for name in ("image2",) if method != "declip_slip" else ("aug1", "aug2"):
        assert views[name]["scale"] == [0.2, 1.0]
    inner = objective.get("declip", objective)
    assert inner["logit_scale_bounds"] == [3.0, 6.0]
    if method == "declip_slip":
        assert (objective["clip_scale"], objective["ssl_scale"], objective["ssl_temperature"]) == (1.0, 1.0, 0.1)
        return
    scales = [inner[f"{term}_scale"] for term in ("clip", "neighbour", "simsiam", "masked")]
    assert scales == [0.4, 0.2, 0.2, 0.2]
    assert (inner["head_hidden"], inner["head_bottleneck"], inner["queue_size"]) == (1024, 512, 65536)
    with torch.device("meta"):
        model = build(settled(config)["model"])
    assert model.text_tower.token_embedding.num_embeddings == 49409


def test_defilip_compares_tokens_of_one_pair_or_of_four():
    model, objective = declip_model("defilip")
    assert isinstance(objective, DeFILIP)
    batch = declip_batch(6)
    assert {"image2_tokens", "text2_tokens"} <= objective.encode(model, batch).keys()
    objective.all_pairs = False
    made = objective.encode(model, batch)
    assert {name for name in made if name.endswith("_tokens")} == {"image_tokens", "text_tokens"}


def token_wise(image: Tensor, text: Tensor, is_word: Tensor, factor: Tensor) -> Tensor:
    """The loss of FILIP's equations 1 to 5 for the tokens of a batch."""
    products = torch.einsum("ipd,twd->itpw", unit(image), unit(text))
    to_texts = products.masked_fill(~is_word[None, :, None], float("-inf")).amax(dim=3).mean(dim=2)
    to_images = (products.amax(dim=2) * is_word).sum(dim=2) / is_word.sum(dim=1)
    return (cross_entropy(factor * to_texts) + cross_entropy(factor * to_images.T)) / 2


def test_the_loss_of_defilip_is_declips_and_the_mean_of_the_four_pairs_of_tokens():
    model, objective = declip_model("defilip")
    features = objective.encode(model, declip_batch(6))
    terms = objective.terms(model, features)
    pairs = [
        token_wise(
            features[f"{a}_tokens"], features[f"{b}_tokens"], features[f"{b}_mask"], model.token_logit_scale.exp()
        )
        for a in ("image", "image2")
        for b in ("text", "text2")
    ]
    token = torch.stack(pairs).mean()
    assert terms["token_loss"].item() == pytest.approx(token.item(), rel=1e-7)
    of_declip = sum(terms[f"{name}_loss"] for name in ("neighbour", "simsiam", "masked")) + 2 * terms["clip_loss"]
    assert terms["loss"].item() == pytest.approx(0.2 * (of_declip + token).item(), rel=1e-7)


def test_a_skipped_step_of_defilip_leaves_the_queue():
    model, objective = declip_model("defilip")
    assert isinstance(objective, DeFILIP)
    before = objective.declip.queue.features.clone()
    objective.terms(model, objective.encode(model, declip_batch(6)))
    objective.skipped = torch.tensor(True)
    objective.after_step(model)
    assert torch.equal(objective.declip.queue.features, before)
    objective.skipped = torch.tensor(False)
    objective.after_step(model)
    assert not torch.equal(objective.declip.queue.features, before)


def test_a_model_without_a_space_of_tokens_is_refused():
    model, objective = declip_model("defilip")
    model.token_dim = None
    with pytest.raises(UserError, match=r"the model has no joint space of tokens; set model\.token_dim=256"):
        objective.setup(model)


@pytest.mark.parametrize("method", ["declip", "defilip"])
def test_training_continues_from_its_state_bit_by_bit(method: str):
    batch = declip_batch(12)

    def train(num_steps: int, state: list[dict[str, Tensor]] | None = None) -> list[dict[str, Tensor]]:
        model, objective = declip_model(method)
        modules = (model, objective)
        if state is not None:
            torch.manual_seed(9)
            for module, stored in zip(modules, state, strict=True):
                for tensor in (*module.parameters(), *module.buffers()):
                    tensor.data.zero_()
                module.load_state_dict(stored)
        optimizer = torch.optim.SGD([x for module in modules for x in module.parameters()], lr=0.1)
        for _ in range(num_steps):
            optimizer.zero_grad()
            loss_in_micro_batches(objective, model, batch, [12])["loss"].backward()
            optimizer.step()
            objective.after_step(model)
        return [{name: x.clone() for name, x in module.state_dict().items()} for module in modules]

    whole, resumed = train(4), train(1, train(3))
    assert any(name.endswith("queue.features") for name in whole[1])
    for expected, found in zip(whole, resumed, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
