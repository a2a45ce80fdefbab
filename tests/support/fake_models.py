"""Models and batches of the three methods on fake CUDA, with the head dimension of real ones."""

from typing import Any

import torch
from fake_cuda import DEVICE, FakeCuda
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from openslip.models.dual_encoder import DualEncoder
from openslip.models.image_encoder import ImageEncoder
from openslip.models.text_transformer import TextTransformer
from openslip.models.timm_tower import TimmTower
from openslip.objectives.clip import CLIP
from openslip.objectives.objective import Objective
from openslip.objectives.simclr import SimCLR
from openslip.objectives.slip import SLIP

CONTEXT = 77
SMALL: dict[str, Any] = {"patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}  # 64 values a head
SIDE = 32


def model_of(method: str, *, side: int = SIDE, image: dict[str, Any] = SMALL, text: int = 128, depth: int = 2) -> Any:
    """A model and its objective, not yet set up; widths and depths as given."""
    tower = TimmTower(name="vit_base_patch16_224", image_size=side, arguments=image)
    ssl = {"head_hidden": 4096, "head_output": 256, "ssl_temperature": 0.1}
    clip = {"gather_with_grad": True, "max_logit_scale": 4.6052}
    if method == "simclr":
        return ImageEncoder(image_tower=tower), SimCLR(**ssl)
    texts = TextTransformer(vocab_size=49408, context_length=CONTEXT, width=text, depth=depth, heads=text // 64)
    model = DualEncoder(image_tower=tower, text_tower=texts, embed_dim=512, logit_scale_init=2.6593)
    return model, CLIP(**clip, same_caption="negative") if method == "clip" else SLIP(**clip, **ssl, ssl_scale=1.0)


def fake_model(method: str, **sizes: Any) -> tuple[Any, Objective]:
    """A model and its objective on the device, set up."""
    model, objective = meta_model(method, **sizes)
    return model.to_empty(device=DEVICE), objective.to_empty(device=DEVICE)


def meta_model(method: str, **sizes: Any) -> tuple[Any, Objective]:
    """A model and its objective without memory, made in a moment, set up."""
    with _disable_current_modes(), torch.device("meta"):
        model, objective = model_of(method, **sizes)
        objective.prepare(model)
    return model, objective


def fake_batch(
    cuda: FakeCuda, method: str, size: int, *, side: int = SIDE, length: int | None = None
) -> dict[str, Tensor]:
    """A finished batch: views and tokens on the device, lengths on the CPU; captions of random length, or of one."""
    views = {"clip": ["image"], "simclr": ["aug1", "aug2"], "slip": ["image", "aug1", "aug2"]}[method]
    batch = {view: torch.empty(size, 3, side, side, device=DEVICE) for view in views}
    if method != "simclr":
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(2, CONTEXT + 1, (size,), generator=generator)
        batch["text"] = torch.empty(size, CONTEXT, dtype=torch.long, device=DEVICE)
        batch["text_length"] = cuda.pin(lengths if length is None else torch.full((size,), length))
    return batch
