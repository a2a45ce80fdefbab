"""Values of the command line reach the config as they were written, whatever Hydra's grammar makes of them."""

from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from openslip.config.words import readable, split_words
from openslip.errors import UserError

ODD_NAMES = [
    *(
        "a=b",
        "a#b",
        "it's",
        'say "a"',
        "~a",
        "a~b",
        "[a]",
        "a[1]",
        "{a}",
        "a{0..9}",
        "(a)",
        "a(1)",
        "a,b",
        "a b",
        " a ",
    ),
    *(
        "größe",
        "画像",
        "a:b",
        "a\\b",
        "a\\",
        "'a'",
        '"a"',
        "a&b;c",
        "100%",
        "@a",
        "!a",
        "a\\,b",
        "range(3)",
        "a=[b,c]",
        "-a",
    ),
]
WRITTEN_FOR_HYDRA = ("'a'", '"a"', " a ", "a\\,b")  # quotes and backslashes of the user's, unless a file has that name


def value(word: str, *, sweep: bool = False) -> Any:
    """The value that Hydra sees."""
    return OverridesParser.create().parse_override(readable(word, [], sweep=sweep)).value()


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("key", ["data.source.shards", "runs_dir", "checkpoint", "+towers.image.weights"])
def test_a_path_that_exists_is_taken_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, name: str
):
    monkeypatch.chdir(tmp_path)
    for path in (name, str(tmp_path / name), f"{name}/{name}.tar"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).mkdir(exist_ok=True)
        assert value(f"{key}={path}") == path
        assert value(f"{key}={path}", sweep=True) == path


@pytest.mark.parametrize(
    "name", [*(name for name in ODD_NAMES if name not in WRITTEN_FOR_HYDRA), "1e3", "2024", "true"]
)
def test_a_file_that_is_still_to_be_written_is_taken_as_it_is_written(name: str):
    assert value(f"name={name}") == name
    assert value(f"output={name}.json") == f"{name}.json"
    assert value(f"output=out/{name}") == f"out/{name}"


def test_numbers_and_lists_stay_what_they_are_beside_files_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("1", "null", "true", "0.5", "2024"):
        Path(name).touch()
    written = {"seed=1": 1, "name=null": None, "tf32=true": True, "a.b=0.5": 0.5, "data.source.shards=2024": "2024"}
    assert {word: value(word) for word in written} == written
    assert value("data.source.shards=[a.tar,b.tar]") == ["a.tar", "b.tar"]


def test_each_part_of_a_list_may_be_an_odd_path():
    assert value("shards=[a#1.tar, b 2.tar,c-{000..009}.tar,d=e.tar]") == [
        *("a#1.tar", "b 2.tar", "c-{000..009}.tar", "d=e.tar")
    ]
    with pytest.raises(UserError, match="not of the form key=value"):
        value("shards=['a#1.tar',b#2.tar]")


def test_several_values_are_several_runs_of_a_sweep_alone():
    for word in ("seed=0,1", "seed=range(3)", "seed=choice(0,1)", "optim.lr=interval(0,1)", "model=glob(*)"):
        assert readable(word, [], sweep=True) == word
        with pytest.raises(UserError, match=r"several values, expected one: python train\.py -m"):
            readable(word, [], remedy="python train.py -m")
    assert readable("name=a,b", [], sweep=True) == "name=a,b"
    assert value("name=a,b") == "a,b"


def test_options_and_settings_are_told_apart(tmp_path: Path):
    words = ["--seed=1", "--a.b=--c=d", "--++a@b.c=2", "-m", "--verbose", "x=1", f"--config-dir={tmp_path}"]
    assert split_words(words) == ([tmp_path], ["seed=1", "a.b=--c=d", "++a@b.c=2", "x=1"], ["-m", "--verbose"])
    with pytest.raises(UserError, match=r"--config-dir .*no#where: no such folder"):
        split_words(["--config-dir", "no#where"])
