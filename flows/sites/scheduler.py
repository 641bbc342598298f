"""SLURM and PBS by their own commands, a class each: what Parsl does not tell and ask them."""

from __future__ import annotations

import getpass
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lambda_hat.errors import ConfigError, SchedulerError, SchedulerSilent
from lambda_hat.store.umask import umask_word

COMMAND_SECONDS = 60
PBS_STATES = {
    "Q": "QUEUED", "R": "RUNNING", "E": "EXITING", "H": "HELD", "F": "FINISHED", "W": "WAITING", "T": "TRANSIT",
    "S": "SUSPENDED", "U": "SUSPENDED",
}  # fmt: skip
BEGUN = ("R", "E", "F", "S", "U")
"""Letters of jobs that have begun to run."""
UNKNOWN_JOB, FINISHED_JOB = 153, 35
"""Exit statuses of PBS's commands: the server's error number modulo 256."""
GONE = re.compile(r"Unknown Job|[Jj]ob has finished|Invalid job id|already completing or completed")
"""What a scheduler says of a job that it holds no more."""
SILENCE = re.compile(
    r"cannot connect to server|Connection refused|Unable to contact|Socket timed out|Communication connection failure|"
    r"Zero Bytes were transmitted|gave no answer"
)
"""Words of a command that did not reach its scheduler. They say nothing of any job."""
HOLDS = {"u": "a user's hold", "o": "an operator's hold", "s": "the system's hold"}


class Slurm:
    """`sbatch`, `squeue`, `scancel`."""

    name, title, suffix = "slurm", "SLURM", "sbatch"
    commands = ("sbatch", "squeue", "scancel")

    def submit(self, script: Path) -> str:
        """Submit `script`. Returns the job's id. Raises SchedulerError, with the scheduler's words, if refused."""
        said = _ask(["sbatch", "--parsable", str(script)])
        return said.strip().splitlines()[-1].partition(";")[0]

    def queue(self, job_ids: Sequence[str]) -> dict[str, str]:
        """The state of each job that is in the queue, and why it waits. Other jobs are gone.

        Raises SchedulerError where there is no answer.
        """
        try:
            said = _ask(["squeue", "--noheader", "--jobs", ",".join(job_ids), "--format", "%i|%T|%r|%N"])
        except SchedulerError as error:
            if GONE.search(str(error)):
                return {}
            raise
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
            if job_id not in found:
                return False
            _ask(["scancel", *user, job_id])
        except SchedulerError as error:
            if GONE.search(str(error)):
                return False
            raise
        return True

    def watch_command(self, job_id: str) -> str:
        """What a person types to look at the job."""
        return f"squeue --jobs {job_id}"

    def end_command(self, job_id: str) -> str:
        """What a person types to end the job."""
        return f"scancel {job_id}"

    def check_server(self) -> None:
        """Refuse a server that Parsl cannot work with."""


