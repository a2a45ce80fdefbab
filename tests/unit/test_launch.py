"""Which ranks a launcher has started, by what it leaves in the environment."""

import pytest
import torch

from openslip.run.launch import Place, launched, launched_ranks

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}
SRUN = {
    **{"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "123456"},
    **{"SLURM_STEP_ID": "3", "SLURM_STEP_NODELIST": "gpu[05-06]"},
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({**TORCHRUN, "WORLD_SIZE": "1"}, None),
        (TORCHRUN, Place(3, 4, 1, "node7:29500")),
        (SRUN, Place(2, 4, 0, "gpu05:18459")),
        ({**SRUN, "MASTER_ADDR": "other", "MASTER_PORT": "7"}, Place(2, 4, 0, "other:7")),
        ({**SRUN, **TORCHRUN}, Place(3, 4, 1, "node7:29500")),  # `srun torchrun`
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_JOB_ID": "5", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # a batch script without srun
    ],
)
def test_the_place_is_that_of_torchrun_or_srun(
    environment: dict[str, str], expected: Place | None, monkeypatch: pytest.MonkeyPatch
):
    for key in (*TORCHRUN, *SRUN):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert launched() == expected


def test_each_local_rank_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch):
    class EndError(Exception):
        """Ends the start where the ranks would connect."""

    def end(*_: object, **__: object) -> None:
        raise EndError

    chosen: list[int] = []
    for name, function in {
        "is_available": lambda: True,
        "device_count": lambda: 4,
        "set_device": chosen.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(torch.distributed, "init_process_group", end)
    for key, value in TORCHRUN.items():
        monkeypatch.setenv(key, value)
    for local_rank in "130":
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        with pytest.raises(EndError), launched_ranks("auto"):
            pass
    assert chosen == [1, 3, 0]
