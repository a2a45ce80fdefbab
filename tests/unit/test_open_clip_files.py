"""Files and folders of open_clip: features as recorded, the config compared with the weights, odd ones refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from model_folders import odd_images
from open_clip.transform import PreprocessCfg, image_transform_v2
from recorded_towers import BOTH, FOLDER, TOLERANCE, assert_as_recorded, config, deviations, recorded
from safetensors.torch import load_file, save_file
from torch import Tensor

import openslip
from openslip.errors import UserError
from openslip.inference.formats import open_clip as reader
from openslip.inference.formats.openslip import write
from openslip.inference.layouts import open_clip_config as configs
from openslip.inference.layouts import openai, timm_trunk
from openslip.text.bare_ids import BareIds
from openslip.text.clip_bpe import ClipBpe
from openslip.text.tokenizer_json import TokenizerJson

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


def test_a_bare_resnet_loads():
    choices: dict[str, Any] = {"activation": "quickgelu", "image_heads": 4, "text_heads": 4}
    assert_as_recorded(openslip.load(FOLDER / "open_clip_resnet.safetensors", **choices), "open_clip_resnet", BOTH)


def test_a_separate_text_tower_needs_its_config(tmp_path: Path):
    image = ("visual.", "logit_scale")
    flat = weights("open_clip_vit_gelu")
    state = {name if name.startswith(image) else f"text.{name}": tensor for name, tensor in flat.items()}
    save_file(state, tmp_path / "custom.safetensors")
    with pytest.raises(UserError, match=r"custom\.safetensors: the weight text\..*with the model's open_clip_config"):
        openslip.load(tmp_path / "custom.safetensors", activation="gelu", image_heads=4, text_heads=4)
    path = folder(tmp_path, "open_clip_vit_gelu")
    save_file(state, path / "open_clip_model.safetensors")
    assert_as_recorded(openslip.load(path), "open_clip_vit_gelu", BOTH)
    save_file(state | weights("open_clip_vit_gelu"), path / "open_clip_model.safetensors")
    with pytest.raises(UserError, match="it has weights of two text towers"):
        openslip.load(path)


def bare(path: Path, *, vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write a bare file of a small CLIP of open_clip with these sizes; return its inputs and features."""
    torch.manual_seed(3)
    sizes: dict[str, Any] = {"image_size": 16, "patch_size": 8, "layers": 1, "width": 64, "mlp_ratio": 1.0}
    words: dict[str, Any] = {"context_length": 6, "width": 64, "heads": 1, "layers": 1, "mlp_ratio": 1.0}
    parts: dict[str, Any] = {
        "vision_cfg": sizes | (vision or {}),
        "text_cfg": {"vocab_size": 50} | words | (text or {}),
    }
    model: Any = open_clip.CLIP(embed_dim=8, **parts).eval()
    save_file(model.state_dict(), path)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        return {"images": images, "features": model.encode_image(images)}


