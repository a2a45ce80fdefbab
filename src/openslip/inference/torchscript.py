"""Reads the tensors of a TorchScript archive without `torch.jit.load`, so that none of its code is compiled or run.

The archive is a zip file: `ROOT/data.pkl` pickles the modules as objects with attributes, `ROOT/data/KEY` holds the
bytes of a storage, and `ROOT/code/` the code, which is not read.
"""

import io
import math
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openslip.errors import UserError, first_line
from openslip.inference.files import distinct
from openslip.regular_file import regular_file
from openslip.run.file_sizes import refuse_expanding

MAX_PICKLE = 4 << 20  # bytes of data.pkl; that of the largest published CLIP has less than 1 MB
MAX_NAME = 1000  # characters of a weight's name; a pickle can give thousands of nested modules one long name
MAX_DIMENSIONS = 8  # largest number of dimensions of a tensor
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Other opcodes are not needed for modules and tensors, and each would be one more thing to get right.
_OPCODES = b"".join(
    (
        *(pickle.PROTO, pickle.GLOBAL, pickle.NEWOBJ, pickle.REDUCE, pickle.BUILD, pickle.BINPERSID, pickle.STOP),
        *(pickle.MARK, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
        *(pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
        *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
        *(pickle.BINFLOAT, pickle.BINUNICODE, pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
    )
)


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, judged by its members; `torch.save` writes no `constants.pkl`."""
    try:
        with zipfile.ZipFile(regular_file(path)) as archive:
            return _root(archive) is not None
    except (OSError, ValueError, UserError, zipfile.BadZipFile, NotImplementedError):
        return False


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the parameters and buffers of the archive's module by dotted name.

    Raises:
        UserError: the archive is damaged, names anything but modules and tensors, its sizes contradict each other, or
            its tensors are far larger than the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = _root(archive)
            if root is None:
                raise ValueError("no data.pkl and constants.pkl in it")
            member = archive.getinfo(f"{root}/data.pkl")
            if member.file_size > MAX_PICKLE or member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"its data.pkl is compressed or larger than {MAX_PICKLE:,} bytes")
            module = _Unpickler(archive, root, path).load()
    except _RefusedError as error:
        raise UserError(
            f"checkpoint {path}: it names {error}, which could run code: the file is refused, and no code was run"
        ) from error
    except Exception as error:  # a damaged or hostile file can cause any error, and none of its code was run
        reason = f"{type(error).__name__}: {first_line(error)}"[:200]
        raise UserError(f"checkpoint {path} cannot be read as a TorchScript archive ({reason})") from error
    tensors = distinct(_named(module, path))
    refuse_expanding(path, tensors)  # any number of tensors may share one storage
    return tensors


class _RefusedError(Exception):
    pass


class _Module:
    """Stands for any class of a TorchScript archive, and holds the attributes of one of its modules."""

    attributes: dict[Any, Any]

    def __new__(cls, *_: Any) -> "_Module":
        module = super().__new__(cls)
        module.attributes = {}  # replaced by the state that the pickle gives
        return module


# The unpickler that is written in Python has a dict as its memo. In the one written in C, an index of 2 billion in a
# file would allocate 2 billion slots.
class _Unpickler(pickle._Unpickler):  # pyright: ignore[reportAttributeAccessIssue]
    stack: list[Any]

    def __init__(self, archive: zipfile.ZipFile, root: str, path: Path) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")), encoding="utf-8")
        self.archive, self.root = archive, root
        self.unread = path.stat().st_size  # a storage is stored uncompressed, and only once
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in _DTYPES:
            return name
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): self.tensor,
            ("collections", "OrderedDict"): lambda: {},
            ("torch.jit._pickle", "restore_type_tag"): lambda value, *_: value,
        }
        if (module, name) not in known:
            raise _RefusedError(f"{module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        # Check the types first, and put only strings of the pickle into messages: nested tuples can repeat one object
        # exponentially often, and printing, hashing or comparing them would take forever.
        types = tuple(type(part) for part in pid) if isinstance(pid, tuple) else ()
        if types != (str, str, str, str, int) or pid[0] != "storage" or pid[1] not in _DTYPES:
            raise ValueError("a persistent id is no storage")
        _, storage, key, _, numel = pid
        if key not in self.storages:
            self.storages[key] = self.storage(f"{self.root}/data/{key}", _DTYPES[storage], numel)
        if self.storages[key].dtype != _DTYPES[storage]:
            raise ValueError(f"the storage {key} has two types")
        return self.storages[key]

    def storage(self, member: str, dtype: torch.dtype, numel: int) -> Tensor:
        info = self.archive.getinfo(member)
        self.unread -= info.file_size
        if info.file_size != numel * dtype.itemsize or info.compress_type != zipfile.ZIP_STORED or self.unread < 0:
            raise ValueError(f"{member} has {info.file_size:,} bytes; expected {numel:,} of {dtype}, uncompressed")
        data = np.empty(info.file_size, np.uint8)
        with self.archive.open(info) as file:
            if file.readinto(memoryview(data)) != info.file_size:  # pyright: ignore
                raise ValueError(f"{member} is cut off")
        return torch.from_numpy(data).view(dtype) if numel else torch.empty(0, dtype=dtype)

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        if not isinstance(storage, Tensor) or not _are_sizes(size) or not _are_sizes(stride) or type(offset) is not int:
            raise ValueError("a tensor is not given by its storage, offset, size and stride")
        if math.prod(size) > storage.numel():
            raise ValueError(f"a tensor of size {str(size)[:100]} does not fit its storage")
        return storage.as_strided(size, stride, offset)

    def load_build(self) -> None:
        state = self.stack.pop()
        module = self.stack[-1]
        if not isinstance(module, _Module) or not isinstance(state, dict):
            raise ValueError(f"{type(module).__name__} is given attributes, which only a module has")
        module.attributes = state

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def load_setitems(self) -> None:
        self.set_items(self.pop_mark())  # pyright: ignore[reportAttributeAccessIssue]

    def set_items(self, items: list[Any]) -> None:
        target, keys = self.stack[-1], items[::2]
        if not isinstance(target, dict) or not all(isinstance(key, str | int | float | Tensor) for key in keys):
            raise ValueError("an item is set by a key that TorchScript does not have, or in an object that is no dict")
        target.update(zip(keys, items[1::2], strict=True))

    dispatch = {code: pickle._Unpickler.dispatch[code] for code in _OPCODES}  # pyright: ignore  # noqa: RUF012
    dispatch[pickle.BUILD[0]] = load_build  # pyright: ignore[reportArgumentType]
    dispatch[pickle.SETITEM[0]] = load_setitem  # pyright: ignore[reportArgumentType]
    dispatch[pickle.SETITEMS[0]] = load_setitems  # pyright: ignore[reportArgumentType]


def _are_sizes(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= MAX_DIMENSIONS and all(type(size) is int for size in value)


def _root(archive: zipfile.ZipFile) -> str | None:
    names = set(archive.namelist())
    roots = [name.removesuffix("/constants.pkl") for name in names if name.count("/") == 1]
    return next((root for root in roots if {f"{root}/constants.pkl", f"{root}/data.pkl"} <= names), None)


def _named(module: Any, path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a module and of the modules in it, with dotted names."""
    waiting, seen = [("", module)], set[int]()
    while waiting:
        prefix, value = waiting.pop()
        if not isinstance(value, _Module) or id(value) in seen:
            raise UserError(f"checkpoint {path}: a module of this TorchScript archive contains itself or is none")
        seen.add(id(value))
        for key, attribute in value.attributes.items():
            if not isinstance(key, str) or len(prefix) + len(key) > MAX_NAME:
                raise UserError(f"checkpoint {path}: an attribute's name is no string of up to {MAX_NAME} characters")
            if isinstance(attribute, Tensor):
                yield f"{prefix}{key}", attribute
            elif isinstance(attribute, _Module):
                waiting.append((f"{prefix}{key}.", attribute))
