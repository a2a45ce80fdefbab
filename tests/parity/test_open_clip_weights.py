"""Full-size random models of open_clip, saved as its folders: features, token ids and pixels as open_clip's own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import openslip
from openslip.text.bare_ids import BareIds

TOLERANCE = 1e-5  # of the largest value
CAPTIONS = ["a photo of a dog.", "", "ein Hund &amp; eine Katze", "word " * 100, "12345 don't <end_of_text>"]


def saved(name: str, folder: Path) -> torch.nn.Module:
    """Save a random model with all weights non-trivial as open_clip saves it, and return it."""
    torch.manual_seed(0)
    model = open_clip.create_model(name, load_weights=False, pretrained_image=False).eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point() and tensor.ndim < 2 and not key.startswith("logit"):
                tensor.add_(0.05 * torch.randn(tensor.shape).abs())
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": preprocessing(model)}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = {key: tensor.clone().contiguous() for key, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return model


def preprocessing(model: Any) -> dict[str, Any]:
    settings = open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg)
    return {key: getattr(settings, key) for key in ("mean", "std", "interpolation", "resize_mode")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "ViT-B-16", "RN50", "coca_ViT-B-32", "ViT-B-16-SigLIP"])
def test_a_full_size_model_gives_open_clips_features_ids_and_pixels(name: str, tmp_path: Path):
    theirs: Any = saved(name, tmp_path)
    bundle = openslip.load(tmp_path)
    size = bundle.transform.size
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (250, 331, 3), dtype=np.uint8))
    pixels: Any = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**theirs.visual.preprocess_cfg), False
    )
    torch.testing.assert_close(bundle.transform(picture), pixels(picture), rtol=0, atol=1e-6)
    images = torch.randn(3, 3, size, size)
    assert bundle.tokenizer is not None
    if isinstance(bundle.tokenizer, BareIds):
        ids = torch.randint(1, bundle.tokenizer.vocab_size, (4, bundle.tokenizer.context_length))
    else:
        # open_clip's CoCa reads on after an end token in the middle of a caption.
        captions = [caption for caption in CAPTIONS if "coca" not in name or "<end_of_text>" not in caption]
        ids = bundle.tokenizer.encode(captions)[0]
        assert torch.equal(ids, open_clip.get_tokenizer(name)(captions))
    with torch.no_grad():
        pairs = (
            (bundle.model.encode_image(images), theirs.encode_image(images, normalize=False)),
            (bundle.model.encode_text(ids, bundle.tokenizer.lengths(ids)), theirs.encode_text(ids, normalize=False)),
        )
    for ours, expected in pairs:
        assert float((ours - expected).abs().max() / expected.abs().max()) < TOLERANCE
