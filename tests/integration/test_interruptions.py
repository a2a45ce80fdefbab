"""A run that is killed, stopped, or resumed, in real processes: it ends as the one that nobody disturbed."""

import csv
import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from marks import slow
from trainings import (
    EVALUATED,
    RUN,
    STEPS,
    Training,
    assert_ended_as,
    evaluations,
    figures,
    newest,
    samples_of,
    saving_for_ever,
    steps_saved,
    two_ranks,
    weights_hash,
    weights_of,
)
from wandb_files import history

from openslip.inference.files import read
from openslip.run.checkpoints import newest_whole


def test_the_same_command_twice_gives_the_same_weights(place: Path, whole: Path):
    training = Training(place, *RUN, "name=again", log="again.log")
    assert training.wait() == 0
    assert_ended_as(place / "runs" / "again", whole)


@pytest.mark.parametrize("kills", [4, slow(12)])
def test_kills_at_random_moments_change_nothing(place: Path, whole: Path, kills: int):
    run = [*RUN, f"name=killed{kills}", "callbacks.save.every_n_steps=1"]
    run += ["+callbacks.slow._target_=slow_steps.SlowSteps", "+callbacks.slow.seconds=0.2"]  # time to write between two
    rng = np.random.default_rng(0)
    resumed = 0
    for number in range(kills):
        training = Training(place, *run, log=f"killed{kills}_{number}.log")
        if rng.random() < 0.25:
            time.sleep(0.5 * rng.random())  # in its set-up
        else:
            training.wait_for("step ")
            time.sleep(rng.random())
        assert training.process.is_alive(), training.said()
        training.kill()
        resumed += "Resumed at step" in training.said()
    assert resumed >= kills // 2
    training = Training(place, *run, log=f"killed{kills}.log")
    assert training.wait() == 0, training.said()
    assert "Resumed at step" in training.said()
    assert_ended_as(place / "runs" / f"killed{kills}", whole)


@pytest.mark.parametrize("at", [1, slow(3), 6, slow(7), slow(29), 30])  # 6 and 30 end an epoch
def test_a_signal_in_a_step_stops_after_it_and_loses_nothing(place: Path, whole: Path, at: int):
    name = f"stopped{at}"
    assert stop_in(place, name, at) == 143
    assert steps_saved(place / "runs" / name)[0] == at
    assert end(place, name) == 0
    assert_ended_as(place / "runs" / name, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, slow(signal.SIGUSR2), slow(signal.SIGHUP)])
def test_other_signals_stop_it_as_well_and_no_sample_is_lost_or_doubled(place: Path, whole: Path, number: int):
    name = f"signal{number}"
    record = place / name
    assert stop_in(place, name, 3, SIGNAL=str(int(number)), RECORD=str(record)) == 143
    assert steps_saved(place / "runs" / name)[0] == 3
    assert end(place, name, RECORD=str(record)) == 0
    assert_ended_as(place / "runs" / name, whole)
    assert samples_of(record) == samples_of(whole.parents[1] / "record")
    assert len(samples_of(record)) == STEPS


def stop_in(place: Path, name: str, step: int, **environment: str) -> int:
    """Runs until a signal comes in the middle of that step."""
    return Training(place, *RUN, f"name={name}", log=name, DISTURB=f"signal {step} 0", **environment).wait()


def end(place: Path, name: str, **environment: str) -> int:
    return Training(place, *RUN, f"name={name}", log=name, **environment).wait()


@pytest.mark.slow
def test_five_stops_in_one_epoch_change_nothing(place: Path, whole: Path):
    for at in (7, 8, 9, 10, 11):
        assert stop_in(place, "five", at) == 143
        assert steps_saved(place / "runs" / "five")[0] == at
    assert end(place, "five") == 0
    assert_ended_as(place / "runs" / "five", whole)


def test_a_killed_worker_ends_the_run_with_that_message(place: Path, whole: Path):
    run = [*RUN, "name=worker", "data.num_workers=1"]
    training = Training(place, *run, log="worker", DISTURB="kill_worker 9 0")
    assert training.wait() == 1
    assert "error: a process that loads data was killed (DataLoader worker" in training.said()
    assert Training(place, *run, log="worker").wait() == 0
    assert_ended_as(place / "runs" / "worker", whole)


