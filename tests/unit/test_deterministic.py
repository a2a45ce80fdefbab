"""`trainer.deterministic=true`: what is set before CUDA starts, and how an operation that cannot obey is named."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from openslip.commands import train
from openslip.data.datamodule import DataModule
from openslip.errors import UserError
from openslip.run.folder import Run
from openslip.training.precision import choose_deterministic
from openslip.training.pretrainer import Pretrainer

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither the variable nor PyTorch's switches outlive a test."""
    monkeypatch.setenv(WORKSPACE, "")  # so that its value from before is given back
    monkeypatch.delenv(WORKSPACE)
    cudnn, deterministic = torch.backends.cuda.cudnn_sdp_enabled(), torch.are_deterministic_algorithms_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.parametrize("wanted", [True, "warn"])
def test_products_and_attention_are_told_to_repeat_their_numbers(wanted: bool | str):
    choose_deterministic(wanted)
    assert os.environ[WORKSPACE] == ":4096:8"
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_size_that_the_user_has_set_is_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(WORKSPACE, ":16:8")
    choose_deterministic(True)
    assert os.environ[WORKSPACE] == ":16:8"


def test_by_default_nothing_is_set():
    choose_deterministic(False)
    assert WORKSPACE not in os.environ
    assert torch.backends.cuda.cudnn_sdp_enabled()


class ReachedError(Exception):
    """Seeding was reached."""


@pytest.mark.parametrize(("wanted", "workspace"), [(True, ":4096:8"), ("warn", ":4096:8"), (False, None)])
def test_a_run_sets_it_before_anything_is_built(
    wanted: bool | str, workspace: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def seed_everything(*_: Any, **__: Any) -> None:  # the first that may use CUDA
        raise ReachedError(os.environ.get(WORKSPACE))

    monkeypatch.setattr(train.pl, "seed_everything", seed_everything)
    with pytest.raises(ReachedError, match=f"^{workspace}$"):
        train.fit({"trainer": {"deterministic": wanted}, "seed": 0}, Run(tmp_path, "new"))
    assert not torch.cuda.is_initialized()


class Failing(pl.Trainer):
    """A trainer in whose `fit` something fails."""

    def __init__(self, fail: Callable[[], object]) -> None:
        self.fail = fail

    def fit(self, *_: Any, **__: Any) -> None:
        self.fail()


def optimise(fail: Callable[[], object]) -> None:
    """Train so, with a module and data that are asked nothing."""
    train.optimise(Failing(fail), Pretrainer.__new__(Pretrainer), DataModule.__new__(DataModule), None)


def put() -> None:
    """Run an operation without a deterministic form, which PyTorch refuses on CPUs too."""
    torch.use_deterministic_algorithms(True)
    torch.zeros(4).put_(torch.tensor([0, 0]), torch.ones(2))


def test_an_operation_that_cannot_repeat_its_numbers_is_named_in_one_line():
    with pytest.raises(UserError) as raised:
        optimise(put)
    message = str(raised.value)
    assert message.startswith("trainer.deterministic=true: put_ cannot repeat its numbers on this device: set it to")
    assert "\n" not in message
    assert "use_deterministic_algorithms" not in message


def broken_compiler(graph: Any, inputs: Any) -> Any:
    raise OSError("gcc: Python.h: no such file")


def test_a_compiler_that_fails_names_the_setting_in_one_line():
    compiled = torch.compile(lambda x: x + 1, backend=broken_compiler)
    with pytest.raises(UserError, match=r"torch\.compile failed \(.*\): set compile=false$"):
        optimise(lambda: compiled(torch.ones(2)))


def test_another_error_of_an_operation_is_left_as_it_is():
    with pytest.raises(RuntimeError, match=r"not aligned|cannot be multiplied"):
        optimise(lambda: torch.ones(2, 3) @ torch.ones(2, 3))
