"""The recipes and their metrics, typed from papers, published code and data sheets; nothing is read from `configs/`.

"Published" is SLIP (arXiv:2112.12750) and facebookresearch/SLIP (models.py, main.py, datasets.py, losses.py, README).
"Built-in" are this project's own choices for the tiny models, the built-in dataset and what nobody published.
"""

import math
import re
from copy import deepcopy
from typing import Any, NamedTuple

from evaluation_rows import EVALUATIONS

Settings = dict[str, Any]

# Keys of a composed config that change no result: hardware, where things are kept, what is shown and when.
HARDWARE_OR_COSMETIC = (
    *("name", "runs_dir", "resume", "quiet", "allow", "plan.*", "watchdog.*"),
    *("micro_batch_size", "*num_workers", "*.prefetch_gb", "shard_cache.*", "*.cache.*"),
    *("devices.*", "callbacks.metrics.devices.*"),
    *("towers.*.gradient_checkpointing", "compile"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("callbacks.*.every_*", "callbacks.snapshot.num_samples", "callbacks.metrics.peak_tflops", "*.title"),
)


class Metrics(NamedTuple):
    """ImageNet-1k accuracies in per cent; SimCLR has no text and so no zero-shot accuracy."""

    zero_shot: float | None
    linear: float
    fine_tuned: float


# The README of the published code: method, size, dataset, epochs.
PUBLISHED = {
    ("clip", "vits16", "yfcc15m", 25): Metrics(32.7, 59.3, 78.2),
    ("clip", "vitb16", "yfcc15m", 25): Metrics(37.6, 66.5, 80.5),
    ("clip", "vitl16", "yfcc15m", 25): Metrics(40.4, 70.5, 81.0),
    ("simclr", "vits16", "yfcc15m", 25): Metrics(None, 58.1, 79.9),
    ("simclr", "vitb16", "yfcc15m", 25): Metrics(None, 64.0, 82.5),
    ("simclr", "vitl16", "yfcc15m", 25): Metrics(None, 66.7, 84.0),
    ("slip", "vits16", "yfcc15m", 25): Metrics(38.3, 66.4, 80.3),
    ("slip", "vits16", "yfcc15m", 50): Metrics(39.3, 67.6, 80.7),
    ("slip", "vits16", "yfcc15m", 100): Metrics(39.5, 68.3, 80.7),
    ("slip", "vitb16", "yfcc15m", 25): Metrics(42.8, 72.1, 82.6),
    ("slip", "vitb16", "yfcc15m", 50): Metrics(44.1, 73.0, 82.9),
    ("slip", "vitb16", "yfcc15m", 100): Metrics(45.0, 73.6, 83.4),
    ("slip", "vitl16", "yfcc15m", 25): Metrics(46.2, 76.0, 84.2),
    ("slip", "vitl16", "yfcc15m", 50): Metrics(47.4, 75.8, 84.7),
    ("slip", "vitl16", "yfcc15m", 100): Metrics(47.9, 75.1, 84.8),
    ("clip", "vitb16", "cc3m", 40): Metrics(17.1, 53.3, 79.5),
    ("slip", "vitb16", "cc3m", 40): Metrics(23.0, 65.4, 81.4),
    ("clip", "vitb16", "cc12m", 35): Metrics(36.5, 69.0, 82.1),
    ("slip", "vitb16", "cc12m", 35): Metrics(40.7, 73.7, 83.1),
}
TITLES = {
    **{"clip": "CLIP", "simclr": "SimCLR", "slip": "SLIP"},
    **{"vits16": "ViT-S/16", "vitb16": "ViT-B/16", "vitl16": "ViT-L/16"},
    **{"yfcc15m": "YFCC15M", "cc3m": "CC3M", "cc12m": "CC12M"},
}


class Shape(NamedTuple):
    """A vision transformer and, for each method, the parameters of all that is trained."""

    width: int
    depth: int
    heads: int
    patch: int
    visual_parameters: int
    parameters: dict[str, int]


# models.py: ViT-S is MoCo v3's, with 12 heads where timm's has 6.
SHAPES = {
    "vits16": Shape(384, 12, 12, 16, 21_665_664, {"clip": 85_290_369, "simclr": 41_089_152, "slip": 104_713_857}),
    "vitb16": Shape(768, 12, 12, 16, 85_798_656, {"clip": 149_619_969, "simclr": 106_795_008, "slip": 170_616_321}),
    "vitl16": Shape(1024, 24, 16, 16, 303_301_632, {"clip": 367_254_017, "simclr": 325_346_560, "slip": 389_298_945}),
}
# For ViT-B/16: parameter tensors, and how many numbers decay (main.py: matrices do, vectors do not).
DECAYED = {"clip": (301, 149_416_960), "slip": (311, 170_388_480)}

# Learning rate at some steps of SLIP on YFCC15M: 14 689 580 // 4096 = 3586 steps an epoch, 25 epochs (main.py).
YFCC15M_STEPS = 3586
SLIP_LEARNING_RATES = {
    **{0: 1e-6, 1: 1.8365411e-6, 1793: 1.50091827e-3, 3585: 3e-3, 3586: 3e-3, 3587: 2.999999999e-3},
    **{44_825: 1.60277768e-3, 89_649: 1.0000001e-5},
}

BEST_TEMPLATES = [  # the seven of OpenAI's notebook that main.py uses
    *("itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}."),
    *("a {} in a video game.", "art of the {}.", "a photo of the small {}."),
]

# NVIDIA's data sheets, SXM forms: dense 16-bit TFLOP/s of the tensor cores, GB of memory.
DATASHEETS = {
    "V100": {"tflops": 125, "memory_gb": 32},
    "A100": {"tflops": 312, "memory_gb": 80},
    "H100": {"tflops": 989, "memory_gb": 80},
    "H200": {"tflops": 989, "memory_gb": 141},
}
PCIE_TFLOPS = {"V100": 112, "H100": 756}

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]

