"""Create a W&B workspace with the panels for OpenSLIP's metrics: openslip dashboard --project NAME."""

import argparse
from typing import TYPE_CHECKING

from openslip.errors import MissingPackage, UserError, first_line
from openslip.terminal import say

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

X_AXIS = "samples_seen"
ATTRIBUTES = ("size", "texture", "colour", "shape")  # attributes of the built-in dataset
CLASSIFICATIONS = ("builtin", "imagenet")  # evaluations with predictions; line plots find every evaluation by a pattern


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("openslip dashboard", description=__doc__)
    parser.add_argument(
        "--project", required=True, metavar="NAME", help="W&B project of the runs, logger.wandb.project"
    )
    parser.add_argument("--entity", metavar="NAME", help="user or team of the project; by default your account's")
    return parser


def main(arguments: list[str]) -> int:
    """Create the workspace and print its address."""
    options = parser().parse_args(arguments)
    try:
        import wandb
        import wandb_workspaces.workspaces  # noqa: F401 - a missing package is reported here
    except ModuleNotFoundError as error:
        raise MissingPackage('the dashboard needs wandb-workspaces; pip install "openslip[wandb]"') from error
    try:
        entity = options.entity or wandb.Api().default_entity
        if entity is None:
            raise UserError("your W&B account names no default entity: add --entity NAME")
        say(workspace(entity, options.project).save().url)
    except (wandb.Error, OSError) as error:  # OSError: the server cannot be reached
        raise UserError(
            f"W&B created no workspace in {options.project} ({first_line(error)}): run `wandb login`, and check "
            "--project and --entity"
        ) from error
    return 0


def workspace(entity: str, project: str) -> "Workspace":
    """Return the workspace, which is not created at W&B until it is saved."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    def lines(title: str, *keys: str) -> wr.LinePlot:
        return wr.LinePlot(title=title, x=X_AXIS, y=[*keys])

    def every(title: str, pattern: str) -> wr.LinePlot:
        return wr.LinePlot(title=title, x=X_AXIS, metric_regex=pattern)

    sections = {
        "Result": [
            every("Top-1 and chance", r"^eval(_ema)?/.*/(top1|chance)$"),
            every("Top-5", r"^eval(_ema)?/.*/top5$"),
            every("Mean per class; mean of top-1 and top-5", r"^eval(_ema)?/.*/(mean_per_class|mean_of_top1_top5)$"),
            wr.BarPlot(
                title="Top-1 per attribute", metrics=[f"eval/builtin/top1_{attribute}" for attribute in ATTRIBUTES]
            ),
            every("Retrieval recall at 1", r"^eval(_ema)?/.*_recall_1$"),
            every("Calibration error in per cent", r"^eval(_ema)?/.*/calibration_error_percent$"),
            every("Gain of the prompt ensemble in points", r"^eval(_ema)?/.*/ensemble_gain(_over_best)?$"),
        ],
        "Training": [
            every("Losses", r"^train/(.*_)?loss$"),
            every("Accuracy in the batch", r"^train/.*_acc$"),
            lines("exp(logit_scale)", "train/logit_scale"),
            lines("Learning rate", "train/lr"),
            lines("Gradient norm before clipping", "train/gradient_norm"),
            lines("Skipped steps", "train/skipped"),
        ],
        "Images": [
            wr.MediaBrowser(title="Views", media_keys=["images/image", "images/aug1", "images/aug2"]),
            wr.MediaBrowser(title="Image-caption similarity", media_keys=["images/similarity"]),
            wr.MediaBrowser(title="Predictions", media_keys=[f"eval/{name}/images" for name in CLASSIFICATIONS]),
            *(wr.WeavePanelSummaryTable(table_name=f"eval/{name}/predictions") for name in CLASSIFICATIONS),
        ],
        "Speed": [
            lines("Samples per second", "speed/samples_per_second", "speed/samples_per_second_per_device"),
            lines("Wait for data in per cent", "speed/data_wait_percent"),
            lines("Model FLOPs utilisation in per cent", "speed/mfu_percent"),
            lines("Peak memory in GB", "speed/peak_memory_gb"),
            lines("Remaining hours", "speed/eta_hours"),
        ],
        "Data": [
            lines("Bad samples of the epoch", "data/bad_samples"),
            lines("Truncated captions in per cent", "data/truncated"),
        ],
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name="OpenSLIP",
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        settings=ws.WorkspaceSettings(x_axis=X_AXIS),
    )
