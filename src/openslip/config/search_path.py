"""Where Hydra looks for configs: the packaged folder, the user's folders, and models composed of method and size."""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf


def config_folder() -> Path:
    """`configs/` of the wheel, or of the clone."""
    packaged = Path(__file__).parents[1] / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "configs"


def search_path(folders: Sequence[Path]) -> str:
    """The override by which Hydra also looks in folders of the user's own and composes models."""
    places = [*(f"file://{folder}" for folder in folders), "models://"]
    return f"hydra.searchpath=[{','.join(QuotedString(place, Quote.double).with_quotes() for place in places)}]"


class ComposedModels(ConfigSource):
    """A source of configs for Hydra: `model/METHOD_SIZE` is `method/METHOD.yaml` with `size/SIZE.yaml`.

    It stands last in the search path, so a file `model/NAME.yaml` in any folder goes before it. Its answer names the
    two files alone, so Hydra finds these in any folder too, and lists what there is where one is missing.
    """

    @staticmethod
    def scheme() -> str:
        return "models"

    def load_config(self, config_path: str) -> ConfigResult:
        """The defaults list; where two of its parts override the same group, Hydra obeys the later one."""
        method, size = config_path.removeprefix("model/").rsplit("_", 1)
        parts = [
            "_self_",
            {"optional /size/text@_global_": size},  # a method without text overrides it with null
            {"/method@_global_": method},
            {"/size@_global_": size},
        ]
        # Towers draw their initial weights in the order of these keys.
        config = OmegaConf.create({"defaults": parts, "model": {"image_tower": {}}})
        return ConfigResult(self.provider, self.full_path(), config, header={"package": "_global_"})

    def is_group(self, config_path: str) -> bool:
        return config_path == "model"

    def is_config(self, config_path: str) -> bool:
        return re.fullmatch(r"model/[^/]+_[^/_]+", config_path) is not None

    def available(self) -> bool:
        return True

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """The models of the packaged methods and sizes."""
        if results_filter is ObjectType.GROUP:
            return []
        methods, sizes = (sorted(config_folder().glob(f"{group}/*.yaml")) for group in ("method", "size"))
        return [f"{method.stem}_{size.stem}" for method in methods for size in sizes]


Plugins.instance().register(ComposedModels)
