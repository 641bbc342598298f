"""SLURM and PBS by their own commands, a class each: what Parsl does not tell and ask them."""

from __future__ import annotations

import getpass
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lambda_hat.errors import ConfigError, SchedulerError

COMMAND_SECONDS = 60
PBS_STATES = {"Q": "QUEUED", "R": "RUNNING", "E": "EXITING", "H": "HELD", "F": "FINISHED", "W": "WAITING"}


class Slurm:
    """`sbatch`, `squeue`, `scancel`."""

    name, title, suffix = "slurm", "SLURM", "sbatch"
    commands = ("sbatch", "squeue", "scancel")

    def submit(self, script: Path) -> str:
        """Submit `script`. Returns the job's id. Raises SchedulerError, with the scheduler's words, if refused."""
        said = _ask(["sbatch", "--parsable", str(script)])
        return said.strip().splitlines()[-1].partition(";")[0]

    def queue(self, job_ids: Sequence[str]) -> dict[str, str]:
        """The state of each job that is in the queue, and why it waits."""
        said = _ask(["squeue", "--noheader", "--jobs", ",".join(job_ids), "--format", "%i|%T|%r|%N"])
        found = {}
        for line in said.splitlines():
            job_id, state, reason, nodes = line.split("|")
            more = nodes if state == "RUNNING" else reason
            found[job_id] = f"{state} ({more})" if more and more != "None" else state
        return found

    def cancel(self, job_id: str, name: str, only_waiting: bool = False) -> bool:
        """Cancel a job of this user and of this name. Returns whether there was one.

        only_waiting: not if it has begun to run.
        """
        user = ["--user", getpass.getuser(), "--name", name]
        states = ["--states", "PENDING"] if only_waiting else []
        try:
            found = _ask(["squeue", "--noheader", *user, *states, "--jobs", job_id, "--format", "%i"]).split()
        except SchedulerError as error:
            if "Invalid job id" in str(error):
                return False
            raise
        if job_id not in found:
            return False
        _ask(["scancel", *user, job_id])
        return True

    def watch_command(self, job_id: str) -> str:
        """What a person types to look at the job."""
        return f"squeue --jobs {job_id}"

    def check_server(self) -> None:
        """Refuse a server that Parsl cannot work with."""


class Pbs:
    """`qsub`, `qstat`, `qdel`."""

    name, title, suffix = "pbs", "PBS", "pbs"
    commands = ("qsub", "qstat", "qdel")

    def submit(self, script: Path) -> str:
        """Submit `script`. Returns the job's id. Raises SchedulerError, with the scheduler's words, if refused."""
        return _ask(["qsub", str(script)]).strip().splitlines()[-1]

    def queue(self, job_ids: Sequence[str]) -> dict[str, str]:
        """The state of each job that is in the queue, and the scheduler's comment."""
        found = {}
        for job_id in job_ids:
            # Asked for several, qstat says nothing of the others where one id is unknown.
            try:
                said = json.loads(_ask(["qstat", "-f", "-F", "json", job_id]))
            except (SchedulerError, ValueError):
                continue
            for job in said.get("Jobs", {}).values():
                state = PBS_STATES.get(job.get("job_state", ""), job.get("job_state", "UNKNOWN"))
                more = job.get("exec_host") if state == "RUNNING" else job.get("comment")
                found[job_id] = f"{state} ({more})" if more else state
        return found

    def cancel(self, job_id: str, name: str, only_waiting: bool = False) -> bool:
        """Cancel a job of this user and of this name. Returns whether there was one.

        only_waiting: not if it has begun to run.
        """
        try:
            said = json.loads(_ask(["qstat", "-f", "-F", "json", job_id]))
        except ValueError as error:
            raise SchedulerError(f"qstat: job {job_id}: {error}") from None
        except SchedulerError as error:
            if any(words in str(error) for words in ("Unknown Job", "has finished")):
                return False
            raise
        for job in said.get("Jobs", {}).values():
            owner = str(job.get("Job_Owner", "")).partition("@")[0]
            unwanted = ("R", "E", "F") if only_waiting else ("F",)
            if owner == getpass.getuser() and job.get("Job_Name") == name and job.get("job_state") not in unwanted:
                _ask(["qdel", job_id])
                return True
        return False

    def watch_command(self, job_id: str) -> str:
        """What a person types to look at the job."""
        return f"qstat -f {job_id}"

    def check_server(self) -> None:
        """Refuse a server that Parsl cannot work with.

        Raises ConfigError where it keeps no history: Parsl would take running blocks for finished ones and submit more
        without end.
        """
        # It says so and exits 0.
        command = ["qstat", "-x", "-u", getpass.getuser()]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_SECONDS, stdin=subprocess.DEVNULL
        )
        if "history" in done.stdout + done.stderr:
            raise ConfigError(
                "site pbs: this server keeps no history of finished jobs (job_history_enable is off), so that running "
                "blocks could not be told from finished ones; write --submit pbs --nodes N, which takes one allocation"
            )


SCHEDULERS: dict[str, Slurm | Pbs] = {"slurm": Slurm(), "pbs": Pbs()}


def require_scheduler(kind: str) -> Slurm | Pbs:
    """The scheduler of a site's kind. Raises ConfigError where its commands are not on the PATH."""
    scheduler = SCHEDULERS[kind]
    missing = [command for command in scheduler.commands if shutil.which(command) is None]
    if missing:
        raise ConfigError(
            f"site {kind}: no {' and no '.join(missing)} on the PATH; this machine is no login node of a "
            f"{scheduler.title} cluster, or its module is not loaded"
        )
    return scheduler


def _ask(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_SECONDS, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise ConfigError(f"no {command[0]} on the PATH") from None
    except subprocess.TimeoutExpired:
        raise SchedulerError(f"{command[0]} gave no answer within {COMMAND_SECONDS} s") from None
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
        raise SchedulerError(f"{command[0]} refused: {said}")
    return done.stdout
