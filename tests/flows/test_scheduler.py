"""What SLURM and PBS are asked, by stand-ins for their commands; and what is said about blocks."""

from __future__ import annotations

import getpass
import json
import os
from types import SimpleNamespace

import pytest

from flows.driver.leftovers import end_leftovers
from flows.driver.screen import StudyProgress
from flows.driver.stopping import Stop
from flows.sites.blocks import Blocks
from flows.sites.scheduler import Pbs, Slurm, require_scheduler
from flows.sites.site_schemas import PbsSite, SlurmSite
from lambda_hat.errors import ConfigError, SchedulerError, SchedulerSilent
from lambda_hat.store.heartbeat import Heartbeat, heartbeat_state


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Puts a command of a name, with a shell script for a body, first on the PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def put(name, body):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)

    return put


def test_missing_commands_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no sbatch and no squeue and no scancel on the PATH"):
        require_scheduler("slurm")
    with pytest.raises(ConfigError, match="no qsub and no qstat and no qdel on the PATH"):
        require_scheduler("pbs")


@pytest.mark.parametrize(
    ("scheduler", "name", "said", "job_id"),
    [(Slurm(), "sbatch", "12;cluster", "12"), (Slurm(), "sbatch", "12", "12"), (Pbs(), "qsub", "7.server", "7.server")],
)
def test_a_submission_gives_the_jobs_id(command, tmp_path, scheduler, name, said, job_id):
    command(name, f"echo '{said}'")
    assert scheduler.submit(tmp_path / "script") == job_id
    assert job_id in scheduler.watch_command(job_id)


@pytest.mark.parametrize(("scheduler", "name"), [(Slurm(), "sbatch"), (Pbs(), "qsub")])
def test_a_refusal_is_told_in_the_schedulers_words(command, tmp_path, scheduler, name):
    command(name, "echo 'Invalid account: nobody' >&2; exit 1")
    with pytest.raises(SchedulerError, match=f"{name} refused: Invalid account: nobody"):
        scheduler.submit(tmp_path / "script")


def test_the_queue_of_slurm(command):
    command("squeue", "printf '1|PENDING|Priority|\\n2|RUNNING|None|n[1-2]\\n3|COMPLETING|None|\\n'")
    assert Slurm().queue(["1", "2", "3", "4"]) == {
        "1": "PENDING (Priority)",
        "2": "RUNNING (n[1-2])",
        "3": "COMPLETING",
    }


def test_the_queue_of_pbs_survives_an_unknown_id(command):
    job = '{"job_state": "Q", "comment": "Not Running: Insufficient amount of resource: ncpus"}'
    command("qstat", f'[ "$4" = 9.s ] && exit 153; echo \'{{"Jobs": {{"7.s": {job}}}}}\'')
    assert Pbs().queue(["9.s", "7.s"]) == {"7.s": "QUEUED (Not Running: Insufficient amount of resource: ncpus)"}


def qstat_of(jobs, told="", status=0):
    """The body of a qstat that tells of these jobs, and writes what it was asked into a log."""
    return f"echo \"$@\" >> \"$0.log\"; echo '{json.dumps({'Jobs': jobs})}'; echo '{told}' >&2; exit {status}"


def test_pbs_is_asked_once_for_all_jobs(command, tmp_path):
    jobs = {
        "7.s": {"job_state": "H", "Hold_Types": "us", "comment": "Job held"},
        "8.s": {"job_state": "S", "comment": "Job run"},
        "9.s": {"job_state": "U"},
        "10.s": {"job_state": "T"},
        "11.s": {"job_state": "E"},
    }
    told = "qstat: Unknown Job Id 12.s\nqstat: 13.s.far Job has finished, use -x or -H to obtain information"
    command("qstat", qstat_of(jobs, told, 35))
    asked = ["7.s.far", "8.s", "9.s", "10.s", "11.s", "12.s", "13.s"]
    assert Pbs().queue(asked) == {
        "7.s.far": "HELD (Job held; a user's hold; the system's hold)",
        "8.s": "SUSPENDED (Job run)",
        "9.s": "SUSPENDED",
        "10.s": "TRANSIT",
        "11.s": "EXITING",
    }
    assert (tmp_path / "qstat.log").read_text() == f"-f -F json {' '.join(asked)}\n"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("echo 'qstat: cannot connect to server head (errno=15010)' >&2; exit 255", SchedulerSilent),
        ("sleep 5", SchedulerSilent),
        ("exit 1", SchedulerError),
        ("echo '{}'", SchedulerError),
        ("echo 'no JSON'", SchedulerError),
    ],
)
def test_a_qstat_that_does_not_answer_says_nothing_of_a_job(command, monkeypatch, body, error):
    monkeypatch.setattr("flows.sites.scheduler.COMMAND_SECONDS", 0.5)
    command("qstat", body)
    for jobs in (["7.s"], ["7.s", "8.s"]):
        with pytest.raises(error):
            Pbs().queue(jobs)