@pytest.mark.parametrize(
    ("phase", "disturbance"),
    [
        *[("setup", "stuck_setup 0 0"), ("step", "stuck 3 0")],
        *[("evaluation", "stuck_evaluation 2 0"), ("checkpoint", "stuck_save 4 0"), ("checkpoint", "stuck_write 4 0")],
    ],
)
def test_whatever_is_stuck_ends_with_the_stacks_and_the_rank(place: Path, phase: str, disturbance: str):
    run = [*RUN, *(EVALUATED if phase == "evaluation" else []), f"name=stuck_{phase}", f"watchdog.{phase}=2"]
    training = Training(place, *run, log=f"stuck_{phase}", DISTURB=disturbance)
    assert training.wait() == 1
    assert f"rank 0 is stuck: its {phase} takes longer than watchdog.{phase}=2 seconds" in training.said()
    assert "disturbances.py" in training.said()


def test_a_signal_while_a_checkpoint_is_written_waits_for_it_and_saves_its_own_step(place: Path, whole: Path):
    training = Training(place, *RUN, "name=written", log="written", DISTURB="slow_write 4 0")
    training.wait_for("step 5/")
    os.kill(training.pid, signal.SIGTERM)
    assert training.wait() == 143, training.said()
    assert steps_saved(place / "runs" / "written") in ([5, 4], [6, 4])  # the epoch's end waits for the one before
    assert end(place, "written") == 0
    assert_ended_as(place / "runs" / "written", whole)


def nan_run(name: str) -> list[str]:
    return [*RUN, f"name={name}", "objective._target_=disturbances.NaN"]


def test_a_loss_that_is_not_finite_changes_nothing_but_the_count(place: Path):
    training = Training(place, *nan_run("nan"), log="nan", DISTURB="nan 5-7 0")
    assert training.wait() == 0, training.said()
    with (place / "runs" / "nan" / "metrics.csv").open() as file:
        skipped = [row["train/skipped"] for row in csv.DictReader(file)]
    assert skipped == ["0.0"] * 4 + ["1.0", "2.0"] + ["3.0"] * (STEPS - 6)
    content = read(newest_whole(place / "runs" / "nan" / "checkpoints").path)
    assert content["DataModule"]["step"] == STEPS
    assert content["optimizer_states"][0]["state"][0]["step"] == STEPS - 3
    assert all(tensor.isfinite().all() for tensor in content["state_dict"].values())
    assert int(content["state_dict"]["objective.head.1.num_batches_tracked"]) == 2 * (STEPS - 3)


def test_ten_such_steps_in_a_row_end_the_run_with_3_and_sound_checkpoints(place: Path):
    training = Training(place, *nan_run("ten"), log="ten", DISTURB="nan 5-15 0")
    assert training.wait() == 3
    assert "error: loss or gradient was not finite in 10 steps in a row, up to step 14" in training.said()
    content = read(newest_whole(place / "runs" / "ten" / "checkpoints").path)
    assert all(tensor.isfinite().all() for tensor in content["state_dict"].values())


def test_a_damaged_checkpoint_is_passed_over_with_a_line(place: Path, whole: Path):
    for name, damage in (("cut", lambda content: content[:-100]), ("flipped", flip)):
        assert stop_in(place, name, 14) == 143
        newest = place / "runs" / name / "checkpoints" / "step-000014.ckpt"
        newest.write_bytes(damage(newest.read_bytes()))
        training = Training(place, *RUN, f"name={name}", log=name)
        assert training.wait() == 0
        assert training.said().count(f"WARNING: checkpoint runs/{name}/checkpoints/step-000014.ckpt is damaged") == 1
        assert "Resumed at step 12 of 30." in training.said()
        assert_ended_as(place / "runs" / name, whole)


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_no_whole_checkpoint_is_an_error_and_not_a_new_run(place: Path):
    assert stop_in(place, "none", 5) == 143
    for path in (place / "runs" / "none" / "checkpoints").glob("step-*.ckpt"):
        path.write_bytes(b"")
    training = Training(place, *RUN, "name=none", log="none")
    assert training.wait() == 5
    assert "none of its 2 checkpoints is valid" in training.said()


