"""The configs of evaluations, value by value, against `tests/support/evaluation_rows.py`."""

from typing import Any

import pytest
import yaml
from evaluation_rows import EVALUATIONS, LISTS

from openslip.config.folder import config_folder


def written(name: str) -> Any:
    return yaml.safe_load((config_folder() / "evaluation" / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", EVALUATIONS)
def test_an_evaluation_has_the_settings_of_its_paper(name: str):
    config, expected = written(name), EVALUATIONS[name]
    assert config == {name: expected}
    places = config[name].get("source", {}).get("places", {})
    assert [*places] == [*expected.get("source", {}).get("places", {})]


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_evaluations_has_those_of_its_paper(name: str):
    assert written(name) == {"defaults": LISTS[name]}
