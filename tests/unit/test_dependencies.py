"""What pyproject.toml declares: the minimum that is tested is the minimum that is promised, and nothing is missing."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PARTS = {"omegaconf", "aiohttp"}  # which hydra-core and fsspec[http] bring


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=! ]", requirement)[0]


def test_the_oldest_versions_that_are_tested_are_the_oldest_that_are_admitted():
    lines = (ROOT / "constraints-minimum.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    declared = [*PROJECT["dependencies"], *EXTRAS["dev"]]
    floors = {name_of(entry): match[1] for entry in declared if (match := re.search(r">=([\d.]+)", entry))}
    assert pinned.keys() <= floors.keys()
    assert {name_of(entry) for entry in PROJECT["dependencies"] if ">=" in entry} <= pinned.keys()
    for name, version in pinned.items():
        assert re.fullmatch(re.escape(floors[name]) + r"(\.0)*", version), name


def test_what_the_source_imports_is_declared():
    imported = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    distributions = packages_distributions()
    needed = {name for module in imported - sys.stdlib_module_names for name in distributions.get(module, [module])}
    extras = [entry for extra, entries in EXTRAS.items() if extra != "dev" for entry in entries]
    declared = {name_of(entry) for entry in [*PROJECT["dependencies"], *extras]}
    assert {name.lower().replace("_", "-") for name in needed} - PARTS - {"openslip"} <= declared