def test_a_signal_in_an_evaluation_stops_there_and_it_is_made_again(place: Path, whole: Path):
    run = [*RUN, *EVALUATED]
    undisturbed = Training(place, *run, "name=evaluated", log="evaluated")
    assert undisturbed.wait() == 0, undisturbed.said()
    expected = evaluations(place / "runs" / "evaluated")
    assert [step for step, _ in expected] == ["12", "24", str(STEPS)]
    for step in (12, 24, STEPS):  # stopped in each evaluation in turn, the last one included
        training = Training(place, *run, "name=eval_cut", log="eval_cut", DISTURB="evaluation 2 0")
        assert training.wait() == 143, training.said()
        assert steps_saved(place / "runs" / "eval_cut")[0] == step
        if step < STEPS:  # let this one pass, to be stopped in the next
            training = Training(place, *run, "name=eval_cut", log="eval_cut", DISTURB=f"signal {step + 1} 0")
            assert training.wait() == 143, training.said()
    assert Training(place, *run, "name=eval_cut", log="eval_cut").wait() == 0
    assert evaluations(place / "runs" / "eval_cut") == expected
    assert_ended_as(place / "runs" / "eval_cut", whole)
    assert json.loads((place / "runs" / "eval_cut" / "result.json").read_text())["metrics"]["long"]["sum"] == float(
        expected[-1][1]
    )
    arrays = (place / "runs" / "eval_cut" / "arrays", place / "runs" / "evaluated" / "arrays")
    for name in ("views.npz", "similarity.npz"):
        with np.load(arrays[0] / name) as here, np.load(arrays[1] / name) as there:
            assert all(np.array_equal(here[key], there[key]) for key in there.files)


@pytest.mark.slow
def test_dropout_goes_on_with_its_random_states(place: Path):
    dropping = [*RUN, "+model.image_tower.arguments.proj_drop_rate=0.2"]
    assert Training(place, *dropping, "name=dropout", log="dropout").wait() == 0
    for at in (3, 6, 14):  # 6 ends an epoch
        stopped = Training(place, *dropping, "name=dropout_cut", log="dropout_cut", DISTURB=f"signal {at} 0")
        assert stopped.wait() == 143
    assert Training(place, *dropping, "name=dropout_cut", log="dropout_cut").wait() == 0
    assert_ended_as(place / "runs" / "dropout_cut", place / "runs" / "dropout")


def test_the_moving_average_goes_on_where_it_was(place: Path):
    averaging = [*RUN, "optim.ema_decay=0.9"]
    assert Training(place, *averaging, "name=average", log="average").wait() == 0
    stopped = Training(place, *averaging, "name=average_cut", log="average_cut", DISTURB="signal 9 0")
    assert stopped.wait() == 143
    assert Training(place, *averaging, "name=average_cut", log="average_cut").wait() == 0
    assert_ended_as(place / "runs" / "average_cut", place / "runs" / "average")
    state = read(newest_whole(place / "runs" / "average" / "checkpoints").path)["state_dict"]
    assert not torch.equal(state["averaged.text_projection"], state["model.text_projection"])


def test_a_resumed_run_keeps_its_wandb_id_and_logs_every_step_once(place: Path):
    run = [*RUN, "logger=wandb", "name=logged"]
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    assert Training(place, *run, log="logged", DISTURB="signal 5 0", **offline).wait() == 143
    assert Training(place, *run, log="logged", **offline).wait() == 0
    files = sorted((place / "runs" / "logged" / "wandb").glob("offline-run-*/run-*.wandb"))
    identifier = (place / "runs" / "logged" / "id.txt").read_text().strip()
    assert identifier.startswith("logged-")
    assert [file.name for file in files] == [f"run-{identifier}.wandb"] * 2
    steps = [[row["trainer/global_step"] for row in history(file) if "train/loss" in row] for file in files]
    assert steps == [list(range(1, 6)), list(range(6, STEPS + 1))]


@pytest.mark.slow
def test_thirty_kills_during_saves_with_tmpdir_elsewhere(place: Path, whole: Path):
    run = [*RUN, "name=saving", "callbacks.save.every_n_steps=1"]
    rng = np.random.default_rng(1)
    folder = place / "runs" / "saving"
    hits = ended = 0
    for number in range(60):  # some kills come too late: the save is over, or the run
        training = Training(place, *run, log=f"saving{number}", TMPDIR="/dev/shm")
        training.wait_for("step ")
        time.sleep(0.1 * rng.random())
        while training.process.is_alive() and not being_saved(folder, training.pid):
            pass
        training.kill()
        for step in being_saved(folder, training.pid):
            hits += 1
            assert step == 1 or read(newest_whole(folder / "checkpoints").path)["openslip"]["step"] >= step - 1
        if (folder / "result.json").exists():
            assert_ended_as(folder, whole)
            ended += 1
            folder.rename(place / "runs" / f"saving{ended}")
        if hits >= 30:
            break
    assert hits >= 30
    assert Training(place, *run, log="saving", TMPDIR="/dev/shm").wait() == 0
    assert_ended_as(folder, whole)


