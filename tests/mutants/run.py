"""Plant faults, one at a time, and count how many the fast tests see: `make mutants`, or `make mutants ONLY=optim`.

Every fault is planted in a copy of the project, where tests run until one fails. Where there are many faults, all tests
that start no processes run once without a fault, and those that call the changed function run first in its copy: those
of the few files that say most about the changed file, then those that call little else. Then come the files that
mention the function or class, and all tests that import the file: directly, or by one more import. For a config they
are the tables of published values, then the tests of the code which finds configs; for a table of texts or a batch
script the tests that mention its name.
"""

import ast
import inspect
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import ClassVar

from calls import starts_processes
from faults import FAULTS

ROOT = Path(__file__).parents[2]
COPIED = (
    "src",
    "configs",
    "tests",
    "docs",
    "examples",
    "benchmarks",
    "slurm",
    "pyproject.toml",
    "train.py",
    "eval_zeroshot.py",
    "README.md",
    "Makefile",
)
TIERS = ("unit", "parity", "integration")
COSTLY = (
    "test_activations.py",
    "test_recipes.py",
    "test_cost.py",
    "test_verify.py",
    "test_towers.py",
)  # they take most of a minute each
FARTHEST = 2  # imports between a test and the changed file
FEW = 6  # files that run first
PARAMETERS = 3  # with which a quick test runs before others
MANY = 50  # faults for which it is worth it to run all tests once
NEAREST = 50  # tests that call a function, of those in other files than the few
SECONDS = 300  # for the tests of one fault: what they do not see by then counts as unseen
# What one process cannot show.
ACROSS_RANKS = re.compile(r"\b(all_sum|gather\w*|rank|rank_\w+|world_size)\b|gather_with_grad|- place\b")
CONFIGS_ARE_READ_BY = "openslip.config.search_path"
CONFIGS_ARE_COMPARED_BY = tuple(
    f"tests/parity/{name}.py" for name in ("test_config_values", "test_evaluation_configs", "test_recipes")
)
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "timm", "pytorch_lightning", "hydra", "webdataset", "pytest", "PIL.Image"])


def main(only: list[str]) -> int:
    """Run the faults whose file or text contains one of these words, all without; 1 where one survives."""
    faults = [fault for fault in FAULTS if not only or any(word in " ".join(fault) for word in only)]
    stale = [fault for fault in faults if (ROOT / fault[0]).read_text().count(fault[1]) != 1]
    for path, old, _ in stale:
        print(f"no longer applies: {path}: {old!r} is not there once")
    calls = calls_of_tests(collect_only=len(faults) < MANY)
    graph = tests_by_module()
    started, survivors = time.monotonic(), []
    left, unsound = [fault for fault in faults if fault not in stale], frozenset[str]()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        while left:
            planted = {
                pool.submit(first_failures, module_tests(fault, graph), unsound, fault, callers(fault, calls)): fault
                for fault in left
            }
            seen_by: dict[tuple[str, str, str], str] = {}
            for done in as_completed(planted):
                path, old, new = fault = planted[done]
                seen_by[fault] = next(iter(done.result()), "")
                verdict = "killed" if seen_by[fault] else "SURVIVED"
                print(f"{verdict:8}  {path}: {old!r} -> {new!r}  {seen_by[fault]}", flush=True)
            survivors += [fault for fault, test in seen_by.items() if not test]
            # A test that fails in a copy without a fault has seen none: what it stopped is planted again without it.
            killers = {test for test in seen_by.values() if test}
            failing = frozenset(first_failures(sorted(killers), frozenset(), None)) if killers else frozenset[str]()
            unsound |= failing
            left = [fault for fault, test in seen_by.items() if test in failing]
    total = len(faults) - len(stale)
    minutes = (time.monotonic() - started) / 60
    print(f"{total - len(survivors)} of {total} faults killed in {minutes:.0f} minutes; {len(stale)} no longer apply")
    for path, old, new in survivors:
        print(f"survived: {path}: {old!r} -> {new!r}")
    return 1 if survivors or stale else 0


