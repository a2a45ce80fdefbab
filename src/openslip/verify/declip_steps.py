"""Repeats recorded steps of DeCLIP's repository on the recorded features, on this rank's part of each batch.

Arrays have the names of the recordings: `stepS/in/...` are inputs, `weights/...` parameters and buffers, all others
results. A loss is divided by the number of ranks, and gradients of weights are summed over ranks, as published.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from openslip.distributed import all_sum, gather, rank, world_size
from openslip.models.dual_encoder import DualEncoder
from openslip.models.tower import Tokens, Tower
from openslip.objectives.declip import DeCLIP
from openslip.objectives.declip_slip import DeclipSLIP
from openslip.objectives.masked_words import masked_word_losses
from openslip.objectives.objective import Objective
from openslip.objectives.similarity import Features
from openslip.verify.deviation import Arrays
from openslip.verify.recording import as_array

Tensors = dict[str, Tensor]

TEXT_EPSILON = 1e-10  # from the README of the recordings
LARGEST_FACTOR = 100.0
SSL_TEMPERATURE = 0.1
UNLIMITED = (-math.inf, math.inf)

SIMSIAM = {
    **{"projector.linear1": "simsiam.projector.0", "projector.bn1": "simsiam.projector.1"},
    **{"projector.linear2": "simsiam.projector.3", "projector.bn2": "simsiam.projector.4"},
    **{"projector.linear3": "simsiam.projector.6", "projector.bn3": "simsiam.projector.7"},
    **{"predictor.linear1": "simsiam.predictor.0", "predictor.bn1": "simsiam.predictor.1"},
    **{"predictor.layer2": "simsiam.predictor.3", "text_label_predictor": "vocabulary"},
}
SIMCLR = {
    **{"predictor_sim.linear1": "head.0", "predictor_sim.bn1": "head.1"},
    **{"predictor_sim.linear2": "head.3", "predictor_sim.bn2": "head.4", "predictor_sim.linear3": "head.6"},
}
LOGIT_SCALES = {"logit_scale": "logit_scale", "logit_scale_dense": "token_logit_scale"}
DECLIP_LOSSES = {
    **{"losses": "loss", "clip_losses": "clip_loss", "simsiam_losses": "simsiam_loss", "top1": "clip_acc"},
    **{"clip_nn_text_losses": "neighbour_loss", "text_mlm_losses": "masked_loss"},
}
SLIP_LOSSES = {"losses": "loss", "clip_losses": "clip_loss", "simclr_losses": "ssl_loss", "top1": "clip_acc"}


@dataclass(frozen=True)
class Recorded:
    """One file of recorded steps, and the weights of its loss terms."""

    arrays: Arrays
    scales: Mapping[str, float]

    @property
    def num_steps(self) -> int:
        return 1 + max(int(key.split("/")[0].removeprefix("step")) for key in self.arrays if key.startswith("step"))

    @property
    def num_ranks(self) -> int:
        return 1 + max(int(key.split("/")[2].removeprefix("rank")) for key in self.arrays if "/out/rank" in key)

    def weight(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[f"weights/{name}"])

    def given(self, step: int) -> Tensors:
        """Return this rank's inputs of a step; those that are not integers collect gradients."""
        prefix = f"step{step}/in/"
        inputs = {}
        for key, array in self.arrays.items():
            if key.startswith(prefix):
                local = torch.from_numpy(array).chunk(world_size())[rank()].clone()
                inputs[key.removeprefix(prefix)] = local.requires_grad_() if local.is_floating_point() else local
        return inputs


