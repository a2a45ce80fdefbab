"""Pairs of views of labelled images: each view of this rank with each view of all ranks."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from openslip.distributed import gather
from openslip.objectives.similarity import places


class Views(NamedTuple):
    """Encoded views of images; `sum_over_pairs` cuts these tensors into tiles."""

    encoding: Float[Tensor, "views dim"]
    label: Int64[Tensor, " views"]  # class of the image; a negative number of its own if it has no label
    place: Int64[Tensor, " views"]  # index of the view among those of the global batch


class Kinds(NamedTuple):
    """Which pairs of a tile are of the same class or of different ones; a view with itself is neither."""

    same: Bool[Tensor, "rows columns"]  # two views of images with the same label
    different: Bool[Tensor, "rows columns"]


def views_of_all_ranks(features: dict[str, Tensor]) -> tuple[Views, Views]:
    """Return this rank's views and those of all ranks, in the same order for any number of ranks.

    Args:
        features: `aug1` and `aug2`, encoded views of this rank's images, and their `label`; gradients reach the views
            of all ranks.
    """
    aug1, aug2 = features["aug1"], features["aug2"]
    place = places(aug1)
    label = classes_of(features["label"], place)
    all1, all2, all_labels = (gather(x, with_grad=x.is_floating_point()) for x in (aug1, aug2, label))
    local = Views(torch.cat([aug1, aug2]), label.repeat(2), torch.cat([place, place + len(all1)]))
    all_places = torch.arange(2 * len(all1), device=label.device)
    return local, Views(torch.cat([all1, all2]), all_labels.repeat(2), all_places)


def classes_of(label: Int64[Tensor, " local"], place: Int64[Tensor, " local"]) -> Int64[Tensor, " local"]:
    """Return the labels; each sample without a label (-1) gets a number that no other sample has.

    Args:
        label: class of each of this rank's samples.
        place: place of each of them in the global batch.
    """
    return torch.where(label < 0, -1 - place, label)


def kinds(rows: Views, columns: Views) -> Kinds:
    """Tell which pairs of a tile are of the same class and which are of different classes."""
    same = rows.label[:, None] == columns.label
    return Kinds(same & (rows.place[:, None] != columns.place), ~same)


def num_pairs_of_one_class(views: Views) -> Float[Tensor, ""]:
    """Count the ordered pairs of different views with the same label, without a synchronisation with the device."""
    ordered = views.label.sort().values
    last, first = (torch.searchsorted(ordered, ordered, right=right) for right in (True, False))
    return (last - first - 1).sum().to(views.encoding.dtype)
