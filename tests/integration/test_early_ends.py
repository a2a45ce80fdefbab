"""Whatever ends a run before its last step leaves it saved, unfinished and able to resume."""

import os
import signal
import time
from pathlib import Path

import pytest
from marks import slow
from trainings import RUN, STEPS, Training, assert_ended_as, steps_saved, two_ranks

SLOW = ["+callbacks.slow._target_=slow_steps.SlowSteps", "+callbacks.slow.seconds=0.1"]
SLOW_DATA = "data.source._target_=disturbances.SlowSource"


def test_a_run_whose_time_is_over_is_saved_and_resumes(place: Path, whole: Path):
    training = Training(place, *RUN, *SLOW, "trainer.max_time=00:00:00:01", "name=timed", log="timed")
    assert training.wait() == 143, training.said()
    (step,) = steps_saved(place / "runs" / "timed")[:1]
    assert 1 <= step < STEPS
    assert f"stopped by trainer.max_time=00:00:00:01 after step {step}, saved" in training.said()
    assert not (place / "runs" / "timed" / "result.json").exists()
    assert Training(place, *RUN, "name=timed", log="timed").wait() == 0
    assert_ended_as(place / "runs" / "timed", whole)


def test_a_time_that_is_none_is_refused(place: Path):
    training = Training(place, *RUN, "trainer.max_time=soon", "name=soon", log="soon")
    assert training.wait() == 1
    assert "error: trainer.max_time=soon: expected DD:HH:MM:SS" in training.said()


@pytest.mark.parametrize(("hook", "at"), [("on_train_batch_end", 8), slow("on_train_epoch_end", 12)])
def test_a_callback_that_asks_to_leave_does_not_finish_the_run(place: Path, whole: Path, hook: str, at: int):
    stop = ["+callbacks.stop._target_=slow_steps.Stop", f"+callbacks.stop.at={at}", f"+callbacks.stop.hook={hook}"]
    training = Training(place, *RUN, *stop, f"name={hook}", log=hook)
    assert training.wait() == 143, training.said()
    assert f"stopped by a callback (trainer.should_stop) after step {at}, saved" in training.said()
    assert Training(place, *RUN, f"name={hook}", log=hook).wait() == 0
    assert_ended_as(place / "runs" / hook, whole)


@pytest.mark.parametrize("setting", ["limit_train_batches=0", "fast_dev_run=true"])
def test_a_setting_that_shortens_the_run_does_not_finish_it(place: Path, setting: str):
    name = f"short_{setting[:5]}"
    training = Training(place, *RUN, f"+trainer.{setting}", f"name={name}", log=name)
    assert training.wait() != 0, training.said()
    assert not (place / "runs" / name / "result.json").exists()


@pytest.mark.parametrize(
    "mistake",
    [
        *(
            "global_batch_size=100000",
            "+trainer.bogus=1",
            "data.source.shards=none.tar",
            "+trainer.limit_train_batches=0",
        ),
        *("objective._target_=disturbances.Broken", "callbacks.disturb._target_=disturbances.Missing"),
    ],
)
def test_a_start_that_fails_leaves_no_folder(place: Path, mistake: str):
    training = Training(place, *RUN, mistake, "name=failed", log=f"failed{mistake[:8]}")
    assert training.wait() == 1, training.said()
    assert "error: " in training.said().splitlines()[-1]
    assert not (place / "runs" / "failed").exists()


def test_a_start_that_fails_deletes_nothing_else_in_the_folder(place: Path):
    (place / "runs" / "noted").mkdir(parents=True)
    (place / "runs" / "noted" / "notes.txt").touch()
    training = Training(place, *RUN, "global_batch_size=100000", "name=noted", log="noted")
    assert training.wait() == 1
    assert [path.name for path in (place / "runs" / "noted").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGTERM, 3), (signal.SIGHUP, 0), slow(signal.SIGTERM, 0), slow(signal.SIGHUP, 3)]
)
def test_a_signal_ends_a_run_that_waits_for_data(place: Path, whole: Path, number: int, workers: int):
    name = f"waits{number}_{workers}"
    run = [*RUN, SLOW_DATA, f"data.num_workers={workers}", f"name={name}"]
    # Without workers, the captions of 12 samples are read once more, for the report.
    slow = "slow_data 93-9999 0" if workers == 0 else "slow_data 33-9999 0"
    training = Training(place, *run, log=name, DISTURB=slow)
    training.wait_for("step 5/")
    time.sleep(0.5)
    sent = time.monotonic()
    os.kill(training.pid, number)
    assert training.wait() == 143, training.said()
    assert time.monotonic() - sent < 10
    assert steps_saved(place / "runs" / name)[0] >= 5
    assert Training(place, *run, log=name).wait() == 0
    assert_ended_as(place / "runs" / name, whole)


def test_a_signal_while_the_first_batch_is_waited_for_leaves_a_run_that_starts(place: Path, whole: Path):
    run = [*RUN, SLOW_DATA, "name=first"]
    training = Training(place, *run, log="first", DISTURB="slow_data 1-9999 0")
    training.wait_for("data: 100 samples")
    time.sleep(1.5)
    os.kill(training.pid, signal.SIGTERM)
    assert training.wait(10) == 143
    assert "stopped by SIGTERM before the first step" in training.said()
    assert not (place / "runs" / "first").exists()
    assert Training(place, *run, log="first").wait() == 0
    assert_ended_as(place / "runs" / "first", whole)


@pytest.mark.parametrize("who", [0, slow(1)])
def test_a_signal_to_one_rank_ends_both_while_one_waits_for_data(place: Path, who: int):
    run = [*RUN, SLOW_DATA, f"name=waits_two{who}"]
    ranks = two_ranks(place, *run, log=f"waits_two{who}-", DISTURB="slow_data 41-9999 1")
    ranks[0].wait_for("step 5/")
    time.sleep(0.5)
    sent = time.monotonic()
    os.kill(ranks[who].pid, signal.SIGTERM)
    assert [rank.wait() for rank in ranks] == [143, 143], ranks[0].said() + ranks[1].said()
    assert time.monotonic() - sent < 10
    assert steps_saved(place / "runs" / f"waits_two{who}")[0] == 5
