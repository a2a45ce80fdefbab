"""Compares DeCLIP with its towers, end to end, with a recording of DeCLIP's repository: `tiny_towers.npz`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openslip.inference.architecture import build_model
from openslip.inference.formats.declip import TEXT
from openslip.inference.layouts import openai
from openslip.models.dual_encoder import DualEncoder
from openslip.objectives.declip import DeCLIP
from openslip.objectives.similarity import unit_length
from openslip.verify.declip_comparison import compared
from openslip.verify.declip_steps import (
    DECLIP_LOSSES,
    SIMSIAM,
    TEXT_EPSILON,
    UNLIMITED,
    Recorded,
    declip_objective,
    declip_outputs,
    loaded,
    pushed,
)
from openslip.verify.deviation import Arrays, Row
from openslip.verify.files import read_arrays, read_json
from openslip.verify.recording import as_array

TOWERS = "tiny_towers.npz"
# The published code does not train the patch convolution, so that there is no gradient to compare with.
FROZEN, OUR_FROZEN = "visual.conv1.weight", "image_tower.trunk.patch_embed.proj.weight"


def tower_model_rows(folder: Path) -> list[Row]:
    """Run DeCLIP's towers, its loss and the backward pass on recorded images and token ids, in float64 on the CPU."""
    description: dict[str, Any] = read_json(folder / TOWERS.replace(".npz", ".json"))
    arrays = read_arrays(folder / TOWERS)
    recorded = Recorded(arrays, description["loss_weights"])
    weights = published({name: torch.from_numpy(x) for name, x in under(arrays, "weights/").items()})
    model, objective = build(recorded, weights, description["dims"])
    image, image2 = torch.from_numpy(arrays["in/views"]).double().chunk(2, dim=1)
    text, text_length = captions(arrays["in/masked_tokens"])
    text2, text2_length = captions(arrays["in/augmented_tokens"])
    batch = {
        **{"image": image, "image2": image2, "text": text, "text_length": text_length},
        **{"text_labels": torch.from_numpy(arrays["in/labels"]), "text2": text2, "text2_length": text2_length},
    }
    ours = towers_alone(model, objective, batch, captions(arrays["in/unmasked_tokens"]))
    ours |= trained(model, objective, batch)
    expected = {key: x for key, x in arrays.items() if not key.startswith(("grad/", "tower/"))}
    expected |= {f"tower/{name}": x for name, x in real_words(under(arrays, "tower/"), text_length).items()}
    expected |= {f"grad/{name}": x for name, x in our_gradients(under(arrays, "grad/"), weights).items()}
    prefixed: tuple[Arrays, ...] = tuple({f"towers/{key}": x for key, x in each.items()} for each in (expected, ours))
    return compared(TOWERS, *prefixed)


def under(arrays: Arrays, prefix: str) -> Arrays:
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}


def published(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the two towers by their names in OpenAI's layout."""
    heads = tuple(f"{layer}." for layer in SIMSIAM)
    plain = {}
    for name, x in named.items():
        prefix = next((prefix for prefix in TEXT if name.startswith(prefix)), "")
        if not name.startswith(heads):
            plain[name.removeprefix(prefix)] = x
    return plain


def build(recorded: Recorded, weights: dict[str, Tensor], dims: dict[str, int]) -> tuple[DualEncoder, DeCLIP]:
    """Build the model and the published DeCLIP with the recorded weights and queue, in float64."""
    image = openai.image_tower(weights, activation="quick_gelu", heads=dims["vh"])
    text = openai.text_tower(weights, activation="quick_gelu", heads=dims["th"])
    state = openai.convert(weights)
    model = build_model(openai.dual_encoder(image, text, state))
    assert isinstance(model, DualEncoder)
    model.load_state_dict(state)
    bank = torch.from_numpy(recorded.arrays["queue/before"])
    objective = declip_objective(recorded, bank.shape[1], UNLIMITED)
    loaded(recorded, model, objective, SIMSIAM)
    objective.queue.features.copy_(bank.T)
    return model, objective


def captions(ids: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return token ids and lengths; the published code pools the first of the largest ids."""
    tokens = torch.from_numpy(ids)
    return tokens, tokens.argmax(dim=1) + 1


@torch.no_grad()
def towers_alone(
    model: DualEncoder, objective: DeCLIP, batch: dict[str, Tensor], unmasked: tuple[Tensor, Tensor]
) -> Arrays:
    """Return features of the first image view, of the unmasked captions, and of the words of the masked ones."""
    image_tower, before_norm = model.image_tower, []
    trunk: Any = image_tower.trunk
    hook = trunk.norm.register_forward_pre_hook(lambda _, inputs: before_norm.append(inputs[0]))
    image_tower.tokens(batch["image"])
    hook.remove()
    pooled, words = model.text_tower.pooled_and_tokens(batch["text"], batch["text_length"])
    features = {
        "masked_text_features": model.project_text(pooled),
        "word_features": words.features,
        "mlm_logits": objective.vocabulary(words.features),
        "text_features": model.encode_text(*unmasked),
        "image_features_view1": model.encode_image(batch["image"]),
        "image_dense_view1": before_norm[0][:, trunk.num_prefix_tokens :],
    }
    arrays = {name: as_array(x) for name, x in features.items()}
    return {f"tower/{name}": x for name, x in real_words(arrays, batch["text_length"]).items()}


def real_words(arrays: Arrays, lengths: Tensor) -> Arrays:
    """Replace what is computed for padding by zeros; our towers do not compute it, and the loss does not read it."""
    real = (torch.arange(arrays["word_features"].shape[1]) < lengths[:, None]).numpy()[..., None]
    return {name: x * real if name in ("word_features", "mlm_logits") else x for name, x in arrays.items()}


def trained(model: DualEncoder, objective: DeCLIP, batch: dict[str, Tensor]) -> Arrays:
    """Return outputs, losses, the queue and, by our names, the gradients of one step."""
    made = objective.encode(model, batch)
    with torch.no_grad():
        results = {f"out/{name}": x for name, x in declip_outputs(model, objective, made).items()}
        sides = (unit_length(made["text"], TEXT_EPSILON), *(unit_length(made[name]) for name in ("image", "image2")))
        results |= {f"out/features_{place}": x for place, x in enumerate(sides)}
    terms = objective.terms(model, made)
    terms["loss"].backward()
    results |= {f"loss/{theirs}": terms[name] for theirs, name in DECLIP_LOSSES.items()}
    states = pushed(objective, made)
    results |= {f"queue/{kind}_after": states[f"2_text_enqueue/{kind}_after"] for kind in ("bank", "ptr")}
    results["queue/after"] = results.pop("queue/bank_after")
    results["queue/before"] = states["0_text_lookup/bank_before"]
    for name, parameter in (*model.named_parameters(), *objective.named_parameters()):
        if parameter.grad is not None:
            results[f"grad/{name}"] = parameter.grad
    return {name: as_array(x) for name, x in results.items()}


def our_gradients(gradients: Arrays, weights: dict[str, Tensor]) -> Arrays:
    """Return recorded gradients by our names and in our shapes."""
    recorded = {name: torch.from_numpy(x) for name, x in gradients.items()}
    towers = openai.convert({FROZEN: weights[FROZEN], **published(recorded)})
    heads = {}
    for name, x in recorded.items():
        layer, _, kind = name.rpartition(".")
        if layer in SIMSIAM:
            heads[f"{SIMSIAM[layer]}.{kind}"] = x
    return {name: as_array(x) for name, x in (towers | heads).items() if name != OUR_FROZEN}
