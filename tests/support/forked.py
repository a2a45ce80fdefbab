"""Processes forked off one that has done the slow imports.

All of them order sets of strings alike; processes that are started anew, as in `tests/e2e`, do not.
"""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from unittest import mock

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        "openslip.data.sources.shards",
        "openslip.models.dual_encoder",
        "ftfy",
        "pytest",  # test files import it, and functions of theirs run in such processes
        "disturbances",
        "trainings",
        "evaluation_suites",
    ]
)
PATH = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]


def fork(target: Callable[..., None], *arguments: object) -> ForkServerProcess:
    """Start a process off the server, which finds the modules of this folder by PYTHONPATH alone on Python 3.11."""
    process = context.Process(target=target, args=arguments)
    with mock.patch.dict(os.environ, {"PYTHONPATH": os.pathsep.join(PATH)}):
        process.start()
    return process


def printed_by(script: str, *arguments: str) -> str:
    """What a script prints that runs in a process of its own, whose memory can be measured."""
    with tempfile.NamedTemporaryFile("r") as output:
        process = fork(_run_script, script, arguments, output.name)
        process.join(120)
        process.kill()
        assert process.exitcode == 0, f"{process.exitcode}: {output.read()}"
        return output.read()


def _run_script(script: str, arguments: tuple[str, ...], output: str) -> None:
    sys.argv[1:] = arguments
    for stream in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), stream)
    exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
