"""Small models and batches of all three methods, for tests of the step."""

from typing import Any

import torch
from torch import Tensor, nn

from openslip.models.dual_encoder import DualEncoder
from openslip.models.image_encoder import ImageEncoder
from openslip.models.text_transformer import TextTransformer
from openslip.models.timm_tower import TimmTower
from openslip.objectives.clip import CLIP
from openslip.objectives.filip import FILIP
from openslip.objectives.neg_clip import NegCLIP
from openslip.objectives.objective import Objective
from openslip.objectives.siglip import SigLIP
from openslip.objectives.simclr import SimCLR
from openslip.objectives.slip import SLIP
from openslip.objectives.unicl import UniCL

METHODS = ("clip", "simclr", "slip")
PAIR_METHODS = ("siglip", "siglip positive", "siglip ignore", "unicl", "clip positive", "clip ignore")
IMAGE_TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_small_patch16_224", {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}),
    "batch norm": ("resnet18", {"channels": [8, 8, 8, 16], "layers": [1, 1, 1, 1], "stem_width": 8}),
    "batch norm with activation": ("test_efficientnet", {}),
}


def small_model(method: str, *, gather_with_grad: bool = True, image: str = "vit") -> tuple[nn.Module, Objective]:
    """The same weights for the same method and image tower, in float64.

    Args:
        method: of METHODS or PAIR_METHODS; its second word is the role of samples with the same caption.
        gather_with_grad: where the method lets one choose.
        image: of IMAGE_TOWERS.
    """
    method, _, same_caption = method.partition(" ")
    same_caption = same_caption or "negative"
    torch.manual_seed(0)
    name, arguments = IMAGE_TOWERS[image]
    tower = TimmTower(name=name, image_size=16, arguments=arguments)
    objective: Objective
    model: Any
    if method == "simclr":
        model = ImageEncoder(image_tower=tower)
        objective = SimCLR(head_hidden=20, head_output=8, ssl_temperature=0.1)
    else:
        text = TextTransformer(vocab_size=50, context_length=9, width=16, depth=2, heads=2)
        model = DualEncoder(
            image_tower=tower,
            text_tower=text,
            embed_dim=12,
            logit_scale_init=2.6593,
            logit_bias_init=-10.0 if method == "siglip" else None,
            token_dim=10 if method == "filip" else None,
        )
        objective = CLIP(gather_with_grad=gather_with_grad, max_logit_scale=4.6052, same_caption=same_caption)
        if method == "siglip":
            objective = SigLIP(same_caption=same_caption, max_logit_scale=None)
        if method == "unicl":
            objective = UniCL(gather_with_grad=gather_with_grad, max_logit_scale=4.6052)
        if method == "slip":
            objective = SLIP(
                head_hidden=20,
                head_output=8,
                ssl_scale=1.0,
                ssl_temperature=0.1,
                gather_with_grad=gather_with_grad,
                max_logit_scale=4.6052,
            )
        if method == "neg_clip":
            objective = NegCLIP(gather_with_grad=gather_with_grad, max_logit_scale=4.6052)
        if method == "filip":
            objective = FILIP(
                token_scale=1.0,
                clip_scale=0.5,
                top_tokens=None,
                count_padding=False,
                gather_with_grad=gather_with_grad,
                max_logit_scale=4.6052,
            )
    objective.setup(model)
    return model.double(), objective.double()


def small_batch(size: int, *, has_equal_captions: bool = False) -> dict[str, Tensor]:
    """Noise images, captions, and labels of which some are equal.

    Args:
        size: number of samples.
        has_equal_captions: whether captions 1, 7 and 9 are equal.
    """
    generator = torch.Generator().manual_seed(1)
    batch = {
        view: torch.randn(size, 3, 16, 16, generator=generator, dtype=torch.float64)
        for view in ("image", "aug1", "aug2")
    }
    text = torch.randint(1, 49, (size, 9), generator=generator)
    text[:, 0] = 48
    length = torch.randint(2, 10, (size,), generator=generator)
    text[torch.arange(size), length - 1] = 49
    if has_equal_captions:
        text[[7, 9]], length[[7, 9]] = text[1].clone(), length[1].clone()
    label = torch.arange(size) % 4 - 1
    hard = text.roll(1, dims=0)
    hard_length = length.roll(1)
    has_hard = torch.arange(size) % 4 != 1
    negatives = {"text_hard": hard, "text_hard_length": hard_length, "text_has_hard": has_hard}
    return {**batch, "text": text, "text_length": length, "label": label, **negatives}