@pytest.mark.parametrize("kills", [4, slow(30)])
def test_kills_while_weights_change_and_their_copy_is_written_leave_a_whole_checkpoint(tmp_path: Path, kills: int):
    rng = np.random.default_rng(3)
    in_the_middle = last = 0
    begun = tmp_path / "begun"
    for _ in range(kills):
        begun.unlink(missing_ok=True)
        process = saving_for_ever(tmp_path)
        while not begun.exists() or begun.stat().st_size < last + 2:
            time.sleep(0.01)
        time.sleep(0.2 * rng.random())
        process.kill()
        process.join()
        in_the_middle += any(tmp_path.glob(f".*.{process.pid}.tmp"))
        checkpoint = newest_whole(tmp_path)
        assert checkpoint.step >= begun.stat().st_size - 1  # a byte for every save that was begun
        last, weights = checkpoint.step, read(checkpoint.path)["state_dict"]
        assert {float(weight) for tensor in weights.values() for weight in tensor.unique()} == {last}
    assert in_the_middle >= kills // 4


def being_saved(run_folder: Path, pid: int) -> list[int]:
    """Step of the checkpoint that this process writes, or was killed in."""
    return [int(path.name[6:12]) for path in (run_folder / "checkpoints").glob(f".step-*.{pid}.tmp")][:1]


@pytest.mark.slow
def test_two_hundred_interruptions_of_one_run(place: Path):
    run = [*RUN, "trainer.max_steps=2000", "callbacks.metrics.every_n_steps=1", "callbacks.save.every_n_steps=4"]
    undisturbed = Training(place, *run, "name=long", log="long")
    assert undisturbed.wait(600) == 0
    rng, name, reached = np.random.default_rng(2), "long_cut", 0
    counter = place / "steps_made"
    for number in range(200):
        kind = rng.choice(["kill", "signal"])
        training = Training(place, *run, f"name={name}", log=f"{name}{number}", STEPS_MADE=str(counter))
        training.wait_for("step" if number == 0 else "Resumed at step")
        time.sleep(0.3 * rng.random())
        if kind == "kill":
            training.kill()
        else:
            os.kill(training.pid, int(rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])))
            assert training.wait() == 143
        reached = max([reached, *steps_saved(place / "runs" / name)])
    assert 0 < reached < 2000
    assert Training(place, *run, f"name={name}", log=name, STEPS_MADE=str(counter)).wait(600) == 0
    assert weights_hash(place / "runs" / name) == weights_hash(place / "runs" / "long")
    assert figures(place / "runs" / name) == figures(place / "runs" / "long")
    assert 2000 / counter.stat().st_size >= 0.9


# Two ranks


@pytest.mark.parametrize("who", ["1", slow("0"), slow("all")])
def test_a_signal_to_some_ranks_stops_all_after_the_same_step(place: Path, whole_of_two: Path, who: str):
    run = [*RUN, f"name=two{who}"]
    ranks = two_ranks(place, *run, log=f"two{who}-", DISTURB=f"signal 8 {who}")
    assert [rank.wait() for rank in ranks] == [143, 143]
    left = time.monotonic()
    sent = [float(found) for rank in ranks for found in re.findall(r"signal at (\S+)", rank.said())]
    assert len(sent) == (2 if who == "all" else 1)
    assert left - min(sent) < 10
    assert steps_saved(place / "runs" / f"two{who}")[0] == 8
    for rank in two_ranks(place, *run, log=f"two{who}-"):
        assert rank.wait() == 0, rank.said()
    assert_ended_as(place / "runs" / f"two{who}", whole_of_two)