MODES = {
    # The gather without gradient, the end token that a long caption loses, and special tokens in captions.
    "faithful": {
        "gather_with_grad": False,
        "truncation": "drop_end",
        "special_text": "token",
        "declip": {
            "published_limits": True,
            "contrasts_masked": True,
            "rank_queue": True,
            "queue_wraps": False,
            "rank_batch_norm": True,
            "rank_masked_mean": True,
            "text_epsilon": 1e-10,
            "top_tokens": 16,
            "count_padding": True,
            "one_kind": True,
        },
    },
    "correct": {
        "gather_with_grad": True,
        "truncation": "keep_end",
        "special_text": "plain",
        "declip": {
            "published_limits": False,
            "contrasts_masked": False,
            "rank_queue": False,
            "queue_wraps": True,
            "rank_batch_norm": False,
            "rank_masked_mean": False,
            "text_epsilon": 0.0,
            "top_tokens": None,
            "count_padding": False,
            "one_kind": False,
        },
    },
}

SAMPLES = {  # pairs in the published runs; COCO's images of train2017; RedCaps as in arXiv:2111.11431
    **{"yfcc15m": 14_689_580, "cc3m": 2_905_954, "cc12m": 10_968_539, "yfcc15m_v2": 15_388_848},
    **{"coco": 118_287, "redcaps": 12_011_121},
}


def tokenizer(mode: str) -> Settings:
    """CLIP's byte-pair encoding with 77 tokens."""
    return {
        "_target_": "openslip.text.clip_bpe.ClipBpe",
        "context_length": 77,
        "truncation": MODES[mode]["truncation"],
        "special_text": MODES[mode]["special_text"],
        "mask_token": False,
    }


