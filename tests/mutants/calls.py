"""A pytest plugin that notes which functions of ours each test calls, for tests that start no processes."""

import inspect
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

import pytest

SLOW_TO_START = ("ranks", "processes", "subprocess", "workers", "Training(")  # words of tests that start processes
OURS = f"{Path(__file__).parents[2]}/src/"
_called: set[CodeType] = set()


def starts_processes(item: pytest.Item) -> bool:
    """Whether the text of a test says so."""
    text = inspect.getsource(item.function) if isinstance(item, pytest.Function) else ""
    return any(word in text for word in SLOW_TO_START)


def note_call(frame: FrameType, event: str, argument: object) -> None:
    _called.add(frame.f_code)  # returns no function, so that lines are not traced


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not starts_processes(item)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _called.clear()
    sys.settrace(note_call)
    try:
        return (yield)
    finally:
        sys.settrace(None)
        ours = sorted(
            {(code.co_filename, code.co_firstlineno) for code in _called if code.co_filename.startswith(OURS)}
        )
        with Path(os.environ["CALLS"], str(os.getpid())).open("a") as file:
            file.write(json.dumps({"test": item.nodeid, "calls": ours}) + "\n")
