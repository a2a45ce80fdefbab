"""Which of a sample's captions is used."""

import numpy as np

from openslip.errors import UserError


class FirstCaption:
    """Always the first."""

    def __call__(self, captions: tuple[str, ...], rng: np.random.Generator) -> str:
        return captions[0]


class UniformCaption:
    """Any of them with equal chance; for YFCC, title or description, as published."""

    def __call__(self, captions: tuple[str, ...], rng: np.random.Generator) -> str:
        return captions[0] if len(captions) == 1 else captions[rng.integers(len(captions))]


def choose(policy: FirstCaption | UniformCaption, captions: tuple[str, ...], key: str, rng: np.random.Generator) -> str:
    """The policy's choice, or an error that names the sample without captions."""
    if not captions:
        raise UserError(f"{key} has no caption that is not empty: remove the sample, or train model=simclr_tiny")
    return policy(captions, rng)
