"""Finds checkpoints of other libraries beside their recorded outputs, and loads each as its user would.

A folder holds, for each NAME, the checkpoint `NAME.safetensors`, `NAME.pt`, `NAME.pth.tar` or `NAME.npz`, the library's
configuration in `NAME.json`, and its inputs and outputs in `NAME_io.npz`. A checkpoint `NAME_x.pt` without outputs of
its own, such as the same weights in another container, has those of NAME.
"""

import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openslip.errors import UserError
from openslip.inference.bundle import Bundle
from openslip.inference.load import load
from openslip.verify.files import read_json

OUTPUTS = "_io.npz"
SUFFIXES = (".safetensors", ".pt", ".pth", ".pth.tar", ".ckpt", ".bin", ".npz")
# Names of the numbers of heads in the configurations of libraries that store a model in a single file.
IMAGE_HEADS = ("vision_heads", "image_heads", "vh", "heads")
TEXT_HEADS = ("transformer_heads", "text_heads", "th", "heads")


@dataclass(frozen=True)
class TowerFile:
    """A checkpoint of another library.

    Attributes:
        path: the checkpoint.
        suffix: its suffix, which may have two parts.
        outputs: the file of inputs and outputs; None if there is none for it.
        description: the JSON file of the library's configuration, which need not exist.
    """

    path: Path
    suffix: str
    outputs: Path | None
    description: Path

    def load(self, device: str) -> Bundle:
        """Load the checkpoint with what its configuration says.

        Raises:
            UserError: the configuration or the checkpoint cannot be read.
        """
        config = read_config(self.description)
        with redirect_stderr(io.StringIO()):  # its notices would name a temporary folder
            return load_as_stored(self.path, self.suffix, config, device)


def tower_files(folder: Path) -> Iterator[TowerFile]:
    """Yield the checkpoints of a folder, sorted by name."""
    names = outputs_in(folder)
    for path in sorted(folder.iterdir()):
        suffix = max((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), key=len, default=None)
        if suffix is None or path.name.endswith(OUTPUTS) or not path.is_file():
            continue
        stem = path.name.removesuffix(suffix)
        name = max((name for name in names if stem == name or stem.startswith(f"{name}_")), key=len, default=None)
        outputs = None if name is None else folder / f"{name}{OUTPUTS}"
        yield TowerFile(path, suffix, outputs, folder / f"{name}.json")


def outputs_in(folder: Path) -> list[str]:
    """Return each NAME of which the folder has recorded outputs."""
    return sorted(path.name.removesuffix(OUTPUTS) for path in folder.glob(f"*{OUTPUTS}"))


def read_config(path: Path) -> dict[str, Any]:
    """Return the library's configuration, which may be the entry `config`; empty if there is no such file.

    Raises:
        UserError: the file cannot be read, or is no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        description = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path.name} cannot be read as JSON ({error})") from error
    config = description.get("config", description) if isinstance(description, dict) else description
    if not isinstance(config, dict):
        raise UserError(f"{path.name} holds a {type(config).__name__}; expected the library's configuration")
    return config


def load_as_stored(path: Path, suffix: str, config: dict[str, Any], device: str) -> Bundle:
    """Load a file, or a temporary folder of the form in which open_clip or transformers stores a model."""
    if suffix == ".safetensors" and "vision_cfg" in config:
        names = ("open_clip_config.json", "open_clip_model.safetensors")
        stated = {"model_cfg": config, "preprocess_cfg": {}}
    elif suffix == ".safetensors" and "model_type" in config:
        names, stated = ("config.json", "model.safetensors"), config
    else:
        return load(path, device=device, **choices(config))
    with tempfile.TemporaryDirectory(prefix="openslip-verify-") as folder:
        stored = Path(folder)
        (stored / names[0]).write_text(json.dumps(stated))
        shutil.copyfile(path, stored / names[1])
        return load(stored, device=device)


def choices(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a configuration states and a single file may not, as arguments of `openslip.load`."""
    if "vision_cfg" in config:
        return open_clip_choices(config)
    stated = {**config.get("dims", {}), **config}
    names = {"image_heads": IMAGE_HEADS, "text_heads": TEXT_HEADS}
    heads = {tower: [stated[name] for name in names[tower] if name in stated] for tower in names}
    return {tower: numbers[0] for tower, numbers in heads.items() if numbers}


def open_clip_choices(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the choices for a training checkpoint of open_clip; its defaults are those of open_clip 3.3."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    tanh = (text.get("act_kwargs") or {}).get("approximate") == "tanh"
    width = vision.get("width", 768) * (32 if isinstance(vision.get("layers"), list) else 1)
    return {
        "activation": "quickgelu" if config.get("quick_gelu") else "gelu_tanh" if tanh else "gelu",
        "image_heads": width // vision.get("head_width", 64),
        "text_heads": text.get("heads", 8),
    }
