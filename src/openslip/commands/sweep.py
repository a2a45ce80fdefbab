"""Train each combination of settings: openslip sweep model=clip_tiny,slip_tiny seed=0,1 hydra/launcher=submitit_slurm.

This is Hydra's multirun, so that Hydra's sweepers and launchers can be used. Each job runs `openslip train` with the
settings of its combination in a separate process, because the ranks that Lightning starts repeat the command of their
process.
"""

import signal
import subprocess
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException

from openslip import signals
from openslip.config.folder import config_folder
from openslip.config.words import readable, refuse_replacing, split_words


def main(arguments: list[str]) -> None:
    """Run Hydra's multirun with the words of the command line."""
    # Multirun is requested here and not in the config, where Hydra would blame it for errors in other settings.
    folders, settings, options = split_words(arguments)
    words = [readable(word, folders, sweep=True) for word in settings]
    refuse_replacing(words)
    sys.argv = ["openslip sweep", "--multirun", *options, *(f"--config-dir={folder}" for folder in folders), *words]
    combination()


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="sweep")
def combination(config: object) -> None:
    """Train one combination; `config` is not used, because `openslip train` composes the config itself."""
    job = HydraConfig.get()
    folders = [source.path for source in job.runtime.config_sources if source.provider == "command-line"]
    command = [sys.executable, "-m", "openslip", "train", *job.overrides.task]
    code = run([*command, *(f"--config-dir={folder}" for folder in folders)])
    if code == signals.EXIT_CODE or -code in signals.STOPPING:
        sys.exit(signals.EXIT_CODE)  # a signal to a run stops the sweep
    if code:
        raise CompactHydraException(f"the run ended with exit code {code}; its output says why")


def run(command: list[str]) -> int:
    """Run a command and return its exit code; pass signals on to it, so that it saves before it ends."""
    process = subprocess.Popen(command)
    handlers = {
        number: signal.signal(number, lambda received, _: process.send_signal(received))
        for number in signals.stopping()
    }
    code = process.wait()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return code
