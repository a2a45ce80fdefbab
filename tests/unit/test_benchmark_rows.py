"""A benchmark that fails midway keeps the rows that it has, and its other parts still run."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "rates.py"


def test_a_part_that_fails_costs_neither_rows_before_it_nor_other_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    spec = importlib.util.spec_from_file_location("benchmark_rates", PATH)
    assert spec is not None
    assert spec.loader is not None
    rates = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rates)
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
