"""Durable writes."""

import os
from pathlib import Path

from openslip.durable import write_text


def test_a_link_planted_under_the_temporary_name_is_not_followed(tmp_path: Path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / f".result[1].json.{os.getpid()}.tmp").symlink_to(tmp_path / "precious")
    write_text(tmp_path / "result[1].json", "new")
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / "result[1].json").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "result[1].json"]