def calls_of_tests(*, collect_only: bool) -> dict[str, list[tuple[str, int]]]:
    """For every test that starts no processes, file and first line of each function of ours that it calls.

    Also leaves compiled files, which the copies take along: to compile all of them takes longer than most tests.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.pathsep.join([str(ROOT / "src"), str(Path(__file__).parent)])
        environment = {**os.environ, "PYTHONPATH": path, "CALLS": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [sys.executable, "-m", "pytest", "-p", "calls", "-q", "-m", "not slow and not slurm"]
        command += ["--collect-only"] if collect_only else ["-n", str(os.cpu_count()), "--dist", "loadfile"]
        tiers = [f"tests/{tier}" for tier in TIERS]
        # A test that fails without a fault is found when it is said to have seen one.
        subprocess.run([*command, *tiers], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=False)
        lines = [line for file in Path(folder).iterdir() for line in file.read_text().splitlines()]
    return {
        row["test"]: [(str(Path(path).relative_to(ROOT)), line) for path, line in row["calls"]]
        for row in map(json.loads, lines)
    }


def callers(fault: tuple[str, str, str], calls: dict[str, list[tuple[str, int]]]) -> list[str]:
    """The tests that call the function in which a fault is planted: with their first parameters, then with others.

    Those that call few other functions come first.
    """
    path, old, _ = fault
    if not path.endswith(".py"):
        return []
    text = (ROOT / path).read_text()
    line = text[: text.index(old)].count("\n") + 1
    around = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.lineno <= line <= (node.end_lineno or line)
    ]
    if not around:
        return []
    innermost = max(around, key=lambda node: node.lineno)
    start = min([innermost.lineno, *(decorator.lineno for decorator in innermost.decorator_list)])
    starts = {(path, number) for number in range(start, innermost.body[0].lineno + 1)}
    met: Counter[str] = Counter()

    def order(test: str) -> tuple[bool, int]:
        met[test.partition("[")[0]] += 1
        return met[test.partition("[")[0]] > PARAMETERS, len(calls[test])

    return sorted((test for test, called in calls.items() if starts.intersection(called)), key=order)


def tests_by_module() -> dict[str, list[str]]:
    """For every module of ours, the files of fast tests that import it, the nearest first."""
    support = {path.stem: references(path) for path in (ROOT / "tests" / "support").glob("*.py")}
    imports = {module_name(path): references(path) for path in (ROOT / "src").rglob("*.py")}
    tests: dict[str, list[str]] = {}
    for number, tier in enumerate(TIERS):
        for path in sorted((ROOT / "tests" / tier).glob("test_*.py")):
            tests[f"{number} {path.relative_to(ROOT)}"] = sorted(through_support(references(path), support))
    distances: dict[str, dict[str, int]] = defaultdict(dict)
    for test, direct in tests.items():
        layer = {name for reference in direct for name in existing(reference, imports)}
        for distance in range(FARTHEST):
            for module in layer:
                distances[module].setdefault(test, distance)
            layer = {name for module in layer for reference in imports[module] for name in existing(reference, imports)}
    return {
        # Among tests as near, those that import little are about this file and not about all that uses it.
        module: [
            test.partition(" ")[2]
            for test in sorted(
                near, key=lambda test: (near[test], "integration" in test, test.endswith(COSTLY), len(tests[test]))
            )
        ]
        for module, near in distances.items()
    }


def references(path: Path) -> set[str]:
    """Whatever dotted names a file imports or names in a string, and plain names that may be support files."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(re.findall(r"openslip(?:\.\w+)+", node.value))
            found |= {f"openslip.{name}" for name in re.findall(r"^(?:python )?(eval_zeroshot|train)\.py", node.value)}
    return found