class Pbs:
    """`qsub`, `qstat`, `qdel`."""

    name, title, suffix = "pbs", "PBS", "pbs"
    commands = ("qsub", "qstat", "qdel")

    def submit(self, script: Path) -> str:
        """Submit `script`. Returns the job's id. Raises SchedulerError, with the scheduler's words, if refused."""
        # A job of PBS would have the umask 077, whatever its submitter's is.
        return _ask(["qsub", "-W", f"umask={umask_word()}", str(script)]).strip().splitlines()[-1]

    def queue(self, job_ids: Sequence[str]) -> dict[str, str]:
        """The state of each job that is in the queue, and the scheduler's comment. Other jobs are gone.

        Raises SchedulerError where there is no answer.
        """
        found, untold = self._look_up(job_ids)
        # A qstat may say nothing of the others where one job is unknown.
        for job_id in untold if len(job_ids) > 1 else ():
            more, still = self._look_up([job_id])
            found |= more
            untold = [other for other in untold if other != job_id or other in still]
        if untold:
            raise SchedulerError(f"qstat said nothing of job {untold[0]}")
        return found

    def _look_up(self, job_ids: Sequence[str]) -> tuple[dict[str, str], list[str]]:
        """One question: the states of jobs in the queue, and the jobs of which nothing was said."""
        done = _run(["qstat", "-f", "-F", "json", *job_ids])
        if done.returncode not in (0, UNKNOWN_JOB, FINISHED_JOB) and not GONE.search(done.stderr):
            raise _refused("qstat", done)
        by_number = {_number(job_id): job_id for job_id in job_ids}
        told = {
            by_number[_number(name)]: _described(job)
            for name, job in _told_of("Jobs", done.stdout)
            if _number(name) in by_number
        }
        gone = {number for line in done.stderr.splitlines() if GONE.search(line) for number in re.findall(r"\d+", line)}
        if len(job_ids) == 1 and done.returncode in (UNKNOWN_JOB, FINISHED_JOB):
            gone |= by_number.keys()
        untold = [job_id for job_id in job_ids if job_id not in told and _number(job_id) not in gone]
        return {job_id: state for job_id, state in told.items() if state != "FINISHED"}, untold

    def cancel(self, job_id: str, name: str, only_waiting: bool = False) -> bool:
        """Cancel a job of this user and of this name. Returns whether there was one.

        only_waiting: not if it has begun to run.
        """
        try:
            said = json.loads(_ask(["qstat", "-f", "-F", "json", job_id]))
            for job in said.get("Jobs", {}).values():
                owner = str(job.get("Job_Owner", "")).partition("@")[0]
                unwanted = BEGUN if only_waiting else ("F",)
                if owner == getpass.getuser() and job.get("Job_Name") == name and job.get("job_state") not in unwanted:
                    _ask(["qdel", job_id])
                    return True
        except ValueError as error:
            raise SchedulerError(f"qstat: job {job_id}: {error}") from None
        except SchedulerError as error:
            if not GONE.search(str(error)):
                raise
        return False

    def details(self, words: Sequence[str], kind: str) -> dict[str, dict[str, Any]]:
        """What qstat tells in full of a kind of things, Jobs, Queue or Server: attributes by name.

        Raises SchedulerError where there is no answer.
        """
        return dict(_told_of(kind, _ask(["qstat", words[0], "-F", "json", *words[1:]])))

    def watch_command(self, job_id: str) -> str:
        """What a person types to look at the job."""
        return f"qstat -f {job_id}"

    def end_command(self, job_id: str) -> str:
        """What a person types to end the job."""
        return f"qdel {job_id}"

    def check_server(self) -> None:
        """Refuse a server that Parsl cannot work with.

        Raises ConfigError where it keeps no history: Parsl would take running blocks for finished ones and submit more
        without end. Raises SchedulerError where it cannot be reached.
        """
        # It says so and exits 0.
        done = _run(["qstat", "-x", "-u", getpass.getuser()])
        if SILENCE.search(done.stderr):
            raise _refused("qstat", done)
        if "history" in done.stdout + done.stderr:
            raise ConfigError(
                "site pbs: this server keeps no history of finished jobs (job_history_enable is off), so that running "
                "blocks could not be told from finished ones; write --submit pbs --nodes N, which takes one allocation"
            )


Scheduler = Slurm | Pbs
SCHEDULERS: dict[str, Scheduler] = {"slurm": Slurm(), "pbs": Pbs()}


def require_scheduler(kind: str) -> Scheduler:
    """The scheduler of a site's kind. Raises ConfigError where its commands are not on the PATH."""
    scheduler = SCHEDULERS[kind]
    missing = [command for command in scheduler.commands if shutil.which(command) is None]
    if missing:
        raise ConfigError(
            f"site {kind}: no {' and no '.join(missing)} on the PATH; this machine is no login node of a "
            f"{scheduler.title} cluster, or its module is not loaded"
        )
    return scheduler


def _told_of(kind: str, said: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The things of a kind that qstat told of in JSON; none where it is no JSON."""
    try:
        answer = json.loads(said)
    except ValueError:
        return
    found = answer.get(kind) if isinstance(answer, dict) else None
    if isinstance(found, dict):
        yield from ((name, attributes) for name, attributes in found.items() if isinstance(attributes, dict))


def _described(job: dict[str, Any]) -> str:
    letter = str(job.get("job_state", "UNKNOWN"))
    state = PBS_STATES.get(letter, letter)
    more = job.get("exec_host") if state == "RUNNING" else job.get("comment")
    if state == "HELD":
        holds = [words for letter, words in HOLDS.items() if letter in str(job.get("Hold_Types", ""))]
        more = "; ".join([*([str(more)] if more else []), *holds])
    return f"{state} ({more})" if more and state != "FINISHED" else state


def _number(job_id: str) -> str:
    """A job's number. qsub and qstat may write the server's name with and without its domain."""
    return job_id.partition(".")[0]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_SECONDS, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise ConfigError(f"no {command[0]} on the PATH") from None
    except subprocess.TimeoutExpired:
        raise SchedulerSilent(f"{command[0]} gave no answer within {COMMAND_SECONDS} s") from None


def _ask(command: list[str]) -> str:
    done = _run(command)
    if done.returncode:
        raise _refused(command[0], done)
    return done.stdout


def _refused(command: str, done: subprocess.CompletedProcess[str]) -> SchedulerError:
    said = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
    kind = SchedulerSilent if SILENCE.search(said) else SchedulerError
    return kind(f"{command} refused: {said}")
