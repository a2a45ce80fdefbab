"""`python -m openslip.sweep model=clip_tiny,slip_tiny seed=0,1 hydra/launcher=submitit_slurm`: one run per combination.

Hydra's own multirun, so that its sweepers and launchers work as they are; each of its jobs is `openslip train` with the
settings of its combination.
"""

import sys

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from openslip import signals
from openslip.config import config_folder
from openslip.train import main as train


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="sweep")
def main(config: DictConfig) -> None:
    """Trains one combination; `config` is not used, because the run composes its own as on the command line."""
    job = HydraConfig.get()
    folders = [source.path for source in job.runtime.config_sources if source.provider == "command-line"]
    GlobalHydra.instance().clear()
    signals.catch()  # instead of the launcher's handlers: they would end the run before it has saved
    train([*job.overrides.task, *(f"--config-dir={folder}" for folder in folders)])


if __name__ == "__main__":
    sys.argv.insert(1, "--multirun")  # told by the config, a mistake in another setting is reported as the lack of it
    main()
