"""The runs that nobody disturbed, which others must end as."""

from pathlib import Path

import pytest
from shard_files import write_pairs
from trainings import RUN, Training, two_ranks


def with_shard(folder: Path) -> Path:
    write_pairs(folder / "0.tar", 100)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a file's runs take place: a folder with a shard, whose run names no other file can have taken."""
    return with_shard(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs that nobody disturbed took place."""
    return with_shard(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="session")
def whole(undisturbed: Path) -> Path:
    """The run that nobody disturbed; its record lies in `undisturbed`."""
    training = Training(undisturbed, *RUN, "name=whole", log="whole.log", RECORD=str(undisturbed / "record"))
    assert training.wait() == 0, training.said()
    return undisturbed / "runs" / "whole"


@pytest.fixture(scope="session")
def whole_of_two(undisturbed: Path) -> Path:
    """The same on two ranks."""
    for training in two_ranks(undisturbed, *RUN, "name=whole2", log="whole2-"):
        assert training.wait() == 0, training.said()
    return undisturbed / "runs" / "whole2"
