"""Files of arrays that state more than they hold, or more than a machine has, take no memory."""

import io
import lzma
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from evaluation_models import Pictures, bundle, image_encoder, knn
from numpy.lib import format as npy

from openslip.arrays import read_arrays, read_xz
from openslip.data.convert.layouts import cc_npy
from openslip.errors import UserError
from openslip.report import write_report
from openslip.verify.files import read_arrays as read_recording

HUGE = 1 << 40


def header(shape: tuple[int, ...], dtype: str = "<i8") -> bytes:
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def test_arrays_are_what_was_written(tmp_path: Path):
    arrays = {
        "a": np.arange(6).reshape(2, 3),
        "b": np.array(["x", "\u00e9"]),
        "c": np.zeros((0, 2)),
        "d": np.float32(2),
    }
    np.savez_compressed(tmp_path / "a.npz", allow_pickle=False, **arrays)
    read = read_arrays(tmp_path / "a.npz", max_bytes=10_000)
    assert {key: (value.tolist(), value.dtype) for key, value in read.items()} == {
        key: (value.tolist(), value.dtype) for key, value in arrays.items()
    }
    with pytest.raises(ValueError, match=r"bytes of arrays, more than 100 are refused"):
        read_arrays(tmp_path / "a.npz", max_bytes=100)


def test_a_header_that_states_more_than_the_file_holds_takes_no_memory(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("labels.npy", header((HUGE,)) + bytes(80))
    (tmp_path / "a.npy").write_bytes(header((HUGE,)) + bytes(80))
    tracemalloc.start()
    for read in (lambda path: read_arrays(path, max_bytes=10_000), read_recording):
        with pytest.raises(ValueError, match="an array of 8,796,093,022,208 bytes in a file of"):
            read(tmp_path / "a.npz")
    with pytest.raises(UserError, match=r"a\.npy is no \.npy file \(an array of 8,796,093,022,208 bytes"):
        cc_npy.read(tmp_path / "a.npy")
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_files_that_inflate_to_much_more_are_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.npy", header((10_000_000,)) + bytes(80_000_000))
    assert (tmp_path / "a.npz").stat().st_size < 100_000
    (tmp_path / "a.xz").write_bytes(lzma.compress(bytes(1_000_000)))
    with pytest.raises(ValueError, match=r"80,000,128 bytes of arrays, more than 1,000,000 are refused"):
        read_arrays(tmp_path / "a.npz", max_bytes=1_000_000)
    with pytest.raises(ValueError, match="cut off, or holds more than 999,999"):
        read_xz(tmp_path / "a.xz", max_bytes=999_999)
    assert read_xz(tmp_path / "a.xz", max_bytes=1_000_000) == bytes(1_000_000)


@pytest.mark.parametrize("label", [HUGE, 10**9, -1])
@pytest.mark.parametrize("which", ["labels", "predictions"])
@pytest.mark.parametrize("named", [True, False])
def test_a_report_survives_a_label_of_any_size(tmp_path: Path, label: int, which: str, named: bool):
    (tmp_path / "arrays").mkdir()
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    arrays = {"labels": np.array([0, 1]), "predictions": np.array([1, 0])}
    arrays[which] = np.array([0, label])
    if named:
        arrays["classnames"] = np.array(["a", "b"])
    np.savez(tmp_path / "arrays" / "x.npz", allow_pickle=False, **arrays)
    assert "arrays/x.npz does not hold a classification" in write_report(tmp_path).read_text()


def test_neighbours_vote_for_labels_of_any_size():
    labels = [HUGE, 3]
    train, test = (Pictures(12, seed=seed, labels=[labels[i % 2] for i in range(12)]) for seed in (1, 2))
    evaluation = knn(train, test, k=3)
    evaluation.run(bundle(image_encoder()))
    small = knn(*(Pictures(12, seed=seed, labels=[1 - i % 2 for i in range(12)]) for seed in (1, 2)), k=3)
    small.run(bundle(image_encoder()))
    assert [[3, HUGE][label] for label in small.arrays["predictions"]] == evaluation.arrays["predictions"].tolist()
