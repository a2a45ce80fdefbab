"""Hook of mkdocs: pages of the site from files outside docs/, and links between files as GitHub resolves them."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {  # file of the repository -> page of the site
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "slurm/README.md": "slurm/README.md",
}
LINK = re.compile(r"\[([^]]+)\]\(([^):#]+)(#[^)]*)?\)")  # to a file; addresses contain a colon


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add the pages of files outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page; a file that is no page of the site is named without a link."""
    here = page.file.src_uri
    folder = posixpath.dirname(next((source for source, name in PAGES.items() if name == here), f"docs/{here}"))

    def rewritten(link: re.Match[str]) -> str:
        file = posixpath.normpath(posixpath.join(folder, link[2]))
        target = PAGES.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
        if target is None:
            return link[1]
        return f"[{link[1]}]({posixpath.relpath(target, posixpath.dirname(here) or '.')}{link[3] or ''})"

    return LINK.sub(rewritten, markdown)