@dataclass(frozen=True)
class Repeat:
    """A method with the recorded weights.

    Attributes:
        model: model whose towers are never called.
        objective: the method's objective.
        declip: the DeCLIP in it, which has a queue; None if there is none.
        named: parameters and buffers by their recorded names.
        features: computes what `Objective.encode` returns from the recorded inputs.
        outputs: computes the recorded outputs from the inputs and from these features, without changing any state.
        losses: names of our loss terms by their recorded names.
    """

    model: DualEncoder
    objective: Objective
    declip: DeCLIP | None
    named: Tensors
    features: Callable[[Tensors], Tensors]
    outputs: Callable[[Tensors, Tensors], Tensors]
    losses: Mapping[str, str]


class RecordedTower(Tower):
    """A tower whose features are recorded, so that it is never called."""

    def __init__(self, width: int, token_width: int | None = None, vocab_size: int = 1) -> None:
        super().__init__()
        self.width = width
        self.width_of_tokens = width if token_width is None else token_width
        self.token_embedding = nn.Embedding(vocab_size, self.token_width)

    @property
    def token_width(self) -> int:
        return self.width_of_tokens

    def tokens(self, *inputs: Any, **_: Any) -> Tokens:
        raise AssertionError("features are recorded")

    def forward(self, *inputs: Any, **_: Any) -> Tensor:
        raise AssertionError("features are recorded")


def declip_objective(recorded: Recorded, queue_size: int, bounds: tuple[float, float]) -> DeCLIP:
    """Build the published DeCLIP for a recording's weights."""
    return DeCLIP(
        clip_scale=recorded.scales["clip_loss"],
        neighbour_scale=recorded.scales["nn_text"],
        simsiam_scale=recorded.scales["simsiam_loss"],
        masked_scale=recorded.scales["masking_language"],
        head_hidden=len(recorded.weight("projector.linear1.weight")),
        head_bottleneck=len(recorded.weight("predictor.linear1.weight")),
        queue_size=queue_size,
        logit_scale_bounds=bounds,
        largest_factor=LARGEST_FACTOR,
        published_limits=True,
        contrasts_masked=True,
        rank_queue=True,
        queue_wraps=False,
        rank_batch_norm=True,
        rank_masked_mean=True,
        text_epsilon=TEXT_EPSILON,
    )


def repeat_declip(recorded: Recorded, bounds: tuple[float, float] = UNLIMITED) -> Repeat:
    """Return DeCLIP with the recorded weights, this rank's recorded queue, and a range of the logit scale."""
    objective = declip_objective(recorded, recorded_queue(recorded)[0].shape[1], bounds)
    width = recorded.arrays["step0/in/text"].shape[1]
    words = recorded.weight("text_label_predictor.weight")
    model = stand_in(RecordedTower(width), RecordedTower(width, words.shape[1], len(words)), width)
    named = loaded(recorded, model, objective, SIMSIAM)
    load_queue(recorded, objective)

    def outputs(given: Tensors, made: Tensors) -> Tensors:
        return declip_outputs(model, objective, made)

    return Repeat(model, objective, objective, named, partial(declip_features, objective), outputs, DECLIP_LOSSES)


def recorded_queue(recorded: Recorded) -> tuple[Tensor, Tensor]:
    """Return this rank's queue [width, size] before the first step, and the place of the next feature."""
    name = f"step0/queue/rank{rank()}/0_text_lookup"
    bank, place = (torch.from_numpy(recorded.arrays[f"{name}/{kind}_before"]) for kind in ("bank", "ptr"))
    return bank, place.reshape(())


def load_queue(recorded: Recorded, objective: DeCLIP) -> None:
    bank, place = recorded_queue(recorded)
    objective.queue.features.copy_(bank.T)
    objective.queue.place.copy_(place)


def declip_features(objective: DeCLIP, given: Tensors) -> Tensors:
    """Return what DeCLIP's `encode` returns, from the recorded inputs."""
    sums, counts = masked_word_losses(given["words"], given["labels"], objective.vocabulary)
    sides = {"image": "image_1", "image2": "image_2", "text": "text", "text2": "text_aug"}
    return {name: given[key] for name, key in sides.items()} | {"masked_loss": sums, "masked_count": counts}


