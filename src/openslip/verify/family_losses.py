"""One function for each loss of related projects that we compute, from recorded features to its value and gradients.

To add a loss, write a function from the recorded arrays, the settings and the device to our arrays by their recorded
names, and name it in `CONTRASTIVE` (losses of image and text features, on any number of ranks) or `LIGHTLY`.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from openslip.objectives.clip import info_nce
from openslip.objectives.neighbour_queue import NeighbourQueue
from openslip.objectives.siglip import sigmoid_loss
from openslip.objectives.simclr import nt_xent
from openslip.objectives.similarity import Features, unit_length
from openslip.objectives.simsiam import simsiam_loss
from openslip.verify.deviation import Arrays
from openslip.verify.recording import as_array
from openslip.verify.splits import in_tiles

Dims = dict[str, float]  # sizes and settings of a folder's losses
Loss = Callable[[Arrays, Dims, str], Arrays]


def given(x: Tensor, *, gather_with_grad: bool) -> Features:
    """Return features that are compared as they are: recorded features have unit length, and no gradient through it."""
    features = Features(x.detach(), gather_with_grad=gather_with_grad)
    features.local = x
    return features


def leaf(x: np.ndarray | float, device: str) -> Tensor:
    """Return a float64 tensor that collects gradients."""
    return torch.tensor(x, dtype=torch.float64, device=device).requires_grad_()


def sigmoid(batch: Arrays, dims: Dims, device: str) -> Arrays:
    """SigLIP, on this rank's part of the batch; open_clip's ways of exchanging texts give the same values."""
    image, text = (leaf(batch[f"in/{name}"], device) for name in ("image", "text"))
    log_scale, bias = leaf(dims["log_scale"], device), leaf(dims["bias"], device)
    images, texts = (given(x, gather_with_grad=True) for x in (image, text))
    loss, _ = sigmoid_loss(images, texts, log_scale.exp(), bias)
    loss.backward()
    return {**_arrays(loss, image, text, log_scale), "grad/logit_bias": as_array(_gradient(bias))}


def clip(batch: Arrays, dims: Dims, device: str, *, gather_with_grad: bool) -> Arrays:
    """CLIP, on this rank's part of the batch: the loss of its own rows, which open_clip calls local."""
    image, text = (leaf(batch[f"in/{name}"], device) for name in ("image", "text"))
    log_scale = leaf(dims["log_scale"], device)
    images, texts = (given(x, gather_with_grad=gather_with_grad) for x in (image, text))
    with in_tiles(None):  # in tiles, only the mean over ranks of the gradient of the scale is defined
        loss, _ = info_nce(images, texts, log_scale.exp())
    loss.backward()
    return _arrays(loss, image, text, log_scale)


def simclr(arrays: Arrays, dims: Dims, device: str) -> Arrays:
    """NT-Xent of two views, which it scales to unit length."""
    views = [leaf(arrays[f"in/{name}"], device) for name in ("x0", "x1")]
    view1, view2 = (Features(x, gather_with_grad=True) for x in views)
    loss, _ = nt_xent(view1, view2, dims["temp"])
    loss.backward()
    gradients = {f"grad/x{place}": as_array(_gradient(view)) for place, view in enumerate(views)}
    return {"loss": as_array(loss), **gradients}


def averaged(case: str, ranks: list[Arrays]) -> list[Arrays]:
    """Turn the arrays of all ranks into those of a loss that every rank computes for all rows of the global batch."""
    if case not in OF_ALL_ROWS:
        return ranks
    shared = [name for name in ranks[0] if name == "loss" or "logit" in name]
    means = {name: np.asarray(np.mean([rank[name] for rank in ranks], axis=0)) for name in shared}
    return [{**rank, **means} for rank in ranks]


def _arrays(loss: Tensor, image: Tensor, text: Tensor, log_scale: Tensor) -> Arrays:
    return {
        "loss": as_array(loss),
        "grad/image": as_array(_gradient(image)),
        "grad/text": as_array(_gradient(text)),
        "grad/logit_scale_log": as_array(_gradient(log_scale)),
        "grad/logit_scale_exp": as_array(_gradient(log_scale) / log_scale.exp()),
    }


def _gradient(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad


# `localX_gradY` are open_clip's options local_loss and gather_with_grad.
OF_ALL_ROWS = ("clip_local0_grad1",)
CONTRASTIVE: dict[str, Loss] = {
    **dict.fromkeys(("siglip", "siglip_bidir", "siglip_shift", "siglip_reduce", "siglip_gather", "bigvision"), sigmoid),
    **dict.fromkeys(("clip", "clip_local1_grad1", "clip_local0_grad1"), partial(clip, gather_with_grad=True)),
    "clip_local1_grad0": partial(clip, gather_with_grad=False),
}


def simsiam(arrays: Arrays, dims: Dims, device: str) -> Arrays:
    """SimSiam's loss of predictions and projections."""
    predictions, projections = ([leaf(arrays[f"in/{side}{view}"], device) for view in (0, 1)] for side in "pz")
    loss = simsiam_loss(predictions, projections)
    loss.backward()
    return {"loss": as_array(loss), **{f"grad/p{view}": as_array(_gradient(x)) for view, x in enumerate(predictions)}}


def nnclr(arrays: Arrays, dims: Dims, device: str) -> Arrays:
    """NNCLR: NT-Xent of predictions and the nearest neighbours of projections in our queue, step by step."""
    ours: Arrays = {}
    for step in dict.fromkeys(key.split("/")[0] for key in arrays):
        bank = torch.tensor(arrays[f"{step}/bank_before"], device=device)
        queue = NeighbourQueue(size=len(bank), width=bank.shape[1], wraps=False).to(device)
        queue.features = unit_length(bank)  # lightly stores rows as given and scales them when it searches
        queue.place.copy_(torch.from_numpy(arrays[f"{step}/ptr_before"])[0])
        projections = [torch.tensor(arrays[f"{step}/in/z{view}"], device=device) for view in (0, 1)]
        places = [queue.nearest_places(unit_length(x)) for x in projections]
        predictions = [leaf(arrays[f"{step}/in/p{view}"], device) for view in (0, 1)]
        losses = []
        for place, prediction in zip(places, reversed(predictions), strict=True):
            neighbour, predicted = (Features(x, gather_with_grad=True) for x in (queue.features[place], prediction))
            losses.append(nt_xent(neighbour, predicted, dims["temp"])[0])
        loss = (losses[0] + losses[1]) / 2
        loss.backward()
        ours[f"{step}/loss"] = as_array(loss)
        ours |= {f"{step}/neighbour{view}": as_array(place) for view, place in enumerate(places)}
        ours |= {f"{step}/grad/p{view}": as_array(_gradient(x)) for view, x in enumerate(predictions)}
        queue.push(unit_length(projections[1]), torch.zeros((), dtype=torch.bool, device=device))
        ours[f"{step}/ptr_after"] = as_array(queue.place[None])
    return ours


LIGHTLY: dict[str, Loss] = {"ntxent": simclr, "simsiam": simsiam, "nnclr": nnclr}
NOT_COMPUTED = {
    "clip_local0_grad0": "no mode of ours: it trains the towers with 1 / ranks of the gradient",
    "coca": "no objective of ours has a captioning decoder",
    "distill": "no objective of ours distils a teacher",
    **dict.fromkeys(("byol", "ema", "moco", "dino", "barlow", "vicreg"), "no objective of ours computes it"),
}
