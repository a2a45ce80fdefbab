"""Configs that no published recipe of SLIP has, value by value, against `tests/support/config_values.py`."""

from typing import Any

import pytest
import yaml
from config_values import CONFIGS, FETCHED_TO, FETCHES, LADDER, OPERATION
from evaluation_rows import EVALUATIONS

from openslip.config.folder import config_folder
from openslip.inference.tables import class_table


def written(path: str) -> Any:
    return yaml.safe_load((config_folder() / f"{path}.yaml").read_text())


@pytest.mark.parametrize("path", CONFIGS)
def test_a_config_has_the_settings_of_its_source(path: str):
    assert written(path) == CONFIGS[path]


@pytest.mark.parametrize("path", OPERATION)
def test_what_changes_no_number_has_its_documented_default(path: str):
    config = written(path)
    assert {key: config[key] for key in OPERATION[path]} == OPERATION[path]


@pytest.mark.parametrize("name", LADDER)
def test_a_rung_has_its_runs_and_figures(name: str):
    rung, (letter, runs) = written(f"reproduce/{name}"), LADDER[name]
    found = {
        run: (
            [(metric, figure["images"], figure["chance"]) for metric, figure in settings["figures"].items()],
            settings.get("published"),
            {key: value for key, value in settings.items() if key not in ("figures", "published", "hours")},
        )
        for run, settings in rung["runs"].items()
    }
    assert (rung["letter"], found) == (letter, runs)


FETCHED = {
    path.stem: entry
    for path in sorted((config_folder() / "catalogue").glob("*.yaml"))
    if "hub.HubFolder" in str((entry := yaml.safe_load(path.read_text()))["fetcher"])
}


@pytest.mark.parametrize("name", FETCHED)
def test_what_is_fetched_is_what_the_evaluation_reads(name: str):
    entry, place = FETCHED[name], EVALUATIONS[name]["source"]["places"]["wds"]
    assert entry["evaluation"] == name
    assert place["root"].endswith(f"/{entry['folder']}")
    assert entry["fetcher"]["repository"] == f"clip-benchmark/{entry['folder']}"
    assert entry["fetcher"]["splits"] == [place["split"]]


@pytest.mark.parametrize("name", FETCHES)
def test_a_package_is_fetched_and_chosen_from_as_stated(name: str):
    entry = written(f"catalogue/{name}")
    assert {key: entry["fetcher"][key] for key in FETCHES[name]} == FETCHES[name]
    assert entry["folder"] == FETCHED_TO[name]


def test_no_name_of_the_drawings_is_both_seen_and_unseen():
    fetcher = written("catalogue/openclipart")["fetcher"]
    assert (len(fetcher["seen"]), len(fetcher["unseen"])) == (59, 15)
    assert not {*fetcher["seen"], *fetcher["unseen"]} & {*fetcher["not_keywords"]}
    assert len({*fetcher["seen"], *fetcher["unseen"]}) == 59 + 15


def test_a_catalogue_states_the_numbers_of_samples_and_classes():
    stated = {name for name, settings in EVALUATIONS.items() if type(settings.get("expected_samples")) is int}
    entries = {name: written(f"catalogue/{name}")["content"] for name in sorted(stated & {*FETCHED})}
    assert len(entries) > 30
    for name, content in entries.items():
        assert f"{EVALUATIONS[name]['expected_samples']:,} " in content, name
        table = class_table(EVALUATIONS[name].get("classnames", ""))
        assert table is None or f" {len(table.names)} " in content, name
