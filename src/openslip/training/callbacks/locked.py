"""Computes the features of a locked image tower once, before the first step, for the views that read them."""

# pyright: reportIncompatibleMethodOverride=false

from pathlib import Path

import pytorch_lightning as pl

from openslip.data.image.locked import LockedImage
from openslip.data.source import Source
from openslip.errors import UserError
from openslip.evaluation.feature_cache import FeatureCache
from openslip.evaluation.image_features import raw_tower_features, sharing
from openslip.inference.bundle import Bundle
from openslip.models.image_encoder import ImageEncoder
from openslip.training.pretrainer import Pretrainer

# Images per pass. On a CPU, the activations of a few images stay in its caches: EfficientNet-Lite0 at 224 pixels takes
# 30 ms of processor time per image in batches of 4, 43 in batches of 16 and 74 in batches of 64.
BATCH_SIZES = {"cpu": 4}  # others: 64


class LockedImages(pl.Callback):
    """Gives each view of class `LockedImage` the features of all images; does nothing without such a view.

    The features are those of the tower's present weights, which a resumed run takes from its checkpoint. They are
    stored under a hash of the tower's weights and architecture, the transform and the dataset's fingerprint. So runs
    with other seeds, caption views or text towers read them, and runs with another image tower, transform or dataset do
    not. A dataset with other captions has another fingerprint.

    Args:
        folder: folder of the files with features; None computes the features at every start.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        views = {name: view for name, view in pl_module.data.views.items() if isinstance(view, LockedImage)}
        if views and pl_module.step < pl_module.max_steps:
            fill(views, pl_module.bundle, pl_module.data.source, self.folder)


def fill(views: dict[str, LockedImage], bundle: Bundle, source: Source, folder: Path | None) -> None:
    """Give the views the features of all images of a source.

    Args:
        views: batch key to view.
        bundle: model with a locked image tower.
        source: the images.
        folder: as for `LockedImages`.

    Raises:
        UserError: the image tower is not locked or has features of another width, or an image cannot be read.
    """
    tower = bundle.model.image_tower
    for name, view in views.items():
        if not tower.locked:
            raise UserError(
                f"objective.views.{name}: it needs a locked image tower, whose features do not change; set "
                "towers.image.locked=true and towers.image.weights="
            )
        if view.width != tower.width:
            raise UserError(
                f"objective.views.{name}.width={view.width}: the image tower's features have width {tower.width}"
            )
    # A model of the tower alone, because its weights and settings are the key of the stored features.
    architecture = {"image_tower": bundle.architecture["image_tower"]}
    alone = Bundle(ImageEncoder(image_tower=tower), None, bundle.transform, architecture, bundle.device)
    with sharing(FeatureCache(folder)):
        batch_size = BATCH_SIZES.get(bundle.device.type, 64)
        rows = raw_tower_features(alone, source, batch_size=batch_size, num_workers=0, labels=False)
    for view in views.values():
        view.features = rows.features.cpu()
