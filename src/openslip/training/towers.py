"""Options that a run applies to its towers; they are not part of the model, so `openslip.load` does not apply them."""

from typing import Any

from torch import nn

from openslip.errors import UserError
from openslip.models.batch_norm import synchronise
from openslip.models.tower import Tower


def prepare_towers(model: nn.Module, options: dict[str, dict[str, Any]], *, initialised: bool = False) -> None:
    """Apply the config's `towers` to a model: locking, gradient checkpointing and patch dropout, but not `weights`.

    The model's batch norms are also changed: they use global-batch statistics.

    Args:
        model: model to be trained, changed in place.
        options: the config's `towers`, with options by kind of tower (`image`, `text`).
        initialised: whether the whole model starts from a checkpoint, so that a locked tower needs no `weights`.

    Raises:
        UserError: options contradict each other, the model lacks the tower, or the tower does not support an option.
    """
    children = dict(model.named_children())
    for kind, wanted in options.items():
        refuse_contradictions(kind, wanted, initialised)
        if not any(wanted.values()):
            continue
        tower = children.get(f"{kind}_tower")
        if not isinstance(tower, Tower):
            asked = ", ".join(f"towers.{kind}.{key}" for key, value in wanted.items() if value)
            raise UserError(f"{asked}: {type(model).__name__} has no {kind} tower; leave it at its default")
        try:
            if wanted["locked"]:
                tower.lock()
            if wanted["gradient_checkpointing"]:
                tower.checkpoint_blocks()
            if wanted.get("patch_dropout"):
                tower.drop_patches(wanted["patch_dropout"])
        except UserError as error:
            raise UserError(f"towers.{kind}.{error}") from error
    synchronise(model, runs_again=any(wanted["gradient_checkpointing"] for wanted in options.values()))


def refuse_contradictions(kind: str, wanted: dict[str, Any], initialised: bool) -> None:
    """Refuse options of a tower that contradict each other, before any option is applied."""
    if wanted["locked"] and not (wanted["weights"] or initialised):
        raise UserError(
            f"towers.{kind}.locked=true would keep random weights as they are: set towers.{kind}.weights= or "
            "init_from.checkpoint= to a run's folder or a checkpoint"
        )
    if wanted["locked"] and wanted.get("patch_dropout"):
        raise UserError(
            f"towers.{kind}.patch_dropout={wanted['patch_dropout']}: a locked tower drops no patches; set it to 0"
        )
