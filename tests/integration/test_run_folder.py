"""What lies in a run's folder belongs to one process, is the same on all ranks, and is whole."""

import json
from pathlib import Path

import numpy as np
import pytest
from shard_files import write_pairs
from small_disk import tmpfs  # noqa: F401
from trainings import SMALL, Training, two_ranks, weights_hash

STEPS = 12
RUN = [
    *SMALL,
    "+callbacks.folder._target_=folder_disturbances.DisturbFolder",
    "data.source.shards=0.tar",
    f"trainer.max_steps={STEPS}",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_pairs(folder / "0.tar", 100)
    return folder


def test_a_second_process_is_refused_by_the_first_ones_number_and_the_run_is_unharmed(place: Path):
    first = Training(place, *RUN, "name=one", log="first", DISTURB="pause 5 0", RESUME="resume_first")
    first.wait_for("step 4/")
    second = Training(place, *RUN, "name=one", log="second")
    assert second.wait() == 1
    assert f"runs/one is being trained by process {first.pid} on " in second.said()
    (place / "resume_first").touch()
    assert first.wait() == 0, first.said()
    alone = Training(place, *RUN, "name=alone", log="alone")
    assert alone.wait() == 0
    assert weights_hash(place / "runs" / "one") == weights_hash(place / "runs" / "alone")


def test_a_killed_process_holds_a_run_no_longer_although_its_workers_live(place: Path):
    run = [*RUN, "name=killed", "data.num_workers=1"]
    first = Training(place, *run, log="killed", DISTURB="stuck 5 0")
    first.wait_for("step 4/")
    first.kill()
    second = Training(place, *run, log="again")
    assert second.wait() == 0, second.said()


def test_two_ranks_that_go_on_leave_one_whole_array_each(place: Path):
    for rank in two_ranks(place, *RUN, "name=two", log="two-", DISTURB="signal 5 0"):
        assert rank.wait() == 143, rank.said()
    arrays = place / "runs" / "two" / "arrays"
    for rank in two_ranks(place, *RUN, "name=two", log="two-", WRITERS=str(place / "writers")):
        assert rank.wait() == 0, rank.said()
    assert set((place / "writers").read_text().split()) == {"0"}
    with np.load(arrays / "similarity.npz") as found:
        assert found["matrix"].shape == (4, 4)
    assert not list(arrays.glob(".*"))


def test_ranks_that_see_different_folders_all_end_with_the_reason(place: Path, tmp_path: Path):
    for rank in two_ranks(place, *RUN, "name=apart", log="apart-", DISTURB="signal 5 0"):
        assert rank.wait() == 143, rank.said()
    write_pairs(tmp_path / "0.tar", 100)
    ranks = two_ranks([place, tmp_path], *RUN, "name=apart", log="apart-")
    for rank in ranks:
        assert rank.wait(60) == 5, rank.said()
        assert "runs/apart: rank 1 cannot see the checkpoints that the other ranks see" in rank.said()


def test_a_full_disk_ends_the_run_by_the_file_and_with_room_the_same_command_goes_on(place: Path, tmpfs: Path):  # noqa: F811
    run = [*RUN, f"runs_dir={tmpfs}", "name=full", f"data.source.shards={place / '0.tar'}"]
    training = Training(place, *run, log="full", DISTURB="fill 5 0", FILL=str(tmpfs / "filling"))
    assert training.wait() == 5, training.said()
    assert f"error: checkpoint {tmpfs}/full/checkpoints/step-000006.ckpt could not be written (" in training.said()
    assert "MB free" in training.said()
    (tmpfs / "filling").unlink()
    assert Training(place, *run, log="full").wait() == 0
    assert json.loads((tmpfs / "full" / "result.json").read_text())["step"] == STEPS
