"""Small float32 models and labelled pictures for tests of evaluations; importable, because ranks run them too."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn

from openslip.data.image.eval_transform import EvalTransform
from openslip.data.source import Sample, Source
from openslip.evaluation.evaluation import Evaluation
from openslip.evaluation.knn import KNN
from openslip.evaluation.token_zeroshot import TokenZeroShot
from openslip.evaluation.zeroshot import ZeroShot
from openslip.inference.bundle import Bundle
from openslip.models.dual_encoder import DualEncoder
from openslip.models.image_encoder import ImageEncoder
from openslip.models.text_transformer import TextTransformer
from openslip.models.timm_tower import TimmTower
from openslip.text.clip_bpe import ClipBpe

CPU = torch.device("cpu")
CLASSNAMES = ["red cross", "green ring", "big blue square", "a very long name of a thing", "dot", "line", "arc"]
TEMPLATES = ["{}", "a photo of a {}.", "this picture shows one {} and nothing else at all"]
ATTRIBUTES = {"odd": ["no", "yes", "no", "yes", "no", "yes", "no"]}


class Pictures(Source):
    """Random pictures; their labels are the index modulo seven, or as given."""

    def __init__(self, count: int, seed: int = 0, labels: Sequence[int | None] | None = None) -> None:
        self.count, self.seed = count, seed
        self.labels = labels or [index % len(CLASSNAMES) for index in range(count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Sample:
        rng = np.random.default_rng((self.seed, index))
        pixels = (rng.integers(0, 256, 3) + rng.integers(-60, 60, (20, 24, 3))).clip(0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        return Sample(key=f"picture{index}", image=stream.getvalue(), captions=(), label=self.labels[index])

    @property
    def fingerprint(self) -> str:
        return f"{self.count} {self.seed}"


def tokenizer() -> ClipBpe:
    return ClipBpe(context_length=24, truncation="keep_end", special_text="plain")


def transform() -> EvalTransform:
    return EvalTransform(size=16, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


def image_tower() -> TimmTower:
    arguments = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "drop_path_rate": 0.5}
    return TimmTower(name="vit_small_patch16_224", image_size=16, arguments=arguments)


def dual_encoder() -> DualEncoder:
    torch.manual_seed(0)
    text = TextTransformer(vocab_size=49408, context_length=24, width=16, depth=2, heads=2)
    return DualEncoder(image_tower=image_tower(), text_tower=text, embed_dim=12, logit_scale_init=2.6593)


def image_encoder() -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(image_tower=image_tower())


def bundle(model: nn.Module) -> Bundle:
    return Bundle(model, tokenizer() if isinstance(model, DualEncoder) else None, transform(), {}, CPU)


def zero_shot(source: Source, *, batch_size: int = 4, num_workers: int = 0) -> ZeroShot:
    return ZeroShot(
        title="zero-shot top-1",
        source=source,
        classnames=CLASSNAMES,
        templates=TEMPLATES,
        batch_size=batch_size,
        num_workers=num_workers,
        attributes=ATTRIBUTES,
    )


def knn(train: Source, test: Source, *, batch_size: int = 4, k: int | Sequence[int] = 5) -> KNN:
    return KNN(title="k-NN top-1", train=train, test=test, k=k, temperature=0.07, batch_size=batch_size, num_workers=0)


def run_on_this_rank(name: str, count: int, path: str) -> tuple[dict[str, float], dict[str, np.ndarray], list[str]]:
    """Figures, arrays, and which pictures this rank read for its share (`path` keeps ranks' pictures apart)."""
    log = Path(f"{path}-{dist.get_rank() if dist.is_initialized() else 'alone'}")
    source = Logged(count, log)
    evaluation: Evaluation = zero_shot(source) if name == "zeroshot" else knn(Pictures(9, seed=1), source)
    torch.manual_seed(0)
    figures = evaluation.run(bundle(dual_encoder()))
    return figures, evaluation.arrays, log.read_text().split() if log.exists() else []


def token_zero_shot_figures() -> dict[str, float]:
    torch.manual_seed(0)
    text = TextTransformer(vocab_size=49408, context_length=24, width=16, depth=2, heads=2)
    model = DualEncoder(image_tower=image_tower(), text_tower=text, embed_dim=12, logit_scale_init=1.0, token_dim=10)
    evaluation = TokenZeroShot(
        title="by tokens",
        source=Pictures(11),
        classnames=CLASSNAMES,
        templates=TEMPLATES,
        count_padding=False,
        batch_size=4,
        num_workers=0,
    )
    return evaluation.run(bundle(model))


class Logged(Pictures):
    def __init__(self, count: int, log: Path) -> None:
        super().__init__(count)
        self.log = log

    def __getitem__(self, index: int, /) -> Sample:
        with self.log.open("a") as file:
            file.write(f"{index}\n")
        return super().__getitem__(index)
