"""Files and folders of open_clip: features as recorded, the config compared with the weights, odd ones refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from recorded_towers import BOTH, FOLDER, TOLERANCE, assert_as_recorded, config, deviations, recorded
from safetensors.torch import load_file, save_file
from torch import Tensor

import openslip
from openslip.errors import UserError
from openslip.inference.formats import open_clip as reader
from openslip.inference.formats.openslip import write
from openslip.inference.layouts import openai, timm_trunk
from openslip.text.bare_ids import BareIds
from openslip.text.clip_bpe import ClipBpe

NAMES = ["open_clip_vit_quickgelu", "open_clip_vit_gelu", "open_clip_resnet", "open_clip_siglip"]
SIGLIP = BOTH | {"logit_bias"}


def expected(name: str) -> set[str]:
    return SIGLIP if "siglip" in name else BOTH


def folder(tmp_path: Path, name: str, **changes: Any) -> Path:
    """Lay a recorded model out as open_clip saves it; `vision_cfg__width=3` changes a setting of a part."""
    content = {"model_cfg": config(name), "preprocess_cfg": changes.pop("preprocess_cfg", {})}
    for key, value in changes.items():
        *parts, last = key.split("__")
        part = content["model_cfg"]
        for step in parts:
            part = part[step]
        part[last] = value
    path = tmp_path / name
    path.mkdir()
    (path / "open_clip_config.json").write_text(json.dumps(content))
    shutil.copy(FOLDER / f"{name}.safetensors", path / "open_clip_model.safetensors")
    return path


def weights(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_gives_the_recorded_features_and_keeps_them_after_strip(name: str, tmp_path: Path):
    bundle = openslip.load(folder(tmp_path, name))
    assert_as_recorded(bundle, name, expected(name))
    write(bundle, tmp_path / "stripped.safetensors")
    assert_as_recorded(openslip.load(tmp_path / "stripped.safetensors"), name, expected(name))


def test_a_trunk_without_a_name_in_timm_asks_for_heads_and_activation(tmp_path: Path):
    path = folder(tmp_path, "open_clip_siglip", timm_arguments=None)
    with pytest.raises(UserError, match=r"give --image-heads"):
        openslip.load(path)
    with pytest.raises(UserError, match=r"give --activation quickgelu .* or --activation gelu"):
        openslip.load(path, image_heads=4)
    assert_as_recorded(openslip.load(path, image_heads=4, activation="gelu"), "open_clip_siglip", SIGLIP)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_a_bare_state_dict_needs_its_activation_and_heads(suffix: str, prefix: str, tmp_path: Path):
    state = {f"{prefix}{name}": tensor for name, tensor in weights("open_clip_vit_quickgelu").items()}
    path = tmp_path / f"bare{suffix}"
    if suffix == ".pt":
        torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"state": {}}}, path)
    else:
        save_file(state, path)
    with pytest.raises(UserError, match=r"bare.*does not say its activation: give --activation quickgelu .* gelu"):
        openslip.load(path)
    with pytest.raises(UserError, match=r"width 48 does not tell the number of image_heads.*--image-heads"):
        openslip.load(path, activation="quickgelu")
    choices: dict[str, Any] = {"image_heads": 4, "text_heads": 4}
    assert_as_recorded(openslip.load(path, activation="quickgelu", **choices), "open_clip_vit_quickgelu", BOTH)
    other = openslip.load(path, activation="gelu", **choices)
    assert max(deviations(other, recorded("open_clip_vit_quickgelu")).values()) > 100 * TOLERANCE


def test_a_bare_resnet_and_a_custom_text_model_load(tmp_path: Path):
    choices: dict[str, Any] = {"activation": "quickgelu", "text_heads": 4}
    assert_as_recorded(openslip.load(FOLDER / "open_clip_resnet.safetensors", **choices), "open_clip_resnet", BOTH)
    image = ("visual.", "logit_scale")
    state = weights("open_clip_vit_gelu")
    state = {name if name.startswith(image) else f"text.{name}": tensor for name, tensor in state.items()}
    save_file(state, tmp_path / "custom.safetensors")
    loaded = openslip.load(tmp_path / "custom.safetensors", activation="gelu", image_heads=4, text_heads=4)
    assert_as_recorded(loaded, "open_clip_vit_gelu", BOTH)
    save_file(state | weights("open_clip_vit_gelu"), tmp_path / "both.safetensors")
    with pytest.raises(UserError, match=r"both\.safetensors: it has weights of two text towers"):
        openslip.load(tmp_path / "both.safetensors", activation="gelu")


@pytest.mark.parametrize("name", ["open_clip_siglip", "open_clip_coca"])
def test_a_bare_file_that_shapes_do_not_describe_asks_for_its_config(name: str):
    with pytest.raises(
        UserError, match=rf"{name}\.safetensors: the weight visual\..*with the model's open_clip_config"
    ):
        openslip.load(FOLDER / f"{name}.safetensors", activation="gelu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_cfg__layers": 3}, r"vision_cfg\.layers is 3, and the weights have 2"),
        ({"vision_cfg__width": 64}, r"vision_cfg\.width is 64, and the weights have 48"),
        ({"vision_cfg__patch_size": 4}, r"vision_cfg\.patch_size is 4"),
        ({"vision_cfg__image_size": 32}, r"vision_cfg\.image_size is 4, and the weights have 3"),
        ({"vision_cfg__mlp_ratio": 3.0}, r"vision_cfg\.mlp_ratio is 144, and the weights have 192"),
        ({"vision_cfg__head_width": 0}, r"head_width is 0; expected a whole number"),
        ({"vision_cfg__no_ln_pre": True}, r"vision_cfg\.no_ln_pre=True is not implemented"),
        ({"vision_cfg__pool_type": "avg"}, r"vision_cfg\.pool_type=avg is not implemented"),
        ({"vision_cfg__qk_norm": True}, r"vision_cfg\.qk_norm=True is not implemented"),
        ({"vision_cfg__act_kwargs": {"approximate": "tanh"}}, r"act_kwargs=.* with quick_gelu=True is not implemented"),
        ({"vision_cfg__norm_kwargs": {"elementwise_affine": False}}, r"norm_kwargs=.* \(only eps\)"),
        ({"vision_cfg__norm_layer": "os.system"}, r"vision_cfg\.norm_layer is unknown"),
        ({"vision_cfg__timm_model_name": "hf-hub:some/model"}, r"the file lacks the weight visual\.trunk"),
        ({"vision_cfg__timm_model_name": ["a"]}, r"timm_model_name=\['a'\]"),
        ({"vision_cfg": []}, r"vision_cfg is a list; expected an object"),
        ({"_target_": "os.system"}, r"model_cfg\._target_ is unknown"),
        ({"embed_dim": 32}, r"embed_dim is 32, and the weights have 24"),
        ({"text_cfg__heads": "4"}, r"heads is 4; expected a whole number"),
        ({"text_cfg__heads": 5}, r"heads=5 do not divide"),
        ({"text_cfg__layers": 1}, r"text_cfg\.layers is 1, and the weights have 2"),
        ({"text_cfg__context_length": 77}, r"text_cfg\.context_length is 77, and the weights have 12"),
        ({"text_cfg__hf_model_name": "roberta-base"}, r"hf_model_name=roberta-base is not implemented"),
        ({"text_cfg__no_causal_mask": True}, r"no_causal_mask with pool_type=argmax is not implemented"),
        ({"text_cfg__pool_type": "first"}, r"pool_type=first is not implemented"),
        ({"text_cfg__proj_type": "none"}, r"proj_type=none is not implemented"),
        ({"preprocess_cfg": {"mean": [0.5, 0.5]}}, r"mean or std: expected three finite numbers"),
        ({"preprocess_cfg": {"std": [0, 1, 1]}}, r"mean or std: expected positive"),
        ({"preprocess_cfg": {"size": 224}}, r"preprocess_cfg\.size is 224, and the model takes images of 24"),
        ({"preprocess_cfg": {"fill_color": 9}}, r"preprocess_cfg\.fill_color=9 is not implemented"),
        ({"preprocess_cfg": {"interpolation": []}}, r"preprocess_cfg\.interpolation is \[\]; expected a name"),
        ({"preprocess_cfg": {"interpolation": {}}}, r"preprocess_cfg\.interpolation is \{\}; expected a name"),
        ({"preprocess_cfg": {"resize_mode": []}}, r"preprocess_cfg\.resize_mode is \[\]; expected a name"),
        ({"preprocess_cfg": {"resize_mode": "crop"}}, r"resize=crop: expected shortest, squash, longest"),
    ],
)
def test_a_setting_that_is_not_implemented_or_contradicts_the_weights_is_named(
    changes: dict[str, Any], message: str, tmp_path: Path
):
    with pytest.raises(UserError, match=message):
        openslip.load(folder(tmp_path, "open_clip_vit_quickgelu", **changes))


def test_choices_that_the_config_answers_must_agree(tmp_path: Path):
    path = folder(tmp_path, "open_clip_vit_quickgelu")
    openslip.load(path, activation="quickgelu", image_heads=4, text_heads=4)
    contradictions: list[tuple[dict[str, Any], str]] = [
        ({"activation": "gelu"}, "activation=gelu: the file says quick_gelu"),
        ({"image_heads": 2}, "image_heads=2: the file says 4"),
        ({"text_heads": 2}, "text_heads=2: the file says 4"),
    ]
    for choice, message in contradictions:
        with pytest.raises(UserError, match=message):
            openslip.load(path, **choice)
    with pytest.raises(UserError, match="image_heads=2: the file says 4"):
        openslip.load(folder(tmp_path, "open_clip_siglip"), image_heads=2)


def test_preprocessing_is_that_of_the_config(tmp_path: Path):
    squashed = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    transform = openslip.load(folder(tmp_path, "open_clip_siglip", preprocess_cfg=squashed)).transform
    assert (transform.size, transform.mean, transform.std) == (24, [0.5] * 3, [0.25] * 3)
    assert (transform.interpolation, transform.resize) == ("bilinear", "squash")
    transform = openslip.load(folder(tmp_path, "open_clip_vit_gelu")).transform
    assert transform.mean == list(open_clip.OPENAI_DATASET_MEAN)
    assert (transform.interpolation, transform.resize) == ("bicubic", "shortest")


CAPTIONS = [
    *(
        "a photo",
        "",
        "  Two\tspaces\n",
        "<end_of_text> <|endoftext|> <start_of_text>x",
        "It's &amp;amp; &lt;b&gt;",
        "é́",
    ),
    *(
        "\uff26\uff35\uff2c\uff2c width",
        "emoji 👩‍👩‍👧 🇯🇵",
        "don't 'RE 12345",
        "word " * 100,
        "日本語 テキスト",
        "naïve café",
        "\x00\u200b",
    ),
]


def test_token_ids_are_those_of_open_clip():
    tokenizer = reader.tokenizer(None, {"vocab_size": 49408, "context_length": 77}, {})
    assert isinstance(tokenizer, ClipBpe)
    assert torch.equal(tokenizer.encode(CAPTIONS)[0], open_clip.get_tokenizer("ViT-B-32")(CAPTIONS))


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ({"pool_type": "eos", "eos_id": 7}, {"pooled": "first", "end": 7}),
        ({"pool_type": "last", "hf_tokenizer_name": "other"}, {"pooled": "last", "end": None}),
        ({"pool_type": "argmax", "hf_tokenizer_name": "other"}, {"pooled": "largest", "end": None}),
    ],
)
def test_another_vocabulary_loads_without_a_tokenizer(part: dict[str, Any], settings: dict[str, Any]):
    tokenizer = reader.tokenizer(None, {"vocab_size": 49408, "context_length": 77}, part)
    assert isinstance(tokenizer, BareIds)
    assert settings.items() <= tokenizer.settings().items()


def test_a_link_out_of_the_folder_and_a_missing_file_are_refused(tmp_path: Path):
    path = folder(tmp_path, "open_clip_vit_gelu")
    (path / "open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no weights: expected open_clip_model\.safetensors or"):
        openslip.load(path)
    (path / "open_clip_model.safetensors").symlink_to(FOLDER / "open_clip_vit_gelu.safetensors")
    with pytest.raises(UserError, match=r"open_clip_model\.safetensors is a link out of its folder"):
        openslip.load(path)
    (path / "open_clip_config.json").rename(tmp_path / "elsewhere.json")
    (path / "open_clip_config.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(UserError, match=r"open_clip_config\.json is a link out of its folder"):
        openslip.load(path)


def test_weights_that_do_not_fit_are_counted_and_named(tmp_path: Path):
    path = folder(tmp_path, "open_clip_vit_gelu")
    state = weights("open_clip_vit_gelu")
    del state["ln_final.weight"]
    save_file(state | {"visual.attn_pool.query": torch.ones(1)}, path / "open_clip_model.safetensors")
    with pytest.raises(
        UserError, match=r"matched; 1 missing: text_tower\.ln_final\.weight; 1 unexpected: visual\.attn"
    ):
        openslip.load(path)


def faults() -> dict[str, tuple[str, str, Callable[[pytest.MonkeyPatch], Any]]]:
    def swapped(module: Any, attribute: str, first: str, second: str) -> Callable[[pytest.MonkeyPatch], Any]:
        convert = getattr(module, attribute)

        def changed(given: dict[str, Tensor]) -> dict[str, Tensor]:
            state = convert(given)
            return state | {first: state[second], second: state[first]}

        return lambda patch: patch.setattr(module, attribute, changed)

    def transposed(patch: pytest.MonkeyPatch) -> None:
        convert = timm_trunk.convert
        patch.setattr(timm_trunk, "convert", lambda w: (s := convert(w)) | {"text_projection": s["text_projection"].T})

    blocks, trunk = "text_tower.blocks.0.ln_", "image_tower.trunk.blocks.0.norm"
    return {
        "text norms swapped": (
            NAMES[0],
            "text_features",
            swapped(openai, "convert", f"{blocks}1.bias", f"{blocks}2.bias"),
        ),
        "image norms swapped": (
            NAMES[0],
            "image_features",
            swapped(openai, "convert", f"{trunk}1.bias", f"{trunk}2.bias"),
        ),
        "projection transposed": (NAMES[3], "text_features", transposed),
        "running statistics swapped": (
            NAMES[2],
            "image_features",
            swapped(openai, "convert", "image_tower.bn1.running_mean", "image_tower.bn2.running_mean"),
        ),
        "other epsilon": (
            NAMES[3],
            "text_features",
            lambda patch: patch.setattr(reader.configs, "norm_eps", lambda part, path: 1e-3),
        ),
        "one id less read": (
            NAMES[3],
            "text_features",
            lambda patch: patch.setattr(
                BareIds, "lengths", lambda self, ids: torch.full((len(ids),), ids.shape[1] - 1)
            ),
        ),
    }


@pytest.mark.parametrize("fault", list(faults()))
def test_a_planted_fault_moves_the_features(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name, moved, plant = faults()[fault]
    plant(monkeypatch)
    assert deviations(openslip.load(folder(tmp_path, name)), recorded(name))[moved] > 2 * TOLERANCE