def test_one_two_one_ranks_train_on_the_same_samples_to_the_weights_of_one(place: Path):
    exact = [*RUN, "objective._target_=disturbances.Float64"]
    alone, record = place / "alone_record", place / "elastic_record"
    assert Training(place, *exact, "name=alone", log="alone", RECORD=str(alone)).wait() == 0
    run, log = [*exact, "name=elastic"], {"log": "elastic", "RECORD": str(record)}
    assert Training(place, *run, DISTURB="signal 8 0", **log).wait() == 143
    ranks = two_ranks(place, *run, DISTURB="signal 20 1", **log)
    assert [rank.wait() for rank in ranks] == [143, 143]
    assert Training(place, *run, **log).wait() == 0
    assert samples_of(record) == samples_of(alone)
    assert list(samples_of(record)) == list(range(1, STEPS + 1))
    here, there = (newest(place / "runs" / name)["state_dict"] for name in ("elastic", "alone"))
    for key, weight in there.items():
        assert weight.dtype in (torch.float64, torch.int64)
        assert (here[key] - weight).abs().max() <= 1e-6, key


def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_on_both(place: Path):
    record = place / "nan2_record"
    for rank in two_ranks(place, *nan_run("nan2"), log="nan2-", DISTURB="nan 5 1", RECORD=str(record)):
        assert rank.wait() == 0, rank.said()
    weights = weights_of(record, 0)
    assert weights_of(record, 1) == weights
    assert weights[5] == weights[4]
    assert len(set(weights.values())) == len(weights) - 1 == STEPS - 1
    content = read(newest_whole(place / "runs" / "nan2" / "checkpoints").path)
    assert int(content["callbacks"]["Finite"]["skipped"]) == 1
    assert content["optimizer_states"][0]["state"][0]["step"] == STEPS - 1
    rows = figures(place / "runs" / "nan2")
    assert [step for step, _, loss in rows if loss == "nan"] == ["5"]


@pytest.mark.parametrize("ranks", [slow(1), 2])
def test_a_writer_that_ends_stops_all_ranks_with_5_after_the_next_steps(
    place: Path, request: pytest.FixtureRequest, ranks: int
):
    run, made = [*RUN, f"name=writer{ranks}"], place / f"steps_of_writer{ranks}"
    slow = ["+callbacks.slow._target_=slow_steps.SlowSteps", "+callbacks.slow.seconds=0.2"]

    def start(*words: str, **environment: str) -> list[Training]:
        if ranks == 2:
            return two_ranks(place, *run, *words, log="writer2-", **environment)
        return [Training(place, *run, *words, log="writer1-0", **environment)]

    started = start(*slow, DISTURB="end_writer 8 0", STEPS_MADE=str(made))
    assert [rank.wait() for rank in started] == [5] * ranks
    for rank in started:
        assert "step-000008.ckpt could not be written (SystemExit" in rank.said()
    assert newest(place / "runs" / f"writer{ranks}")["openslip"]["step"] == 6
    assert made.stat().st_size <= 10 * ranks  # the next save is that of step 12
    for rank in start():
        assert rank.wait() == 0, rank.said()
    assert_ended_as(
        place / "runs" / f"writer{ranks}", request.getfixturevalue("whole" if ranks == 1 else "whole_of_two")
    )


def test_saves_by_time_change_nothing_and_are_those_of_all_ranks(place: Path, whole_of_two: Path):
    run = [*RUN, "name=timed", "callbacks.save.every_n_steps=null", "callbacks.save.every_n_epochs=null"]
    slow = ["+callbacks.slow._target_=slow_steps.SlowSteps", "+callbacks.slow.seconds=0.1"]
    timed = [*run, *slow, "callbacks.save.every_minutes=0.005"]
    for rank in two_ranks(place, *timed, log="timed-", DISTURB="kill 20 1"):
        assert rank.wait() in (-signal.SIGKILL, 137)
    assert 1 < steps_saved(place / "runs" / "timed")[0] < 20
    for rank in two_ranks(place, *timed, log="timed-"):
        assert rank.wait() == 0, rank.said()
    assert_ended_as(place / "runs" / "timed", whole_of_two)


def test_ranks_wait_for_one_that_saves_for_longer_than_their_process_group_would(place: Path, whole_of_two: Path):
    patience = ["+trainer.strategy.timeout._target_=datetime.timedelta", "+trainer.strategy.timeout.seconds=1"]
    for rank in two_ranks(place, *RUN, *patience, "name=patient", log="patient-", DISTURB="slow_save 8 0"):
        assert rank.wait() == 0, rank.said()
    assert_ended_as(place / "runs" / "patient", whole_of_two)