def test_a_squeue_that_does_not_answer_says_nothing_of_a_job(command):
    command("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1")
    with pytest.raises(SchedulerSilent):
        Slurm().queue(["7"])
    command("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert Slurm().queue(["7"]) == {}


def test_a_job_that_ends_while_it_is_cancelled_is_no_trouble(command):
    job = {"job_state": "R", "Job_Name": "ours", "Job_Owner": f"{getpass.getuser()}@login"}
    command("qstat", qstat_of({"7.s": job}))
    command("qdel", "echo 'qdel: Job has finished 7.s' >&2; exit 35")
    assert not Pbs().cancel("7.s", "ours")


def test_a_server_that_is_away_is_told_before_anything_is_started(command):
    command("qstat", "echo 'qstat: cannot connect to server head (errno=15010)' >&2; exit 255")
    with pytest.raises(SchedulerSilent, match="cannot connect to server head"):
        Pbs().check_server()


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_a_job_of_pbs_is_submitted_with_the_umask_of_its_submitter(command, tmp_path, umask):
    command("qsub", f'echo "$@" > {tmp_path}/words; echo 7.s')
    before = os.umask(umask)
    try:
        Pbs().submit(tmp_path / "script")
    finally:
        os.umask(before)
    assert (tmp_path / "words").read_text() == f"-W umask={umask:03o} {tmp_path}/script\n"


def test_a_pbs_without_history_is_refused(command):
    command("qstat", "echo 'qstat: PBS is not configured to maintain job history' >&2")
    with pytest.raises(ConfigError, match=r"keeps no history .*--submit pbs"):
        Pbs().check_server()
    command("qstat", "exit 0")
    Pbs().check_server()


class FakeExecutor:
    """What `Blocks` looks at of a Parsl executor."""

    def __init__(self, label="packs"):
        self.label, self.job_ids_to_block, self.status_facade = label, {}, {}
        self.bad_state_is_set, self.executor_exception = False, None
        self.provider = SimpleNamespace(nodes_per_block=2, walltime="01:00:00", resources={})

    def submitted(self, job_id, block):
        self.job_ids_to_block[job_id] = block
        self.provider.resources[job_id] = {"job_stderr_path": f"/a/parsl.packs.block-{block}.17.stderr"}


@pytest.fixture
def lease(tmp_path):
    with Heartbeat(tmp_path / "packs") as held:
        yield held


@pytest.fixture
def blocks(lease, capsys):
    from rich.console import Console

    executor = FakeExecutor()
    watched = Blocks(SlurmSite(poll_seconds=1), [executor], print, lease, lambda *event, **fields: None)
    watched.progress = StudyProgress(Console(width=200), targets=0, packs=1, runs=1)
    return watched, executor


def test_a_submitted_block_is_named_and_its_reason_told(blocks, command, monkeypatch, capsys):
    watched, executor = blocks
    command("squeue", "echo '5|PENDING|QOSMaxJobsPerUserLimit|'")
    executor.submitted("5", "0")
    watched.look()
    assert "job 5 submitted for packs: 2 nodes, 01:00:00" in capsys.readouterr().out
    monkeypatch.setattr("flows.sites.blocks.time.monotonic", lambda: 1e12)
    watched.look()
    assert "job 5: PENDING (QOSMaxJobsPerUserLimit)" in capsys.readouterr().out


def test_the_first_block_refused_stops_the_study_with_the_schedulers_words(blocks):
    watched, executor = blocks
    message = "Failed to start block 0: Cannot launch job x: sbatch failed; recode=1, stdout=, stderr=sbatch: error: no"
    executor.status_facade["0"] = SimpleNamespace(message=message)
    with pytest.raises(SchedulerError, match=r"SLURM refused the block of packs: sbatch: error: no$"):
        watched.look()


def test_a_later_block_refused_is_told_once(blocks, capsys):
    watched, executor = blocks
    executor.submitted("5", "0")
    executor.status_facade["1"] = SimpleNamespace(message="Failed to start block 1: stderr=busy")
    watched.look()
    watched.look()
    assert capsys.readouterr().out.count("SLURM refused another block of packs: busy") == 1


def test_an_executor_that_parsl_gave_up_is_told_and_its_blocks_cancelled(blocks, command, tmp_path):
    watched, executor = blocks
    executor.submitted("5", "0")
    executor.bad_state_is_set, executor.executor_exception = True, "node failure"
    with pytest.raises(SchedulerError, match="3 blocks of packs failed one after the other: node failure"):
        watched.look()
    command("squeue", "echo 5")
    command("scancel", f'echo "$@" >> {tmp_path}/cancelled')
    watched.cancel()
    words = ["--user", getpass.getuser(), "--name", "parsl.packs.block-0.17", "5"]
    assert (tmp_path / "cancelled").read_text().split() == words


def test_a_silent_scheduler_is_no_reason_to_stop(blocks, command, monkeypatch):
    watched, executor = blocks
    command("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    executor.submitted("5", "0")
    watched.look()
    monkeypatch.setattr("flows.sites.blocks.time.monotonic", lambda: 1e12)
    watched.look()


def test_the_jobs_stand_in_the_lease(blocks, lease):
    watched, executor = blocks
    executor.submitted("5", "0")
    watched.look()
    executor.submitted("6", "1")
    watched.look()
    assert json.loads(lease.path.read_bytes())["jobs"] == [
        {"scheduler": "slurm", "job_id": "5", "name": "parsl.packs.block-0.17"},
        {"scheduler": "slurm", "job_id": "6", "name": "parsl.packs.block-1.17"},
    ]


def test_pbs_sites_ask_pbs(lease):
    assert Blocks(PbsSite(), [], print, lease, lambda *event, **fields: None)._scheduler.name == "pbs"


@pytest.mark.parametrize(
    ("job", "cancelled"),
    [
        ({"job_state": "Q", "Job_Name": "ours", "Job_Owner": f"{getpass.getuser()}@login"}, True),
        ({"job_state": "R", "Job_Name": "ours", "Job_Owner": f"{getpass.getuser()}@login"}, True),
        ({"job_state": "F", "Job_Name": "ours", "Job_Owner": f"{getpass.getuser()}@login"}, False),
        ({"job_state": "Q", "Job_Name": "other", "Job_Owner": f"{getpass.getuser()}@login"}, False),
        ({"job_state": "Q", "Job_Name": "ours", "Job_Owner": "somebody@login"}, False),
    ],
)
def test_only_jobs_of_ours_are_cancelled_in_pbs(command, tmp_path, job, cancelled):
    command("qstat", f"echo '{json.dumps({'Jobs': {'7.s': job}})}'")
    command("qdel", f'echo "$@" >> {tmp_path}/cancelled')
    waits = job["job_state"] == "Q"
    assert Pbs().cancel("7.s", "ours", only_waiting=True) == (cancelled and waits)
    assert (tmp_path / "cancelled").exists() == (cancelled and waits)
    assert Pbs().cancel("7.s", "ours") == cancelled
    assert (tmp_path / "cancelled").exists() == cancelled


def test_jobs_that_are_gone_are_no_trouble(command):
    command("qstat", "echo 'qstat: Unknown Job Id 7.s' >&2; exit 153")
    assert not Pbs().cancel("7.s", "ours")
    command("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert not Slurm().cancel("7", "ours")
    command("squeue", "true")
    assert not Slurm().cancel("7", "ours")
    command("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(SchedulerError, match="Unable to contact"):
        Slurm().cancel("7", "ours")


def test_what_a_dead_driver_left_is_cancelled_once(command, tmp_path, lease):
    packs = tmp_path / "packs"
    jobs = [{"scheduler": "slurm", "job_id": str(number), "name": "ours"} for number in (7, 8, 9)]
    dead = {**json.loads(lease.path.read_bytes()), "pid": 2**22 + 1, "jobs": [*jobs, {"scheduler": "slurm"}, {}]}
    (packs / "driver_dead.lease").write_text(json.dumps(dead))
    # 7 waits, 8 runs, and 9 is refused.
    squeue = """case "$*" in
      *"--states PENDING"*"--jobs 7"*) echo 7 ;;
      *"--states"*|*"--jobs 7"*) ;;
      *"--jobs 8"*) echo 8 ;;
      *) echo 'Unable to contact slurm controller' >&2; exit 1 ;;
    esac"""
    command("squeue", squeue)
    command("scancel", f'echo "$@" >> {tmp_path}/cancelled')
    said = []
    assert end_leftovers(packs, said.append, Stop()) == 1
    assert said[0].endswith("what it left running has been told to stop, and 2 of its jobs cancelled")
    assert said[1] == "a job of it could not be cancelled: 9: squeue refused: Unable to contact slurm controller"
    assert [line.split()[-1] for line in (tmp_path / "cancelled").read_text().splitlines()] == ["7", "8"]
    assert json.loads((packs / "driver_dead.lease").read_text())["state"] == "ended"
    assert end_leftovers(packs, said.append, Stop()) == 0
    assert heartbeat_state(lease.path) == "live"
