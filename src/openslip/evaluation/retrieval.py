"""Image-text retrieval: recall at 1, 5 and 10 in both directions. Karpathy and Fei-Fei 2015, arXiv:1412.2306."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from openslip.data.source import Source
from openslip.errors import UserError
from openslip.evaluation.evaluation import Evaluation
from openslip.evaluation.features import text_features
from openslip.evaluation.image_features import joint_features
from openslip.inference.bundle import Bundle, evaluating

PLACES = (1, 5, 10)
WAYS = {"image_to_text": "image to text", "text_to_image": "text to image"}


class Retrieval(Evaluation):
    """Recall at K: share of queries with a correct match among the K most similar candidates, in per cent.

    Images are queries for captions and captions for images. Metrics: `image_to_text_recall_K` and
    `text_to_image_recall_K` for K of 1, 5 and 10 if there are more than K candidates, `num_images`, `num_texts`. Every
    caption is a query and a candidate, so the source should keep equal captions of an image (`equal_captions=keep`).

    Args:
        title: name of the evaluation in its headline.
        source: images with one or more captions.
        batch_size: images per forward pass, and queries compared with all candidates at a time.
        num_workers: processes that decode images; 0 decodes in this process.

    Raises:
        UserError: the constructor gets fewer than two samples; `run` meets a sample without a caption, or the model
            has no text tower.
    """

    headline_metric = "image_to_text_recall_1"

    def __init__(self, *, title: str, source: Source, batch_size: int, num_workers: int) -> None:
        if len(source) < 2:
            raise UserError(f"retrieval: the source has {len(source)} samples: expected at least 2 to choose from")
        self.title = title
        self.source = source
        self.batch_size = batch_size
        self.num_workers = num_workers

    def headline(self, metrics: dict[str, float]) -> str:
        shares = (f"{way} {metrics[f'{name}_recall_1']:.1f} %" for name, way in WAYS.items())
        return f"{self.title} recall@1: {', '.join(shares)}"

    def run(self, bundle: Bundle) -> dict[str, float]:
        bundle.need_tokenizer()
        captions = [self.captions(index) for index in range(len(self.source))]
        counts = torch.tensor([len(texts) for texts in captions])
        of_image = torch.arange(len(captions), device=bundle.device)
        of_text = of_image.repeat_interleave(counts.to(bundle.device))
        with evaluating(bundle.model, bundle.device):
            texts = text_features(bundle, [text for texts in captions for text in texts])
            images, _ = joint_features(
                bundle, self.source, batch_size=self.batch_size, num_workers=self.num_workers, labels=False
            )
            to_text = self.recalls(images, of_image, texts, of_text)
            to_image = self.recalls(texts, of_text, images, of_image)
        recalls = {
            f"{way}_recall_{place}": recall
            for way, found in zip(WAYS, (to_text, to_image), strict=True)
            for place, recall in found.items()
        }
        return {**recalls, "num_images": float(len(images)), "num_texts": float(len(texts))}

    def captions(self, index: int) -> tuple[str, ...]:
        sample = self.source[index]
        if not sample.captions:
            raise UserError(f"sample {sample.key!r} has no caption: retrieval needs one for every image")
        return sample.captions

    def recalls(
        self,
        queries: Float[Tensor, "queries embed"],
        of_query: Int64[Tensor, " queries"],
        candidates: Float[Tensor, "candidates embed"],
        of_candidate: Int64[Tensor, " candidates"],
    ) -> dict[int, float]:
        """Return recall at each K: per cent of queries with a candidate of the same image among the K most similar.

        Candidates of equal similarity are ranked in their order.

        Args:
            queries: unit-length features of the queries.
            of_query: index of each query's image.
            candidates: unit-length features of the candidates.
            of_candidate: index of each candidate's image.
        """
        hits = []
        for rows, own in zip(queries.split(self.batch_size), of_query.split(self.batch_size), strict=True):
            order = (rows @ candidates.T).sort(dim=1, descending=True, stable=True).indices[:, : PLACES[-1]]
            hits.append(of_candidate[order] == own[:, None])
        hit = torch.cat(hits)
        return {
            place: 100 * int(hit[:, :place].any(dim=1).sum()) / len(hit) for place in PLACES if place < len(candidates)
        }
