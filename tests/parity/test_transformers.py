"""Folders that transformers writes, and models that it runs: ids, pixels and features against transformers itself.

All tests that import transformers are in this file, because the import takes seconds.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
from evaluation_models import dual_encoder
from model_folders import clip_vocabulary, odd_images, odd_texts, sentencepiece_model
from recorded_towers import TOLERANCE
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import openslip
from openslip.errors import MissingPackage, UserError
from openslip.inference import libraries
from openslip.inference.bundle import Bundle
from openslip.inference.choices import Choices
from openslip.inference.classifier import ZeroShotClassifier
from openslip.inference.formats.openslip import write
from openslip.inference.layouts import huggingface, huggingface_images, huggingface_tokenizer
from openslip.inference.libraries import hf
from openslip.models import text_transformer
from openslip.text.tokenizer_json import TokenizerJson
from openslip.training.initial_weights import InitialWeights

T: Any = transformers
TEXT = {"hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGE = TEXT | {"image_size": 24, "patch_size": 8, "hidden_size": 48, "num_attention_heads": 3}
END = {"content": "<|endoftext|>", "normalized": False, "special": True}
TEXTS = ["a red ring", "A photo of Größe & dogs, 3 of them", "three dogs " * 40]


def drawn(model: Any) -> Any:
    """Draw every weight anew, so that none is zero or one."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "logit" not in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(noise * 0.2 + (1 if "norm" in name and name.endswith("weight") else 0))
    return model.eval()


@pytest.fixture(scope="module")
def clip_tokenizer() -> Any:
    vocabulary, merges = clip_vocabulary()
    return T.CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair.split()) for pair in merges])


@pytest.fixture(scope="module")
def spiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spiece") / "spiece.model"
    path.write_bytes(sentencepiece_model())
    return path


def clip_folder(folder: Path, tokenizer: Any, end: int = 49407, activation: str = "quick_gelu") -> Path:
    text = T.CLIPTextConfig(**TEXT, max_position_embeddings=20, eos_token_id=end, hidden_act=activation)
    vision = T.CLIPVisionConfig(**IMAGE, hidden_act=activation)
    config = T.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    drawn(T.CLIPModel(config)).save_pretrained(folder)
    T.CLIPProcessor(CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=24), tokenizer).save_pretrained(folder)
    return folder


def siglip_folder(folder: Path, spiece: Path) -> Path:
    text = T.SiglipTextConfig(**TEXT | {"hidden_size": 48}, max_position_embeddings=20, vocab_size=700)
    config = T.SiglipConfig(text_config=text.to_dict(), vision_config=T.SiglipVisionConfig(**IMAGE).to_dict())
    drawn(T.SiglipModel(config)).save_pretrained(folder)
    T.SiglipTokenizer(str(spiece), model_max_length=20).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 24, "width": 24}).save_pretrained(folder)
    return folder


def metaclip_folder(folder: Path, tokenizer: Any) -> Path:
    text = T.MetaClip2TextConfig(**TEXT, vocab_size=49408, max_position_embeddings=20, eos_token_id=49407)
    config = T.MetaClip2Config(
        text_config=text.to_dict(), vision_config=T.MetaClip2VisionConfig(**IMAGE).to_dict(), projection_dim=16
    )
    drawn(T.MetaClip2Model(config)).save_pretrained(folder)
    T.CLIPProcessor(CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=24), tokenizer).save_pretrained(folder)
    return folder


def pair_folder(folder: Path, tokenizer: Any, image: Any, end: int = 49407) -> Path:
    text = T.CLIPTextModel(T.CLIPTextConfig(**TEXT, max_position_embeddings=20, eos_token_id=end))
    drawn(T.VisionTextDualEncoderModel(vision_model=image, text_model=text)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=24).save_pretrained(folder)
    return folder


def timm_tower() -> Any:
    arguments = {"num_heads": 3, "depth": 2, "img_size": 24, "patch_size": 8, "embed_dim": 48}
    config = T.TimmWrapperConfig(
        architecture="vit_tiny_patch16_224", model_args=arguments, do_pooling=True, num_labels=0
    )
    config.hidden_size = 48
    return T.TimmWrapperModel(config)


