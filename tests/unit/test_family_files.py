"""Files of DeCLIP, LaCLIP, facebookresearch/SLIP and CoCa: features as recorded, and hostile ones refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from recorded_towers import BOTH, FOLDER, TOLERANCE, assert_as_recorded, config, deviations, recorded
from safetensors.torch import load_file, save_file

import openslip
from openslip.errors import UserError
from openslip.inference import formats
from openslip.inference.files import peek
from openslip.inference.formats import declip
from openslip.inference.formats.openslip import write
from openslip.inference.layouts import openai
from openslip.models import coca_text
from openslip.text.bare_ids import BareIds
from openslip.text.clip_bpe import ClipBpe

DECLIP: dict[str, Any] = {"image_heads": 3, "text_heads": 2}
SLIP: dict[str, Any] = {"image_heads": 4, "text_heads": 4}
COCA = {"image_features", "text_features", "logit_scale_exp"}


def test_declip_gives_the_recorded_features_and_keeps_them_after_strip(tmp_path: Path):
    bundle = openslip.load(FOLDER / "declip_ckpt.pth.tar", **DECLIP)
    assert_as_recorded(bundle, "declip_ckpt", BOTH)
    write(bundle, tmp_path / "stripped.pt")
    again = openslip.load(tmp_path / "stripped.pt")
    assert_as_recorded(again, "declip_ckpt", BOTH)
    assert again.transform.settings() == bundle.transform.settings()


def test_declip_shifts_the_ids_of_start_and_end_and_resizes_to_256():
    tokenizer = declip.tokenizer({"vocab_size": 49409, "context_length": 77})
    assert isinstance(tokenizer, ClipBpe)
    ids, lengths = tokenizer.encode(["a photo", "word " * 100])
    assert ids[0, :5].tolist() == [49407, 320, 1125, 49408, 0]
    assert ids[1, -1] == 49408
    assert lengths.tolist() == [4, 77]
    transform = declip.transform(224)
    assert (transform.size, transform.resize_to, transform.interpolation) == (224, 256, "bilinear")
    assert transform.mean == [0.485, 0.456, 0.406]


def test_ids_without_declips_shift_give_other_features():
    bundle, io = openslip.load(FOLDER / "declip_ckpt.pth.tar", **DECLIP), recorded("declip_ckpt")
    shifted = io | {"text": io["text"] - (io["text"] >= 524).long()}
    assert deviations(bundle, shifted)["text_features"] > 100 * TOLERANCE


def test_declip_reads_its_slips_prefix_and_names_unknown_weights(tmp_path: Path):
    content = torch.load(FOLDER / "declip_ckpt.pth.tar", weights_only=True)
    renamed = {name.replace("encode_text.", "text_encoder."): weight for name, weight in content["model"].items()}
    torch.save({"model": renamed}, tmp_path / "slip.pth.tar")
    assert_as_recorded(openslip.load(tmp_path / "slip.pth.tar", **DECLIP), "declip_ckpt", BOTH)
    torch.save({"model": renamed | {"module.surprise.weight": torch.ones(1)}}, tmp_path / "odd.pth.tar")
    with pytest.raises(UserError, match=r"odd\.pth\.tar: .* 1 unexpected: surprise\.weight"):
        openslip.load(tmp_path / "odd.pth.tar", **DECLIP)
    with pytest.raises(UserError, match=r"does not tell the number of image_heads"):
        openslip.load(tmp_path / "slip.pth.tar")


@pytest.mark.parametrize("name", ["facebook_slip", "facebook_clip", "facebook_simclr"])
def test_facebooks_files_give_the_recorded_features(name: str):
    with pytest.raises(UserError, match=r"width 48.*give --image-heads"):
        openslip.load(FOLDER / f"{name}.pt")
    bundle = openslip.load(FOLDER / f"{name}.pt", **SLIP)
    io = recorded(name)
    if name == "facebook_simclr":
        assert_as_recorded(bundle, name, set())
        with torch.no_grad():
            features = bundle.model.encode_image(io["images"])
        assert float((features - io["image_trunk"]).abs().max() / io["image_trunk"].abs().max()) < TOLERANCE
        assert bundle.tokenizer is None
    else:
        assert_as_recorded(bundle, name, BOTH)
        assert isinstance(bundle.tokenizer, BareIds)
    other = deviations(openslip.load(FOLDER / f"{name}.pt", **dict(SLIP, text_heads=2)), io)
    assert name == "facebook_simclr" or other["text_features"] > 10 * TOLERANCE


def laclip(path: Path) -> torch.Tensor:
    """Write a file of LaCLIP with the text tower of a recorded SLIP; return timm's features of its images."""
    torch.manual_seed(0)
    state = dict(peek(FOLDER / "facebook_clip.pt")["state_dict"])
    sizes: dict[str, Any] = {
        "img_size": 24,
        "patch_size": 8,
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 4,
        "num_classes": 0,
    }
    trunk = timm.create_model("vit_base_patch16_224", qk_norm=True, **sizes).eval()
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    image = {f"module.visual.{name}": weight for name, weight in trunk.state_dict().items()}
    state = {name: weight for name, weight in state.items() if not name.startswith("module.visual.")} | image
    torch.save({"epoch": 35, "state_dict": state}, path)
    with torch.no_grad():
        return trunk(recorded("facebook_clip")["images"]) @ state["module.image_projection"]


