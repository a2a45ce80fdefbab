"""The runs that nobody disturbed, which others must end as."""

from pathlib import Path

import pytest
from shard_files import write_pairs
from trainings import RUN, Training, two_ranks


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs take place: a folder with a shard."""
    folder = tmp_path_factory.mktemp("place")
    write_pairs(folder / "0.tar", 100)
    return folder


@pytest.fixture(scope="session")
def whole(place: Path) -> Path:
    """The run that nobody disturbed; its record is `whole_record`."""
    training = Training(place, *RUN, "name=whole", log="whole.log", RECORD=str(place / "whole_record"))
    assert training.wait() == 0, training.said()
    return place / "runs" / "whole"


@pytest.fixture(scope="session")
def whole_of_two(place: Path) -> Path:
    """The same on two ranks."""
    for training in two_ranks(place, *RUN, "name=whole2", log="whole2-"):
        assert training.wait() == 0, training.said()
    return place / "runs" / "whole2"