@pytest.fixture(
    scope="module", params=["clip", "clip gelu old end", "siglip", "metaclip 2", "pair of clip", "pair of timm old end"]
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, clip_tokenizer: Any, spiece: Path):
    path = tmp_path_factory.mktemp("model")
    makers: dict[str, Callable[[], Path]] = {
        "clip": lambda: clip_folder(path, clip_tokenizer),
        "clip gelu old end": lambda: clip_folder(path, clip_tokenizer, end=2, activation="gelu"),
        "siglip": lambda: siglip_folder(path, spiece),
        "metaclip 2": lambda: metaclip_folder(path, clip_tokenizer),
        "pair of clip": lambda: pair_folder(path, clip_tokenizer, T.CLIPVisionModel(T.CLIPVisionConfig(**IMAGE))),
        "pair of timm old end": lambda: pair_folder(path, clip_tokenizer, timm_tower(), end=2),
    }
    return makers[request.param]()


def of_library(folder: Path) -> tuple[Tensor, Tensor]:
    """Return the features that transformers computes by its documented calls, with its Pillow processor."""
    model = T.AutoModel.from_pretrained(folder)
    tokenizer, kind = T.AutoTokenizer.from_pretrained(folder), model.config.model_type
    processor = T.AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = processor(images=odd_images(), return_tensors="pt")["pixel_values"]
    padding = "max_length" if kind == "siglip" else "longest"
    rows = tokenizer(TEXTS, padding=padding, max_length=20, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return (
            model.get_image_features(pixel_values=pixels).pooler_output,
            model.get_text_features(**rows if kind != "siglip" else {"input_ids": rows["input_ids"]}).pooler_output,
        )


def assert_close(features: Tensor, expected: Tensor) -> None:
    expected = torch.nn.functional.normalize(expected, dim=1)
    assert (features - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_images_and_texts_have_the_features_of_transformers(folder: Path, tmp_path: Path):
    images, texts = of_library(folder)
    bundle = openslip.load(folder)
    write(bundle, tmp_path / "stripped.ckpt")
    for loaded in (bundle, openslip.load(tmp_path / "stripped.ckpt")):
        assert_close(loaded.encode_image(odd_images()), images)
        assert_close(loaded.encode_text(TEXTS), texts)


def test_settings_that_a_config_leaves_out_are_those_of_transformers():
    classes = {"clip": (T.CLIPTextConfig, T.CLIPVisionConfig), "siglip": (T.SiglipTextConfig, T.SiglipVisionConfig)}
    for family, kinds in classes.items():
        for ours, theirs in zip((huggingface.TEXT[family], huggingface.VISION[family]), kinds, strict=True):
            assert ours == {key: getattr(theirs(), key, True) for key in ours}  # which leaves out `vision_use_head`


@pytest.mark.parametrize("name", huggingface.ACTIVATIONS)
def test_activations_are_those_of_transformers(name: str):
    x = torch.linspace(-4, 4, 81, dtype=torch.float64)
    ours = text_transformer.ACTIVATIONS[huggingface.ACTIVATIONS[name]]
    torch.testing.assert_close(ours(x), T.activations.ACT2FN[name](x), rtol=0, atol=1e-12)


def test_the_library_itself_runs_the_same_model(folder: Path):
    bundle, ours = openslip.load(f"hf:{folder}"), openslip.load(folder)
    assert_close(bundle.encode_text(TEXTS), of_library(folder)[1])
    pixels = ours.transform(odd_images()[13])[None]
    assert_close(bundle.encode_image(pixels), ours.encode_image(pixels))
    assert torch.equal(bundle.scale(), ours.scale())
    assert getattr(bundle.model, "logit_bias", None) == getattr(ours.model, "logit_bias", None)
    tokenizer = bundle.tokenizer
    assert tokenizer is not None
    assert "red ring" in tokenizer.decode(tokenizer.encode(TEXTS)[0][0].tolist())


def test_padding_is_hidden_from_a_text_tower_that_looks_both_ways(tmp_path: Path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "ring", "three", "dogs"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = T.BertTokenizer(str(tmp_path / "vocab.txt"), model_max_length=20)
    text = T.ChineseCLIPTextConfig(**TEXT, vocab_size=len(words), max_position_embeddings=20)
    config = T.ChineseCLIPConfig(
        text_config=text.to_dict(), vision_config=T.ChineseCLIPVisionConfig(**IMAGE).to_dict(), projection_dim=16
    )
    model = drawn(T.ChineseCLIPModel(config))
    for part in (model, tokenizer, CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=24)):
        part.save_pretrained(tmp_path)
    texts = ["a red ring", "a a a three dogs a red ring"]
    with torch.no_grad():
        alone = [model.get_text_features(**tokenizer(row, return_tensors="pt")).pooler_output for row in texts]
    assert_close(openslip.load(f"hf:{tmp_path}").encode_text(texts), torch.cat(alone))


def ids_of(tokenizer: Any, texts: list[str], length: int) -> Tensor:
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")["input_ids"]


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json and merges.txt"])
def test_odd_captions_have_the_ids_of_clips_tokenizer(files: str, clip_tokenizer: Any, tmp_path: Path):
    if files == "tokenizer.json":
        clip_tokenizer.save_pretrained(tmp_path)
    else:
        vocabulary, merges = clip_vocabulary()
        (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
        (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    ours = huggingface_tokenizer.tokenizer_in(
        tmp_path, family="clip", context_length=77, vocab_size=49408, pooled="first", end=49407
    )
    assert isinstance(ours, TokenizerJson)
    texts = odd_texts(300)
    assert torch.equal(ours.encode(texts)[0], ids_of(clip_tokenizer, texts, 77))


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"padding_side": "left"}},
        {"tokenizer_config.json": {"pad_token": "!"}, "special_tokens_map.json": {"pad_token": '"'}},
        {"tokenizer_config.json": {"pad_token": None}, "special_tokens_map.json": {"pad_token": '"'}},
        {
            "tokenizer_config.json": {"pad_token": "!", "added_tokens_decoder": {"49407": END}},
            "special_tokens_map.json": {"pad_token": '"'},
        },
    ],
)
def test_rows_are_padded_as_the_files_of_the_tokenizer_say(
    files: dict[str, dict[str, Any]], clip_tokenizer: Any, tmp_path: Path
):
    clip_tokenizer.save_pretrained(tmp_path)
    for name, settings in files.items():
        content = json.loads((tmp_path / name).read_text()) if (tmp_path / name).exists() else {}
        content = {key: value for key, value in (content | settings).items() if value is not None}
        (tmp_path / name).write_text(json.dumps(content))
    ours = huggingface_tokenizer.tokenizer_in(
        tmp_path, family="clip", context_length=20, vocab_size=49408, pooled="first", end=49407
    )
    assert torch.equal(ours.encode(TEXTS)[0], ids_of(T.AutoTokenizer.from_pretrained(tmp_path), TEXTS, 20))


