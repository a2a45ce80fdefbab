"""Every option of every config group composes and builds; so does every experiment."""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from openslip.config.build import build, build_evaluations, settled
from openslip.config.compose import compose_config
from openslip.config.defaults import config_folder
from openslip.errors import UserError
from openslip.evaluation.evaluation import Evaluation
from openslip.objectives.objective import Objective
from openslip.run.folder import run_name

GROUPS = sorted(path.name for path in config_folder().iterdir() if path.is_dir())
OPTIONS = [
    (group, path.stem)
    for group in GROUPS
    for path in sorted((config_folder() / group).glob("*.yaml"))
    if group not in ("experiment", "recipe")  # recipes are parts of models and experiments
]
EXPERIMENTS = sorted(path.stem for path in (config_folder() / "experiment").glob("*.yaml"))
# What an option leaves for the user to say.
ALSO = {
    ("optim", "adamw"): ["optim.lr=1e-3", "optim.weight_decay=0.1"],
    ("data", "webdataset"): ["data.source.shards=SHARDS"],
    ("evaluation", "folder"): ["evaluation.folder.source.root=PICTURES"],
    ("evaluation", "shards"): ["evaluation.shards.source.shards=SHARDS", "evaluation.shards.classnames.path=NAMES"],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small stand-ins for collections that are not there."""
    folder = tmp_path_factory.mktemp("files")
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for name in ("ant", "bee"):
        (folder / "pictures" / "val" / name).mkdir(parents=True)
        picture.save(folder / "pictures" / "val" / name / "1.jpg")
    (folder / "names.txt").write_text("ant\nbee\n")
    write_shard(folder / "shards.tar", picture)
    for name in ("yfcc15m", "cc3m", "cc12m", "coco", "redcaps"):
        (folder / name).mkdir()
        write_shard(folder / name / "train-000000.tar", picture)
    return {"folder": str(folder)}


def write_shard(path: Path, picture: Image.Image) -> None:
    picture.save(path.with_suffix(".jpg"))
    with tarfile.open(path, "w") as tar:
        for key in range(3):
            for suffix, text in (("txt", "an ant"), ("json", '{"title": "an ant"}'), ("cls", "0")):
                member = path.with_suffix(f".{suffix}")
                member.write_text(text)
                tar.add(member, f"{key}.{suffix}")
            tar.add(path.with_suffix(".jpg"), f"{key}.jpg")


def compose_with(files: dict[str, str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> dict[str, Any]:
    monkeypatch.setenv("OPENSLIP_DATA", files["folder"])
    monkeypatch.setenv("IMAGENET", f"{files['folder']}/pictures")
    known = {"SHARDS": "shards.tar", "PICTURES": "pictures/val", "NAMES": "names.txt"}
    for word, name in known.items():
        arguments = [argument.replace(word, f"{files['folder']}/{name}") for argument in arguments]
    config, _ = compose_config("train", arguments)
    return config


def build_all(config: dict[str, Any]) -> None:
    """What `openslip.commands.train` builds, in its order, the model on the meta device."""
    config = settled(config)
    views = {name: build(view) for name, view in config["objective"].pop("views").items()}
    config["objective"].pop("model", None)
    data = build(
        config["data"],
        views=views,
        global_batch_size=2,
        seed=0,
        bad_samples_file=None,
    )
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
    build(config["optim"]["schedule"], warmup_steps=1, total_steps=2)
    for callback in config["callbacks"].values():
        build(callback)


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


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_builds(files: dict, monkeypatch: pytest.MonkeyPatch, experiment: str):
    monkeypatch.chdir(Path(files["folder"]))
    config = compose_with(files, monkeypatch, [f"experiment={experiment}"])
    epochs = int(experiment.rsplit("_", 1)[1].removesuffix("ep"))
    assert config["trainer"]["max_epochs"] == epochs
    assert config["global_batch_size"] == 4096
    if "simclr" not in experiment:
        assert config["objective"]["gather_with_grad"] is False
        assert config["tokenizer"]["truncation"] == "drop_end"
        assert config["tokenizer"]["special_text"] == "token"
        assert settled(config)["model"]["text_tower"]["context_length"] == 77
        assert settled(config)["model"]["text_tower"]["vocab_size"] == 49408
    build_all(config)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_says_what_to_expect_and_how_to_run_it(experiment: str):
    head = (config_folder() / "experiment" / f"{experiment}.yaml").read_text()
    assert "Expected on ImageNet:" in head
    assert f"python train.py experiment={experiment}" in head


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("model=slip_vitb17", "did you mean model=slip_vitb16"),
        ("trainer.max_stpes=3", "did you mean trainer.max_steps"),
        ("sede=3", "did you mean seed"),
        ("nothing_like_it=3", "nothing_like_it is unknown"),
        ("seed=[", "seed="),
        ("--verbose", "--verbose"),
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
