"""Classification by the nearest class mean of frozen features, a baseline without text.

As the nearest class mean classifier of Mensink et al. 2013, DOI 10.1109/TPAMI.2013.83, with the cosine as similarity.
"""

import torch
import torch.nn.functional as F

from openslip.data.source import Source
from openslip.evaluation.evaluation import Evaluation, classification_line
from openslip.evaluation.image_features import tower_features
from openslip.evaluation.multilabel import checked_vectors
from openslip.evaluation.seen_unseen import hits, names_of
from openslip.inference.bundle import Bundle, evaluating


class NearestMean(Evaluation):
    """Accuracy, in per cent, if an image gets the class whose mean feature is nearest to its own.

    The features are those of the image tower, before any projection, at unit length. An image may have several right
    classes, and counts for the mean of each. Metrics: `top1`, `chance`, `num_samples`.

    Args:
        title: name of the evaluation in its headline.
        train: images with `label_vectors`, of which the means are taken.
        test: images to classify, with `label_vectors` of the same classes.
        batch_size: images per forward pass.
        num_workers: processes that decode images; 0 decodes in this process.

    Raises:
        UserError: a source has no label vectors, or not of the same classes.
    """

    def __init__(self, *, title: str, train: Source, test: Source, batch_size: int, num_workers: int) -> None:
        num_classes = len(names_of(train, "train"))
        self.title = title
        self.train = train
        self.test = test
        self.vectors, self.test_vectors = (checked_vectors(source, title, num_classes) for source in (train, test))
        self.batch_size = batch_size
        self.num_workers = num_workers

    def headline(self, metrics: dict[str, float]) -> str:
        return classification_line(self.title, metrics, self.headline_metric)

    def run(self, bundle: Bundle) -> dict[str, float]:
        train, test = (
            tower_features(
                bundle, source, batch_size=self.batch_size, num_workers=self.num_workers, labels=False
            ).features
            for source in (self.train, self.test)
        )
        with evaluating(bundle.model, bundle.device):
            member = torch.from_numpy(self.vectors).to(train)
            means = F.normalize(member.T @ train / member.sum(dim=0)[:, None].clamp(min=1), dim=1)
            top1 = hits(test, means, self.test_vectors)
        chance = 100 * float(self.test_vectors.mean())
        return {"top1": top1, "chance": chance, "num_samples": float(len(test))}
