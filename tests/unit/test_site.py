"""The documentation as a site: it builds without a warning, and every page of docs/ is in it."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hook() -> Any:
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "site_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    reference = (tmp_path / "REFERENCE" / "index.html").read_text()
    assert "samples per batch, over all ranks" in reference  # of open_dataset's docstring
    assert 'href="CHANGELOG/"' in (tmp_path / "index.html").read_text()


def test_every_page_is_in_the_navigation(hook: Any):
    pages = {page for entry in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"] for page in entry.values()}
    assert pages == {path.name for path in (ROOT / "docs").glob("*.md")} | {*hook.PAGES.values()}


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("index.md", "[data](docs/DATA.md#speed)", "[data](DATA.md#speed)"),
        ("index.md", "[a](slurm/README.md)", "[a](slurm/README.md)"),
        ("RELEASING.md", "[a](../CHANGELOG.md)", "[a](CHANGELOG.md)"),
        ("slurm/README.md", "[a](../docs/GPU.md)", "[a](../GPU.md)"),
        ("DATA.md", "[`crop.py`](../src/openslip/data/image/crop.py)", "`crop.py`"),
        ("DATA.md", "[a](https://example.org/docs/a.md) [b](#speed)", "[a](https://example.org/docs/a.md) [b](#speed)"),
    ],
)
def test_links_lead_to_pages_of_the_site(hook: Any, page: str, link: str, expected: str):
    assert hook.on_page_markdown(link, SimpleNamespace(file=SimpleNamespace(src_uri=page))) == expected


def test_the_reference_names_what_exists():
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "REFERENCE.md").read_text(), re.MULTILINE)
    assert len(names) > 20
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__
