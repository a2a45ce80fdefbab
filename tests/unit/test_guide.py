"""examples/guide.py, run as it stands on a tiny model."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from evaluation_models import bundle, dual_encoder
from PIL import Image
from stored_models import write_checkpoint

import openslip

PATH = Path(__file__).parents[2] / "examples" / "guide.py"
TEXT = "a red circle"


def test_the_command_writes_an_image_that_fits_the_text_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    checkpoint = write_checkpoint(tmp_path / "model.pt")
    monkeypatch.setattr(sys, "argv", [str(PATH), str(checkpoint), TEXT, str(tmp_path / "out.png")])
    torch.manual_seed(0)
    runpy.run_path(str(PATH), run_name="__main__")
    printed = [float(x) for x in re.findall(r"similarity (-?[\d.]+)", capsys.readouterr().out)]
    assert len(printed) == 11
    assert printed[-1] > printed[0] + 0.2
    model = openslip.load(checkpoint)
    grey = Image.new("RGB", (16, 16), (128, 128, 128))
    before, after = model.similarity([grey, tmp_path / "out.png"], [TEXT])[:, 0].tolist()
    assert after > before + 0.2  # also after rounding to 8 bits


def test_the_weights_do_not_change(capsys: pytest.CaptureFixture[str]):
    model = bundle(dual_encoder())
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    image = runpy.run_path(str(PATH))["guide"](model, TEXT, steps=3)
    assert image.shape == (3, 16, 16)
    assert 0 <= image.min() < image.max() <= 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())
    assert all(weight.grad is None for weight in model.model.parameters())
    assert "step    2" in capsys.readouterr().out


def test_the_example_is_short():
    assert len(PATH.read_text().splitlines()) <= 40