def declip_outputs(model: DualEncoder, objective: DeCLIP, made: Tensors) -> Tensors:
    """Return the recorded outputs of DeCLIP's model: logits, SimSiam's features, the masked-token loss."""
    factor = objective.limits.factor(model)
    images = [Features(made[name], gather_with_grad=False) for name in ("image", "image2")]
    texts = [Features(made[name], gather_with_grad=False, epsilon=TEXT_EPSILON) for name in ("text", "text2")]
    logits: Tensors = {}
    for name, text in zip(("logits", "logits_aug"), texts, strict=True):
        logits |= {f"{name}_{view}": factor * image.local @ text.all.T for view, image in enumerate(images)}
        logits |= {f"{name}_{2 + view}": factor * text.local @ image.all.T for view, image in enumerate(images)}
    for caption, text in enumerate(texts):
        found = gather(objective.queue.nearest(text.local, TEXT_EPSILON), with_grad=False)
        for view, image in enumerate(images):
            logits[f"nn_text_logits_{2 * caption + view}"] = factor * image.local @ found.T
    simsiam = copy.deepcopy(objective.simsiam)  # a copy, because a pass updates running statistics
    predictions, projections = simsiam(made["image"], made["image2"])
    sides = {f"simsiam_features_{place}": x for place, x in enumerate([*predictions, *projections])}
    masked = made["masked_loss"].sum() / made["masked_count"].sum()
    return logits | sides | {"text_self_supervised": masked}


def repeat_slip(recorded: Recorded) -> Repeat:
    """Return the repository's SLIP with the recorded weights."""
    hidden, width = recorded.weight("predictor_sim.linear1.weight").shape
    embed_dim = recorded.arrays["step0/in/text"].shape[1]
    objective = DeclipSLIP(
        head_hidden=hidden,
        head_output=len(recorded.weight("predictor_sim.linear3.weight")),
        clip_scale=recorded.scales["clip_loss"],
        ssl_scale=recorded.scales["simclr_loss"],
        ssl_temperature=SSL_TEMPERATURE,
        logit_scale_bounds=UNLIMITED,
        largest_factor=None,
        published_limits=True,
        text_epsilon=TEXT_EPSILON,
    )
    model = stand_in(RecordedTower(width), RecordedTower(embed_dim), embed_dim)
    named = loaded(recorded, model, objective, SIMCLR)

    def features(given: Tensors) -> Tensors:
        sides = {"image": "image_3", "text": "text", "aug1": "image_sim_1", "aug2": "image_sim_2"}
        return {name: given[key] for name, key in sides.items()}

    def outputs(given: Tensors, made: Tensors) -> Tensors:
        logits = pair_logits(objective.limits.factor(model), made["image"], made["text"], TEXT_EPSILON)
        views = copy.deepcopy(objective.head).views(made["aug1"], made["aug2"])
        sim = [x for view in views for x in (view, gather(view, with_grad=False))]  # not normalised
        results = {f"logits_{place}": x for place, x in enumerate(logits)}
        return results | {f"sim_features_{place}": x for place, x in enumerate(sim)}

    return Repeat(model, objective, None, named, features, outputs, SLIP_LOSSES)


