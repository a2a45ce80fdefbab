"""What a run may ask of its towers."""

from typing import Any

from openslip.config.compose import compose_config


def options(**changed: Any) -> dict[str, dict[str, Any]]:
    """The defaults of `towers`, with dotted keys changed."""
    towers = compose_config("train", [])[0]["towers"]
    for key, value in changed.items():
        kind, name = key.split(".")
        assert name in towers[kind]
        towers[kind][name] = value
    return towers