def test_laclip_normalises_queries_and_keys_and_so_tells_its_heads(tmp_path: Path):
    expected = laclip(tmp_path / "laclip.pt")
    with pytest.raises(UserError, match="image_heads=2: the file says 4"):
        openslip.load(tmp_path / "laclip.pt", image_heads=2, text_heads=4)
    bundle = openslip.load(tmp_path / "laclip.pt", text_heads=4)
    io = recorded("facebook_clip") | {"image_features": expected}
    differing = deviations(bundle, {name: io[name] for name in ("images", "text", "image_features", "text_features")})
    assert max(differing.values()) < TOLERANCE
    assert bundle.transform.mean == [0.485, 0.456, 0.406]
    assert bundle.transform.to_rgb.transparency == "ignore"  # as Pillow's `convert("RGB")`
    state = torch.load(tmp_path / "laclip.pt", weights_only=True)
    del state["state_dict"]["module.visual.blocks.1.attn.k_norm.bias"]
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=r"1 missing: image_tower\.trunk\.blocks\.1\.attn\.k_norm\.bias"):
        openslip.load(tmp_path / "odd.pt", text_heads=4)


def coca(tmp_path: Path, **vision: Any) -> Path:
    content = config("open_clip_coca")
    content["vision_cfg"] |= vision
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": content}))
    shutil.copy(FOLDER / "open_clip_coca.safetensors", tmp_path / "open_clip_model.safetensors")
    return tmp_path


def test_coca_gives_the_recorded_features_and_tokens_without_its_decoder(tmp_path: Path):
    io = recorded("open_clip_coca")
    for bundle in (openslip.load(coca(tmp_path)), stripped(openslip.load(tmp_path), tmp_path / "stripped.safetensors")):
        assert_as_recorded(bundle, "open_clip_coca", COCA)
        with torch.no_grad():
            tokens = bundle.model.image_tower.tokens(io["images"]).features
        assert float((tokens - io["image_tokens"]).abs().max() / io["image_tokens"].abs().max()) < TOLERANCE
        assert not any("decoder" in name for name in bundle.model.state_dict())


def stripped(bundle: openslip.Bundle, path: Path) -> openslip.Bundle:
    write(bundle, path)
    return openslip.load(path)