def through_support(found: set[str], support: dict[str, set[str]]) -> set[str]:
    """The names, with those that support files which they name refer to in their turn."""
    seen: set[str] = set()
    queue = [name.partition(".")[0] for name in found]
    while queue:
        name = queue.pop()
        if name in support and name not in seen:
            seen.add(name)
            found = found | support[name]
            queue += [other.partition(".")[0] for other in support[name]]
    return found


def existing(name: str, imports: dict[str, set[str]]) -> list[str]:
    """The module that a dotted name lies in."""
    while name and name not in imports:
        name = name.rpartition(".")[0]
    # A package is asked for its files by name where they are found as plug-ins.
    return [name, *(module for module in imports if module.startswith(f"{name}."))] if "." in name else []


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")


def module_tests(fault: tuple[str, str, str], graph: dict[str, list[str]]) -> list[str]:
    path = fault[0]
    if path.startswith("configs/"):
        return [*dict.fromkeys([*CONFIGS_ARE_COMPARED_BY, *graph[CONFIGS_ARE_READ_BY]])]
    if path.endswith(".py"):
        return graph.get(module_name(ROOT / path), [])
    # A table of texts or figures and a batch script are not imported but read by their names.
    word = re.compile(rf"\b{Path(path).name if path.startswith('slurm/') else Path(path).stem}\b")
    tests = [test for tier in TIERS for test in sorted((ROOT / "tests" / tier).glob("test_*.py"))]
    return [str(test.relative_to(ROOT)) for test in tests if word.search(test.read_text())]


def names_around(fault: tuple[str, str, str]) -> list[str]:
    """The functions and classes in which a fault is planted, without methods that every class has."""
    path, old, _ = fault
    text = (ROOT / path).read_text()
    if not path.endswith(".py"):
        return []
    line = text[: text.index(old)].count("\n") + 1
    around = [
        node.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.lineno <= line <= (node.end_lineno or line)
    ]
    return [name for name in around if name != "forward" and not name.startswith("__")]


def first_failures(
    tests: list[str], without: frozenset[str], fault: tuple[str, str, str] | None, calling: Sequence[str] = ()
) -> list[str]:
    """The first test that fails in a copy of the project with a fault; without one, all that fail."""
    with tempfile.TemporaryDirectory(prefix="openslip-mutant-") as folder:
        copy = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name)
            else:
                shutil.copy(ROOT / name, copy / name)
        if fault is not None:
            path, old, new = fault
            (copy / path).write_text((copy / path).read_text().replace(old, new))
        process = _context.Process(target=run_tests, args=(folder, tests, without, fault, calling))
        process.start()
        process.join(SECONDS if fault else None)
        if process.is_alive():
            os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
            print(f"stopped after {SECONDS} s, which counts as unseen: {fault}", flush=True)
            return []
        seen_by = copy / "seen_by"
        if seen_by.exists():
            return seen_by.read_text().splitlines()
        if process.exitcode:
            raise RuntimeError(f"{fault}: tests ended with {process.exitcode} and no failure\n{tail(copy)}")
        return []


def tail(copy: Path) -> str:
    return "\n".join((copy / "log").read_text(errors="replace").splitlines()[-5:])


