"""Where the config files lie, and what they say before anything is overridden."""

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf


def config_folder() -> Path:
    """`configs/` of the wheel, or of the clone."""
    packaged = Path(__file__).parents[1] / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "configs"


def default_values(name: str, overrides: list[str]) -> dict[str, Any]:
    """Every dotted key of a root config with its unresolved value."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        plain = OmegaConf.to_container(compose(name, overrides), resolve=False)
    assert isinstance(plain, dict)
    return flatten(plain)


def flatten(config: dict, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
