"""A real SLURM cluster of four nodes on this machine.

Everything the lab starts lives in one PID namespace, so ending its first process ends daemons, jobs and ranks alike,
also those that detached themselves, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from lambda_hat.store.files import undone_on_error
from tests.users import USERS_PYTHON

T = TypeVar("T")

NODES = ("n1", "n2", "n3", "n4")
DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "srun", "squeue", "scancel", "sinfo", "scontrol")
# Daemons live in sbin, which an ordinary PATH lacks.
SEARCH_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"

CONFIG = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={lab}/munge/munge.sock
CredType=cred/munge
StateSaveLocation={lab}/state
SlurmdSpoolDir={lab}/spool/%n
SlurmctldPidFile={lab}/run/slurmctld.pid
SlurmdPidFile={lab}/run/slurmd.%n.pid
SlurmctldLogFile={lab}/log/slurmctld.log
SlurmdLogFile={lab}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
TmpFS={lab}/tmp/%n
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
# A plain srun starts one world of PyPI's mpich.
MpiDefault=pmi2
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# Nodes claim four cores each, whatever this machine has.
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
InactiveLimit=0
MinJobAge=300
SlurmctldTimeout=30
SlurmdTimeout=30
Waittime=0
# What a partition does not admit is refused by sbatch instead of pending for ever.
EnforcePartLimits=ALL
{nodes}
PartitionName=debug Nodes=n[1-4] Default=YES MaxTime=01:00:00 State=UP
PartitionName=builds Nodes=n[1-4] MaxTime=01:00:00 State=UP
PartitionName=closed Nodes=n[1-4] MaxTime=01:00:00 State=UP AllowAccounts=physics
"""

# First process of the namespace: it starts the daemons and, by waiting, reaps what detached itself.
SUPERVISOR = """\
lab=$1
munged --foreground --key-file="$lab/munge/munge.key" --socket="$lab/munge/munge.sock" \\
  --pid-file="$lab/run/munged.pid" --log-file="$lab/log/munged.log" --seed-file="$lab/munge/munged.seed" &
for _ in $(seq 200); do [ -S "$lab/munge/munge.sock" ] && break; sleep 0.02; done
slurmctld -D -c &
for node in n1 n2 n3 n4; do
  unshare --uts --mount \\
    sh -c 'mount --bind "$0/hosts" /etc/hosts && hostname "$1" && exec slurmd -D -N "$1"' "$lab" "$node" &
done
wait
"""


class LabError(RuntimeError):
    """The lab did not come up; the message holds the ends of its logs."""


class Job(NamedTuple):
    """One line of `squeue`."""

    id: int
    name: str
    state: str
    partition: str
    nodes: str
    reason: str


