"""The losses of raw features, called as the framework calls `Objective.loss`: with autocast off."""

import torch
from torch import Tensor

from openslip.objectives import clip, simclr
from openslip.objectives.similarity import Features


def clip_loss(image: Tensor, text: Tensor, scale: Tensor, *, gather_with_grad: bool) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", enabled=False):
        image_features, text_features = (Features(x, gather_with_grad=gather_with_grad) for x in (image, text))
        return clip.info_nce(image_features, text_features, scale)


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", enabled=False):
        view1, view2 = (Features(z, gather_with_grad=True) for z in (z1, z2))
        return simclr.nt_xent(view1, view2, temperature)
