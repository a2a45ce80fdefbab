"""Evaluations of captioned pictures; importable, because ranks run them too."""

from evaluation_models import bundle, dual_encoder
from retrieval_models import Captioned

from openslip.data.source import Source
from openslip.evaluation.geometry import Geometry
from openslip.evaluation.held_out_loss import HeldOutLoss


def geometry(source: Source) -> Geometry:
    return Geometry(title="mine", source=source, batch_size=4, num_workers=0)


def held_out(source: Source, loss_batch_size: int = 4) -> HeldOutLoss:
    return HeldOutLoss(title="mine", source=source, loss_batch_size=loss_batch_size, batch_size=3, num_workers=0)


def measure_on_this_rank(count: int) -> tuple[dict[str, float], dict[str, float], dict[str, list]]:
    """Metrics of both, and the arrays of the geometry."""
    shape = geometry(Captioned(count))
    metrics = shape.run(bundle(dual_encoder()))
    arrays = {name: array.tolist() for name, array in shape.arrays.items()}
    return metrics, held_out(Captioned(count)).run(bundle(dual_encoder())), arrays
