"""Repeats recorded steps of DeCLIP's repository with its token-wise methods, FILIP and DeFILIP."""

import itertools
from collections.abc import Iterable

from torch import Tensor

from openslip.models.dual_encoder import DualEncoder
from openslip.models.tower import Tokens, unpadded
from openslip.objectives.defilip import DeFILIP
from openslip.objectives.filip import FILIP
from openslip.objectives.late_interaction import late_interaction_logits
from openslip.verify.declip_steps import (
    DECLIP_LOSSES,
    SIMSIAM,
    UNLIMITED,
    Recorded,
    RecordedTower,
    Repeat,
    Tensors,
    declip_features,
    declip_objective,
    declip_outputs,
    load_queue,
    loaded,
    pair_logits,
    recorded_queue,
    stand_in,
)

TOP_TOKENS = 16  # from the README of the recordings
NO_CLAMP = 100.0  # the recorded steps change no weights
MAPPINGS = {"image_mapping": "image_token_projection", "text_mapping": "text_token_projection"}
FILIP_LOSSES = {"losses": "loss", "clip_losses": "clip_loss", "clip_dense_losses": "token_loss", "top1": "token_acc"}
# Recorded inputs of the token-wise term, by view.
PATCHES = {"image": "image_dense_1", "image2": "image_dense_2"}
WORDS = {"text": "words", "text2": "words_aug"}


def repeat_filip(recorded: Recorded) -> Repeat:
    """Return the repository's FILIP with the recorded weights."""
    objective = FILIP(
        token_scale=recorded.scales["clip_dense_loss"],
        clip_scale=recorded.scales["clip_loss"],
        top_tokens=TOP_TOKENS,
        count_padding=True,
        gather_with_grad=True,
        max_logit_scale=NO_CLAMP,
    )
    model = token_model(recorded)
    named = loaded(recorded, model, objective, MAPPINGS)

    def features(given: Tensors) -> Tensors:
        return {"image": given["image_1"], "text": given["text"]} | token_features(model, given, ("image", "text"))

    def outputs(given: Tensors, made: Tensors) -> Tensors:
        logits = pair_logits(model.logit_scale.exp(), made["image"], made["text"], 0.0)
        dense = token_logits(model, made, "image", "text")
        named = {f"logits_{place}": x for place, x in enumerate(logits)}
        return named | {f"dense_logits_{place}": x for place, x in enumerate(dense)}

    return Repeat(model, objective, None, named, features, outputs, FILIP_LOSSES)


def repeat_defilip(recorded: Recorded, *, all_pairs: bool = False) -> Repeat:
    """Return DeFILIP with the recorded weights and queue."""
    declip = declip_objective(recorded, recorded_queue(recorded)[0].shape[1], UNLIMITED)
    objective = DeFILIP(
        declip=declip,
        token_scale=recorded.scales["filip"],
        all_pairs=all_pairs,
        top_tokens=TOP_TOKENS,
        count_padding=True,
        max_token_logit_scale=NO_CLAMP,
    )
    model = token_model(recorded)
    layers = {theirs: f"declip.{ours}" for theirs, ours in SIMSIAM.items()}
    named = loaded(recorded, model, objective, layers | MAPPINGS)
    load_queue(recorded, declip)

    def features(given: Tensors) -> Tensors:
        return declip_features(declip, given) | token_features(model, given, objective.token_views)

    def outputs(given: Tensors, made: Tensors) -> Tensors:
        results = declip_outputs(model, declip, made)
        first, *others = itertools.product(("image", "image2")[: 1 + all_pairs], ("text", "text2")[: 1 + all_pairs])
        results |= {f"filip_{place}": x for place, x in enumerate(token_logits(model, made, *first))}
        # As recorded: image 2 with the caption, then both images with the second caption.
        ordered = sorted(others, key=lambda pair: (pair[1], pair[0]))
        logits = [x for pair in ordered for x in token_logits(model, made, *pair)]
        return results | {f"filip_aug_{place}": x for place, x in enumerate(logits)}

    losses = DECLIP_LOSSES | {"filip_losses": "token_loss"}
    return Repeat(model, objective, declip, named, features, outputs, losses)


def repeat_defilip_of_all_pairs(recorded: Recorded) -> Repeat:
    """Return DeFILIP with the token-wise term of all four pairs."""
    return repeat_defilip(recorded, all_pairs=True)


def token_model(recorded: Recorded) -> DualEncoder:
    """Build a model with the recorded widths, whose towers are never called."""
    token_dim, patch_width = recorded.weight("image_mapping.weight").shape
    embed_dim = recorded.arrays["step0/in/text"].shape[1]
    words = recorded.weight("text_label_predictor.weight")
    text = RecordedTower(embed_dim, words.shape[1], len(words))
    return stand_in(RecordedTower(embed_dim, patch_width), text, embed_dim, token_dim)


def token_features(model: DualEncoder, given: Tensors, views: Iterable[str]) -> Tensors:
    """Return the projected tokens of the given views; padding counts as words."""
    features: Tensors = {}
    for view in views:
        if view in PATCHES:
            tokens = model.project_image_tokens(unpadded(given[PATCHES[view]]))
        else:
            tokens = model.project_text_tokens(unpadded(given[WORDS[view]]))
        features |= {f"{view}_tokens": tokens.features, f"{view}_mask": tokens.mask}
    return features


def token_logits(model: DualEncoder, made: Tensors, image: str, text: str) -> tuple[Tensor, Tensor]:
    """Return the token-wise logits of this rank's images with all captions, and of its captions with all images."""
    images, texts = (Tokens(made[f"{view}_tokens"], made[f"{view}_mask"]) for view in (image, text))
    per_image, per_text = late_interaction_logits(images, texts, top_tokens=TOP_TOKENS, gather_with_grad=False)
    factor = model.token_logit_scale.exp()
    return factor * per_image, factor * per_text