def pair_logits(factor: Tensor, images: Tensor, texts: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return the logits of this rank's images with all texts, and of its texts with all images."""
    image = Features(images, gather_with_grad=False)
    text = Features(texts, gather_with_grad=False, epsilon=epsilon)
    return factor * image.local @ text.all.T, factor * text.local @ image.all.T


def stand_in(image: Tower, text: Tower, embed_dim: int, token_dim: int | None = None) -> DualEncoder:
    """Build a model whose towers are never called."""
    return DualEncoder(
        image_tower=image, text_tower=text, embed_dim=embed_dim, logit_scale_init=0.0, token_dim=token_dim
    )


def loaded(recorded: Recorded, model: DualEncoder, objective: Objective, layers: Mapping[str, str]) -> Tensors:
    """Prepare the objective in float64, copy the recorded weights, and return ours by the recorded names.

    Args:
        recorded: the recording.
        model: its logit scales and its layers in `layers` get the recorded weights.
        objective: its layers in `layers` get the recorded weights and statistics.
        layers: names of our layers by their recorded names.
    """
    objective.prepare(model)
    model.double().train()
    objective.double().train()
    ours = {name: x for part in (model, objective) for name, x in (*part.named_parameters(), *part.named_buffers())}
    named: Tensors = {
        theirs: ours[name] for theirs, name in LOGIT_SCALES.items() if f"weights/{theirs}" in recorded.arrays
    }
    for key in recorded.arrays:
        layer, _, kind = key.removeprefix("weights/").rpartition(".")
        if key.startswith("weights/") and layer in layers:
            named[f"{layer}.{kind}"] = ours[f"{layers[layer]}.{kind}"]
    with torch.no_grad():
        for name, tensor in named.items():
            tensor.copy_(recorded.weight(name).reshape(tensor.shape))
    return named


def repeat(recorded: Recorded, make: Callable[[Recorded], Repeat]) -> Arrays:
    """Repeat the recorded steps with the method that `make` returns, and return this rank's results."""
    repeated = make(recorded)
    results: Tensors = {}
    for step in range(recorded.num_steps):
        results |= {f"step{step}/{key}": x.detach() for key, x in one_step(repeated, recorded.given(step)).items()}
    return {key: as_array(x) for key, x in results.items()}


def one_step(repeated: Repeat, given: Tensors) -> Tensors:
    """Run one forward and backward pass, and update the queue; weights stay as they are."""
    here = f"rank{rank()}"
    made = repeated.features(given)
    with torch.no_grad():
        results = {f"out/{here}/{name}": x for name, x in repeated.outputs(given, made).items()}
    terms = repeated.objective.terms(repeated.model, made)
    (terms["loss"] / world_size()).backward()
    for theirs, ours in repeated.losses.items():
        term = terms[ours].detach() / world_size()
        results |= {f"loss/{here}/{theirs}": term, f"loss/sum_over_ranks/{theirs}": all_sum(term)}
    results |= {f"grad/{here}/{name}": x.grad for name, x in given.items() if x.grad is not None}
    for name, tensor in repeated.named.items():
        if tensor.grad is not None:
            results[f"grad/weights/{name}"] = all_sum(tensor.grad)
            tensor.grad = None
        elif not isinstance(tensor, nn.Parameter):
            results[f"after/{here}/{name}"] = tensor.clone()
    if repeated.declip is not None:
        results |= {f"queue/{here}/{name}": x for name, x in pushed(repeated.declip, made).items()}
    return results


@torch.no_grad()
def pushed(objective: DeCLIP, made: Tensors) -> Tensors:
    """Push the new features as `after_step` does, and return the state of the queue before, between and after."""
    queue = objective.queue
    text, text2 = (Features(made[x], gather_with_grad=False, epsilon=TEXT_EPSILON).local for x in ("text", "text2"))
    states = {
        "0_text_lookup/bank_before": queue.features.T.clone(),
        "0_text_lookup/ptr_before": queue.place.clone(),
        "0_text_lookup/neighbour": queue.nearest_places(text),
        "1_text_aug_lookup_then_enqueue/neighbour": queue.nearest_places(text2),
    }
    for call, rows in zip(("1_text_aug_lookup_then_enqueue", "2_text_enqueue"), objective.new_rows, strict=True):
        if call.startswith("2"):
            states[f"{call}/neighbour"] = queue.nearest_places(text)
        queue.push(rows, objective.skipped)
        states |= {f"{call}/bank_after": queue.features.T.clone(), f"{call}/ptr_after": queue.place.clone()}
    return states
