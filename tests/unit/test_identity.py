"""What makes a run another run, and what does not."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from openslip.config.build import settled
from openslip.config.compose import compose_config
from openslip.errors import UserError
from openslip.run.folder import open_run, run_name
from openslip.run.identity import FORMAT, differences, flat, identity, read_config, write_config

OLD = Path(__file__).parents[1] / "support" / "config_format_1.yaml"  # written by the version before format 2
SAME = [
    *("trainer=cpu", "trainer.precision=32-true", "trainer.max_steps=30", "optim.warmup_steps=2", "evaluation=none"),
    *("model=slip_tiny", "callbacks.save.every_n_steps=10"),
]


@cache
def composed(*arguments: str) -> dict[str, Any]:
    return settled(compose_config("train", [*arguments])[0])


def changed(key: str, value: Any) -> dict[str, Any]:
    """The config with a value, and its groups, at a dotted key."""
    config = copy.deepcopy(composed(*SAME))
    *groups, name = key.split(".")
    group = config
    for each in groups:
        group = group.setdefault(each, {})
    group[name] = value
    return config


IN = {
    "model.embed_dim": 65,
    "model.image_tower.arguments.depth": 5,
    "model._target_": "mine.OtherEncoder",
    "objective.ssl_scale": 0.5,
    "objective.views.aug1.scale": [0.5, 1.0],
    "objective.views.text.augment": {"_target_": "mine.RandomEdits"},
    "objective.gather_with_grad": False,
    "objective.same_caption": "ignore",
    "tokenizer.context_length": 40,
    "tokenizer.vectors": "vectors.txt",
    "model.projects_text": False,
    "objective.margin": 0.2,
    "tokenizer.truncation": "drop_end",
    "optim.lr": 0.1,
    "optim.clip_norm": 1.0,
    "optim.optimizer.betas": [0.9, 0.9],
    "optim.schedule.lr_end": 0.0,
    "data._target_": "mine.OtherData",
    "data.source._target_": "mine.Source",
    "data.source.split": "seen",
    "data.source.captions._target_": "mine.Policy",
    "data.source.sources.cc3m.require": "label",
    "data.decoder._target_": "openslip.data.image.decode.PillowDecoder",
    "data.shuffle_window": 3,
    "seed": 1,
    "global_batch_size": 32,
    "image_size": 33,
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
    "tf32": True,
    "trainer.precision": "bf16-mixed",
    "init_from.checkpoint": "a.ckpt",
    "towers.image.weights": "runs/earlier",
    "towers.text.locked": True,
    "towers.image.patch_dropout": 0.5,
}
OUT = {
    "init_from.resize": True,
    "init_from.activation": "gelu",  # how a file is read: it must then give the outputs of this run's towers
    "init_from.image_heads": 3,
    "init_from.text_heads": 3,
    "towers.image.activation": "gelu",
    "towers.image.image_heads": 3,
    "towers.text.text_heads": 3,
    "name": "other",
    "runs_dir": "elsewhere",
    "resume": "never",
    "allow": ["mine.Tower"],
    "format": 3,
    "mode.truncation": "drop_end",  # as far as it is used it stands in the tokenizer
    "views.strong.size": 7,  # and in the objective
    "ssl_head.hidden": 7,
    "simsiam_head.hidden": 7,
    "text_queue": 7,
    "mode.declip.queue_wraps": False,
    "micro_batch_size": 8,
    "evaluation_samples": 7,
    "quiet": True,
    "evaluate_every_n_epochs": 1,
    "evaluation.mine._target_": "mine.Evaluation",
    "callbacks.mine._target_": "mine.Callback",
    "callbacks.save.every_n_steps": 11,
    "callbacks.finite.stop_after": 11,
    "logger.wandb.project": "mine",
    "shard_cache.folder": "elsewhere",
    "watchdog.step": 1,
    "plan.utilisation": 0.5,
    "devices.A100.tflops": 1,
    "data.num_workers": 3,
    "data.prefetch_gb": 0.5,
    "data.bad_sample_budget": 0.5,
    "data.source.cache.folder": "elsewhere",
    "data.source.expected_samples": 7,
    "data.source.sources.cc3m.cache.max_bytes": 7,
    "compile": True,
    "towers.text.gradient_checkpointing": True,
    "trainer.accelerator": "gpu",
    "trainer.devices": 8,
    "trainer.num_nodes": 2,
    "trainer.strategy": {"_target_": "mine.Strategy"},
    "trainer.deterministic": True,
    "trainer.enable_progress_bar": True,
}
NAMED_ONLY = {
    "data.source.root": "elsewhere",
    "data.source.sources.cc3m.shards": "elsewhere",
    "trainer.max_steps": 31,
    "trainer.max_epochs": 2,
}


@pytest.mark.parametrize("key", IN)
def test_what_changes_the_numbers_makes_another_run(key: str):
    config = changed(key, IN[key])
    assert [name for name in differences(composed(*SAME), config) if name.startswith(key)]
    assert run_name({**config, "name": None}, "x") != run_name(composed(*SAME), "x")


@pytest.mark.parametrize("key", OUT)
def test_what_changes_no_number_makes_the_same_run(key: str):
    config = changed(key, OUT[key])
    assert config != composed(*SAME)
    assert identity(config) == identity(composed(*SAME))


@pytest.mark.parametrize("key", NAMED_ONLY)
def test_length_and_places_of_data_name_a_run_but_are_no_difference(key: str):
    config = changed(key, NAMED_ONLY[key])
    assert run_name(config, "x") != run_name(composed(*SAME), "x")
    assert differences(composed(*SAME), config) == {}


def test_every_key_of_the_default_config_was_decided_on():
    groups = {key.split(".")[0] for key in flat(composed(*SAME))}
    decided = {key.split(".")[0] for key in (*IN, *OUT)}
    assert groups <= decided


def test_a_class_of_openslip_that_moved_is_the_same_class():
    moved = changed("objective._target_", "openslip.elsewhere.SLIP")
    assert run_name(moved, "x") == run_name(composed(*SAME), "x")
    listed = [{"_target_": f"openslip.{name}", "p": 0.5} for name in ("here.Flip", "there.Flip", "here.Blur")]
    first, second, third = (changed("objective.views.aug1.augment", [each]) for each in listed)
    assert identity(first) == identity(second) != identity(third)


def test_classes_of_a_users_own_with_the_same_name_are_not_the_same():
    mine, other = (changed("objective._target_", f"{module}.SLIP") for module in ("mine", "other"))
    assert "objective._target_" in differences(mine, other)
    assert "objective._target_" in differences(mine, composed(*SAME))


def test_arguments_of_a_data_module_are_in_the_identity():
    assert "data.mix" in differences(composed(*SAME), changed("data.mix", 0.1))


def test_null_is_as_if_the_key_were_not_there():
    assert identity(changed("optim.new", None)) == identity(composed(*SAME))
    assert identity(changed("optim.new", False)) != identity(composed(*SAME))


def test_mode_counts_where_it_is_used():
    assert differences(composed("model=slip_tiny"), composed("model=slip_tiny", "mode=faithful"))
    assert not differences(composed("model=simclr_tiny"), composed("model=simclr_tiny", "mode=faithful"))


def test_a_stored_config_is_read_as_it_was_and_a_newer_one_refused(tmp_path: Path):
    file = tmp_path / "config.yaml"
    assert read_config(file) is None
    file.write_text(write_config(composed(*SAME)))
    assert yaml.safe_load(file.read_text())["format"] == FORMAT
    assert read_config(file) == composed(*SAME)
    file.write_text(f"format: {FORMAT + 1}\n")
    with pytest.raises(UserError, match=f"format {FORMAT + 1}, this version reads up to {FORMAT}"):
        read_config(file)
    for damaged in ("", "- 1", "{", "seed: 1", "[" * 1000):
        file.write_text(damaged)
        with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
            read_config(file)


def test_a_config_of_the_first_format_is_the_same_run():
    stored = read_config(OLD)
    assert stored is not None
    assert identity(stored) == identity(composed(*SAME))
    assert [*differences(stored, changed("optim.clip_norm", 1.0))] == ["optim.clip_norm"]
    edits = changed("objective.views.text.augment", {"_target_": "RandomEdits", "delete": 0.1})  # unknown to it
    assert [*differences(stored, edits)] == [
        "objective.views.text.augment._target_",
        "objective.views.text.augment.delete",
    ]


def test_a_clip_config_of_the_second_format_had_equal_captions_as_negatives(tmp_path: Path):
    clip = copy.deepcopy(composed("model=clip_tiny"))
    assert clip["objective"].pop("same_caption") == "negative"
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"format": 2, **clip}))
    stored = read_config(file)
    assert stored is not None
    assert identity(stored) == identity(composed("model=clip_tiny"))
    assert [*differences(stored, composed("model=clip_tiny", "objective.same_caption=ignore"))] == [
        "objective.same_caption"
    ]


def test_a_lit_config_of_the_third_format_had_captions_of_own_words_as_negatives(tmp_path: Path):
    words = ("model=clip_tiny", "objective=lit", "objective.views.image_features.width=8")
    lit = copy.deepcopy(composed(*words))
    assert lit["objective"].pop("contained_caption") == "negative"
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"format": 3, **lit}))
    stored = read_config(file)
    assert stored is not None
    assert not differences(stored, composed(*words))
    positive = composed(*words, "objective.contained_caption=positive")
    assert [*differences(stored, positive)] == ["objective.contained_caption"]


def test_edits_of_the_second_format_had_no_synonyms(tmp_path: Path):
    captions, edit = "openslip.data.captions.choice.Caption", "openslip.data.captions.augment.RandomEdits"
    edits = f"{{_target_: {edit}, delete: 0.1, swap: 0.1, synonyms: %s, thesaurus: null, one_kind: false}}"
    edits = f"objective.views.text={{_target_: {captions}, tokenizer: '${{tokenizer}}', augment: {edits}}}"
    stored_config = copy.deepcopy(composed("model=clip_tiny", edits % 0.0))
    del stored_config["objective"]["same_caption"]
    for key in ("synonyms", "thesaurus", "one_kind"):
        del stored_config["objective"]["views"]["text"]["augment"][key]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"format": 2, **stored_config}))
    stored = read_config(file)
    assert stored is not None
    assert identity(stored) == identity(composed("model=clip_tiny", edits % 0.0))
    assert [*differences(stored, composed("model=clip_tiny", edits % 0.1))] == ["objective.views.text.augment.synonyms"]


def test_a_run_that_another_version_named_is_found_by_its_identity(tmp_path: Path):
    config = {**composed(*SAME), "runs_dir": str(tmp_path)}
    for name in ("slip_tiny-builtin-836d07a4", "slip_tiny-builtin-00000000", "slip_tiny-builtin-mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "slip_tiny-builtin-836d07a4" / "config.yaml").write_text(OLD.read_text())
    (tmp_path / "slip_tiny-builtin-mine" / "config.yaml").write_text(OLD.read_text())
    (tmp_path / "slip_tiny-builtin-00000000" / "config.yaml").write_text("{")
    name = run_name(config, "slip_tiny-builtin")
    run = open_run(config, name)
    run.begin(config, {})
    assert (run.folder.name, run.state) == ("slip_tiny-builtin-836d07a4", "unfinished")
    assert open_run(config, name).folder == run.folder  # now that its config is of the present format
    other = {**config, "seed": 1}
    assert open_run(other, run_name(other, "slip_tiny-builtin")).state == "new"


def test_flat_joins_keys_and_keeps_lists_and_empty_dicts():
    assert flat({"a": {"b": 1, "c": {}}, "d": [{"e": 1}]}) == {"a.b": 1, "a.c": {}, "d": [{"e": 1}]}
    assert flat({}) == {}
