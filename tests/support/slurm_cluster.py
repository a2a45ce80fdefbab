"""A real SLURM of one node for the tests: munged, slurmctld and slurmd of the distribution's packages, any user.

Its keys, states and logs lie in one folder, and its ports are its own, so several run side by side. No cgroups, no
database, no systemd.
"""

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "setpriv")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
CPUS = 8  # declared, whatever the machine has
GPUS = 2  # pretended: no device is behind them

CONFIG = """
ClusterName=tests
SlurmctldHost={host}({address})
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits before it starts again; 5 is the least
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
# Lightning's port is made of the job's number: two clusters on a machine must not count alike
FirstJobId={first_job}
MinJobAge=3600
KillWait=10
InactiveLimit=0
ReturnToService=2
JobRequeue=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
# believes what is declared, not the hardware
SlurmdParameters=config_overrides
NodeName={host} NodeHostname={host} NodeAddr={address} CPUs={cpus} RealMemory=65536 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=60 DefaultTime=10 State=UP PriorityTier=1 GraceTime=60
PartitionName=high Nodes={host} MaxTime=60 DefaultTime=10 State=UP PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str | None:
    """What keeps this machine from running the tests, as one line."""
    if missing := [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]:
        return f"SLURM is not here ({', '.join(missing)} missing): apt-get install slurm-wlm brings it"
    try:
        socket.gethostbyname(short_name())
    except OSError:
        return f"the host name {short_name()} does not resolve, which SLURM needs: add it to /etc/hosts"
    return None


def short_name() -> str:
    return socket.gethostname().partition(".")[0]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def wait_until(condition: Callable[[], bool], seconds: float, explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.2)


class Cluster:
    """Started by `with`; whatever becomes of the tests, the daemons end with the process that started them.

    Args:
        folder: new or empty, and of a short name: unix sockets lie in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: list[subprocess.Popen] = []
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
        self.environment |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{PATH}",
            "SLURM_CONF": str(folder / "slurm.conf"),
            "MASTER_ADDR": "127.0.0.1",
            "PYTHONPATH": os.pathsep.join(
                [f"{ROOT}/src", f"{ROOT}/tests/support", *os.environ.get("PYTHONPATH", "").split()]
            ),
        }

    def __enter__(self) -> "Cluster":
        self.configure()
        try:
            self.start("munged", "--foreground", "--num-threads=2", *self.munge_files())
            wait_until((self.folder / "munge.socket").exists, 20, self.logs)
            self.start("slurmctld", "-D", "-c")
            wait_until(lambda: self.run("scontrol", "ping", check=False).returncode == 0, 20, self.logs)
            self.start("slurmd", "-D")
            wait_until(lambda: self.run("sinfo", "-h", "-o", "%T").stdout.strip() == "idle", 20, self.logs)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Jobs first: their processes outlive a daemon."""
        if len(self.daemons) == 3:
            self.run("scancel", f"--user={os.getuid()}", check=False)
            wait_until(lambda: not self.run("squeue", "-h", check=False).stdout, 30, self.logs)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def configure(self) -> None:
        host = short_name()
        self.folder.chmod(0o755)  # munge wants its socket reachable, and its folder not writable by others
        for name in ("state", "spool", "dev"):
            (self.folder / name).mkdir()
        (self.folder / "munge.key").write_bytes(random.randbytes(128))
        (self.folder / "munge.key").chmod(0o400)
        # A GPU without a file is dropped, and only a character device sets CUDA_VISIBLE_DEVICES.
        for number in range(GPUS):
            (self.folder / "dev" / f"nvidia{number}").symlink_to("/dev/null")
        devices = f"{self.folder}/dev/nvidia[0-{GPUS - 1}]"
        (self.folder / "gres.conf").write_text(
            f"AutoDetect=off\nNodeName={host} Name=gpu Flags=nvidia_gpu_env File={devices}\n"
        )
        version = re.search(r"(\d+)\.(\d+)", self.run("slurmctld", "-V").stdout)
        assert version is not None
        if (int(version[1]), int(version[2])) >= (23, 11):  # it looks for systemd unless told not to
            (self.folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(
                host=host,
                address=socket.gethostbyname(host),
                controller_port=free_port(),
                node_port=free_port(),
                user=self.run("id", "-un").stdout.strip(),
                folder=self.folder,
                first_job=random.randrange(1000, 9000),
                cpus=CPUS,
                gpus=GPUS,
            )
        )

    def munge_files(self) -> list[str]:
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        return [f"--{option}={self.folder}/munge.{suffix}" for option, suffix in files.items()]

    def start(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("w") as output:
            self.daemons.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "TERM", *command],
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C is for the tests, which end them in order
                )
            )

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=300)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def logs(self) -> str:
        return "\n".join(
            f"{path.name}: {path.read_text(errors='replace')[-2000:]}"
            for path in sorted(self.folder.glob("*.*"))
            if path.suffix in (".log", ".out")
        )

    def submit(self, folder: Path, *command: str) -> "Job":
        """`sbatch` with these arguments, what the job says in `folder`."""
        output = "job-%A_%a.out" if any(word.startswith("--array") for word in command) else "job-%j.out"
        done = self.run("sbatch", "--parsable", f"--chdir={ROOT}", f"--output={folder}/{output}", *command)
        return Job(self, int(done.stdout.split(";")[0]), folder)


class Job:
    """One submitted job; an array is one as well."""

    def __init__(self, cluster: Cluster, number: int, folder: Path) -> None:
        self.cluster = cluster
        self.number = number
        self.folder = folder

    def said(self) -> str:
        """What all its parts have printed."""
        return "\n".join(
            path.read_text(errors="replace") for path in sorted(self.folder.glob(f"job-{self.number}*.out"))
        )

    def shown(self, field: str) -> str:
        """A field of `scontrol show job`; of an array, the values of its parts."""
        text = self.cluster.run("scontrol", "-o", "show", "job", str(self.number)).stdout
        return " ".join(re.findall(rf"\b{field}=(\S+)", text))

    def signal(self, name: str) -> None:
        """To the processes of its steps; SLURM may answer that it was too late though it was not."""
        self.cluster.run("scancel", f"--signal={name}", str(self.number), check=False)

    def wait_for(self, words: str, seconds: float = 120, times: int = 1) -> None:
        wait_until(lambda: self.said().count(words) >= times, seconds, self.state)

    def wait(self, seconds: float = 180) -> str:
        """Its state when it has left the queue, e.g. COMPLETED."""
        queue = ("squeue", "-h", "-j", str(self.number))
        wait_until(lambda: not self.cluster.run(*queue, check=False).stdout, seconds, self.state)
        return self.shown("JobState")

    def state(self) -> str:
        return f"{self.shown('JobState')}\n{self.said()}\n{self.cluster.logs()}"
