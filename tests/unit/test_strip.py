"""Stripped files: dtype of the weights, the objective's weights, and what a killed process leaves."""

import os
from pathlib import Path

import pytest
import torch
from evaluation_models import tokenizer, transform
from model_folders import folder_of
from published_files import training_checkpoint
from recorded_towers import FOLDER
from safetensors.torch import load_file
from torch import Tensor, nn

import openslip
from openslip.commands.strip import main
from openslip.errors import UserError
from openslip.inference.architecture import build_model
from openslip.inference.bundle import Bundle
from openslip.inference.formats.openslip import write
from openslip.inference.formats.slip import to_published
from openslip.inference.strip import strip
from openslip.verify.tower_files import TowerFile, tower_files

ARCHITECTURE = {
    "_target_": "openslip.models.dual_encoder.DualEncoder",
    "image_tower": {
        "_target_": "openslip.models.timm_tower.TimmTower",
        "name": "vit_base_patch16_224",
        "image_size": 16,
        "arguments": {"patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 1},
    },
    "text_tower": {
        "_target_": "openslip.models.text_transformer.TextTransformer",
        "vocab_size": 49408,
        "context_length": 24,
        "width": 64,
        "depth": 1,
        "heads": 1,
    },
    "embed_dim": 12,
    "logit_scale_init": 2.6593,
}
HEAD = ("image_mlp.layer1.weight", "image_mlp.bn1.running_mean", "image_mlp.layer3.weight")
OUR_HEAD = ("objective.head.0.weight", "objective.head.1.running_mean", "objective.head.6.weight")


def small_bundle() -> Bundle:
    torch.manual_seed(0)
    return Bundle(build_model(ARCHITECTURE).eval(), tokenizer(), transform(), ARCHITECTURE, torch.device("cpu"))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return small_bundle()


@pytest.fixture
def published(tmp_path: Path, bundle: Bundle) -> tuple[Path, dict[str, Tensor]]:
    """A published-format file of the bundle's model, and its SSL head by published names."""
    head = {name: torch.randn(3, 4) for name in HEAD}
    state = {name: tensor.detach() for name, tensor in to_published(bundle.model, nn.Module()).items()}
    torch.save(training_checkpoint(state | head, None), tmp_path / "published.pt")
    return tmp_path / "published.pt", head


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_weights_are_stored_in_half_the_bytes_and_loaded_as_float32(
    tmp_path: Path, bundle: Bundle, dtype: str, suffix: str
):
    write(bundle, tmp_path / "whole.ckpt")
    before, after, _ = strip(tmp_path / "whole.ckpt", tmp_path / f"half.{suffix}", dtype=dtype)
    numbers = sum(tensor.numel() for tensor in bundle.model.state_dict().values())
    assert before > 4 * numbers
    assert 2 * numbers < after < 2 * numbers + 40_000
    loaded = openslip.load(tmp_path / f"half.{suffix}").model.state_dict()
    for name, weight in bundle.model.state_dict().items():
        rounded = weight.to(getattr(torch, dtype)).float() if weight.ndim else weight  # logit_scale is exact
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], rounded)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_file_keeps_its_dtype_by_default(
    tmp_path: Path, bundle: Bundle, dtype: str, capsys: pytest.CaptureFixture[str]
):
    write(bundle, tmp_path / "given.safetensors", getattr(torch, dtype))
    assert main([str(tmp_path / "given.safetensors"), str(tmp_path / "small.safetensors")]) == 0
    given, small = (load_file(tmp_path / f"{name}.safetensors") for name in ("given", "small"))
    assert {name: weight.dtype for name, weight in small.items()} == {name: w.dtype for name, w in given.items()}
    assert all(torch.equal(small[name], weight) for name, weight in given.items())
    printed = capsys.readouterr()
    assert printed.out.endswith(f" MB ({dtype})\n")
    assert printed.err.endswith(f"next: openslip eval checkpoint={tmp_path}/small.safetensors evaluation=NAME\n")


