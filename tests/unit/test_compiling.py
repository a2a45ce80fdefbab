"""When a run compiles, what it says about it, and that batches of other sizes are not compiled anew."""

import copy
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from published import simclr_augment
from small_models import small_model

from openslip.config.compose import compose_config
from openslip.data.image.crop import RandomResizedCrop
from openslip.models.tower import Tower
from openslip.training import compiling
from openslip.training.compiling import choose_compile, compile_parts


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A GPU that Triton knows, with gcc beside it."""
    (tmp_path / "gcc").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(compiling, "find_spec", lambda name: name)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})


def test_auto_is_the_default_and_off_on_a_cpu(capsys: pytest.CaptureFixture[str]):
    assert compose_config("train", [])[0]["compile"] == "auto"
    assert not choose_compile("auto", "cpu")
    assert not capsys.readouterr().out


def test_auto_is_on_for_a_gpu_with_all_that_it_needs(gpu: None, capsys: pytest.CaptureFixture[str]):
    assert choose_compile("auto", "auto")
    assert capsys.readouterr().out == "compile=auto: on\n"
    assert not choose_compile("auto", "cpu")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("triton", "triton is not installed"),
        ("gcc", "no C compiler is found: install gcc"),
        ("CC", "CC=/opt/mycc is not found: set another, or unset it"),
        ("Python.h", "Python.h is not found: install python3-dev"),
        ("capability", "Triton needs compute capability 7.0, and this GPU has 6.1"),
    ],
)
def test_auto_says_why_it_is_off(
    missing: str, said: str, gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    if missing == "triton":
        monkeypatch.setattr(compiling, "find_spec", lambda _: None)
    elif missing == "gcc":
        monkeypatch.setenv("PATH", "")
    elif missing == "CC":  # Triton takes it as it stands
        monkeypatch.setenv("CC", "/opt/mycc")
    elif missing == "Python.h":
        monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": "/nowhere"})
    else:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 1))
    assert not choose_compile("auto", "gpu")
    assert capsys.readouterr().out == f"compile=auto: off, because {said}\n"


@pytest.mark.parametrize("setting", [True, False])
def test_a_given_answer_is_taken_without_a_word(setting: bool, gpu: None, capsys: pytest.CaptureFixture[str]):
    assert choose_compile(setting, "gpu") is setting
    assert choose_compile(setting, "cpu") is setting
    assert not capsys.readouterr().out


def test_towers_and_augmentations_are_compiled(monkeypatch: pytest.MonkeyPatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    model, _ = small_model("slip")
    view = RandomResizedCrop(size=8, scale=(0.5, 1), augment=simclr_augment(), mean=[0.5] * 3, std=[0.5] * 3)
    plain = RandomResizedCrop(size=8, scale=(0.5, 1), augment=None, mean=[0.5] * 3, std=[0.5] * 3)
    compile_parts(model, {"aug1": view, "image": plain})
    towers = [model.get_submodule(f"{kind}_tower") for kind in ("image", "text")]
    blocks = [block for tower in towers if isinstance(tower, Tower) for block in tower.compiled_modules()]
    assert len(blocks) > 2
    assert set(blocks) <= set(compiled)
    assert view.augment is not None
    assert view.augment.compiled
    assert not copy.copy(simclr_augment()).compiled


# In a process of its own, where the compiler does not meet the tests' type checker.
SIZES = """
import functools, numpy, torch
from published import simclr_augment
from versions import OLD_TORCH
from openslip.data.image.augment_batch import augment_batch

def counting(graph, _):
    global graphs
    graphs += 1
    return graph.forward

graphs, augment, rng = 0, simclr_augment(), numpy.random.default_rng(0)
torch.compile = functools.partial(torch.compile, backend=counting, fullgraph=True)
for size in (24, 9, 40, 1, 33, 57):
    images = torch.rand(size, 3, 12, 12, generator=torch.Generator().manual_seed(size))
    plan = numpy.stack([augment.draw(rng) for _ in range(size)])
    compiled, plain = augment_batch(images, plan, compiled=True), augment_batch(images, plan)
    assert (compiled - plain).abs().max() <= (1e-6 if OLD_TORCH else 0)  # old compilers round differently
    print(graphs)
"""


def test_compiled_colours_are_the_same_and_serve_batches_of_any_size():
    support = Path(simclr_augment.__code__.co_filename).parent
    path = os.pathsep.join([str(support), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", SIZES], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    counts = [int(line) for line in done.stdout.split()]
    assert counts[0] >= 2  # both functions
    assert counts[-1] <= 6  # again for a batch of one, and hue for a part that begins with the batch
    assert counts[-1] == counts[3]
