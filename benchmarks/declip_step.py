"""DeCLIP's step beside the passes of its towers alone: what the heads, the queue and the four terms cost.

Both are the forward and the backward pass of the same images and captions, without the optimizer. Captions are as long
as CC3M's. Figures are of process time on one thread; the ratio is the median over rounds in which the two take turns,
and is to be at least 1 / 1.1.

    python benchmarks/declip_step.py --json declip_step.json
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rates import Rates, Row, show
from step import CONTEXT, caption_lengths
from torch import Tensor

from openslip.config.build import build_parts
from openslip.config.compose import compose_config
from openslip.objectives.declip import DeCLIP
from openslip.objectives.masked_words import unmasked
from openslip.objectives.stacked import stacked
from openslip.training.microbatch import loss_in_micro_batches

BAR = 1 / 1.1  # rate of the whole step by that of the towers alone
MASK, START, END = 49406, 49407, 49408


def captions(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random words as captions, as wide as the longest."""
    generator = torch.Generator().manual_seed(seed)
    lengths = caption_lengths(size)[torch.randperm(size, generator=generator)]
    ids = torch.randint(1, 49000, (size, CONTEXT), generator=generator)
    ids[:, 0] = START
    ids[torch.arange(size), lengths - 1] = END
    ids[torch.arange(CONTEXT) >= lengths[:, None]] = 0
    return ids[:, : int(lengths.max())].contiguous(), lengths


def make_batch(size: int, side: int) -> dict[str, Tensor]:
    """Noise images and random captions, of whose words 15 % are masked."""
    generator = torch.Generator().manual_seed(0)
    batch = {name: torch.randn(size, 3, side, side, generator=generator) for name in ("image", "image2")}
    (ids, lengths), (ids2, lengths2) = captions(size, 1), captions(size, 2)
    masked = (torch.rand(ids.shape, generator=generator) < 0.15) & (ids > 0) & (ids < START)
    return batch | {
        **{"text": torch.where(masked, MASK, ids), "text_labels": torch.where(masked, ids, -100)},
        **{"text_length": lengths, "text2": ids2, "text2_length": lengths2},
    }


def measure(name: str, mode: str, batch_size: int, rounds: int) -> Iterator[Row]:
    """Rows of the towers alone and of the whole step."""
    torch.manual_seed(0)
    config = compose_config("train", [f"model={name}", f"mode={mode}"])[0]
    parts = build_parts(config)
    model: Any = parts.model
    objective = parts.objective
    objective.prepare(model)
    model.train()
    objective.train()
    assert isinstance(objective, DeCLIP)
    batch = make_batch(batch_size, config["image_size"])
    ids, lengths, labels = batch["text"], batch["text_length"], batch["text_labels"]

    def towers() -> int:
        views = model.image_tower.views(batch["image"], batch["image2"])
        if objective.contrasts_masked:
            text, words = model.text_tower.pooled_and_tokens(ids, lengths)
            outputs = [*views, text, words.features, model.text_tower(batch["text2"], batch["text2_length"])]
        else:
            words = model.text_tower.tokens(ids, lengths)
            both = stacked(unmasked(ids, labels), lengths, batch["text2"], batch["text2_length"])
            outputs = [*views, words.features, model.text_tower(*both)]
        torch.stack([output.sum() for output in outputs]).sum().backward()
        model.zero_grad(set_to_none=True)
        return batch_size

    def step() -> int:
        loss_in_micro_batches(objective, model, batch, [batch_size])["loss"].backward()
        objective.after_step(model)
        model.zero_grad(set_to_none=True)
        objective.zero_grad(set_to_none=True)
        return batch_size

    titles = [f"{name}, {mode}, {what}" for what in ("towers alone", "whole step")]
    rates = Rates(dict(zip(titles, (towers, step), strict=True)), rounds)
    yield rates.row(titles[0], "samples/s")
    yield rates.row(titles[1], "samples/s", titles[0], BAR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--model", default="declip_vits16")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    setting = parser.parse_args()
    torch.set_num_threads(1)
    modes = ("correct", "faithful")
    parts = (measure(setting.model, mode, setting.batch_size, setting.rounds) for mode in modes)
    show(*parts, file=setting.json)


if __name__ == "__main__":
    main()
