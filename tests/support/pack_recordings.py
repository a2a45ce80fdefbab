"""Packs a folder of recordings for the package: python tests/support/pack_recordings.py FOLDER OUT."""

import json
import lzma
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from openslip.verify.files import ordinal, packed, read_arrays, read_json

FILES = ("clip", "simclr", "slip", "two_ranks", "zero_shot")  # an array is predicted by earlier ones
XZ = lzma.PRESET_EXTREME | 9


def pack(folder: Path, out: Path) -> None:
    """Writes the folder's files to `out`, arrays as packed; of the predictions that are tried, the best is kept."""
    known: dict[str, np.ndarray] = {}
    for file in FILES:
        head, steps = {}, []
        for key, array in read_arrays(folder / f"{file}.npz").items():
            fitting = [terms for terms in predictions(file, key) if fit(array, terms, known)]
            tried = {terms: folded_steps(array, terms, known) for terms in fitting}
            terms = min(tried, key=lambda terms: len(lzma.compress(planes(tried[terms]))))
            head[key] = [array.dtype.str, array.shape, terms]
            steps.append(tried[terms])
            known[f"{file}/{key}"] = array
        content = json.dumps(head).encode() + b"\n" + planes(np.concatenate(steps))
        packed(out / f"{file}.npz").write_bytes(lzma.compress(content, preset=XZ))
    for file in ("meta.json", "lr_schedules.json", "tokenizer.json"):
        shutil.copyfile(folder / file, out / file)
    official = out / "official_models.json"
    packed(official).write_bytes(lzma.compress(json.dumps(read_json(folder / official.name)).encode(), preset=XZ))


def predictions(file: str, key: str) -> Iterator[tuple[str, ...]]:
    """What an array may be near to: nothing, its initial value, another method's, one process's gradient."""
    yield ()
    yield (f"+{file}/{key.replace('final/', 'init/')}",)
    for other in FILES[:2]:
        yield (f"+{other}/{key}",)
    method, _, gradient = key.partition("/")
    yield (f"+{method}/{gradient}",)
    yield (f"+two_ranks/clip/{gradient}",)
    yield (f"+two_ranks/clip/{gradient}", f"+{method}/{gradient}", f"-clip/{gradient}")


def fit(array: np.ndarray, terms: tuple[str, ...], known: dict[str, np.ndarray]) -> bool:
    return all(term[1:] in known and known[term[1:]].shape == array.shape for term in terms)


def folded_steps(array: np.ndarray, terms: tuple[str, ...], known: dict[str, np.ndarray]) -> np.ndarray:
    """From the sum of the terms to the array; 0, -1, 1, -2 as 0, 1, 2, 3."""
    exact = array.astype(np.float32).ravel()
    assert np.array_equal(exact, array.ravel())
    predicted = np.zeros(exact.shape)
    for term in terms:
        predicted += (1 if term[0] == "+" else -1) * known[term[1:]].ravel()
    steps = ordinal(exact) - ordinal(predicted.astype(np.float32))
    return (steps << 1) ^ (0 - (steps >> 31))


def planes(steps: np.ndarray) -> bytes:
    return steps.astype("<u4").view(np.uint8).reshape(-1, 4).T.tobytes()


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
