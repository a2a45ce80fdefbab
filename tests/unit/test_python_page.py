"""What docs/PYTHON.md shows works as it stands."""

import ast
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from shard_files import jpeg, write_pairs
from stored_models import write_checkpoint

from openslip.inference.bundle import Bundle

PAGE = Path(__file__).parents[2] / "docs" / "PYTHON.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the page's blocks leave, run in order beside the files that they name."""
    folder = tmp_path_factory.mktemp("page")
    write_checkpoint(folder / "slip_base.pt", image_size=48)
    for seed, name in enumerate(("frame.jpg", "other.jpg")):
        (folder / name).write_bytes(jpeg(seed))
    (folder / "my_shards").mkdir()
    write_pairs(folder / "my_shards" / "0.tar", 40)
    left: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in BLOCKS:
            exec(compile(block, PAGE.name, "exec"), left)
    return left


def test_every_block_runs(names: dict[str, Any]):
    assert len(BLOCKS) == 12
    assert isinstance(names["model"], Bundle)
    assert names["images"].shape == names["texts"].shape == (2, 8)
    assert names["cosines"].shape == (2, 2)
    assert names["pixels"].grad.abs().sum() > 0
    assert names["strict"](["frame.jpg"] * 0) == []
    torch.testing.assert_close(names["scores"], names["cosines"] * math.exp(2.6593), rtol=1e-5, atol=0)
    assert names["pooled"].shape == (2, names["tower"].width)
    assert names["features"].shape[:2] == names["mask"].shape


def test_the_loop_of_the_page_trains_for_one_epoch(names: dict[str, Any]):
    assert len(names["batches"]) == 2
    assert names["batch"]["image"].shape == (16, 3, 48, 48)
    steps = {int(state["step"]) for state in names["optimizer"].state.values()}
    assert steps == {2}


def test_every_block_but_the_loop_has_at_most_five_lines():
    lengths = [sum(bool(line.strip()) for line in block.splitlines()) for block in BLOCKS]
    assert max(lengths[:-1]) <= 5


def test_the_blocks_import_neither_lightning_nor_hydra():
    modules = {node.module for node in ast.walk(ast.parse("\n".join(BLOCKS))) if isinstance(node, ast.ImportFrom)}
    assert all(module and module.startswith("openslip.") for module in modules)
