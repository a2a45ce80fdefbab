"""What holds for every form: the check decides, nothing half-written appears, and no folder is lost."""

import importlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_models import bundle_of, in_process, read_here

import openslip
from openslip.commands.export import main
from openslip.errors import MissingPackage, UserError
from openslip.export import check, forms
from openslip.export.export import export
from openslip.export.forms import safetensors
from openslip.export.inputs import CAPTIONS, draw_images, from_arrays, to_arrays
from openslip.export.packages import Packages
from openslip.inference.formats.openslip import write
from openslip.inference.wrapped import WrappedModel

__all__ = ["in_process"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "model.ckpt"
    write(bundle_of("slip"), path)
    return path


OWN_CLASS = """
from openslip.text.clip_bpe import ClipBpe

class Mine(ClipBpe):
    pass
"""


def test_the_command_prints_what_a_fresh_process_confirms_also_with_a_class_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/own_tokenizer.py").write_text(OWN_CLASS)
    monkeypatch.syspath_prepend(tmp_path / "own")
    tokenizer = importlib.import_module("own_tokenizer").Mine(**bundle_of("slip").need_tokenizer().settings())
    write(bundle_of("slip", tokenizer=tokenizer), tmp_path / "model.ckpt")
    words = [str(tmp_path / "model.ckpt"), str(tmp_path / "out"), "--to", "safetensors"]
    with pytest.raises(UserError, match=r"allow=\[own_tokenizer\.Mine\]"):
        main(words)
    assert main([*words, "--allow", "own_tokenizer.Mine"]) == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == f"next: {tmp_path / 'out'}/README.md shows how to load it"
    lines = printed.out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [
        "pixels",
        "image_features",
        "ids",
        "text_features",
        "image_features_64",
        "text_features_64",
        "logit_scale",
    ]
    assert lines[2].split() == ["ids", "the", "same"]
    assert lines[-1].endswith("(safetensors, confirmed by its library)")
    first, second = (openslip.load(tmp_path / name, allow=["own_tokenizer.Mine"]) for name in ("model.ckpt", "out"))
    assert torch.equal(first.encode_text(CAPTIONS), second.encode_text(CAPTIONS))
    assert first.transform.settings() == second.transform.settings()
    assert type(second.tokenizer).__name__ == "Mine"


def broken(kind: str, theirs: dict[str, np.ndarray]) -> None:
    if kind == "missing":
        del theirs["image_features"]
        del theirs["text_features_64"]
        theirs["other"] = np.zeros(1)
    elif kind == "no texts":
        for name in [name for name in theirs if not name.startswith(("pixels", "image"))]:
            del theirs[name]
    elif kind == "nan":
        theirs["image_features"][3, 2] = np.nan
    elif kind == "shape":
        theirs["pixels"] = theirs["pixels"][:, :, :-1]
    elif kind == "id":
        theirs["ids"][2, 1] += 1
    else:
        theirs["text_features"][0] *= -1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", r"image_features by nan"),
        ("shape", r"pixels by inf"),
        ("id", r"ids by 1\.0e\+00"),
        ("sign", r"text_features by"),
        ("missing", r"other by inf .*image_features by inf .*text_features_64 by inf"),
        ("no texts", r"ids by inf .*text_features by inf .*logit_scale by inf .*text_features_64 by inf"),
    ],
)
def test_a_library_that_computes_something_else_leaves_no_folder(
    kind: str, message: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def read(folder: Path, form: str, inputs: dict[str, np.ndarray], allow: Any) -> dict[str, np.ndarray]:
        theirs = {name: np.array(value) for name, value in read_here(folder, form, inputs).items()}
        broken(kind, theirs)
        return theirs

    monkeypatch.setattr("openslip.export.check.read_back", read)
    with pytest.raises(UserError, match=message):
        export(source, tmp_path / "out", "safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_promised_length_and_the_epsilons_of_a_form_without_float64_are_compared(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """SLIP's epsilons are 1e-6 in the image tower and 1e-5 in the text tower."""
    right = safetensors.read

    def read(factor: float, **norm_eps: list[float]) -> Any:
        def changed(folder: Path, allow: Any) -> Any:
            model = right(folder)
            text = model.text_features
            assert text
            features = {f"{name}_features": getattr(model, f"{name}_features") for name in ("image", "text")}
            unit = {
                name: lambda rows, encode=encode: (
                    factor * (f := encode(rows)) / np.linalg.norm(f, axis=1, keepdims=True)
                )
                for name, encode in features.items()
            }
            return replace(model, double=None, is_unit=True, norm_eps=norm_eps, **unit)

        return changed

    monkeypatch.setattr("openslip.export.check.read_back", read_here)
    monkeypatch.setattr(safetensors, "read", read(1, image=[1e-6], text=[float(np.float32(1e-5))]))
    deviations = export(source, tmp_path / "out", "safetensors")
    assert deviations is not None
    assert deviations.keys() >= {"image_lengths", "text_lengths", "image_norm_eps", "text_norm_eps"}
    for reader, message in (
        (read(1.001, image=[1e-6], text=[1e-5]), r"image_lengths by .*text_lengths by"),
        (read(1, image=[1e-5], text=[1e-6]), r"image_norm_eps by .*text_norm_eps by"),
        (read(1, image=[1e-6], text=[1e-6, 1e-5]), r"in text_norm_eps by"),
    ):
        monkeypatch.setattr(safetensors, "read", reader)
        with pytest.raises(UserError, match=message):
            export(source, tmp_path / "other", "safetensors")


@pytest.mark.usefixtures("in_process")
def test_the_norm_of_features_and_padding_are_not_compared(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def read(folder: Path, form: str, inputs: dict[str, np.ndarray], allow: Any) -> dict[str, np.ndarray]:
        theirs = read_here(folder, form, inputs)
        padding = theirs["ids"] == 0
        ids = np.where(padding, 7, theirs["ids"])
        return theirs | {"image_features": 3 * theirs["image_features"], "ids": np.pad(ids, ((0, 0), (0, 4)))}

    monkeypatch.setattr("openslip.export.check.read_back", read)
    assert export(source, tmp_path / "out", "safetensors") is not None


@pytest.mark.usefixtures("in_process")
def test_an_existing_folder_is_replaced_only_by_force_and_by_a_checked_one(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    target = tmp_path / "out"
    export(source, target, "safetensors", check=False)
    earlier = {path.name: path.read_bytes() for path in target.iterdir()}
    with pytest.raises(UserError, match=r"out exists: .* --force"):
        export(source, target, "safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(safetensors, "write", lambda bundle, folder: (folder / "model.safetensors").touch())
        with pytest.raises(UserError):
            export(source, target, "safetensors", force=True)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == earlier
    export(source, target, "safetensors", force=True)
    assert {path.name for path in target.iterdir()} == {"model.safetensors", "README.md"}
    assert (target / "README.md").read_bytes() != earlier["README.md"]  # it states the check
    assert len({path.stat().st_mode for path in target.iterdir()}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_replaces_no_folder_that_is_no_export(source: Path, tmp_path: Path):
    (tmp_path / "home/documents").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "home")
    (tmp_path / "file").touch()
    shutil.copyfile(source, tmp_path / "home/documents/model.ckpt")
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers/README.md").write_text("My thesis, with a model that was exported by OpenSLIP.\n")
    for name in ("folder", "note"):
        export(source, tmp_path / name, "safetensors", check=False)
    (tmp_path / "folder/mine").mkdir()
    (tmp_path / "note/notes.txt").touch()
    names = ("home", "home/documents", "link", "file", "papers", "folder", "note")
    before = set(tmp_path.rglob("*"))
    for name, force in itertools.product(names, (False, True)):
        with pytest.raises(UserError, match=rf"{name} exists and does not only hold an earlier export: it is not"):
            export(source, tmp_path / name, "safetensors", force=force)
    assert set(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    export(source, tmp_path / "empty", "safetensors", check=False, force=True)
    with pytest.raises(UserError, match=r"holds the model to export"):
        export(tmp_path / "home/documents", tmp_path / "home/documents", "safetensors", force=True)


def failing_renames(error: BaseException, *, after: int, until: int) -> Callable[[Path, Path], Path]:
    """Return a `Path.rename` that fails in the calls from `after` to `until`."""
    calls, rename = itertools.count(), Path.rename

    def renamed(path: Path, target: Path) -> Path:
        if after <= next(calls) < until:
            raise error
        return rename(path, target)

    return renamed


def test_a_kill_between_the_two_renames_loses_no_earlier_export(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    target = tmp_path / "out"
    export(source, target, "safetensors", check=False, licence="first")
    earlier = {path.name: path.read_bytes() for path in target.iterdir()}
    with monkeypatch.context() as patch:  # no rename after the first one, as if the process had ended there
        patch.setattr(Path, "rename", failing_renames(KeyboardInterrupt(), after=1, until=9))
        with pytest.raises(KeyboardInterrupt):
            export(source, target, "safetensors", check=False, force=True)
    assert [path.name for path in tmp_path.iterdir()] == [f".out.{os.getpid()}.old.tmp"]
    with pytest.raises(UserError, match=r"out exists: .* --force"):
        export(source, target, "safetensors", check=False)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == earlier
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=["disk", "Ctrl-C"])
def test_a_failing_rename_puts_the_earlier_export_back(
    error: BaseException, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    target = tmp_path / "out"
    export(source, target, "safetensors", check=False, licence="first")
    monkeypatch.setattr(Path, "rename", failing_renames(error, after=1, until=2))
    with pytest.raises((UserError, KeyboardInterrupt), match=r"Input/output error|^$"):
        export(source, target, "safetensors", check=False, force=True)
    assert "license: first" in (target / "README.md").read_text()
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_appears_during_the_check_is_kept(
    force: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def compared(*_: object) -> dict[str, float]:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/mine.txt").touch()
        return {}

    monkeypatch.setattr("openslip.export.export.compare", compared)
    with pytest.raises(UserError, match=r"does not only hold an earlier export"):
        export(source, tmp_path / "out", "safetensors", force=force)
    monkeypatch.setattr(
        "openslip.export.export.refuse_existing", lambda *_, **__: None
    )  # as if it appeared later still
    if not force:
        shutil.rmtree(tmp_path / "out")
        with pytest.raises(UserError, match=r"out could not be written \(Directory not empty"):
            export(source, tmp_path / "out", "safetensors")
    assert (tmp_path / "out/mine.txt").exists()


WITHOUT_PYTORCH = """
import sys
from openslip.commands.export import main
from openslip.errors import UserError
try:
    main(sys.argv[1:])
except UserError as error:
    print("torch" in sys.modules, error)
"""


def test_a_folder_and_a_repository_are_refused_before_pytorch_is_imported(tmp_path: Path):
    (tmp_path / "out").mkdir()
    words = ["no_such_file", str(tmp_path / "out"), "--to", "safetensors"]
    for more, message in (([], f"{tmp_path}/out exists: "), (["--push", "model"], "--push model: expected USER/NAME")):
        command = [sys.executable, "-c", WITHOUT_PYTORCH, *words, *more]
        process = subprocess.run(command, capture_output=True, text=True)
        assert process.stdout.startswith(f"False {message}"), process.stderr


def test_a_missing_library_is_named_before_the_model_is_loaded(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    missing = Packages(("no_such_library",), "hf")
    monkeypatch.setattr(safetensors, "NEEDS", missing)
    with pytest.raises(MissingPackage, match=r'no_such_library; pip install "openslip\[hf\]", .*--no-check'):
        export("no_such_file", tmp_path / "out", "safetensors")
    assert export(source, tmp_path / "out", "safetensors", check=False) is None
    monkeypatch.setattr(safetensors, "WRITE_NEEDS", missing, raising=False)
    for checked in (False, True):
        with pytest.raises(MissingPackage, match=r'writing it needs no_such_library; pip install "openslip\[hf\]"$'):
            export("no_such_file", tmp_path / "other", "safetensors", check=checked)
    assert "not checked" in (tmp_path / "out/README.md").read_text().lower()


def test_an_unknown_form_is_refused_with_the_known_ones(tmp_path: Path):
    with pytest.raises(UserError, match=r"--to nothing: expected one of .*safetensors"):
        export("no_such_file", tmp_path / "out", "nothing")


def test_every_form_says_what_it_needs():
    for name in forms.names():
        module: Any = forms.load(name)
        assert isinstance(module.NEEDS, Packages)
        assert module.NEEDS.extra in (None, "hf", "onnx")
        assert callable(module.write)
        assert callable(module.read)


def test_images_and_captions_are_the_same_in_every_process():
    images = draw_images()
    assert {image.mode for image in images} == {"RGB", "L", "RGBA"}
    again = from_arrays(to_arrays(draw_images()))
    assert [image.mode for image in again] == [image.mode for image in images]
    assert all(image.tobytes() == other.tobytes() for image, other in zip(images, again, strict=True))
    assert len(images) == len(CAPTIONS) == 8


@pytest.mark.usefixtures("in_process")
def test_word_vectors_are_exported_in_our_own_form(tmp_path: Path):
    (tmp_path / "vectors.txt").write_text("a 0.5 -0.25 1\nphoto 1 2 3\nof -1 0 0.5\ncat 0.1 0.2 -0.3\n")
    deviations = export(tmp_path / "vectors.txt", tmp_path / "out", "safetensors")
    assert deviations is not None
    assert deviations.keys() == {"ids", "text_features", "text_features_64"}
    texts = ["a cat", "photo of a cat"]
    first, second = (openslip.load(tmp_path / name).encode_text(texts) for name in ("vectors.txt", "out"))
    assert torch.equal(first, second)
    text = (tmp_path / "out/README.md").read_text()
    assert "encode_text" in text
    assert "image" not in text


def test_a_killed_check_is_not_called_a_faulty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    killed = subprocess.CompletedProcess([], -9, "", "a warning of some library\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: killed)
    with pytest.raises(UserError, match=r"ended by SIGKILL, .* memory .* --no-check") as raised:
        check.read_back(tmp_path, "safetensors", {})
    assert "cannot load" not in str(raised.value)


def test_a_model_in_its_own_library_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bundle = replace(bundle_of("simclr"), model=WrappedModel.__new__(WrappedModel))
    monkeypatch.setattr("openslip.export.export.load", lambda *_, **__: bundle)
    with pytest.raises(UserError, match=r"hf:folder runs in its own library .* without the prefix"):
        export("hf:folder", tmp_path / "out", "safetensors")
    assert list(tmp_path.iterdir()) == []
