"""A benchmark that fails midway keeps the rows that it has, and its other parts still run."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "rates.py"


@pytest.fixture
def rates() -> Any:
    spec = importlib.util.spec_from_file_location("benchmark_rates", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_part_that_fails_costs_neither_rows_before_it_nor_other_parts(
    rates: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "rows.json"

    def breaks() -> Iterator[object]:
        yield rates.Row("first", 1.0, "s")
        assert [row["name"] for row in json.loads(file.read_text())] == ["first"]  # before the next is measured
        raise AssertionError("not active_children()")

    def works() -> Iterator[object]:
        yield rates.Row("second", 2.0, "s", "first", 2.0)

    with pytest.raises(SystemExit) as exit_code:
        rates.show(breaks(), works(), file=file)
    assert exit_code.value.code == 1
    assert [row["name"] for row in json.loads(file.read_text())] == ["first", "second"]
    assert "breaks: AssertionError: not active_children()" in capsys.readouterr().out


def test_a_bar_that_is_not_reached_is_a_failure_where_it_counts(rates: Any, capsys: pytest.CaptureFixture[str]):
    rows = [rates.Row("fast", 9.0, "s", "other", 3.0, 2.0), rates.Row("slow", 9.0, "s", "other", 1.5, 2.0)]
    rates.show(iter(rows))
    rates.show(iter(rows[:1]), needs_bars=True)
    assert "failed:" not in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_code:
        rates.show(iter(rows), needs_bars=True)
    assert exit_code.value.code == 1
    assert capsys.readouterr().out.splitlines()[-2:] == ["failed:", "slow: below its bar of 2"]
