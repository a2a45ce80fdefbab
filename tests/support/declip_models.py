"""Small models, objectives and batches of DeCLIP and its relatives, in the correct mode and in float64."""

from typing import Any

import torch
from torch import Tensor

from openslip.models.dual_encoder import DualEncoder
from openslip.models.text_transformer import TextTransformer
from openslip.models.timm_tower import TimmTower
from openslip.objectives.declip import DeCLIP
from openslip.objectives.declip_slip import DeclipSLIP
from openslip.objectives.defilip import DeFILIP
from openslip.objectives.objective import Objective

VOCABULARY, CONTEXT = 50, 9
MASK, START, END = 47, 48, 49
CORRECT: dict[str, Any] = {
    **{"published_limits": False, "contrasts_masked": False, "rank_queue": False, "queue_wraps": True},
    **{"rank_batch_norm": False, "rank_masked_mean": False, "text_epsilon": 0.0},
}
FAITHFUL: dict[str, Any] = {
    **{"published_limits": True, "contrasts_masked": True, "rank_queue": True, "queue_wraps": False},
    **{"rank_batch_norm": True, "rank_masked_mean": True, "text_epsilon": 1e-10},
}


def declip(**switches: Any) -> DeCLIP:
    """A small DeCLIP with a queue that two steps of 18 samples fill more than once."""
    settings: dict[str, Any] = {
        **{"clip_scale": 0.4, "neighbour_scale": 0.2, "simsiam_scale": 0.2, "masked_scale": 0.2},
        **{"head_hidden": 16, "head_bottleneck": 6, "queue_size": 50},
        **{"logit_scale_bounds": (2.0, 6.0), "largest_factor": 100.0},
    }
    return DeCLIP(**settings | CORRECT | switches)


def declip_slip() -> DeclipSLIP:
    return DeclipSLIP(
        head_hidden=16,
        head_output=8,
        clip_scale=1.0,
        ssl_scale=1.0,
        ssl_temperature=0.1,
        logit_scale_bounds=(2.0, 6.0),
        largest_factor=None,
        published_limits=False,
        text_epsilon=0.0,
    )


def defilip() -> DeFILIP:
    return DeFILIP(
        declip=declip(),
        token_scale=0.2,
        all_pairs=True,
        top_tokens=None,
        count_padding=False,
        max_token_logit_scale=4.6052,
    )


def declip_model(method: str, **switches: Any) -> tuple[DualEncoder, Objective]:
    """The same weights for the same method, in float64."""
    torch.manual_seed(0)
    arguments = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    model = DualEncoder(
        image_tower=TimmTower(name="vit_small_patch16_224", image_size=16, arguments=arguments),
        text_tower=TextTransformer(vocab_size=VOCABULARY, context_length=CONTEXT, width=16, depth=2, heads=2),
        embed_dim=12,
        logit_scale_init=2.6593,
        projection_bias="text",
        token_dim=10 if method == "defilip" else None,
    )
    objective = declip(**switches) if method == "declip" else {"declip_slip": declip_slip, "defilip": defilip}[method]()
    objective.prepare(model)
    return model.double().train(), objective.double().train()


def declip_batch(size: int) -> dict[str, Tensor]:
    """Noise images and random captions; about a fifth of the words are masked, and some captions have none masked."""
    generator = torch.Generator().manual_seed(1)
    views = ("image", "image2", "aug1", "aug2")
    batch = {view: torch.randn(size, 3, 16, 16, generator=generator, dtype=torch.float64) for view in views}
    for name in ("text", "text2"):
        ids = torch.randint(1, MASK, (size, CONTEXT), generator=generator)
        ids[:, 0] = START
        length = torch.randint(3, CONTEXT + 1, (size,), generator=generator)
        ids[torch.arange(size), length - 1] = END
        batch |= {name: ids, f"{name}_length": length}
    place = torch.arange(CONTEXT)
    word = (place > 0) & (place < batch["text_length"][:, None] - 1)
    masked = word & (torch.rand(size, CONTEXT, generator=generator) < 0.3)
    labels = torch.where(masked, batch["text"], -100)
    return batch | {"text": torch.where(masked, MASK, batch["text"]), "text_labels": labels}
