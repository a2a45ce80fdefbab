"""Hydra's search path: the packaged configs, the user's folders, and models composed from method and size."""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

from openslip.config.folder import config_folder, names


def search_path(folders: Sequence[Path]) -> str:
    """Return the override that adds the user's folders and composed models to Hydra's search path."""
    places = [*(f"file://{folder}" for folder in folders), "models://"]
    return f"hydra.searchpath=[{','.join(QuotedString(place, Quote.double).with_quotes() for place in places)}]"


class ComposedModels(ConfigSource):
    """A config source for Hydra that composes `model/METHOD_SIZE` from `method/METHOD.yaml` and `size/SIZE.yaml`.

    It is last in the search path, so a file `model/NAME.yaml` in any folder takes precedence. The composed config only
    names the two files, so Hydra searches every folder for them, and lists the available ones if one is missing.
    """

    @staticmethod
    def scheme() -> str:
        return "models"

    def load_config(self, config_path: str) -> ConfigResult:
        """Return a config with only a defaults list; if two entries override the same group, the later one wins."""
        method, size = config_path.removeprefix("model/").rsplit("_", 1)
        parts = [
            "_self_",
            {"optional /size/text@_global_": size},  # a method without text overrides it with null
            {"/method@_global_": method},
            {"/size@_global_": size},
        ]
        # Towers are built, and draw their initial weights, in the order of these keys.
        config = OmegaConf.create({"defaults": parts, "model": {"image_tower": {}}})
        return ConfigResult(self.provider, self.full_path(), config, header={"package": "_global_"})

    def is_group(self, config_path: str) -> bool:
        return config_path == "model"

    def is_config(self, config_path: str) -> bool:
        return re.fullmatch(r"model/[^/]+_[^/_]+", config_path) is not None

    def available(self) -> bool:
        return True

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """List the models that the packaged methods and sizes compose."""
        if results_filter is ObjectType.GROUP:
            return []
        return names("model", [config_folder()])


Plugins.instance().register(ComposedModels)