def test_odd_captions_have_the_ids_of_siglips_tokenizer(spiece: Path):
    theirs = T.SiglipTokenizer(str(spiece))
    settings: dict[str, Any] = {"family": "siglip", "vocab_size": 700, "pooled": "last"}
    ours = huggingface_tokenizer.tokenizer_in(spiece.parent, context_length=64, **settings)
    texts = odd_texts(300)
    assert torch.equal(ours.encode(texts)[0], ids_of(theirs, texts, 64))
    with pytest.raises(UserError, match=r"its tokenizer has \d+ ids, but its model only 100"):
        huggingface_tokenizer.tokenizer_in(spiece.parent, context_length=64, **dict(settings, vocab_size=100))


def test_odd_captions_have_the_ids_of_siglip_2s_tokenizer(tmp_path: Path):
    symbols = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    symbols += [chr(code) for code in range(33, 127)] + ["\N{LOWER ONE EIGHTH BLOCK}", "th", "the", "an"]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    theirs = T.Siglip2Tokenizer(vocab=vocabulary, merges=[("t", "h"), ("th", "e"), ("a", "n")])
    theirs.save_pretrained(tmp_path)
    ours = huggingface_tokenizer.tokenizer_in(
        tmp_path, family="siglip", context_length=64, vocab_size=400, pooled="last"
    )
    again = T.AutoTokenizer.from_pretrained(tmp_path)
    texts = odd_texts(100)
    assert torch.equal(ours.encode(texts)[0], ids_of(again, texts, 64))


