"""How the run was set up: its config and its environment."""

import json
from pathlib import Path
from typing import Any

from openslip.report.pieces import escape
from openslip.report.run_files import AbsentError, check
from openslip.run.identity import flat

MAX_TEXT = 200_000  # characters of the config


def config_text(folder: Path) -> str:
    """The config as it stands in the folder, folded."""
    check((folder / "config.yaml").is_file(), "there is no config.yaml")
    text = (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")[:MAX_TEXT]
    return f"<details><summary>The resolved config, as it ran</summary><pre>{escape(text)}</pre></details>"


def environment(folder: Path) -> str:
    """A table of what the run ran on."""
    check((folder / "env.json").is_file(), "there is no env.json")
    try:
        environment = json.loads((folder / "env.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise AbsentError(f"env.json cannot be read ({error})") from error
    rows = "".join(
        f"<tr><th>{escape(key)}</th><td>{escape(_shown(value))}</td></tr>" for key, value in flat(environment).items()
    )
    return f'<div class="scroll"><table class="plain environment"><tbody>{rows}</tbody></table></div>'


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return {"True": "yes", "False": "no", "None": "none"}.get(str(value), str(value))
