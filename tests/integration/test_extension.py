"""A run whose length is raised resumes where it was, finished or not."""

import json
import signal
from pathlib import Path

import pytest
from marks import slow
from shard_files import write_pairs
from trainings import EVALUATED, SMALL, STEPS, Training, assert_ended_as, two_ranks

CONSTANT = ["optim.lr=1e-3", "optim.schedule.lr_end=1e-3"]  # so that its length does not change the learning rate
RUN = [*SMALL, *CONSTANT, "data.source.shards=0.tar", "callbacks.save.every_n_steps=4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_pairs(folder / "0.tar", 100)
    return folder


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    training = Training(place, *RUN, f"trainer.max_steps={STEPS}", "name=whole", log="whole")
    assert training.wait() == 0, training.said()
    return place / "runs" / "whole"


def train(place: Path, name: str, *arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and what it said."""
    log = place / f"{name}-log"
    log.unlink(missing_ok=True)
    training = Training(place, *RUN, f"name={name}", *arguments, log=log.name, **environment)
    return training.wait(), training.said()


@pytest.mark.parametrize(
    ("name", "former", "length"),
    [("steps", "trainer.max_steps=12", f"trainer.max_steps={STEPS}"), slow("epochs", "max_epochs=2", "max_epochs=5")],
)
def test_a_finished_run_is_extended_to_the_weights_of_the_longer_run(
    place: Path, whole: Path, name: str, former: str, length: str
):
    epochs = ["trainer.max_steps=null"] if name == "epochs" else []
    former, length = (word if word.startswith("trainer.") else f"trainer.{word}" for word in (former, length))
    run = place / "runs" / name
    assert train(place, name, *epochs, former)[0] == 0
    code, said = train(place, name, *epochs, length)
    assert code == 0, said
    assert f"extends runs/{name} from 12 to {STEPS} steps; the longer schedule applies from step 12" in said
    assert_ended_as(run, whole)
    assert json.loads((run / "result.json").read_text())["step"] == STEPS
    assert json.loads((run / "result-000012.json").read_text())["step"] == 12
    code, said = train(place, name, *epochs, length)
    assert code == 0
    assert f"runs/{name} is finished" in said


@pytest.mark.parametrize(("step", "number"), [slow(8, signal.SIGTERM), (11, signal.SIGKILL)])
def test_an_unfinished_run_is_extended_with_an_evaluation_that_it_did_not_have(
    place: Path, whole: Path, step: int, number: signal.Signals
):
    name = number.name
    stop = {"DISTURB": f"signal {step} 0", "SIGNAL": str(int(number))}
    assert train(place, name, "trainer.max_steps=12", **stop)[0] != 0
    checkpoints = place / "runs" / name / "checkpoints"
    (checkpoints / "step-000009.json").write_text("{}")
    code, said = train(place, name, f"trainer.max_steps={STEPS}", *EVALUATED)
    assert code == 0, said
    assert said.count("step-000009.ckpt is damaged") == 1
    assert f"extends runs/{name} from 12 to {STEPS} steps; the longer schedule applies from step 8" in said
    assert_ended_as(place / "runs" / name, whole)


def test_an_extension_that_is_killed_is_resumed(place: Path, whole: Path):
    assert train(place, "killed", "trainer.max_steps=12")[0] == 0
    assert (
        train(place, "killed", f"trainer.max_steps={STEPS}", DISTURB="signal 14 0", SIGNAL=str(int(signal.SIGKILL)))[0]
        != 0
    )
    assert not (place / "runs" / "killed" / "result.json").exists()
    code, said = train(place, "killed", f"trainer.max_steps={STEPS}")
    assert code == 0, said
    assert "extends" not in said
    assert_ended_as(place / "runs" / "killed", whole)


def test_two_ranks_extend_a_run_together(place: Path):
    for ranks_length in (12, STEPS):
        for rank in two_ranks(place, *RUN, "name=two", f"trainer.max_steps={ranks_length}", log=f"two{ranks_length}-"):
            assert rank.wait() == 0, rank.said()
    assert json.loads((place / "runs" / "two" / "result.json").read_text())["step"] == STEPS


def test_a_shorter_length_is_refused_in_one_line(place: Path, whole: Path):
    code, said = train(place, "whole", "trainer.max_steps=20")
    assert code == 1
    assert said == (
        f"error: the run runs/whole has trainer.max_steps={STEPS}, and trainer.max_steps=20 is shorter: "
        f"give {STEPS} or more, or another name=\n"
    )
    assert (whole / "result.json").exists()
