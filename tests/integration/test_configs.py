"""Every option of every config group composes and builds; so does every experiment."""

import math
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from PIL import Image
from published_recipes import FAMILY
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from openslip.config.build import build, build_evaluations, build_parts, settled
from openslip.config.check import check_root_values, lookup
from openslip.config.compose import compose_config
from openslip.config.folder import config_folder
from openslip.errors import UserError
from openslip.evaluation.evaluation import Evaluation
from openslip.objectives.clip import CLIP
from openslip.objectives.objective import Objective
from openslip.run.folder import run_name

GROUPS = sorted(path.name for path in config_folder().iterdir() if path.is_dir())
OPTIONS = [
    (group, path.stem)
    for group in GROUPS
    for path in sorted((config_folder() / group).glob("*.yaml"))
    # Recipes, methods and sizes are parts of models; sweeps are files for W&B, the catalogue is for `data get`, and
    # rungs are for `openslip reproduce`.
    if group not in ("experiment", "recipe", "method", "size", "sweeps", "catalogue", "reproduce")
    # Datasets that are obtained by hand: tests/unit/test_name_tables.py composes them.
    and "first_found" not in path.read_text()
    and path.stem != "suite"
]
MODELS = [
    f"{method}_{size}" for method in ("clip", "simclr", "slip") for size in ("tiny", "vits16", "vitb16", "vitl16")
]
METHODS = sorted(path.stem for path in (config_folder() / "method").glob("*.yaml"))
OTHER_MODELS = [f"{method}_tiny" for method in METHODS if f"{method}_tiny" not in MODELS]
OPTIONS += [("model", model) for model in (*MODELS, *OTHER_MODELS, "filip_rn50", "declip_rn50", "siglip_vitb16")]
LAPTOP_LIT = ["laptop_lit", "laptop_lit_transformer"]  # on a dataset of a package, without a published row
LAPTOP_SCRATCH = ["laptop_clip", "laptop_siglip", "laptop_slip"]
PUBLISHED = sorted(
    {path.stem for path in (config_folder() / "experiment").glob("*.yaml")} - {*LAPTOP_LIT, *LAPTOP_SCRATCH}
)
# What an option leaves for the user to say.
ALSO = {
    ("objective", "declip"): ["tokenizer.mask_token=true"],
    ("objective", "defilip"): ["tokenizer.mask_token=true", "model.token_dim=8"],
    ("optim", "adamw"): ["optim.lr=1e-3", "optim.weight_decay=0.1"],
    ("data", "webdataset"): ["data.source.shards=SHARDS"],
    ("tokenizer", "words"): ["tokenizer.vectors=VECTORS"],
    ("objective", "lit"): ["objective.views.image_features.width=8"],
    ("objective", "superclass"): ["model/tower@model.text_tower=text_bag"],
    ("model", "devise_tiny"): ["tokenizer.vectors=VECTORS"],
    ("evaluation", "folder"): ["evaluation.folder.source.root=PICTURES"],
    ("evaluation", "shards"): ["evaluation.shards.source.shards=SHARDS", "evaluation.shards.classnames=NAMES"],
    ("evaluation", "retrieval"): ["evaluation.retrieval.source.shards=SHARDS"],
    ("evaluation", "knn"): [f"evaluation.knn.{role}.root=PICTURES" for role in ("train", "test")]
    + ["evaluation.knn.k=2"],
    ("evaluation", "probe"): [f"evaluation.probe.{role}.root=PICTURES" for role in ("train", "test")],
    ("evaluation", "few_shot"): [f"evaluation.few_shot.{role}.root=PICTURES" for role in ("train", "test")],
    ("evaluation", "imagenet_knn"): ["evaluation.imagenet_knn.k=[2,1]"],
    ("evaluation", "geometry"): ["evaluation.geometry.source.shards=SHARDS"],
    ("evaluation", "held_out"): ["evaluation.held_out.source.shards=SHARDS", "evaluation.held_out.loss_batch_size=2"],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small stand-ins for collections that are not there."""
    folder = tmp_path_factory.mktemp("files")
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for name in ("n02206856", "n02219486"):  # bee and ant, by their WordNet ids: evaluation=imagenet knows no others
        for split in ("train", "val"):
            (folder / "pictures" / split / name).mkdir(parents=True)
            picture.save(folder / "pictures" / split / name / "1.jpg")
    (folder / "names.txt").write_text("ant\nbee\n")
    (folder / "vectors.txt").write_text("ant 1 0\nbee 0 1\n")
    write_shard(folder / "shards.tar", picture)
    for split in ("train", "val", "unseen"):
        (folder / "openclipart" / split).mkdir(parents=True)
        captions = ("a bee",) * 3 if split == "unseen" else ("an ant", "an ant", "a wasp")
        write_shard(folder / "openclipart" / split / "0.tar", picture, captions)
    for role, names in (("seen", "an ant\na wasp\n"), ("unseen", "a bee\n")):
        (folder / "openclipart" / f"{role}-names.txt").write_text(names)
    (folder / "glove_6b_50d").mkdir()
    (folder / "glove_6b_50d" / "vectors.txt").write_text("ant 1 0\nbee 0 1\n")
    for name in ("yfcc15m", "yfcc15m_v2", "cc3m", "cc12m", "coco", "redcaps"):
        (folder / name).mkdir()
        write_shard(folder / name / "train-000000.tar", picture)
    return {"folder": str(folder)}


def write_shard(path: Path, picture: Image.Image, captions: Sequence[str] = ("an ant",) * 3) -> None:
    picture.save(path.with_suffix(".jpg"))
    with tarfile.open(path, "w") as tar:
        for key, caption in enumerate(captions):
            for suffix, text in (("txt", caption), ("json", '{"title": "an ant"}'), ("cls", "0")):
                member = path.with_suffix(f".{suffix}")
                member.write_text(text)
                tar.add(member, f"{key}.{suffix}")
            tar.add(path.with_suffix(".jpg"), f"{key}.jpg")


def compose_with(files: dict[str, str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> dict[str, Any]:
    monkeypatch.setenv("OPENSLIP_DATA", files["folder"])
    monkeypatch.setenv("EVALUATION_DATA", files["folder"])
    monkeypatch.setenv("IMAGENET", f"{files['folder']}/pictures")
    known = {"SHARDS": "shards.tar", "PICTURES": "pictures/val", "NAMES": "names.txt", "VECTORS": "vectors.txt"}
    for word, name in known.items():
        arguments = [argument.replace(word, f"{files['folder']}/{name}") for argument in arguments]
    config, _ = compose_config("train", arguments)
    return config


def build_all(config: dict[str, Any]) -> None:
    """What `openslip.commands.train` builds, in its order, the model on the meta device."""
    config = settled(config)
    views = {name: build(view) for name, view in config["objective"].pop("views").items()}
    config["objective"].pop("model", None)
    data = build(config["data"], views=views, global_batch_size=2, seed=0, bad_samples_file=None)
    assert data.steps_per_epoch >= 1
    for evaluation in build_evaluations(config["evaluation"]).values():
        assert isinstance(evaluation, Evaluation)
    with torch.device("meta"):
        model = build(config["model"])
        objective = build(config["objective"])
        assert isinstance(objective, Objective)
        objective.setup(model)
    parameters = [*model.parameters(), *objective.parameters()]
    assert all(parameter.is_meta for parameter in parameters)
    build(config["optim"]["optimizer"])([torch.nn.Parameter(torch.zeros(1))])
    build(config["optim"]["schedule"], warmup_steps=1, max_steps=2)
    for callback in config["callbacks"].values():
        build(callback)


def test_null_in_place_of_settings_is_refused_by_its_key():
    for key in ("vocab_size", "context_length"):
        config, _ = compose_config("train", [f"model.text_tower.{key}=null"])
        with pytest.raises(UserError, match=f"model.text_tower.{key}=None: the tokenizer needs [0-9]+; set it to auto"):
            settled(config)
    config, _ = compose_config("train", ["evaluation.builtin=null"])
    with pytest.raises(UserError, match=r"evaluation\.builtin=None: expected its settings; .* ~evaluation\.builtin"):
        build_evaluations(config["evaluation"])


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_builds(files: dict, monkeypatch: pytest.MonkeyPatch, group: str, option: str):
    monkeypatch.chdir(Path(files["folder"]))
    config = compose_with(files, monkeypatch, [f"{group}={option}", *ALSO.get((group, option), [])])
    build_all(config)


@pytest.mark.parametrize(
    "path", sorted((config_folder() / "model" / "tower").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_tower_builds(path: Path):
    kind = "text_tower" if path.stem.startswith("text") else "image_tower"
    config, _ = compose_config("train", [f"model/tower@model.{kind}={path.stem}", "image_size=224"])
    with torch.device("meta"):
        assert build(settled(config)["model"][kind]).width > 0


# What published SLIP says of each method and size (SLIP section 4; models.py and main.py), and ours for tiny.
METHOD_ROWS = {  # objective, lr, weight decay, what it is evaluated by
    "clip": ("openslip.objectives.clip.CLIP", 5e-4, 0.5, "builtin"),
    "simclr": ("openslip.objectives.simclr.SimCLR", 3.2e-3, 0.1, "builtin_knn"),
    "slip": ("openslip.objectives.slip.SLIP", 3e-3, 0.1, "builtin"),
    "siglip": ("openslip.objectives.siglip.SigLIP", 5e-4, 0.5, "builtin"),  # the optimizer of CLIP
    "unicl": ("openslip.objectives.unicl.UniCL", 5e-4, 0.5, "builtin"),
}
SIGLIP = (math.log(10), -10.0)  # initial logit scale and bias: SigLIP section 3.2
TINY = {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3}
SIZE_ROWS = {  # timm's name and arguments; text width, depth, heads; width of the joint space; of the head; batch
    "tiny": ("vit_small_patch16_224", TINY, (64, 1, 2), 64, 256, 64),
    "vits16": ("vit_small_patch16_224", {"num_heads": 12}, (512, 12, 8), 512, 4096, 4096),
    "vitb16": ("vit_base_patch16_224", {}, (512, 12, 8), 512, 4096, 4096),
    "vitl16": ("vit_large_patch16_224", {}, (512, 12, 8), 512, 4096, 4096),
}


@pytest.mark.parametrize("model", [*MODELS, "siglip_tiny", "siglip_vitb16", "unicl_tiny", "unicl_vitb16"])
def test_a_model_is_its_method_and_its_size(model: str):
    config, choices = compose_config("train", [f"model={model}"])
    method, size = model.split("_")
    objective, lr, weight_decay, evaluation = METHOD_ROWS[method]
    name, arguments, text, embed_dim, hidden, batch = SIZE_ROWS[size]
    if size == "tiny":
        lr, weight_decay = 8e-4, 0.1
    assert choices["model"] == model
    assert config["objective"]["_target_"] == objective
    assert (config["optim"]["lr"], config["optim"]["weight_decay"]) == (lr, weight_decay)
    assert config["optim"]["warmup_steps"] == (50 if size == "tiny" else None)
    assert list(config["evaluation"]) == [evaluation]
    assert (config["global_batch_size"], config["ssl_head"]["hidden"]) == (batch, hidden)
    assert config["image_size"] == (32 if size == "tiny" else 224)
    assert config["trainer"]["max_epochs"] == (None if size == "tiny" else 25)
    assert next(iter(config["model"])) == "image_tower"  # towers draw their initial weights in the order of the keys
    tower = config["model"].pop("image_tower")
    assert (tower["name"], tower["arguments"]) == (name, arguments)
    if method == "simclr":
        assert config["model"] == {"_target_": "openslip.models.image_encoder.ImageEncoder"}
        assert config["tokenizer"] is None
    else:
        tower = config["model"].pop("text_tower")
        assert (tower["width"], tower["depth"], tower["heads"]) == text
        assert config["model"]["embed_dim"] == embed_dim
        scale, bias = SIGLIP if method == "siglip" else (math.log(1 / 0.07), None)
        assert config["model"]["logit_scale_init"] == pytest.approx(scale, abs=1e-15)
        assert config["model"]["logit_bias_init"] == bias


def test_a_tower_is_replaced_in_a_composed_model():
    words = ["model=slip_vitb16", "model/tower@model.image_tower=vit_tiny", "model/tower@model.text_tower=text_tiny"]
    config, choices = compose_config("train", words)
    assert choices["model"] == "slip_vitb16"
    assert config["model"]["image_tower"]["arguments"]["depth"] == 4
    assert (config["model"]["text_tower"]["width"], config["model"]["embed_dim"]) == (64, 512)
    with pytest.raises(UserError, match=r"model/tower@model\.text_tower is unknown"):
        compose_config("train", ["model=simclr_tiny", "model/tower@model.text_tower=text_512"])


def test_the_objective_says_at_which_scale_the_logits_start():
    config, _ = compose_config("train", ["+objective.model.logit_scale_init=2.3"])
    assert build_parts(config).model.get_parameter("logit_scale").item() == pytest.approx(2.3)


@pytest.mark.parametrize("method", ["siglip", "unicl", "declip", "declip_slip"])
def test_a_method_with_another_objective_has_the_model_of_that_objective(method: str):
    config, _ = compose_config("train", [f"model={method}_tiny", "objective=filip"])
    model = config["model"]
    assert (model["token_dim"], model["logit_bias_init"]) == (256, None)
    assert model["logit_scale_init"] == pytest.approx(math.log(1 / 0.07))


@pytest.mark.parametrize("model", ["clip_tiny", "simclr_tiny", "slip_tiny"])
def test_a_batch_without_negatives_is_refused(model: str):
    config, _ = compose_config("train", [f"model={model}", "global_batch_size=1"])
    with pytest.raises(UserError, match=r"global_batch_size=1 leaves .* no negatives.*use at least 2"):
        build_parts(config)
    build_parts({**config, "global_batch_size": 2})


@pytest.mark.parametrize("objective", ["clip", "slip", "siglip", "declip", "neg_clip", "clipa"])
def test_captions_without_a_tokenizer_are_refused_with_a_model_that_has_one(objective: str):
    config, _ = compose_config("train", ["model=simclr_tiny", f"objective={objective}"])
    with pytest.raises(UserError, match=r"views\.text\w* makes token ids, and tokenizer=null: .*model=clip_tiny"):
        build_parts(config)


def test_an_objective_of_ones_own_may_take_one_sample_at_a_time(monkeypatch: pytest.MonkeyPatch):
    config, _ = compose_config("train", ["model=clip_tiny", "global_batch_size=1"])
    monkeypatch.setattr(CLIP, "min_batch_size", Objective.min_batch_size)
    assert build_parts(config).objective.min_batch_size == 1


def test_methods_sizes_and_models_of_a_folder_of_ones_own(tmp_path: Path):
    for group in ("method", "size", "model"):
        (tmp_path / group).mkdir()
    (tmp_path / "method" / "my_own.yaml").write_text(
        (config_folder() / "method" / "clip.yaml").read_text().replace("/objective: clip", "/objective: slip")
    )
    (tmp_path / "size" / "mini.yaml").write_text(
        "# @package _global_\ndefaults: [/recipe@_global_: tiny, /model/tower@model.image_tower: vit_tiny, "
        "/model/tower@model.text_tower: text_tiny, _self_]\nmodel: {embed_dim: 7}\n"
    )
    (tmp_path / "model" / "slip_vitb16.yaml").write_text(
        "# @package _global_\ndefaults: [slip_tiny, _self_]\nmodel: {embed_dim: 5}\n"
    )
    expected = {"my_own_vitb16": 512, "my_own_mini": 7, "slip_mini": 7, "slip_vitb16": 5}
    for model, embed_dim in expected.items():
        config, choices = compose_config(
            "train", ["--config-dir", str(tmp_path), f"model={model}", "model.embed_dim=9"]
        )
        assert config["model"]["embed_dim"] == 9
        config, choices = compose_config("train", [f"--config-dir={tmp_path}", f"model={model}"])
        assert (choices["model"], config["model"]["embed_dim"]) == (model, embed_dim)
        assert config["objective"]["_target_"] == "openslip.objectives.slip.SLIP"
    with pytest.raises(
        UserError, match=r"did you mean model=my_own_mini\? method my_won is none of: clip, .*, my_own, "
    ):
        compose_config("train", [f"--config-dir={tmp_path}", "model=my_won_mini"])


def test_a_sweep_composes_the_models_that_training_composes():
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        swept = compose("sweep", ["model=slip_vitb16"], return_hydra_config=True)
    assert swept.hydra.runtime.choices.model == "slip_vitb16"
    assert swept.model.image_tower.name == "vit_base_patch16_224"


@pytest.mark.parametrize("experiment", [*LAPTOP_LIT, *LAPTOP_SCRATCH])
def test_an_experiment_on_openclipart_builds(files: dict, monkeypatch: pytest.MonkeyPatch, experiment: str):
    monkeypatch.chdir(Path(files["folder"]))
    config = compose_with(files, monkeypatch, [f"experiment={experiment}"])
    is_lit = experiment in LAPTOP_LIT
    assert config["trainer"]["max_epochs" if is_lit else "max_steps"] == (30 if is_lit else 250)
    assert config["towers"]["image"]["locked"] == is_lit
    assert (config["evaluation"]["openclipart"]["unseen"] is None) == (experiment != "laptop_lit")
    build_all({**config, "global_batch_size": 2})


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_every_published_experiment_builds(files: dict, monkeypatch: pytest.MonkeyPatch, experiment: str):
    monkeypatch.chdir(Path(files["folder"]))
    config = compose_with(files, monkeypatch, [f"experiment={experiment}"])
    epochs = int(experiment.rsplit("_", 1)[1].removesuffix("ep"))
    assert config["trainer"]["max_epochs"] == epochs
    assert config["global_batch_size"] == 4096
    if "simclr" not in experiment and experiment not in FAMILY:
        assert config["objective"]["gather_with_grad"] is False
        assert config["tokenizer"]["truncation"] == "drop_end"
        assert config["tokenizer"]["special_text"] == "token"
        assert settled(config)["model"]["text_tower"]["context_length"] == 77
        assert settled(config)["model"]["text_tower"]["vocab_size"] == 49408
    build_all(config)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("model=slip_vitb17", "did you mean model=slip_vitb16"),
        ("towers.image.compile=true", "has been replaced by compile=true or false"),
        ("model=slip_vitb17", "size vitb17 is none of: rn50, tiny, vitb16, vitb32, vitl16, vits16"),
        ("model=slpi_vitb16", "did you mean model=slip_vitb16? method slpi is none of: clip, clipa, "),
        ("model=slipvitb16", "did you mean model=slip_vitb16? one of: clip_rn50, clip_tiny"),
        ("trainer.max_stpes=3", "did you mean trainer.max_steps"),
        ("sede=3", "did you mean seed"),
        ("nothing_like_it=3", "nothing_like_it is unknown"),
        ("seed=[", "seed="),
        ("--verbose", "--verbose"),
        ("--optim.lr", "unknown option --optim.lr: settings are written key=value, e.g. optim.lr=VALUE"),
        ("-x", "unknown option -x: settings are written key=value, e.g. seed=1"),
        ("optim.lr=1e-3,1e-4", "several values, expected one: python train.py -m makes a run of each"),
        ("seed=range(3)", "seed=range(3): several values"),
        ("seed=choice(1,2)", "seed=choice(1,2): several values"),
        ("model=slip_tiny,clip_tiny", "-m"),
        ("data.source.shards=no/a.tar,no/b.tar", "data.source.shards=[no/a.tar,no/b.tar]"),
    ],
)
def test_an_unknown_key_or_value_names_itself_and_the_nearest(argument: str, said: str):
    with pytest.raises(UserError) as found:
        compose_config("train", [argument])
    assert said in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optim.lr=abc"], "optim.lr=abc: expected a number, e.g. optim.lr="),
        (["tf32=maybe"], "tf32=maybe: expected true or false"),
        (["seed=true"], "seed=True: expected a number"),
        (["trainer=ddp", "trainer.devices=two"], "trainer.devices=two: expected a number, e.g. trainer.devices=2"),
        (["model"], "model: not of the form key=value"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_its_key(words: list[str], said: str):
    with pytest.raises(UserError) as caught:
        compose_config("train", words)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["views.weak.scale=[0.9]"], "views.weak.scale=[0.9]: expected 2 numbers, e.g. views.weak.scale=[0.9, 1.0]"),
        (["views.weak.scale=0.9"], "views.weak.scale=0.9: expected 2 numbers"),
        (["views.weak.scale=[a,b]"], "views.weak.scale=['a', 'b']: expected 2 numbers"),
        (["views.strong.augment.blur_sigma=[0.1]"], "views.strong.augment.blur_sigma=[0.1]: expected 2 numbers"),
        (["optim.optimizer.betas=[0.9]"], "optim.optimizer.betas=[0.9]: expected 2 numbers"),
        (["mean=[0.5]"], "mean=[0.5]: expected 3 numbers, e.g. mean=[0.485, 0.456, 0.406]"),
        (["mean=auto"], "mean=auto: expected 3 numbers"),
        (["image_size=[224]"], "image_size=[224]: expected a number, e.g. image_size=32"),
        (["views.weak.size=[224]"], "views.weak.size=[224]: expected a number"),  # its default is ${image_size}
        (["seed={a:1}"], "seed={'a': 1}: expected a number"),
        (["data=mixture", "data.source.weights=3"], "data.source.weights=3: expected settings, each by its own key"),
        (["views.weak=3"], "views.weak=3: expected settings, each by its own key, such as views.weak.size="),
        (["ssl_head=3"], "ssl_head=3: expected settings"),
        (["ssl_head={hidden:a}"], "ssl_head.hidden=a: expected a number"),
        (["watchdog=3"], "watchdog=3: expected settings"),
        (["plan.device_counts=3"], "plan.device_counts=3: expected a list, e.g. plan.device_counts=[1, 8, 64]"),
        (["evaluation=folder", "evaluation.folder.templates=a {}"], "templates=a {}: expected a list"),
        (["optim=3"], "optim=3: expected the name of a file in configs/optim/"),
        (["model=null"], "model=null: expected the name of a file in configs/model/"),
    ],
)
def test_a_value_of_another_shape_is_refused_by_its_key(words: list[str], said: str):
    with pytest.raises(UserError) as caught:
        compose_config("train", [*words, "evaluation.folder.source.root=x"] if "folder" in words[0] else words)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lists_of_cases_have_any_length():
    words = ["plan.device_counts=[4]", "data=cc3m", "data.source.shards=[a.tar,b.tar]", "trainer.devices=[0,1]"]
    words += ["evaluation=folder", "evaluation.folder.source.root=x", "evaluation.folder.templates=['a {}','b {}']"]
    config, _ = compose_config("train", words)
    assert (config["plan"]["device_counts"], config["trainer"]["devices"]) == ([4], [0, 1])
    assert config["data"]["source"]["shards"] == ["a.tar", "b.tar"]
    assert config["evaluation"]["folder"]["templates"] == ["a {}", "b {}"]
    assert compose_config("eval", ["checkpoint=x", "allow=[a.B,c.D]"])[0]["allow"] == ["a.B", "c.D"]


def check_and_build(config: dict[str, Any]) -> None:
    check_root_values(config)
    with torch.device("meta"):
        build_parts(config)
    build(config["optim"]["optimizer"], "optim.optimizer")([torch.nn.Parameter(torch.zeros(1))])


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("mean: [0.5]", "mean=[0.5]: expected three numbers, for red, green and blue"),
        ("mean: [123.7, 116.3, 103.5]", "mean=[123.7, 116.3, 103.5]: expected three .*from 0 to 1 as pixels are"),
        ("std: [0.2, 0.2, 0]", "std=[0.2, 0.2, 0]: expected three .*above 0 and up to 1 as pixels are"),
        ("watchdog: 3", "watchdog=3: expected settings"),
        ("views: {weak: {scale: [0.9]}}", r"objective.views.image.scale=[0.9]: expected [low, high]"),
        ("views: {weak: 3}", "objective.views.image=3: expected settings with a _target_"),
        ("views: {strong: {augment: {blur_sigma: [0.1]}}}", "augment.blur_sigma=[0.1]: expected [least, most]"),
        ("model: {embed_dim: [2]}", "model: openslip.models.dual_encoder.DualEncoder(embed_dim=[2], "),
        ("model: {image_tower: {name: 3}}", "model.image_tower: openslip.models.timm_tower.TimmTower(name=3, "),
        ("optim: {optimizer: {betas: [0.9]}}", "optim.optimizer: torch.optim.AdamW(lr=0.0008, betas=[0.9], "),
        ("optim: {optimizer: {_target_: torch.optim.Adan}}", "No module named 'torch.optim.Adan'"),
    ],
)
def test_a_file_with_a_value_of_another_shape_is_an_error_that_names_its_key(tmp_path: Path, written: str, said: str):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{written}\n")
    config, _ = compose_config("train", ["--config-dir", str(tmp_path), "experiment=mine"])
    with pytest.raises(UserError) as caught:
        check_and_build(config)
    for part in said.split(".*"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_auto_null_and_numbers_stand_where_a_number_is_the_default():
    words = ["trainer=ddp", "trainer.devices=auto", "optim.lr=1", "trainer.max_steps=null", "micro_batch_size=7"]
    config, _ = compose_config("train", words)
    assert (config["trainer"]["devices"], config["optim"]["lr"], config["trainer"]["max_steps"]) == ("auto", 1, None)


def test_a_shard_pattern_needs_no_second_pair_of_quotes():
    config, _ = compose_config("train", ["data=webdataset", "data.source.shards=shards/train-{000000..000009}.tar"])
    assert config["data"]["source"]["shards"] == "shards/train-{000000..000009}.tar"


def test_a_source_of_its_own_is_chosen_with_its_group():
    config, _ = compose_config("train", ["data=webdataset", "data/source=mixture", "data.source.weights.cc12m=0.5"])
    source = config["data"]["source"]
    assert source["weights"] == {"cc3m": 1.0, "cc12m": 0.5}
    assert source["sources"]["cc12m"]["expected_samples"] == 10_968_539


def test_where_data_lies_and_how_many_processes_read_it_do_not_name_a_run():
    names = set()
    for changes in ([], ["data.num_workers=7"], ["shard_cache.folder=/elsewhere", "shard_cache.max_bytes=5"]):
        config, choices = compose_config("train", ["data=cc3m", *changes])
        names.add(run_name(config, choices["data"]))
    assert len(names) == 1
    config, choices = compose_config("train", ["data=cc3m", "data.shuffle_window=8"])
    assert run_name(config, choices["data"]) not in names


def test_a_misspelt_argument_names_the_class_and_the_argument():
    with pytest.raises(UserError, match="scale"):
        build(
            {"_target_": "openslip.objectives.clip.CLIP", "gather_with_grad": True, "max_logit_scale": 4.6, "scale": 1}
        )


def test_a_faithful_simclr_needs_no_tokenizer():
    config, _ = compose_config("train", ["experiment=yfcc15m_simclr_vits16_25ep"])
    assert config["tokenizer"] is None


@pytest.mark.parametrize("name", ["a=b#c'd~e[f]{g}(h),i j", 'say "größe"', "~a\\"])
def test_configs_of_ones_own_and_data_lie_in_a_folder_of_any_name(tmp_path: Path, name: str):
    folder = tmp_path / name
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    shards = f"{folder}/a.tar"
    words = ["experiment=mine", "data=webdataset", f"data.source.shards={shards}", f"runs_dir={folder}", f"name={name}"]
    for place in (["--config-dir", str(folder)], [f"--config-dir={folder}"]):
        config, _ = compose_config("train", [*place, *words])
        assert (config["seed"], config["data"]["source"]["shards"]) == (7, shards)
        assert (config["runs_dir"], config["name"]) == (str(folder), name)


def test_leading_dashes_are_taken_off_a_setting():
    config, choices = compose_config("train", ["--optim.lr=0.001", "--model=clip_tiny", "++seed=3", "--tf32=True"])
    assert (config["optim"]["lr"], choices["model"], config["seed"], config["tf32"]) == (0.001, "clip_tiny", 3, True)


SWEEPS = sorted((config_folder() / "sweeps").glob("*.yaml"))


def swept(sweep: dict[str, Any]) -> dict[str, Any]:
    """One value of each parameter of a sweep file."""
    return {key: (part["values"][-1] if "values" in part else part["max"]) for key, part in sweep["parameters"].items()}


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_a_sweep_file_composes_as_agents_of_wandb_start_it(file: Path):
    sweep = yaml.safe_load(file.read_text())
    assert sweep["method"] in ("bayes", "random", "grid")
    assert sweep["metric"]["name"] == "eval/builtin/top1"
    assert sweep["program"] == "train.py"
    values = swept(sweep)
    forms = create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    fixed = [word for word in sweep["command"] if not word.startswith("${")]
    assert "logger=wandb" in fixed
    assert "${args_no_hyphens}" in sweep["command"]
    for form in ("args", "args_no_hyphens", "args_override_hydra"):
        config, _ = compose_config("train", [*fixed, *forms[form]])
        check_root_values(config)
        assert {key: lookup(config, key) for key in values} == values
        assert "builtin" in config["evaluation"]


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_a_null_in_a_sweep_file_is_the_text_null(file: Path):
    sweep = yaml.safe_load(file.read_text())
    null = [key for key, part in sweep["parameters"].items() if "null" in part.get("values", ())]
    forms = create_sweep_command_args({"args": {key: {"value": "null"} for key in null}})
    assert null
    for form in ("args", "args_no_hyphens"):
        config, _ = compose_config("train", ["model=slip_tiny", *forms[form]])
        assert [lookup(config, key) for key in null] == [None] * len(null)


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_an_agent_of_wandb_and_openslip_sweep_start_the_same_run(file: Path):
    sweep = yaml.safe_load(file.read_text())
    fixed = [word for word in sweep["command"] if not word.startswith("${")]
    forms = create_sweep_command_args({"args": {key: {"value": value} for key, value in swept(sweep).items()}})
    by_agent, _ = compose_config("train", [*forms["args_no_hyphens"], *fixed])
    by_sweep, _ = compose_config("train", [*(f"{key}={value}" for key, value in swept(sweep).items()), *fixed])
    assert by_agent == by_sweep
    assert run_name(by_agent, "slip_tiny-builtin") == run_name(by_sweep, "slip_tiny-builtin")