def views(tokens: Settings | None, mode: str, *, tiny: bool) -> Settings:
    """datasets.py: a weak crop beside the caption, and SimCLR's augmentation; built-in: the two edited captions."""
    normalised = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    crop = {"_target_": "openslip.data.image.crop.RandomResizedCrop", "size": 32 if tiny else 224, **normalised}
    caption = {"_target_": "openslip.data.captions.choice.Caption", "tokenizer": tokens}
    edits = {
        "_target_": "openslip.data.captions.augment.RandomEdits",
        "delete": 0.1,
        "swap": 0.1,
        "synonyms": 0.1,
        "thesaurus": None,
        "one_kind": MODES[mode]["declip"]["one_kind"],
    }
    simclr = {
        "_target_": "openslip.data.image.augment.SimCLRAugment",
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.4,
        "hue": 0.1,
        "jitter_probability": 0.8,
        "grayscale_probability": 0.2,
        "blur_probability": 0.5,
        "blur_sigma": [0.1, 2.0],
        "flip_probability": 0.5,
    }
    masked = {
        "_target_": "openslip.data.captions.masked.MaskedCaption",
        "tokenizer": tokens,
        "probability": 0.15,
        "mask_share": 0.8,
        "random_share": 0.1,
        "augment": None,
    }
    return {
        "caption": {**caption, "augment": None},
        "edited_caption": {**caption, "augment": edits},
        "masked_caption": masked,
        "shortened_caption": {
            "_target_": "openslip.data.captions.shortened.ShortenedCaption",
            "tokenizer": tokens,
            "tokens": 16,
            "way": "block",
            "augment": None,
        },
        "hard_caption": {
            "_target_": "openslip.data.captions.hard.HardCaption",
            "tokenizer": tokens,
            "augment": None,
            "word_classes": None,
        },
        "drawn_words": {"_target_": "openslip.data.captions.drawn_words.DrawnWords", "tokenizer": tokens, "share": 0.5},
        "label": {"_target_": "openslip.data.label.Label"},
        "weak": {**crop, "scale": [0.9, 1.0] if tiny else [0.5, 1.0], "augment": None},
        "strong": {**crop, "scale": [0.08, 1.0], "augment": simclr},
        "moco": {**crop, "scale": [0.2, 1.0], "augment": simclr},
    }


def objective(method: str, mode: str, made: Settings, *, tiny: bool) -> Settings:
    """losses.py and main.py: NT-Xent at temperature 0.1, SSL scale 1, logit scale clamped to [0, 4.6052]."""
    ssl = {"head_hidden": 256 if tiny else 4096, "head_output": 64 if tiny else 256, "ssl_temperature": 0.1}
    contrastive = {"gather_with_grad": MODES[mode]["gather_with_grad"], "max_logit_scale": 4.6052}
    pair = {"image": made["weak"], "text": made["caption"]}
    augmented = {"aug1": made["strong"], "aug2": made["strong"]}
    if method == "clip":
        same = {"same_caption": "negative"}  # losses.py: labels are the places in the batch
        return {"_target_": "openslip.objectives.clip.CLIP", **contrastive, **same, "views": pair}
    if method == "simclr":
        return {"_target_": "openslip.objectives.simclr.SimCLR", **ssl, "views": augmented}
    terms = {**ssl, **contrastive, "ssl_scale": 1.0}
    return {"_target_": "openslip.objectives.slip.SLIP", **terms, "views": {**pair, **augmented}}


TOWERS: dict[str, Settings] = {
    "tiny": {
        "name": "vit_small_patch16_224",
        "arguments": {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3},
    },
    "vits16": {"name": "vit_small_patch16_224", "arguments": {"num_heads": 12}},
    "vitb16": {"name": "vit_base_patch16_224", "arguments": {}},
    "vitl16": {"name": "vit_large_patch16_224", "arguments": {}},
}


