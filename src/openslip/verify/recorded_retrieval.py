"""Our recalls of recorded image and text features."""

import torch
import torch.nn.functional as F

from openslip.evaluation.retrieval import CHUNK, ranks, recall_at
from openslip.verify.recorded_figures import FLOAT32_ARRAY, Computed, Ours, Section

# The recording's name of each direction says what is found: images by texts, and texts by images.
FOUND = {"image_retrieval_recall": "text_to_image", "text_retrieval_recall": "image_to_text"}


def retrieval(section: Section) -> Computed:
    """Compute recall in both directions of `retrieval_NAME`, whose arrays are named `NAME/...`."""
    prefix = f"{section.name.partition('_')[2]}/"
    images, texts = (F.normalize(section.tensor(f"{prefix}{kind}_features"), dim=-1) for kind in ("image", "text"))
    of_text = section.tensor(f"{prefix}image_of_text")
    of_image = torch.arange(len(images), device=images.device)
    found = {
        "text_to_image": ranks(texts, of_text, images, of_image, chunk=CHUNK),
        "image_to_text": ranks(images, of_image, texts, of_text, chunk=CHUNK),
    }
    figures = {}
    for name in section.figures:
        direction, _, place = name.partition("@")
        if direction in FOUND:
            figures[name] = Ours(recall_at(found[FOUND[direction]], int(place)) / 100)
    scores = (texts @ images.T).cpu().numpy()
    return Computed(figures, {f"{prefix}scores_text_by_image": Ours(scores, FLOAT32_ARRAY)})
