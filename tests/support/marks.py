"""Marks of single cases in a table of cases."""

from typing import Any

import pytest


def slow(*case: Any) -> Any:
    """Leave the case to `make test-all`, because others of its kind are among the fast tests."""
    return pytest.param(*case, marks=pytest.mark.slow)