@pytest.mark.parametrize("name", ["small", "small.bin", "small.safetensor"])
def test_the_ending_of_another_kind_of_file_is_refused(tmp_path: Path, bundle: Bundle, name: str):
    write(bundle, tmp_path / "whole.ckpt")
    with pytest.raises(UserError, match=r"small.*: expected a file that ends in \.safetensors, \.ckpt, \.pt, \.pth"):
        main([str(tmp_path / "whole.ckpt"), str(tmp_path / name)])
    assert [path.name for path in tmp_path.iterdir()] == ["whole.ckpt"]


def test_a_head_that_is_no_float16_keeps_float32(tmp_path: Path):
    bundle = small_bundle()
    for weight in bundle.model.state_dict().values():
        weight.copy_(weight.half())
    head = {"objective.head.0.weight": torch.full((2, 2), 0.1)}
    write(bundle, tmp_path / "with.ckpt", torch.float32, head)
    assert strip(tmp_path / "with.ckpt", tmp_path / "head.safetensors", keep_head=True).dtype == "float32"
    assert strip(tmp_path / "with.ckpt", tmp_path / "none.safetensors").dtype == "float16"


@pytest.mark.parametrize("file", [*tower_files(FOLDER)], ids=lambda file: file.path.name)
def test_models_of_every_format_are_stored_in_every_dtype(tmp_path: Path, file: TowerFile):
    bundle = file.load("cpu")
    for dtype, suffix in ((torch.float16, "safetensors"), (torch.bfloat16, "ckpt")):
        write(bundle, tmp_path / f"small.{suffix}", dtype)
        again = openslip.load(tmp_path / f"small.{suffix}")
        weights = again.model.state_dict()
        assert weights.keys() == bundle.model.state_dict().keys()
        for name, weight in bundle.model.state_dict().items():
            rounded = weight.to(dtype).float() if weight.is_floating_point() and weight.ndim else weight
            assert torch.equal(weights[name], rounded), name
        assert again.transform.settings() == bundle.transform.settings()
        tokenizers = [each.tokenizer and each.tokenizer.settings() for each in (bundle, again)]
        assert tokenizers[0] == tokenizers[1]


def test_a_folder_is_stripped_into_a_new_folder_but_not_over_its_own_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = folder_of("transformers_clip", tmp_path / "folder")
    megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    assert main([str(folder), str(tmp_path / "new" / "small.ckpt"), "--dtype", "float16"]) == 0
    assert f"folder {megabytes:.1f} MB -> " in capsys.readouterr().out
    weights = (folder / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"model\.safetensors is a part of the checkpoint; name another file"):
        strip(folder, folder / "model.safetensors")
    assert (folder / "model.safetensors").read_bytes() == weights


def test_an_existing_file_is_replaced_only_with_force_and_by_one_that_loads(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
):
    write(bundle, tmp_path / "whole.ckpt")
    target = tmp_path / "small.safetensors"
    target.write_bytes(b"mine")
    words = [str(tmp_path / "whole.ckpt"), str(target)]
    with pytest.raises(UserError, match=r"small\.safetensors exists: add --force to replace it, or name another file"):
        main(words)
    with monkeypatch.context() as patch:
        patch.setattr("openslip.inference.strip.local_file", lambda _: pytest.fail("a published file is fetched first"))
        with pytest.raises(UserError, match=r"small\.safetensors exists: add --force"):
            strip("slip_base_100ep", target)
    with monkeypatch.context() as patch:
        patch.setattr("openslip.inference.strip.write", lambda bundle, path, *_: path.write_bytes(b"half"))
        with pytest.raises(UserError):
            main([*words, "--force"])
    assert target.read_bytes() == b"mine"
    assert main([*words, "--force"]) == 0
    assert len(load_file(target)) > 10
    with pytest.raises(UserError, match=r"whole\.ckpt is the checkpoint itself; name another file"):
        strip(tmp_path / "whole.ckpt", tmp_path / "whole.ckpt")


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_a_stripped_file_is_on_the_disk_and_has_the_usual_permissions(
    tmp_path: Path, bundle: Bundle, suffix: str, monkeypatch: pytest.MonkeyPatch
):
    synchronised: set[int] = set()
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synchronised.add(os.fstat(handle).st_ino), fsync(handle)))
    (tmp_path / "usual").touch()
    write(bundle, tmp_path / f"small.{suffix}")
    status = (tmp_path / f"small.{suffix}").stat()
    assert status.st_mode == (tmp_path / "usual").stat().st_mode
    assert status.st_ino in synchronised