PROCESSORS = {
    "CLIP": (CLIPImageProcessorPil, "CLIPImageProcessor", {"size": {"shortest_edge": 24}, "crop_size": 24}),
    "CLIP larger": (CLIPImageProcessorPil, "CLIPImageProcessor", {"size": {"shortest_edge": 31}, "crop_size": 24}),
    "Siglip": (SiglipImageProcessorPil, "SiglipImageProcessor", {"size": {"height": 24, "width": 24}}),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_odd_images_have_the_pixels_of_the_pillow_processor(kind: str, tmp_path: Path):
    pillow, torchvision, settings = PROCESSORS[kind]
    theirs, fast = pillow(**settings), getattr(T, torchvision)(**settings)
    fast.save_pretrained(tmp_path)
    ours = huggingface_images.transform_in(tmp_path, 24, kind.split()[0])
    assert len(odd_images()) == 20
    levels = []
    for image in odd_images():
        expected = theirs(images=image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(ours(image).numpy(), expected, atol=2e-6, rtol=0)
        other = fast(images=image, return_tensors="np")["pixel_values"][0]
        scale = 255 * np.asarray(theirs.image_std, np.float32)[:, None, None]
        levels.append(np.abs(other - expected) * scale)
    # The processor with torchvision, the default of transformers, rounds some pixels to the next level of 255.
    assert 0.9 < max(map(np.max, levels)) < 1.1
    assert np.mean([values.mean() for values in levels]) < 0.1


def test_another_rounding_of_the_crop_or_resize_mode_is_seen(tmp_path: Path):
    settings = {"size": {"shortest_edge": 24}, "crop_size": 24}
    theirs = CLIPImageProcessorPil(**settings)
    theirs.save_pretrained(tmp_path)
    ours = huggingface_images.transform_in(tmp_path, 24, "CLIP")
    for name, value in (("crop", "round"), ("resize", "squash"), ("interpolation", "bilinear")):
        changed = type(ours)(**dict[str, Any](ours.settings(), **{name: value}))
        differing = [
            np.abs(changed(image).numpy() - theirs(images=image, return_tensors="np")["pixel_values"][0]).max()
            for image in odd_images()
        ]
        assert max(differing) > 0.1, name


def test_a_model_without_two_towers_is_refused(tmp_path: Path):
    T.CLIPTextModel(T.CLIPTextConfig(**TEXT, vocab_size=60)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"^hf:.*: transformers cannot load it|expected two towers"):
        openslip.load(f"hf:{tmp_path}")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, clip_tokenizer: Any) -> Path:
    return clip_folder(tmp_path_factory.mktemp("clip"), clip_tokenizer)


def copied(folder: Path, to: Path, **changes: Any) -> Path:
    shutil.copytree(folder, to, dirs_exist_ok=True)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | changes))
    return to


def test_version_processor_and_tokenizer_belong_to_the_architecture(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copied(clip, tmp_path)
    known = openslip.load(f"hf:{tmp_path}").architecture
    assert openslip.load(f"hf:{tmp_path}").architecture == known
    files = [tmp_path / name for name in ("preprocessor_config.json", "processor_config.json")]
    (processor,) = [file for file in files if file.exists()]
    content = json.loads(processor.read_text())
    content.get("image_processor", content)["image_mean"] = [0.25, 0.5, 0.75]
    processor.write_text(json.dumps(content))
    assert openslip.load(f"hf:{tmp_path}").architecture != known
    shutil.copy(clip / processor.name, processor)
    # A later import of a part puts another object into `sys.modules`.
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "99.0")
    assert openslip.load(f"hf:{tmp_path}").architecture != known
    vocabulary, merges = clip_vocabulary()
    pairs = [tuple(pair.split()) for pair in merges]
    rules = [hf.tokenizer_digest(T.CLIPTokenizer(vocab=vocabulary, merges=part)) for part in (pairs, pairs, pairs[:-1])]
    assert rules[0] == rules[1] != rules[2]


