"""A run of DeCLIP that is stopped within an epoch ends as one that nobody stopped, with the same queue."""

from pathlib import Path

import pytest
import torch
from marks import slow
from trainings import RUN, Training, assert_ended_as, newest, two_ranks

METHODS = {  # the queue goes round more than once in 30 steps
    "declip": ["model=declip_tiny", "text_queue=100"],
    "published declip": ["model=declip_tiny", "text_queue=100", "mode=faithful"],
    "defilip": ["model=defilip_tiny", "text_queue=100"],
    "declip_slip": ["model=declip_slip_tiny"],
}


@pytest.mark.parametrize("method", ["declip", *(slow(method) for method in METHODS if method != "declip")])
def test_a_stop_within_an_epoch_changes_nothing(place: Path, method: str):
    run, name = [*RUN, *METHODS[method]], method.replace(" ", "_")
    whole = Training(place, *run, f"name={name}", log=name)
    assert whole.wait() == 0, whole.said()
    stopped = Training(place, *run, f"name={name}_cut", log=f"{name}_cut", DISTURB="signal 8 0")
    assert stopped.wait() == 143, stopped.said()
    held = newest(place / "runs" / f"{name}_cut")["state_dict"]
    resumed = Training(place, *run, f"name={name}_cut", log=f"{name}_cut")
    assert resumed.wait() == 0, resumed.said()
    assert "Resumed at step 8 of 30." in resumed.said()
    assert_ended_as(place / "runs" / f"{name}_cut", place / "runs" / name)  # every tensor bit by bit
    queues = [key for key in held if key.endswith("queue.features")]
    assert len(queues) == (method != "declip_slip")
    for key in queues:
        place_of_next = int(held[key.replace("features", "place")])
        assert place_of_next == (8 * 2 * 16 % 100 if "published" not in method else 8 * 2 * 16 % 112)
        assert not torch.equal(held[key], newest(place / "runs" / name)["state_dict"][key])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["declip", "defilip"])
def test_two_ranks_with_queues_of_their_own_resume_bit_by_bit(place: Path, method: str):
    run = [*RUN, *METHODS[method], "mode=faithful"]
    for rank in two_ranks(place, *run, f"name={method}_two", log=f"{method}_two-"):
        assert rank.wait() == 0, rank.said()
    cut = [*run, f"name={method}_two_cut"]
    for rank in two_ranks(place, *cut, log=f"{method}_two_cut-", DISTURB="signal 8 1"):
        assert rank.wait() == 143, rank.said()
    queues = newest(place / "runs" / f"{method}_two_cut")["rank_buffers"]["queue"]
    assert (len(queues), torch.equal(*queues)) == (2, False)
    alone = Training(place, *cut, log=f"{method}_alone")
    assert alone.wait() == 1
    assert "a queue of each of its 2 ranks, but the number of ranks is now 1 (" in alone.said()
    for rank in two_ranks(place, *cut, log=f"{method}_two_cut-"):
        assert rank.wait() == 0, rank.said()
    assert_ended_as(place / "runs" / f"{method}_two_cut", place / "runs" / f"{method}_two")
    ends = [newest(place / "runs" / f"{method}_two{cut}")["rank_buffers"]["queue"] for cut in ("", "_cut")]
    assert torch.equal(*ends)
