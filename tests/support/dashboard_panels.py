"""What W&B's workspace shows, read from what would be sent to the server."""

import json
import re
from typing import Any

from openslip.commands.dashboard import workspace


def panels() -> list[dict[str, Any]]:
    spec = json.loads(workspace("team", "project")._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    return [panel for section in spec["section"]["panelBankConfig"]["sections"] for panel in section["panels"]]


def metrics() -> set[str]:
    """Keys of scalars that a panel names."""
    return {key for panel in panels() for key in panel["config"].get("metrics", [])}


def patterns() -> list[re.Pattern[str]]:
    """Patterns of scalars; W&B searches for them anywhere in a key."""
    return [re.compile(panel["config"]["metricRegex"]) for panel in panels() if "metricRegex" in panel["config"]]


def is_shown(key: str) -> bool:
    return key in metrics() or any(pattern.search(key) for pattern in patterns())


def media() -> set[str]:
    return {key for panel in panels() for key in panel["config"].get("mediaKeys", [])}


def tables() -> set[str]:
    """Keys of tables: the last `val` of the query of the panel."""
    texts = [json.dumps(panel) for panel in panels() if panel["viewType"] == "Weave"]
    return {re.findall(r'"val": "(eval/[^"]+)"', text)[-1] for text in texts}