def test_a_rank_that_is_stuck_is_named(place: Path):
    ranks = two_ranks(place, *RUN, "name=stuck2", "watchdog.step=3", log="stuck2-", DISTURB="stuck 4 1")
    assert [rank.wait() for rank in ranks] == [1, 1]
    assert "rank 1 is stuck" in ranks[1].said()
    assert ranks[0].said().splitlines()[-1].startswith("error: rank 1: stuck") or "rank 0 is stuck" in ranks[0].said()
    assert "on_train_batch_start" in ranks[1].said()


def test_a_signal_to_one_rank_in_an_evaluation_stops_both_there(place: Path, whole_of_two: Path):
    run = [*RUN, *EVALUATED, "name=eval2"]
    ranks = two_ranks(place, *run, log="eval2-", DISTURB="evaluation 2 1")
    assert [rank.wait() for rank in ranks] == [143, 143]
    assert steps_saved(place / "runs" / "eval2")[0] == 12
    assert evaluations(place / "runs" / "eval2") == []
    for rank in two_ranks(place, *run, log="eval2-"):
        assert rank.wait() == 0, rank.said()
    assert [step for step, _ in evaluations(place / "runs" / "eval2")] == ["12", "24", str(STEPS)]
    assert len({figure for _, figure in evaluations(place / "runs" / "eval2")}) == 1
    assert_ended_as(place / "runs" / "eval2", whole_of_two)


def test_a_killed_worker_of_one_rank_ends_both_and_nothing_is_lost(place: Path, whole_of_two: Path):
    run = [*RUN, "name=worker2", "data.num_workers=1"]
    ranks = two_ranks(place, *run, log="worker2-", DISTURB="kill_worker 9 1")
    assert [rank.wait() for rank in ranks] == [1, 1]
    for rank in ranks:
        assert "error: rank 1: a process that loads data was killed (DataLoader worker" in rank.said()
    for rank in two_ranks(place, *run, log="worker2-"):
        assert rank.wait() == 0, rank.said()
    assert "Resumed at step 8 of 30." in ranks[0].said()
    assert_ended_as(place / "runs" / "worker2", whole_of_two)


# SLURM's scheduler, played by a script


@pytest.mark.parametrize(
    ("number", "preempted"),
    [(signal.SIGUSR1, "None"), (signal.SIGUSR2, "None"), (signal.SIGTERM, "2026-11-24T14:03:21")],
)
def test_a_job_whose_time_ends_is_requeued_once_after_the_save(
    place: Path, tmp_path: Path, number: int, preempted: str
):
    calls, checkpoints = tmp_path / "calls", place / "runs" / tmp_path.name / "checkpoints"
    answer = f"JobId=77 JobState=RUNNING Requeue=1 PreemptTime={preempted}"
    fake = tmp_path / "scontrol"
    fake.write_text(f'#!/bin/sh\necho "$@" $(ls {checkpoints}) >> {calls}\necho "{answer}"\n')
    fake.chmod(0o755)
    environment = {
        **{"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "bash"},
        **{"SIGNAL": str(int(number))},
    }
    assert stop_in(place, tmp_path.name, 5, **environment) == 143
    said = calls.read_text().splitlines()
    assert [line.split()[:2] for line in said] == [["show", "job"], ["requeue", "77"]]
    assert all("step-000005.ckpt step-000005.json" in line for line in said)


@pytest.mark.parametrize(
    ("number", "answer"),
    [
        (signal.SIGTERM, "JobState=RUNNING Requeue=1 PreemptTime=None"),
        (signal.SIGUSR1, "JobState=CANCELLED Requeue=1 PreemptTime=None"),
        (signal.SIGUSR1, "JobState=RUNNING Requeue=0 PreemptTime=None"),
    ],
)
def test_a_job_that_was_cancelled_or_may_not_be_requeued_is_not(place: Path, tmp_path: Path, number: int, answer: str):
    fake = tmp_path / "scontrol"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\necho "JobId=77 {answer}"\n')
    fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "bash"}
    assert stop_in(place, tmp_path.name, 5, SIGNAL=str(int(number)), **environment) == 143
    assert (tmp_path / "calls").read_text() == "show job 77\n"
