"""Logs images to W&B: augmented views, their similarities with captions, and classified images."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytorch_lightning as pl
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pytorch_lightning.loggers import WandbLogger

from openslip.errors import first_line
from openslip.terminal import notice


def log_views(
    trainer: pl.Trainer, views: Mapping[str, UInt8[np.ndarray, "_ 3 _ _"]], captions: Sequence[str], step: int
) -> None:
    """Log the images of each view as `images/<view>`, with their captions if there are any."""
    for view, images in views.items():
        log_images(trainer, f"images/{view}", lambda images=images: pixels(images), lambda: captions, step)


def log_similarity(
    trainer: pl.Trainer, matrix: Float[np.ndarray, "images captions"], captions: Sequence[str], step: int
) -> None:
    """Log a heat map of image-caption similarities as `images/similarity`; the text below it lists the captions."""
    columns = "\n".join(f"{number}: {caption}" for number, caption in enumerate(captions, 1))
    log_images(trainer, "images/similarity", lambda: [heat_map(matrix)], lambda: [columns], step)


def log_classified(trainer: pl.Trainer, name: str, arrays: dict[str, np.ndarray], step: int) -> None:
    """Log images as `eval/<name>/images`, each with its label and its prediction, if the evaluation keeps images."""
    if arrays.keys() >= {"images", "image_indices", "labels", "predictions", "classnames", "top_probabilities"}:
        log_images(trainer, f"eval/{name}/images", lambda: pixels(arrays["images"]), lambda: verdicts(arrays), step)


def verdicts(arrays: dict[str, np.ndarray]) -> list[str]:
    """Return for each image whether its prediction is right, the prediction, and the label if it is wrong."""
    names, texts = arrays["classnames"], []
    for sample in arrays["image_indices"].tolist():
        label, prediction = int(arrays["labels"][sample]), int(arrays["predictions"][sample])
        predicted = f"{names[prediction]} ({arrays['top_probabilities'][sample, 0]:.0%})"
        texts.append(f"right: {predicted}" if label == prediction else f"wrong: {predicted}, label {names[label]}")
    return texts


def log_images(
    trainer: pl.Trainer,
    key: str,
    draw: Callable[[], list[UInt8[np.ndarray, "_ _ 3"]]],
    describe: Callable[[], Sequence[str]],
    step: int,
) -> None:
    """Log images if W&B is among the loggers.

    Args:
        trainer: the trainer with the loggers.
        key: name under which W&B shows the images.
        draw: returns the images; not called without W&B.
        describe: returns one text per image, or none; not called without W&B either.
        step: step at which the images are logged.
    """
    for logger in trainer.loggers:
        if not isinstance(logger, WandbLogger):
            continue
        try:
            captions = list(describe())
            logger.log_image(key, draw(), step, **({"caption": captions} if captions else {}))
        except Exception as error:  # e.g. W&B's temporary folder was deleted; the logger is kept for the metrics
            notice(f"W&B: {key} was not logged at step {step}: {first_line(error)}")


def pixels(images: UInt8[np.ndarray, "_ 3 h w"]) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Return images with the channels last, as W&B expects them."""
    return [*images.transpose(0, 2, 3, 1)]


def heat_map(matrix: Float[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "height width 3"]:
    """Draw a matrix of cosines with its colour scale."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="caption", ylabel="image")
    axes.set_xticks(range(matrix.shape[1]), map(str, range(1, matrix.shape[1] + 1)))
    axes.set_yticks(range(matrix.shape[0]), map(str, range(1, matrix.shape[0] + 1)))
    figure.colorbar(axes.imshow(matrix), label="cosine")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