def test_the_name_of_a_stripped_file_is_on_the_disk(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    target, there = tmp_path / "small.ckpt", list[bool]()
    write(bundle, tmp_path / "whole.ckpt")
    monkeypatch.setattr(
        "openslip.inference.strip.sync_folder", lambda folder: there.append((folder / target.name).exists())
    )
    strip(tmp_path / "whole.ckpt", target)
    assert there == [True]


def test_a_folder_is_refused_as_target_before_any_work(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    write(bundle, tmp_path / "whole.ckpt")
    (tmp_path / "out").mkdir()
    monkeypatch.setattr("openslip.inference.strip.load", None)
    with pytest.raises(UserError, match=r"out is a folder: name a file in it, such as .*out/model\.safetensors"):
        strip(tmp_path / "whole.ckpt", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"whole.ckpt", "out"}


def test_a_weight_beyond_float16_is_refused_and_nothing_is_written(tmp_path: Path):
    bundle = small_bundle()
    weights = bundle.model.state_dict()
    name = next(name for name, weight in weights.items() if weight.ndim == 2)
    weights[name][0, 0] = -70_000
    write(bundle, tmp_path / "whole.ckpt")
    with pytest.raises(UserError, match=rf"weight model\.{name} has values up to 7e\+04, and float16 ends at 65504"):
        strip(tmp_path / "whole.ckpt", tmp_path / "half.ckpt", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["whole.ckpt"]
    strip(tmp_path / "whole.ckpt", tmp_path / "half.ckpt", dtype="bfloat16")


def test_the_ssl_head_is_kept_when_asked_for(tmp_path: Path, published: tuple[Path, dict[str, Tensor]]):
    path, head = published
    assert main([str(path), str(tmp_path / "without.safetensors")]) == 0
    assert main([str(path), str(tmp_path / "with.safetensors"), "--keep-head"]) == 0
    without, whole = load_file(tmp_path / "without.safetensors"), load_file(tmp_path / "with.safetensors")
    assert whole.keys() - without.keys() == set(OUR_HEAD)
    for ours, theirs in zip(OUR_HEAD, HEAD, strict=True):
        assert torch.equal(whole[ours], head[theirs])
    strip(tmp_path / "with.safetensors", tmp_path / "again.safetensors", keep_head=True)
    assert load_file(tmp_path / "again.safetensors").keys() == whole.keys()
    first, second = (openslip.load(tmp_path / name) for name in ("with.safetensors", "without.safetensors"))
    assert torch.equal(first.encode_text(["a dog"]), second.encode_text(["a dog"]))


def test_a_checkpoint_without_a_head_says_so(tmp_path: Path, bundle: Bundle):
    write(bundle, tmp_path / "whole.ckpt")
    with pytest.raises(UserError, match=r"whole\.ckpt holds no weights of an objective: leave out --keep-head"):
        strip(tmp_path / "whole.ckpt", tmp_path / "small.ckpt", keep_head=True)


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_leftovers_of_killed_processes_are_removed_and_no_other_file(tmp_path: Path, bundle: Bundle, suffix: str):
    name = f"small.{suffix}"
    write(bundle, tmp_path / "whole.ckpt")
    dead, alive = 2**22 + 1, os.getppid()  # Linux has no id above 2 ** 22
    for leftover in (f".{name}.{dead}.tmp.{suffix}", f"..{name}.{dead}.tmp.{suffix}.{dead}.tmp"):
        (tmp_path / leftover).touch()
    kept = {
        *(f"other{name}", f"mine.{name}.1.tmp.{suffix}", f"my.{name}.old.tmp", f".{name}.{dead}.tmp.backup"),
        *(f".{name}.{alive}.tmp.{suffix}", f"..{name}.{alive}.tmp.{suffix}.{alive}.tmp"),
    }
    for file in kept:
        (tmp_path / file).touch()
    strip(tmp_path / "whole.ckpt", tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"whole.ckpt", name, *kept}
