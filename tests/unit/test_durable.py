"""Durable writes."""

import os
from pathlib import Path

import pytest

from openslip.durable import is_running, write_text


def test_a_link_planted_under_the_temporary_name_is_not_followed(tmp_path: Path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / f".result[1].json.{os.getpid()}.tmp").symlink_to(tmp_path / "precious")
    write_text(tmp_path / "result[1].json", "new")
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / "result[1].json").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "result[1].json"]


@pytest.mark.parametrize(("answer", "expected"), [(None, True), (PermissionError, True), (ProcessLookupError, False)])
def test_a_process_of_another_user_is_running_too(
    answer: type[OSError] | None, expected: bool, monkeypatch: pytest.MonkeyPatch
):
    asked: list[tuple[int, int]] = []

    def kill(process: int, number: int) -> None:
        asked.append((process, number))
        if answer is not None:
            raise answer

    monkeypatch.setattr(os, "kill", kill)
    other = os.getpid() + 1
    assert is_running(other) is expected
    assert asked == [(other, 0)]
