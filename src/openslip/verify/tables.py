"""Compares learning rates, the official models' names and shapes, and token ids with recordings."""

from pathlib import Path

import torch

from openslip.inference.architecture import build_model
from openslip.inference.formats import slip
from openslip.models.dual_encoder import DualEncoder
from openslip.models.image_encoder import ImageEncoder
from openslip.objectives.clip import CLIP
from openslip.objectives.objective import Objective
from openslip.objectives.simclr import SimCLR
from openslip.optim import WarmupCosine
from openslip.text.clip_bpe import ClipBpe
from openslip.verify.deviation import Part, Row, exactly, rate_part, same_shapes, worst
from openslip.verify.files import read_json
from openslip.verify.recording import PUBLISHED_HYPER, Model
from openslip.verify.runs import decay_parts, decayed_names


def schedule_rows(folder: Path) -> list[Row]:
    """Compare the recorded points of each recipe's learning-rate table."""
    parts = []
    for name, table in read_json(folder / "lr_schedules.json").items():
        schedule = WarmupCosine(
            lr_start=table["lr_start"],
            lr=table["lr"],
            lr_end=table["lr_end"],
            warmup_steps=table["warmup_epochs"] * table["steps_per_epoch"],
            max_steps=table["epochs"] * table["steps_per_epoch"],
        )
        for step, rate in table["points"].items():
            parts.append(rate_part(f"{name} at step {step}", schedule(int(step)), rate))
    return [worst("learning-rate tables", parts)]


def official_rows(folder: Path) -> list[Row]:
    """Compare each published model, built on the meta device: number of parameters, names, shapes, decay, heads."""
    counts, shapes, decays, heads = [], [], [], []
    for name, recorded in read_json(folder / "official_models.json").items():
        state = recorded["state"]
        size = name.rsplit("_", 1)[-1]
        # The weights do not show the number of heads; for sizes that were not published it comes from the recording.
        published = size in slip.PUBLISHED_IMAGE_HEADS
        num_heads = slip.image_heads(state, name) if published else recorded["heads"]
        heads.append(exactly(f"{name}: {num_heads}", abs(num_heads - recorded["heads"])))
        with torch.device("meta"):
            model, objective = _build(state, num_heads)
        count = sum(parameter.numel() for part in (model, objective) for parameter in part.parameters())
        counts.append(exactly(f"{name}: {count}", abs(count - recorded["parameters"])))
        shapes.append(same_shapes(name, slip.to_published(model, objective), state))
        names = decayed_names(model, objective)
        for part in decay_parts(names, recorded["decay"], recorded["no_decay"]):
            decays.append(Part(f"{name}, {part.label}", part.deviation, part.tolerance))
    return [
        worst("official models: parameters", counts),
        worst("official models: names and shapes", shapes),
        worst("official models: decayed and undecayed names", decays),
        worst("official models: attention heads", heads),
    ]


def _build(state: dict[str, list[int]], num_heads: int) -> tuple[Model, Objective]:
    model = build_model(slip.read_architecture(state, image_heads=num_heads, text_heads=None))
    assert isinstance(model, DualEncoder | ImageEncoder)
    if "image_mlp.layer1.weight" not in state:
        return model, CLIP(
            gather_with_grad=True, max_logit_scale=PUBLISHED_HYPER["max_logit_scale"], same_caption="negative"
        )
    objective = SimCLR(  # SLIP's parameters are those of SimCLR's head
        head_hidden=state["image_mlp.layer1.weight"][0],
        head_output=state["image_mlp.layer3.weight"][0],
        ssl_temperature=1.0,
    )
    objective.prepare(model)
    return model, objective


def tokenizer_rows(folder: Path) -> list[Row]:
    """Compare the token ids of each caption, with both tokenizer switches as published."""
    recorded = read_json(folder / "tokenizer.json")
    tokenizer = ClipBpe(context_length=recorded["context_length"], **slip.PUBLISHED_TOKENIZER)
    parts = []
    for caption, ids in zip(recorded["captions"], recorded["ids"], strict=True):
        ours = tokenizer.encode([caption])[0][0].tolist()
        differing = sum(a != b for a, b in zip(ours, ids, strict=False)) + abs(len(ours) - len(ids))
        parts.append(exactly(f"differing ids of {caption[:30]!r}", differing))
    return [worst("token ids", parts)]