def model(method: str, size: str) -> Settings:
    """models.py: timm's ViT; a causal text transformer of 12 layers, 512 wide, 8 heads; 512 dimensions in common."""
    tiny = size == "tiny"
    image = {"_target_": "openslip.models.timm_tower.TimmTower", "image_size": 32 if tiny else 224, **TOWERS[size]}
    if method == "simclr":
        return {"_target_": "openslip.models.image_encoder.ImageEncoder", "image_tower": image}
    text = {"width": 64, "depth": 1, "heads": 2} if tiny else {"width": 512, "depth": 12, "heads": 8}
    return {
        "_target_": "openslip.models.dual_encoder.DualEncoder",
        "image_tower": image,
        "text_tower": {
            "_target_": "openslip.models.text_transformer.TextTransformer",
            "vocab_size": "auto",
            "context_length": "auto",
            **text,
        },
        "embed_dim": 64 if tiny else 512,
        "logit_scale_init": math.log(1 / 0.07),
        "logit_bias_init": None,
        "token_dim": None,
    }


PEAKS = {  # learning rate and weight decay: SLIP section 4 and main.py; built-in for tiny
    "clip": (5e-4, 0.5),
    "simclr": (3.2e-3, 0.1),
    "slip": (3e-3, 0.1),
    "tiny": (8e-4, 0.1),
}


def optim(name: str, warmup_epochs: int = 1) -> Settings:
    """main.py: AdamW, a line from 1e-6 over the warm-up, then cosine to 1e-5; nothing is clipped."""
    lr, weight_decay = PEAKS[name]
    return {
        "lr": lr,
        "weight_decay": weight_decay,
        "warmup_epochs": warmup_epochs,
        "warmup_steps": 50 if name == "tiny" else None,
        "clip_norm": None,
        "layer_decay": None,
        "ema_decay": None,
        "optimizer": {
            "_target_": "torch.optim.AdamW",
            "_partial_": True,
            "lr": lr,
            "betas": [0.9, 0.98],
            "eps": 1e-8,
            "fused": True,
        },
        "schedule": {"_target_": "openslip.optim.WarmupCosine", "lr_start": 1e-6, "lr": lr, "lr_end": 1e-5},
    }


def shards(name: str, folder: str = "data") -> Settings:
    """datasets.py: YFCC15M's caption is the title or the description, elsewhere there is one caption."""
    fields = {"_target_": "openslip.data.captions.policy.CaptionFields", "fields": ["title", "description"]}
    uniform = {"_target_": "openslip.data.captions.policy.UniformCaption"}
    return {
        "_target_": "openslip.data.sources.shards.ShardSource",
        "shards": f"{folder}/{name}",
        "require": "caption",
        "captions": fields if name == "yfcc15m" else uniform,
        "equal_captions": None,  # repetitions of one image's captions are dropped
        "expected_samples": SAMPLES[name],
    }


def builtin(split: str) -> Settings:
    """A split of the built-in dataset."""
    return {"_target_": "openslip.data.sources.builtin.builtin", "root": "data/builtin", "split": split}


SOURCES = {
    **{name: shards(name) for name in SAMPLES},
    "builtin": {**builtin("train"), "shuffle_captions": False},
    "mixture": {
        "_target_": "openslip.data.sources.mixture.Mixture",
        "sources": {"cc3m": shards("cc3m"), "cc12m": shards("cc12m")},
        "weights": {"cc3m": 1.0, "cc12m": 0.25},
    },
    "webdataset": {**shards("cc3m"), "shards": "SHARDS", "expected_samples": None},  # a user's own
}


def data(name: str) -> Settings:
    """Built-in: the decoder whose crops are within one of 255 levels of Pillow's, and the shuffled window.

    Transparent images lie on white; EXIF orientation is ignored as published.
    """
    return {
        "_target_": "openslip.data.datamodule.DataModule",
        "source": SOURCES[name],
        "decoder": {"_target_": "openslip.data.image.decode.TurboDecoder", "transparency": None, "exif": None},
        "shuffle_window": 16,
        "bad_sample_budget": 0.001,
        "overfit_batches": None,
    }


