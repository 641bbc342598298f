"""A PBS that is made of files and one small server process, with `qsub`, `qstat` and `qdel` for the PATH."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lambda_hat.store.files import undone_on_error
from tests.cluster import pbs_server
from tests.users import USERS_PYTHON

T = TypeVar("T")
PROGRAMS = Path(__file__).parent


# What Hydra calls: ssh -x HOST COMMAND. As with a real sshd, the command has a session of its own.
FAKE_SSH = """\
while case $1 in -*) true ;; *) false ;; esac; do shift; done
host=$1
shift
case " {nodes} " in
  *" $host "*) ;;
  *) echo "ssh: Could not resolve hostname $host: Name or service not known" >&2; exit 255 ;;
esac
cd "$HOME" && exec setsid --wait {remote}"""
NAMED = """unshare --uts sh -c 'hostname "$0" && exec sh -c "$1"' "$host" "$*\""""

# /opt/pbs/bin/mpiexec of a server without HPE's MPT.
MPT_WRAPPER = """\
[ "$1" != --version ] || { echo 'pbs_version = 23.06.06'; exit 0; }
echo 'mpiexec: no MPT here' >&2
exit 1"""


class PbsError(RuntimeError):
    """The fake did not start, or what was waited for did not come."""


class FakePbs:
    """A context in which PBS's commands behave like those of OpenPBS 23.06, as far as this project needs.

    They are `qsub`, `qstat`, `qdel`, `qhold`, `qrls` and `qsig`.

    Seen on the real server, and so here:

    - A job starts in $HOME in a login shell, in a session of its own, without the environment of `qsub` (unless -V).
    - `$PBS_NODEFILE` has one line per MPI process: `select=2:ncpus=4:mpiprocs=2` gives A A B B.
    - Without `place=scatter` chunks share a node that has the cores: `select=2:ncpus=1` is one node.
    - `qdel` and the walltime send SIGTERM to the processes of the job's session, then SIGKILL after `kill_delay`
      seconds. Exit_status is -29 after the walltime and 271 after qdel. Until all are gone, the job keeps its nodes.
    - stdout and stderr of a job appear when it ends.
    - A job runs with umask 077, and its output is delivered with 0600, unless it was submitted with `-W umask=...`.
    - States are Q, R and F, beside H (`qsub -h`, `qhold`), S (`qsig -s suspend`: its processes stop, its nodes are
      free), W (`qsub -a`), T (for `transit` seconds) and E (for `exiting` seconds; it keeps its nodes).
    - A server that is away (`with pbs.away():`) lets commands exit with 255, and qstat's JSON has no "Jobs".
    - PBS's own `mpiexec` is on the PATH: a wrapper for MPT, which is not there.
    - Who asks for more than `resources_max` is refused.
    - One unknown id makes `qstat` exit with 153. With `history=False`, `qstat -x` prints an error, exits with 0, and
      its JSON has no "Jobs"; finished jobs are unknown.

    Read in OpenPBS's sources: the messages and exit statuses of refusals (170 unknown queue, 201 account, 35 finished
    job), and that a job whose shell dies of signal N has Exit_status 256 + N. Many sites check accounts in a hook of
    their own: `account_message` is then theirs. Assumed: the layout of `qstat -Bf -F json`, like that of jobs.
    Different here: root may submit, and the walltime is enforced at once (the real one is up to 15 s late).

    The nodes are names. As root, a job and what Hydra starts "by ssh" see host names of their own; otherwise all see
    this machine's. Hydra is sent to a program that plays ssh by `HYDRA_LAUNCHER_EXEC` in the job's environment.

    Parameters
    ----------
    folder: scratch folder, short (it holds the jobs' TMPDIR and so the sockets of Python's managers); by default a new
        one under /tmp, which goes at the end.
    nodes: number of nodes, each with `ncpus` cores and no GPU.
    history: `job_history_enable`; None leaves it unset, which works like False but does not show in `qstat -Bf`.
    accounts: the names that `qsub -A` takes; None takes all, and none.
    queues: their names, the default one first.
    resources_max: queue, or "" for the server, to what a job may ask for at most: ncpus, nodect, walltime.
    transit, exiting: seconds that a job is in the states T and E.
    """

    def __init__(
        self,
        folder: Path | None = None,
        nodes: int = 2,
        history: bool | None = True,
        accounts: Sequence[str] | None = None,
        queues: Sequence[str] = ("workq", "builds"),
        ncpus: int = 4,
        kill_delay: float = 10.0,
        account_message: str = "Invalid Account",
        resources_max: Mapping[str, Mapping[str, str | int]] | None = None,
        transit: float = 0.0,
        exiting: float = 0.0,
    ) -> None:
        self._own_folder = folder is None
        self.folder = Path(folder or tempfile.mkdtemp(prefix="pbs-", dir="/tmp"))
        self.nodes = [f"pbsnode{number}" for number in range(1, nodes + 1)]
        self.home = self.folder / "home"
        self._config = {
            "nodes": self.nodes,
            "ncpus": ncpus,
            "history": history,
            "accounts": accounts,
            "account_message": account_message,
            "queues": queues,
            "kill_delay": kill_delay,
            "resources_max": resources_max or {},
            "transit": transit,
            "exiting": exiting,
        }
        self._server: subprocess.Popen[bytes] | None = None
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "PMI", "PBS_", "HYDRA"))}
        bin_folder = Path(USERS_PYTHON).parent
        path = os.environ.get("PATH", os.defpath)
        self.env: dict[str, str] = {**clean, "PATH": f"{self.folder}/bin:{bin_folder}:{path}"}

    def __enter__(self) -> FakePbs:
        with undone_on_error(self.stop):
            self._write_files()
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _write_files(self) -> None:
        for name in ("bin", "jobs", "spool", "tmp", "home"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        probe = ["unshare", "--uts", "--mount", "true"]
        namespaces = os.geteuid() == 0 and subprocess.run(probe, capture_output=True).returncode == 0
        (self.folder / "config.json").write_text(json.dumps({**self._config, "namespaces": namespaces}))
        # Loopback addresses that no interface bears: Hydra would fork locally for any name with 127.0.0.1.
        names = "".join(f"127.0.2.{number} {name}\n" for number, name in enumerate(self.nodes, start=1))
        (self.folder / "hosts").write_text(Path("/etc/hosts").read_text() + names)
        # A login shell builds a PATH of its own; on a real cluster it has PBS's commands.
        (self.home / ".profile").write_text(f"PATH={shlex.quote(str(self.folder / 'bin'))}:$PATH\n")
        for name in ("qsub", "qstat", "qdel", "qhold", "qrls", "qsig"):
            words = [sys.executable, "-S", "-E", str(PROGRAMS / "pbs_clients.py"), name, str(self.folder)]
            self._program(name, f'exec {shlex.join(words)} "$@"')
        self._program("mpiexec", MPT_WRAPPER)
        self._program(
            "fake_ssh", FAKE_SSH.format(nodes=" ".join(self.nodes), remote=NAMED if namespaces else 'sh -c "$*"')
        )

    def _program(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def _start(self) -> None:
        # A killed test run takes the server along, and the server its jobs.
        guard = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        with (self.folder / "server.log").open("wb") as log:
            self._server = subprocess.Popen(
                [*guard, sys.executable, "-S", "-E", str(PROGRAMS / "pbs_server.py"), str(self.folder)],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.wait_for((self.folder / "ready").exists, timeout=10)

    def stop(self) -> None:
        """End the server and with it every job; remove the folder if the fake made it."""
        if self._server is not None:
            self._server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(timeout=10)
            self._server.kill()
            self._server.wait()
            self._server = None
            pbs_server.kill_all(self.folder)
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def run(
        self, *words: str | os.PathLike[str], check: bool = True, cwd: Path | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as on a login node and return its output as text."""
        return subprocess.run(
            [os.fspath(word) for word in words],
            env=self.env,
            cwd=cwd or self.folder,
            check=check,
            timeout=timeout,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def submit(self, *words: str | os.PathLike[str], cwd: Path | None = None) -> str:
        """`qsub WORDS`; returns the job's id."""
        return self.run("qsub", *words, cwd=cwd).stdout.strip()

    @contextlib.contextmanager
    def away(self, silent: bool = False) -> Iterator[None]:
        """No command reaches the server in the block; jobs go on. silent: commands wait, and get no refusal either."""
        path = self.folder / "away"
        path.with_suffix(".new").write_text("silent" if silent else "refused")
        path.with_suffix(".new").rename(path)
        try:
            yield
        finally:
            path.unlink()

    def job(self, job_id: str) -> dict[str, Any]:
        """A job's attributes, whatever `history` is: job_state, Exit_status, exec_host, comment, ..."""
        return pbs_server.read_job(self.folder, int(job_id.split(".")[0]))["attributes"]

    def jobs(self) -> dict[str, str]:
        """The state of every job that was ever accepted."""
        ids = [f"{number}.{pbs_server.SERVER}" for number in pbs_server.job_numbers(self.folder)]
        return {job_id: self.job(job_id)["job_state"] for job_id in ids}

    @property
    def submitted(self) -> int:
        """How many calls of `qsub` were accepted."""
        return len(self.jobs())

    def wait(self, job_id: str, timeout: float = 60) -> int | None:
        """Wait until a job has finished; returns its Exit_status, None for one that never started."""
        self.wait_for(lambda: self.job(job_id)["job_state"] == "F", timeout)
        return self.job(job_id).get("Exit_status")

    def wait_for(self, condition: Callable[[], T], timeout: float = 60) -> T:
        """Poll until `condition()` is true; returns its value, or raises PbsError with what the server knows."""
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            if time.monotonic() > deadline or (self._server is not None and self._server.poll() is not None):
                log = (self.folder / "server.log").read_text(errors="replace")[-2000:]
                raise PbsError(f"waited {timeout:g} s in vain; jobs: {self.jobs()}; the server's log: {log or 'empty'}")
            time.sleep(0.05)
        return value

    def cancel_all(self, timeout: float = 20) -> None:
        """Delete every unfinished job and wait until all have finished."""
        if left := [job_id for job_id, state in self.jobs().items() if state != "F"]:
            self.run("qdel", *left, check=False)
            self.wait_for(lambda: set(self.jobs().values()) <= {"F"}, timeout)