def missing_binaries() -> list[str]:
    """The programs of the packages slurm-wlm and munge that this machine lacks."""
    return [name for name in (*DAEMONS, *CLIENTS) if shutil.which(name, path=SEARCH_PATH) is None]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class SlurmLab:
    """A context in which `sbatch`, `srun`, `squeue` and `scancel` talk to a real SLURM with the nodes n1 to n4.

    Facts, tried on SLURM 22.05.8 (Debian 12) as root:

    - Each node says its own name to `hostname`, claims 4 cores and 4000 MB, has no GPU, and sees this machine's files.
    - Partitions `debug` (the default) and `builds` hold all four nodes, with MaxTime 1 h. `closed` admits nobody: it
      asks for an account, and without an accounting database every account is unknown.
    - What a partition does not admit is refused by `sbatch`, with exit status 1.
    - `MpiDefault=pmi2`: a plain `srun` makes one world of PyPI's mpich; `srun --mpi=none` makes singletons.
    - There is no accounting database: `sacct` fails.
    - A time limit is a whole number of minutes and fires up to 30 s late: `expire` hastens it. TERM comes first, KILL
      after 5 s (`KillWait`).
    - `mpiexec -hosts n2,n1` puts rank 0 on n1: Hydra starts through srun, which has an order of its own.
    - Process ids seen in a job are those of the lab's PID namespace, not those seen from outside.

    Parameters
    ----------
    folder: scratch folder of the lab, short and without spaces (munge's socket name has at most 107 bytes); by default
        a new one under /tmp, which goes at the end.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._own_folder = folder is None
        self.folder = Path(folder or tempfile.mkdtemp(prefix="slab-", dir="/tmp"))
        self.host = socket.gethostname().split(".")[0]
        self._process: subprocess.Popen[bytes] | None = None
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN", "PMI", "PBS_"))}
        bin_folder = str(Path(USERS_PYTHON).parent)
        self.env: dict[str, str] = {
            **clean,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{bin_folder}:{SEARCH_PATH}",
        }

    def __enter__(self) -> SlurmLab:
        with undone_on_error(self.stop):
            self._write_files()
            self._start()
            self._wait_until_idle(timeout=30)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            self.cancel_all()
        self.stop()

    def _write_files(self) -> None:
        per_node = [f"{kind}/{node}" for kind in ("spool", "tmp") for node in NODES]
        for name in ("munge", "state", "run", "log", *per_node):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # munged refuses a folder that others may write, srun must enter it
        key = self.folder / "munge/munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        ports = _free_ports(1 + len(NODES))
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={self.host} NodeAddr=127.0.0.1 Port={port} Boards=1 SocketsPerBoard=1 "
            "CoresPerSocket=4 ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN"
            for node, port in zip(NODES, ports[1:], strict=True)
        )
        config = CONFIG.format(host=self.host, ports=ports, lab=self.folder, nodes=nodes)
        (self.folder / "slurm.conf").write_text(config)
        names = "".join(f"127.0.0.1 {name}\n" for name in (*NODES, self.host))
        (self.folder / "hosts").write_text(Path("/etc/hosts").read_text() + names)

    def _start(self) -> None:
        # The chain of death signals: this process, unshare, the namespace. A killed test run leaves no cluster behind.
        words = "setpriv --pdeathsig KILL unshare --pid --fork --kill-child --mount --mount-proc".split()
        with (self.folder / "log/supervisor.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*words, "bash", "-c", SUPERVISOR, "supervisor", str(self.folder)],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_until_idle(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        states = ""
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            # Without a controller the client would retry for long: it is asked once it listens.
            if (self.folder / "run/slurmctld.pid").exists():
                sinfo = self.run("sinfo", "-h", "-N", "-p", "debug", "-o", "%T", check=False)
                states = sinfo.stdout + sinfo.stderr
                if states.split() == ["idle"] * len(NODES):
                    return
            time.sleep(0.05)
        logs = sorted((self.folder / "log").glob("*.log"))
        ends = "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs)
        raise LabError(f"SLURM did not show {len(NODES)} idle nodes within {timeout:g} s, but {states!r}\n{ends}")

    def stop(self) -> None:
        """End the namespace, and with it every process of the lab; remove the folder if the lab made it."""
        if self._process is not None:
            # When its child dies, the kernel reaps the whole namespace before unshare ends.
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
            with contextlib.suppress(OSError):
                for child in children.read_text().split():
                    os.kill(int(child), signal.SIGKILL)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._process.wait(timeout=10)
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def run(
        self, *words: str | os.PathLike[str], check: bool = True, cwd: Path | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the lab's environment, on this machine as on a login node, and return its output as text."""
        ended = subprocess.run(
            [os.fspath(word) for word in words],
            env=self.env,
            cwd=cwd or self.folder,
            timeout=timeout,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        if check and ended.returncode:
            raise LabError(f"{ended.args} ended with {ended.returncode}: {ended.stderr}{ended.stdout}")
        return ended

    def submit(self, *words: str | os.PathLike[str], cwd: Path | None = None) -> int:
        """`sbatch --parsable WORDS`; returns the job's id."""
        return int(self.run("sbatch", "--parsable", *words, cwd=cwd).stdout.split(";")[0])

    def jobs(self, finished: bool = False) -> list[Job]:
        """The queue, pending and running; with `finished` also what ended in the last 5 minutes."""
        which = ["--states=all"] if finished else []
        lines = self.run("squeue", "-h", "-a", "-o", "%A|%j|%T|%P|%N|%r", *which).stdout.splitlines()
        return [Job(int(number), *rest) for number, *rest in (line.split("|") for line in lines)]

    def job(self, number: int) -> dict[str, str]:
        """All that `scontrol show job` says, e.g. JobState, ExitCode, Partition, NodeList, Command."""
        words = self.run("scontrol", "-o", "show", "job", str(number)).stdout.split()
        return {key: value for key, found, value in (word.partition("=") for word in words) if found}

    def wait(self, number: int, timeout: float = 60) -> str:
        """Wait until a job has left the queue; returns its state, e.g. COMPLETED, FAILED, CANCELLED, TIMEOUT."""
        self.wait_for(lambda: number not in {job.id for job in self.jobs()}, timeout)
        return self.job(number)["JobState"]

    def wait_for(self, condition: Callable[[], T], timeout: float = 60) -> T:
        """Poll until `condition()` is true; returns its value, or raises LabError with the queue."""
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise LabError(f"waited {timeout:g} s in vain; the queue: {self.jobs(finished=True)}")
            time.sleep(0.1)
        return value

    def expire(self, number: int) -> None:
        """Move the end of a running job to now; SLURM looks at time limits every 30 s and then ends it as TIMEOUT."""
        # scontrol reads "now" in whole seconds; slurmctld refuses it as past if the second changes between them.
        self.run("scontrol", "update", f"JobId={number}", "EndTime=now+2seconds")

    def cancel_all(self, timeout: float = 15) -> None:
        """Cancel every job and wait until the queue is empty."""
        if numbers := [str(job.id) for job in self.jobs()]:
            self.run("scancel", *numbers, check=False)
            self.wait_for(lambda: not self.jobs(), timeout)
