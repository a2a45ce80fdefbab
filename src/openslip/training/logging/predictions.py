"""Logs a table of single predictions to W&B."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger, WandbLogger

from openslip.training.logging.metrics import send

ROWS = 200  # largest number of rows; they are evenly spread over the samples


def log_predictions(trainer: pl.Trainer, name: str, arrays: dict[str, np.ndarray], step: int) -> None:
    """Log `eval/<name>/predictions` if W&B is among the loggers and the evaluation has predictions and labels."""
    if "predictions" not in arrays or "labels" not in arrays:
        return
    columns, rows = prediction_table(arrays)

    def to_wandb(logger: Logger) -> None:
        if isinstance(logger, WandbLogger):
            logger.log_table(f"eval/{name}/predictions", columns=columns, data=rows, step=step)

    send(trainer, step, to_wandb)


def prediction_table(arrays: dict[str, np.ndarray]) -> tuple[list[str], list[list[Any]]]:
    """Return column names and rows: sample, label, prediction, whether they agree, and the probability if known."""
    labels, predictions = arrays["labels"], arrays["predictions"]
    columns = ["sample", "label", "prediction", "right"]
    names, probabilities = arrays.get("classnames"), arrays.get("top_probabilities")
    rows = []
    for sample in np.unique(np.linspace(0, len(labels) - 1, min(ROWS, len(labels))).round().astype(int)).tolist():
        label, prediction = int(labels[sample]), int(predictions[sample])
        shown = [label, prediction] if names is None else [str(names[label]), str(names[prediction])]
        row: list[Any] = [sample, *shown, label == prediction]
        rows.append(row if probabilities is None else [*row, float(probabilities[sample, 0])])
    return columns if probabilities is None else [*columns, "probability"], rows