GIVEN = {"root": "IMAGES", "shards": "SHARDS", "classnames": "NAMES"}  # what an evaluation leaves for the user to say
OF_CHECKPOINTS = ("imagenet", "builtin", "builtin_knn", "builtin_retrieval", "folder", "shards", "retrieval")


def evaluation(name: str) -> Settings:
    """One evaluation by its name, or none, as it composes where the environment says nothing."""
    return {} if name == "none" else {name: composed(EVALUATIONS[name])}


def composed(written: Any, key: str = "") -> Any:
    """Written settings, with what the user says and the defaults of what the environment may say."""
    if isinstance(written, dict):
        # Where shards are kept changes no result.
        return {name: composed(value, name) for name, value in written.items() if value != "${shard_cache}"}
    if written == "???":
        return GIVEN[key]
    return re.sub(r"\$\{oc\.env:\w+,([^}]*)\}", r"\1", written) if isinstance(written, str) else written


TRAINER = {
    "_target_": "pytorch_lightning.Trainer",
    "max_time": None,
    "precision": "auto",  # published: fp16 with loss scaling; docs/NUMERICS.md#precision
    "deterministic": False,
}
DDP = {
    "_target_": "openslip.training.ddp.DDP",
    "broadcast_buffers": False,
    "gradient_as_bucket_view": True,
    "bucket_cap_mb": 100,
    "process_group_backend": None,
}
SLURM_ENVIRONMENT = {"_target_": "pytorch_lightning.plugins.environments.SLURMEnvironment", "auto_requeue": False}
HARDWARE: dict[str, Settings] = {  # the options of `trainer`
    "auto": {"accelerator": "auto", "devices": 1, "num_nodes": 1, "strategy": "auto"},
    "cpu": {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"},
    "ddp": {"accelerator": "auto", "devices": 2, "num_nodes": 1, "strategy": DDP},
    "slurm": {
        "accelerator": "auto",
        "devices": 1,
        "num_nodes": 1,
        "strategy": {**DDP, "cluster_environment": SLURM_ENVIRONMENT},
    },
}


def callbacks() -> Settings:
    """Built-in: ten steps in a row that are not finite end a run."""
    return {
        "finite": {"_target_": "openslip.training.callbacks.finite.Finite", "stop_after": 10},
        "metrics": {"_target_": "openslip.training.logging.metrics.Metrics"},
        "snapshot": {"_target_": "openslip.training.callbacks.snapshot.Snapshot"},
        "save": {"_target_": "openslip.training.callbacks.save.Save"},
    }


def recipe(
    method: str,
    size: str,
    *,
    mode: str = "correct",
    dataset: str = "builtin",
    evaluated_by: str | None = None,
    max_epochs: int | None = 25,
    warmup_epochs: int = 1,
) -> Settings:
    """All that changes the result of a run: without arguments, that of `model=METHOD_SIZE` and nothing else."""
    tiny = size == "tiny"
    tokens = None if method == "simclr" else tokenizer(mode)
    made = views(tokens, mode, tiny=tiny)
    evaluated_by = evaluated_by or ("builtin_knn" if method == "simclr" else "builtin")
    as_the_file_says = {"activation": None, "image_heads": None, "text_heads": None}
    untouched = {"weights": None, **as_the_file_says, "locked": False}
    length = {"max_steps": 1100, "max_epochs": None} if tiny else {"max_steps": None, "max_epochs": max_epochs}
    return deepcopy(
        {
            "seed": 0,
            "global_batch_size": 64 if tiny else 4096,
            "tf32": False,
            "evaluation_samples": None,
            "init_from": {"checkpoint": None, **as_the_file_says, "resize": False},
            "towers": {"image": {**untouched, "patch_dropout": 0.0}, "text": untouched},
            "image_size": 32 if tiny else 224,
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "ssl_head": {"hidden": 256, "output": 64} if tiny else {"hidden": 4096, "output": 256},
            "simsiam_head": {"hidden": 128, "bottleneck": 64} if tiny else {"hidden": 1024, "bottleneck": 512},
            "text_queue": 1024 if tiny else 65_536,
            "tokenizer": tokens,
            "views": made,
            "mode": MODES[mode],
            "objective": objective(method, mode, made, tiny=tiny),
            "data": data(dataset),
            "optim": optim("tiny" if tiny else method, warmup_epochs),
            "trainer": {**TRAINER, **length},
            "callbacks": callbacks(),
            "logger": {},
            "evaluation": evaluation(evaluated_by),
            "model": model(method, size),
        }
    )


def experiment_name(method: str, size: str, dataset: str, epochs: int) -> str:
    """The name of the file in `configs/experiment/`."""
    return f"{dataset}_{method}_{size}_{epochs}ep"


class FamilyRun(NamedTuple):
    """A run of another repository: what its comment says, and settings in which it differs from SLIP's runs."""

    title: str
    zero_shot: float
    settings: Settings


# Sense-GVT/DeCLIP on YFCC15M-V2: 15 388 848 pairs, batches of 4096, 32 epochs; experiments/*/config.yaml.
DECLIP_RUNS = {
    "global_batch_size": 4096,
    "tokenizer.truncation": "keep_end",
    "tokenizer.mask_token": True,
    "model.projection_bias": "text",
    "model.image_tower.image_size": 224,
    "optim.warmup_steps": 2500,
    "optim.schedule.lr_start": 1e-4,
    "optim.schedule.lr_end": 0.0,
    "optim.clip_norm": None,
    "data.source.shards": "data/yfcc15m_v2",
    "data.source.expected_samples": 15_388_848,
    "trainer.max_epochs": 32,
}
CLIP_VIT = {
    "model.image_tower.arguments": {"patch_size": 32, "act_layer": "quick_gelu"},
    "model.image_tower.norm_eps": 1e-5,
    "model.embed_dim": 512,
}
CLIP_RESNET = {
    "model.image_tower.depths": [3, 4, 6, 3],
    "model.image_tower.channels": 64,
    "model.image_tower.width": 1024,
    "model.image_tower.heads": 32,
    "model.projects_image": False,
    "model.embed_dim": 1024,
}
MOCO_CROPS = {"objective.views.image.scale": [0.2, 1.0]}
PEAK_OF_DECLIP = {"optim.lr": 1e-3, "optim.weight_decay": 0.1}
PEAK_OF_SLIP_AND_FILIP = {"optim.lr": 5e-4, "optim.weight_decay": 0.5}
DECLIP_CLIP = {
    **DECLIP_RUNS,
    **PEAK_OF_DECLIP,
    "objective.views.image.scale": [0.5, 1.0],
    "objective.views.image.augment": None,
    "objective.gather_with_grad": True,
    "evaluation.imagenet80.templates": "imagenet80",
}
DECLIP_SLIP = {
    **DECLIP_RUNS,
    **PEAK_OF_SLIP_AND_FILIP,
    "objective.views.aug1.scale": [0.2, 1.0],
    "evaluation.imagenet80.templates": "imagenet80",
}
DECLIP = {
    **DECLIP_RUNS,
    **PEAK_OF_DECLIP,
    **MOCO_CROPS,
    "objective.clip_scale": 0.4,
    "objective.neighbour_scale": 0.2,
    "objective.simsiam_scale": 0.2,
    "objective.masked_scale": 0.2,
    "evaluation.imagenet80.templates": "imagenet80",
}
DEFILIP = {
    **DECLIP_RUNS,
    **PEAK_OF_DECLIP,
    **MOCO_CROPS,
    "objective.declip.clip_scale": 0.4,
    "objective.declip.neighbour_scale": 0.2,
    "objective.declip.simsiam_scale": 0.2,
    "objective.declip.masked_scale": 0.2,
    "objective.token_scale": 0.2,
    "objective.top_tokens": 16,
    "objective.count_padding": True,
    "model.token_dim": 256,
}
FILIP = {
    **DECLIP_RUNS,
    **PEAK_OF_SLIP_AND_FILIP,
    **MOCO_CROPS,
    "objective.clip_scale": 0.0,
    "objective.token_scale": 1.0,
    "objective.top_tokens": 16,
    "objective.count_padding": True,
    "objective.gather_with_grad": True,
    "model.token_dim": 256,
    "evaluation.imagenet_tokens.count_padding": True,
    "evaluation.imagenet_tokens.templates": "imagenet80",
    "objective.views.text._target_": "openslip.data.captions.masked.MaskedCaption",
}
# LijieFan/LaCLIP: README and models.py; captions are the original and rewritten ones.
LACLIP = {
    "global_batch_size": 4096,
    "tokenizer.truncation": "drop_end",
    "optim.lr": 1e-3,
    "optim.weight_decay": 0.5,
    "optim.warmup_epochs": 1,
    "optim.schedule.lr_start": 1e-6,
    "optim.schedule.lr_end": 1e-5,
    "objective.gather_with_grad": True,
    "model.image_tower.name": "vit_base_patch16_224",
    "model.image_tower.arguments": {"qk_norm": True},
    "data.source.captions": {"_target_": "openslip.data.captions.policy.UniformCaption"},
}
FAMILY = {
    "yfcc15m_clip_vitb32_32ep": FamilyRun("CLIP with ViT-B/32 on YFCC15M-V2", 32.8, DECLIP_CLIP | CLIP_VIT),
    "yfcc15m_clip_rn50_32ep": FamilyRun("CLIP with ResNet-50 on YFCC15M-V2", 37.2, DECLIP_CLIP | CLIP_RESNET),
    "yfcc15m_declip_slip_vitb32_32ep": FamilyRun("SLIP with ViT-B/32 on YFCC15M-V2", 34.3, DECLIP_SLIP | CLIP_VIT),
    "yfcc15m_declip_slip_rn50_32ep": FamilyRun("SLIP with ResNet-50 on YFCC15M-V2", 28.5, DECLIP_SLIP | CLIP_RESNET),
    "yfcc15m_declip_vitb32_32ep": FamilyRun("DeCLIP with ViT-B/32 on YFCC15M-V2", 43.2, DECLIP | CLIP_VIT),
    "yfcc15m_declip_rn50_32ep": FamilyRun("DeCLIP with ResNet-50 on YFCC15M-V2", 44.4, DECLIP | CLIP_RESNET),
    "yfcc15m_defilip_vitb32_32ep": FamilyRun("DeFILIP with ViT-B/32 on YFCC15M-V2", 45.0, DEFILIP | CLIP_VIT),
    "yfcc15m_filip_vitb32_32ep": FamilyRun(
        "FILIP with ViT-B/32 on YFCC15M-V2", 39.5, FILIP | CLIP_VIT | {"model.embed_dim": 768}
    ),
    "yfcc15m_filip_rn50_32ep": FamilyRun("FILIP with ResNet-50 on YFCC15M-V2", 21.3, FILIP | CLIP_RESNET),
    "cc12m_laclip_vitb16_35ep": FamilyRun("LaCLIP with ViT-B/16 on CC12M", 48.4, LACLIP | {"trainer.max_epochs": 35}),
    "cc3m_laclip_vitb16_40ep": FamilyRun("LaCLIP with ViT-B/16 on CC3M", 21.5, LACLIP | {"trainer.max_epochs": 40}),
}

EXPERIMENTS = {experiment_name(*row): row for row in PUBLISHED}


def published_recipe(method: str, size: str, dataset: str, epochs: int) -> Settings:
    """A published run: two epochs of warm-up on CC3M, one elsewhere; ImageNet zero-shot where there is text."""
    return recipe(
        method,
        size,
        mode="faithful",
        dataset=dataset,
        evaluated_by="none" if method == "simclr" else "imagenet",
        max_epochs=epochs,
        warmup_epochs=2 if dataset == "cc3m" else 1,
    )