@pytest.mark.parametrize("width", [640, 1152, 1280, 1408, 1664, 1792])
def test_widths_of_other_heads_in_open_clip_ask_for_them(width: int, tmp_path: Path):
    path = tmp_path / "wide.safetensors"
    recorded = bare(path, vision={"width": width, "head_width": width // 16})
    with pytest.raises(UserError, match=rf"width {width} does not tell the number of image_heads.*give --image-heads"):
        openslip.load(path, activation="gelu", text_heads=1)
    bundle = openslip.load(path, activation="gelu", image_heads=16, text_heads=1)
    with torch.no_grad():
        torch.testing.assert_close(
            bundle.model.encode_image(recorded["images"]), recorded["features"], rtol=1e-4, atol=1e-5
        )


def test_heads_follow_from_the_widths_at_which_all_configs_of_open_clip_agree():
    found: dict[str, dict[int, set[float]]] = {"vit": {}, "resnet": {}, "text": {}}
    for name in open_clip.list_models():
        settings: Any = open_clip.get_model_config(name)
        vision, text = settings["vision_cfg"], settings["text_cfg"]
        if not vision.get("timm_model_name"):
            resnet = isinstance(vision.get("layers", 12), list)
            width = vision.get("width", 768) * (32 if resnet else 1)
            found["resnet" if resnet else "vit"].setdefault(width, set()).add(vision.get("head_width", 64))
        if not text.get("hf_model_name"):
            width = text.get("width", 512)
            found["text"].setdefault(width, set()).add(width / text.get("heads", 8))
    agreed = {kind: {width for width, heads in of.items() if heads == {64}} for kind, of in found.items()}
    known = {"vit": configs.VIT_WIDTHS, "resnet": configs.RESNET_WIDTHS, "text": configs.TEXT_WIDTHS}
    assert {kind: set(widths) for kind, widths in known.items()} == agreed


@pytest.mark.parametrize("vocab_size", [32000, 49407, 64000, 250100])
def test_another_vocabulary_needs_the_config(vocab_size: int, tmp_path: Path):
    path = tmp_path / "other.safetensors"
    bare(path, text={"vocab_size": vocab_size})
    with pytest.raises(UserError, match=rf"vocabulary of {vocab_size} ids is not CLIP's.*open_clip_config\.json"):
        openslip.load(path, activation="gelu", image_heads=1, text_heads=1)


def test_a_bare_file_says_that_its_mean_is_taken_for_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "plain.safetensors"
    bare(path, text={"vocab_size": 49408})
    openslip.load(path, activation="gelu", image_heads=1, text_heads=1)
    assert capsys.readouterr().err.count("does not say its mean and std: images are prepared with CLIP's") == 1


def test_a_coca_without_causal_mask_is_refused(tmp_path: Path):
    changes: dict[str, Any] = {"text_cfg__no_causal_mask": True, "text_cfg__pool_type": "last"}
    with pytest.raises(UserError, match="no_causal_mask=True is not implemented for CoCa"):
        openslip.load(folder(tmp_path, "open_clip_coca", **changes))


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path: Path):
    changes: dict[str, Any] = {"text_cfg__hf_tokenizer_name": "some/tokenizer"}
    path = folder(tmp_path, "open_clip_vit_gelu", **changes)
    size = config("open_clip_vit_gelu")["text_cfg"]["vocab_size"]
    for extra in (1, 0):
        vocabulary = {"</s>": 0} | {f"w{n}": n for n in range(1, size + extra)}
        model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "</s>"}
        (path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
        if extra:
            with pytest.raises(UserError, match=rf"tokenizer has {size + 1} ids, but its model only {size}"):
                openslip.load(path)
    assert isinstance(openslip.load(path).tokenizer, TokenizerJson)


def test_weights_of_transformers_given_as_a_file_ask_for_their_folder():
    with pytest.raises(
        UserError, match=r"transformers_clip\.safetensors holds .*: give the folder with its config\.json"
    ):
        openslip.load(FOLDER / "transformers_clip.safetensors")


def test_a_config_of_transformers_beside_weights_of_open_clip_alone_is_left_aside(tmp_path: Path):
    path = folder(tmp_path, "open_clip_vit_gelu")
    (path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    assert_as_recorded(openslip.load(path), "open_clip_vit_gelu", BOTH)


@pytest.mark.parametrize("pool", ["avg", "token", ""])
def test_a_trunk_pools_as_open_clip_sets_it_after_building(pool: str, tmp_path: Path):
    torch.manual_seed(5)
    vision = {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": pool, "timm_proj": "linear"}
    text = {"context_length": 6, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1}
    build: Any = open_clip.CustomTextCLIP
    model = build(embed_dim=8, vision_cfg=vision, text_cfg=text).eval()
    with torch.no_grad():
        for weight in model.visual.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    content = {"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text, "custom_text": True}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content | {"preprocess_cfg": {}}))
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        ours, theirs = openslip.load(tmp_path).model.encode_image(images), model.encode_image(images)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["open_clip_siglip", "open_clip_coca"])
def test_a_bare_file_that_shapes_do_not_describe_asks_for_its_config(name: str):
    with pytest.raises(
        UserError, match=rf"{name}\.safetensors: the weight (visual|text)\..*with the model's open_clip_config"
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


def test_a_random_interpolation_is_that_of_open_clip_outside_of_training(tmp_path: Path):
    settings = {"interpolation": "random", "mean": [0.5] * 3, "std": [0.25] * 3}
    ours = openslip.load(folder(tmp_path, "open_clip_siglip", preprocess_cfg=settings)).transform
    theirs: Any = image_transform_v2(PreprocessCfg(size=24, **settings), is_train=False)
    for image in odd_images()[:8]:
        torch.testing.assert_close(ours(image.convert("RGB")), theirs(image.convert("RGB")), rtol=0, atol=1e-6)


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