def test_coca_reads_rows_that_are_cut_to_their_longest_caption(tmp_path: Path):
    bundle, io = openslip.load(coca(tmp_path)), recorded("open_clip_coca")
    lengths = io["text"].argmax(dim=1) + 1
    with torch.no_grad():
        whole = bundle.model.encode_text(io["text"], lengths)
        for ids, length, expected in zip(io["text"], lengths.tolist(), whole, strict=True):
            alone = bundle.model.encode_text(ids[None, :length], torch.tensor([length]))
            torch.testing.assert_close(alone[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"attentional_pool": "parallel"}, r"attentional_pool=parallel: of CoCa, only"),
        ({"attentional_pool": False}, r"attentional_pool=False: of CoCa, only"),
        ({"attn_pooler_queries": 256}, r"attn_pooler_queries is 256, and the weights have 6"),
        ({"attn_pooler_heads": 5}, r"heads=5 do not divide width=32"),
    ],
)
def test_a_coca_of_another_kind_is_refused(vision: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        openslip.load(coca(tmp_path, **vision))


def faults() -> dict[str, tuple[str, Callable[[pytest.MonkeyPatch], Any]]]:
    def corrected_mask(patch: pytest.MonkeyPatch) -> None:
        pad = torch.nn.functional.pad
        changed: dict[Any, Any] = {(1, 0): (0, 1)}
        patch.setattr(coca_text.F, "pad", lambda x, sides, value: pad(x, changed.get(sides, sides), value=value))

    return {
        "corrected mask": ("text_features", corrected_mask),
        "padding visible": ("text_features", lambda patch: patch.setattr(coca_text, "PAD", -1)),
    }


@pytest.mark.parametrize("fault", list(faults()))
def test_a_planted_fault_in_coca_moves_the_features(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bundle = openslip.load(coca(tmp_path))
    moved, plant = faults()[fault]
    plant(monkeypatch)
    if fault == "padding visible":
        io = recorded("open_clip_coca")
        assert isinstance(bundle.tokenizer, BareIds)
        monkeypatch.setattr(BareIds, "lengths", lambda self, ids: torch.full((len(ids),), ids.shape[1]))
    else:
        io = recorded("open_clip_coca")
    assert deviations(bundle, io)[moved] > 100 * TOLERANCE


def test_other_heads_of_the_pooling_move_the_features(tmp_path: Path):
    other = deviations(openslip.load(coca(tmp_path, attn_pooler_heads=4)), recorded("open_clip_coca"))
    assert other["image_features"] > 100 * TOLERANCE


def test_every_recorded_file_is_detected_by_one_format_only(tmp_path: Path):
    laclip(tmp_path / "laclip.pt")
    expected = {
        tmp_path / "laclip.pt": "laclip",
        FOLDER / "declip_ckpt.pth.tar": "declip",
        **{FOLDER / f"facebook_{name}.pt": "slip" for name in ("slip", "clip", "simclr")},
        **{FOLDER / f"openai_{name}.pt": "openai" for name in ("vit", "vit_archive", "resnet")},
        **{
            FOLDER / f"open_clip_{name}.safetensors": "open_clip"
            for name in ("vit_gelu", "vit_quickgelu", "resnet", "siglip", "coca")
        },
    }
    for path, name in expected.items():
        assert [known for known in formats.names() if formats.load(known).detect(path)] == [name], path


class Runs:
    """Runs a command when it is unpickled without a restriction."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, Any]:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("entry", ["model", "state_dict"])
def test_a_pickle_that_names_code_is_refused_and_not_run(entry: str, tmp_path: Path):
    state = {"visual.conv1.weight": torch.ones(4, 3, 8, 8), "token_embedding.weight": torch.ones(3, 4)}
    torch.save({entry: state, "args": Runs(tmp_path / "ran")}, tmp_path / "hostile.pt")
    with pytest.raises(UserError, match=r"hostile\.pt: it names (posix|os|nt)\.mkdir, which could run code"):
        openslip.load(tmp_path / "hostile.pt")
    assert not (tmp_path / "ran").exists()


def test_weights_that_claim_more_memory_than_their_file_are_refused(tmp_path: Path):
    state = torch.load(FOLDER / "openai_vit.pt", weights_only=True)
    torch.save(state | {"token_embedding.weight": torch.ones(1).expand(10**6, 10**4)}, tmp_path / "vast.pt")
    with pytest.raises(UserError, match=r"vast\.pt: its tensors claim 40,000\.\d MB"):
        openslip.load(tmp_path / "vast.pt")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("visual.conv1.weight", torch.ones(())),
        ("visual.conv1.weight", torch.ones(0, 3, 8, 8)),
        ("visual.conv1.weight", torch.ones(128, 4, 8, 8)),
        ("visual.class_embedding", torch.ones(1, 1)),
        ("visual.positional_embedding", torch.ones(3)),
        ("visual.positional_embedding", torch.ones(13, 128)),
        ("visual.transformer.resblocks.9.ln_1.weight", torch.ones(128)),
        ("visual.transformer.resblocks.99999999999.ln_1.weight", torch.ones(128)),
        ("transformer.resblocks.0.mlp.c_fc.weight", torch.ones(0, 64)),
        ("token_embedding.weight", torch.ones(60)),
        ("token_embedding.weight", torch.ones(0, 0)),
        ("text_projection", torch.ones(())),
        ("text_projection", torch.ones(64, 32, dtype=torch.complex64)),
        ("logit_scale", torch.ones(2)),
        ("logit_scale", torch.tensor(3)),
        ("proj", torch.ones(1)),
    ],
)
def test_weights_of_odd_shapes_are_refused(name: str, value: torch.Tensor, tmp_path: Path):
    state = torch.load(FOLDER / "openai_vit.pt", weights_only=True)
    torch.save(state | {name: value}, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=r"odd\.pt"):
        openslip.load(tmp_path / "odd.pt")
    state = {key: weight for key, weight in state.items() if weight.ndim or key == "logit_scale"} | {name: value}
    save_file({key: weight.contiguous() for key, weight in state.items()}, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match=r"odd\.safetensors"):
        openslip.load(tmp_path / "odd.safetensors", activation="quickgelu")


def test_a_name_that_another_layout_has_twice_does_not_hide_a_weight(tmp_path: Path):
    state = load_file(FOLDER / "open_clip_vit_gelu.safetensors")
    state["text_projection.weight"] = state["text_projection"].T.contiguous()
    save_file(state, tmp_path / "twice.safetensors")
    with pytest.raises(UserError, match=r"twice\.safetensors"):
        openslip.load(tmp_path / "twice.safetensors", activation="gelu", image_heads=4, text_heads=4)


def test_the_ratio_of_an_mlp_gives_its_width_in_timm():
    for width, hidden in ((1664, 8192), (1152, 4304), (48, 144), (7, 3), (768, 3072)):
        assert int(width * openai.mlp_ratio(width, hidden)) == hidden


def test_a_folder_of_timm_is_pooled_as_it_states(tmp_path: Path):
    sizes: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
    trunk: Any = timm.create_model("vit_small_patch16_224", num_classes=7, global_pool="avg", **sizes).eval()
    timm.models.save_for_hf(trunk, str(tmp_path), model_args=sizes | {"num_classes": 7}, safe_serialization=True)
    content = json.loads((tmp_path / "config.json").read_text())
    content["model_args"].pop("global_pool", None)  # older versions of timm state it only once
    assert content["global_pool"] == "avg"
    (tmp_path / "config.json").write_text(json.dumps(content))
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = trunk.forward_head(trunk.forward_features(images), pre_logits=True)
        torch.testing.assert_close(openslip.load(tmp_path).model.encode_image(images), expected)