def test_a_model_with_code_of_its_own_is_refused(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (copied(clip, tmp_path) / "evil.py").write_text("open('executed', 'w')")
    monkeypatch.chdir(tmp_path)
    for auto_map in ({"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}, {"AutoModel": "evil.Model"}):
        copied(clip, tmp_path, model_type="evil" if len(auto_map) == 2 else "clip", auto_map=auto_map)
        if len(auto_map) == 2:
            with pytest.raises(UserError, match=r"transformers cannot load it"):
                openslip.load(f"hf:{tmp_path}")
        else:
            openslip.load(f"hf:{tmp_path}")  # by transformers' own class
        with pytest.raises(UserError):
            openslip.load(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_lacking_weights_are_refused(clip: Path, tmp_path: Path):
    copied(clip, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"its files lack 16 weights, such as text_model\.encoder\.layers\.2"):
        openslip.load(f"hf:{tmp_path}")


@pytest.mark.parametrize("name", ["text_model.encoder.layers.2.mlp.fc1.bias", "text_model.embeddings.position_ids"])
def test_only_position_ids_may_be_left_over(name: str, clip: Path, tmp_path: Path):
    weights = load_file(copied(clip, tmp_path) / "model.safetensors")
    save_file(weights | {name: torch.zeros(1, 20)}, tmp_path / "model.safetensors", {"format": "pt"})
    if name.endswith("position_ids"):
        openslip.load(f"hf:{tmp_path}")
    else:
        with pytest.raises(UserError, match=r"hold 1 weights that a CLIPModel lacks, such as text_model\.encoder"):
            openslip.load(f"hf:{tmp_path}")


def test_open_clip_with_a_tokenizer_of_transformers_decodes_and_classifies(clip_tokenizer: Any, tmp_path: Path):
    clip_tokenizer.save_pretrained(tmp_path)
    text: Any = {"context_length": 20, "width": 32, "heads": 2, "layers": 2, "hf_tokenizer_name": str(tmp_path)}
    vision: Any = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 24}
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    save_file(open_clip.CLIP(16, vision, text).state_dict(), tmp_path / "open_clip_model.safetensors")
    bundle = openslip.load(f"open_clip:local-dir:{tmp_path}")
    assert bundle.tokenizer is not None
    assert "red ring" in bundle.tokenizer.decode(bundle.tokenizer.encode(["a red ring"])[0][0].tolist())
    assert len(ZeroShotClassifier(bundle, ["ring", "cross"])(odd_images()[13])) == 2


def test_what_the_library_decides_is_not_chosen_and_not_stored(clip: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"activation=gelu: hf:.* says it itself"):
        openslip.load(f"hf:{clip}", activation="gelu")
    bundle = openslip.load(f"hf:{clip}")
    with pytest.raises(UserError, match=r"cannot be stored in a checkpoint"):
        write(bundle, tmp_path / "stripped.ckpt")
    assert isinstance(bundle.reading(transparency="ignore"), Bundle)
    assert bundle.reading(transparency="ignore").transform.to_rgb.transparency == "ignore"
    assert bundle.transform.to_rgb.transparency is None


def test_an_unknown_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"^hf:.*: transformers cannot load it \([^\n]*\)$"):
        openslip.load(f"hf:{tmp_path}/missing")


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingPackage, match=r'^hf: needs transformers; pip install "openslip\[hf\]"$'):
        hf.read("org/name", Choices())


def test_a_file_with_a_colon_in_its_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("hf:model").write_text("")
    assert libraries.find("hf:model") is None
    assert libraries.find("other:model") is None
    assert libraries.find("hf:org/name") == (hf, "org/name")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["CLIP B/32", "SigLIP B/16"])
def test_a_full_size_model_has_the_features_of_transformers(kind: str, tmp_path: Path, clip_tokenizer: Any):
    torch.manual_seed(0)
    if kind == "CLIP B/32":
        model = T.CLIPModel(T.CLIPConfig())
        T.CLIPProcessor(CLIPImageProcessorPil(), clip_tokenizer).save_pretrained(tmp_path)
    else:
        model = T.SiglipModel(T.SiglipConfig())
        SiglipImageProcessorPil().save_pretrained(tmp_path)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and "logit" not in name:
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    model.eval().save_pretrained(tmp_path)
    bundle, processor = openslip.load(tmp_path), T.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    images = odd_images()[3:9]
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    assert bundle.tokenizer is not None
    if kind == "CLIP B/32":
        ids = bundle.tokenizer.encode(odd_texts())[0]
        assert torch.equal(ids, ids_of(clip_tokenizer, odd_texts(), 77))
    else:
        ids = torch.randint(0, 32000, (8, 64))
    with torch.no_grad():
        texts = bundle.model.encode_text(ids, bundle.tokenizer.lengths(ids))
        theirs = model.get_image_features(pixel_values=pixels), model.get_text_features(input_ids=ids)
    assert_close(bundle.encode_image(images), theirs[0].pooler_output)
    assert_close(torch.nn.functional.normalize(texts, dim=1), theirs[1].pooler_output)


@pytest.mark.parametrize("towers", [{}, {"image": {"weights": True}}])
def test_a_model_in_its_own_library_gives_no_initial_weights(clip: Path, towers: dict[str, Any]):
    path = f"hf:{clip}"
    of_towers = {kind: {"weights": path} for kind in towers}
    weights = InitialWeights(dual_encoder(), None, {})
    with pytest.raises(UserError, match=r"hf:.*: this model runs in its own library, so its weights cannot be trained"):
        weights.load(None if towers else path, of_towers)
