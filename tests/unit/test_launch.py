"""Which ranks a launcher has started, by what it leaves in the environment."""

import pytest

from openslip.run.launch import Place, launched

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
