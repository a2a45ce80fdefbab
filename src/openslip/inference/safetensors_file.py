"""Stripped models as safetensors files: weights by name, and in the metadata the entry `openslip` as JSON.

The metadata also has `crc32`, a checksum of that entry and all weights, because the format itself has none.
"""

import json
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from openslip.errors import UserError
from openslip.inference.tensor_files import as_bytes


def is_safetensors(path: Path) -> bool:
    """Whether a file is a safetensors file, judged by its suffix."""
    return path.suffix.lower() == ".safetensors"


def read_safetensors(path: Path) -> dict[str, Any]:
    """Read a safetensors file as the dict that a stripped `torch.save` file contains.

    For a file of another project, the dict has only the entries `state_dict` and `metadata` (a dict of str).

    Raises:
        UserError: the file is damaged, as far as its checksum or its structure tells.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # the file is not a dict
    except (SafetensorError, OSError) as error:
        raise UserError(f"checkpoint {path}: cannot be read as safetensors ({error})") from error
    if "openslip" not in metadata:
        return {"state_dict": state, "metadata": metadata}
    if "crc32" in metadata and metadata["crc32"] != checksum(metadata["openslip"], state):
        raise UserError(f"checkpoint {path} is damaged (CRC-32): restore it from a copy, or write it again")
    try:
        return {"openslip": json.loads(metadata["openslip"]), "state_dict": state}
    except (ValueError, RecursionError) as error:
        raise UserError(f"checkpoint {path}: its `openslip` entry cannot be read as JSON ({error})") from error


def write_safetensors(content: dict[str, Any], file: IO[bytes]) -> None:
    """Write a stripped model; tied weights are written once for each of their names."""
    weights, storages = {}, set()
    for name, tensor in content["state_dict"].items():
        storage = tensor.untyped_storage().data_ptr()
        whole = tensor.contiguous()  # a copy, or the tensor itself
        weights[name] = whole.clone() if whole is tensor and storage in storages else whole
        storages.add(storage)
    # `safetensors.torch.save` would need the memory of all weights a second time. `save_file` replaces the file of this
    # name by another one, which only its owner may read, and which `durable` does not synchronise with the disk.
    mode = os.fstat(file.fileno()).st_mode
    entry = json.dumps(content["openslip"])
    save_file(weights, file.name, {"format": "pt", "openslip": entry, "crc32": checksum(entry, weights)})
    with open(file.name, "rb") as written:
        os.fchmod(written.fileno(), mode)
        os.fsync(written.fileno())


def checksum(entry: str, weights: Mapping[str, Tensor]) -> str:
    """Return the CRC-32 of the entry `openslip` and of name, type, shape and CRC-32 of all weights."""
    with ThreadPoolExecutor() as pool:  # `crc32` lets other threads run meanwhile
        sums = pool.map(lambda name: zlib.crc32(as_bytes(weights[name])), sorted(weights))
    lines = [
        f"{name} {weights[name].dtype} {list(weights[name].shape)} {crc:08x}"
        for name, crc in zip(sorted(weights), sums, strict=True)
    ]
    content = "\n".join([entry, *lines])
    return f"{zlib.crc32(content.encode()):08x}"