def run_tests(
    folder: str, tests: list[str], without: frozenset[str], fault: tuple[str, str, str] | None, calling: Sequence[str]
) -> None:
    """Run tests in a copy, with a fault until one fails; those that fail are named in the file `seen_by`."""
    names = [] if fault is None else names_around(fault)
    os.setpgrp()
    os.chdir(folder)
    os.environ["PYTHONPATH"] = f"{folder}/src"  # processes that tests start run the copy as well
    sys.path[:0] = [f"{folder}/src", folder]  # as `python -m pytest` does: workers import classes of test files
    for stream in (1, 2):
        os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    import pytest  # noqa: PLC0415 (in the copy's process alone)

    across_ranks = fault is not None and is_across_ranks(fault)

    def is_quick(item: pytest.Item) -> bool:
        """Whether a test starts no processes; for what one process cannot show, whether it has ranks."""
        text = inspect.getsource(item.function) if isinstance(item, pytest.Function) else ""
        return "ranks" in text if across_ranks else not starts_processes(item)

    def in_order(items: list[pytest.Item]) -> list[pytest.Item]:
        """Quick tests with their first parameters, then slow ones once, then the rest; first those that mention a name.

        The others stay in the order of their files.
        """
        met: Counter[str] = Counter()
        ranks: dict[pytest.Item, tuple[int, bool]] = {}
        for item in items:
            test = item.nodeid.partition("[")[0]
            text = inspect.getsource(item.function) if isinstance(item, pytest.Function) else ""
            stage = 2 if met[test] >= (PARAMETERS if is_quick(item) else 1) else 0 if is_quick(item) else 1
            ranks[item] = (stage, not any(name in text for name in names))
            met[test] += 1
        return sorted(items, key=ranks.__getitem__)

    class Watch:
        """Runs what is left, the nearest first, or of that only what is quick."""

        done: ClassVar[set[str]] = set()

        def __init__(self, *, quick: bool) -> None:
            self.quick = quick

        def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
            left = [item for item in items if item.nodeid not in self.done and (is_quick(item) or not self.quick)]
            items[:] = in_order(left)
            self.done.update(item.nodeid for item in items)

        def pytest_exception_interact(self, node: pytest.Item | pytest.Collector) -> None:
            with Path(folder, "seen_by").open("a") as file:
                file.write(f"{node.nodeid}\n")

    options = [*(["-x"] if fault else []), "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "not slow and not slurm"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning", f"--basetemp={folder}/tmp"]  # plugins are preloaded
    options += [f"--deselect={test}" for test in without]
    # To collect all files takes longer than most tests that see a fault.
    mentioning = [test for test in tests if any(name in Path(test).read_text() for name in names)]
    stages: list[tuple[Sequence[str], bool]] = []
    if fault is not None:
        about = first_files(fault, names, tests)
        near = [test for test in calling if test.partition("::")[0] in about]
        far = [test for test in calling if test.partition("::")[0] not in about]
        stages = [(near, False), (about, True), (far[:NEAREST], False), (mentioning, True), (far[NEAREST:], False)]
        if across_ranks:
            stages = [(about, False), *stages]
        if fault[0].startswith("configs/"):
            stages = [([*CONFIGS_ARE_COMPARED_BY], True)]
    code, again = int(pytest.ExitCode.OK), list[str]()
    for files, quick in [*stages, (tests, False)]:
        if files and code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            code = int(pytest.main([*options, *again, *files], plugins=[Watch(quick=quick)]))
            again = ["-o", "addopts=--strict-markers --import-mode=importlib"]  # the hook on imports stands
    sys.stdout.flush()
    os._exit(0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else code)  # whatever threads a broken test has left


def is_across_ranks(fault: tuple[str, str, str]) -> bool:
    path, old, new = fault
    return path.startswith("src/") and ACROSS_RANKS.search(f"{old} {new}") is not None


def first_files(fault: tuple[str, str, str], names: list[str], tests: list[str]) -> list[str]:
    """The files that say most about the changed file: by its name in theirs, and by what they mention of it."""
    stem = Path(fault[0]).stem
    # Without their ends: `tiles` is what `test_tiled` is about.
    words = {word[: max(4, len(word) - 2)] for word in (stem, *stem.split("_")) if len(word) > 3} or {stem}
    across_ranks = is_across_ranks(fault)

    def score(test: str) -> int:
        text, mentioned = Path(test).read_text(), 4 * any(word in Path(test).stem for word in words)
        mentioned += sum(re.search(rf"\b{name}\b", text) is not None for name in [stem, *names])
        return mentioned + 6 * (across_ranks and mentioned > 0 and "two_ranks" in text)

    return sorted([test for test in tests if score(test) > 1], key=score, reverse=True)[:FEW]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
