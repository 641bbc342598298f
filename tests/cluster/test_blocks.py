"""Blocks without a study, on the fake PBS, and one on a real SLURM: held and suspended ones, a server that is away, and
how they end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from parsl.jobs.states import JobState, JobStatus

from flows.driver.leftovers import end_leftovers
from flows.driver.stopping import Stop
from flows.sites.blocks import Blocks
from flows.sites.executors import parsl_config
from flows.sites.limits import check_limits
from flows.sites.providers import packs_provider, watched_jobs
from flows.sites.scheduler import Pbs
from flows.sites.shell_lines import watcher_lines
from flows.sites.site_schemas import PbsSite, SlurmSite, asked_for
from lambda_hat.errors import SchedulerError
from lambda_hat.store.heartbeat import Heartbeat

pytestmark = [pytest.mark.cluster, pytest.mark.parsl]

POOL = "bash -c 'exec -a process_worker_pool sleep 60'"
"""What a block runs here in place of Parsl's workers."""


class Executor:
    """What `Blocks` looks at of a Parsl executor, with a provider of ours."""

    def __init__(self, provider, label: str = "packs"):
        self.provider, self.label = provider, label
        self.job_ids_to_block: dict[str, str] = {}
        self.status_facade: dict[str, JobStatus] = {}
        self.bad_state_is_set, self.executor_exception = False, None

    def start_block(self) -> str:
        """As Parsl does."""
        block = str(len(self.status_facade))
        try:
            job_id = self.provider.submit(POOL, 1, f"parsl.{self.label}.block-{block}")
        except Exception as error:
            self.status_facade[block] = JobStatus(JobState.FAILED, f"Failed to start block {block}: {error}")
            return ""
        self.job_ids_to_block[job_id] = block
        self.status_facade[block] = JobStatus(JobState.PENDING)
        return job_id

    def states(self) -> list[JobState]:
        jobs = list(self.job_ids_to_block)
        return [status.state for status in self.provider.status(jobs)]


class Driver:
    """What a driver has of a site: the executor of packs, its blocks, its lease, and what was said."""

    def __init__(self, folder: Path, site: PbsSite | SlurmSite, lease: Heartbeat):
        self.said: list[str] = []
        self.events: list[tuple[str, dict]] = []
        self.lease = lease
        jobs = watched_jobs(site)
        provider = packs_provider(site, jobs)
        provider.script_dir = str(folder)
        provider.worker_init += watcher_lines(lease.path)
        self.executor = Executor(provider)
        log = lambda event, **fields: self.events.append((event, fields))  # noqa: E731
        self.blocks = Blocks(site, [self.executor], self.said.append, lease, log, jobs)

    def look_until(self, words: str, seconds: float = 20.0) -> str:
        """Look until a sentence with these words is said; returns it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.blocks.look()
            if found := [sentence for sentence in self.said if words in sentence]:
                return found[-1]
            time.sleep(0.05)
        raise AssertionError(f"{words!r} was not said: {self.said}")


@pytest.fixture(autouse=True)
def login_node(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is on the login node of the cluster that the test uses, and asks often."""
    for name in {"pbs", "slurm_lab"} & set(request.fixturenames):
        environment = request.getfixturevalue(name).env
        for key in {"PATH", "SLURM_CONF"} & environment.keys():
            monkeypatch.setenv(key, environment[key])
    monkeypatch.setattr("flows.sites.blocks.FIRST_LOOK", 0.2)


@contextmanager
def driver(folder: Path, kind: type[PbsSite | SlurmSite] = PbsSite, **keys) -> Iterator[Driver]:
    site = kind(ranks_per_node=1, poll_seconds=1, **keys)
    folder.mkdir(exist_ok=True)
    with Heartbeat(folder.parent / "packs") as lease:
        found = Driver(folder, site, lease)
        try:
            yield found
        finally:
            found.lease.withdraw()
            found.blocks.cancel()


def refreshed(executor: Executor) -> list[JobState]:
    executor.provider.jobs.ask()
    return executor.states()


def test_held_and_suspended_blocks_are_not_replaced_and_their_state_is_told(pbs, tmp_path):
    with driver(tmp_path / "scripts", nodes_per_block=2) as made:
        executor = made.executor
        first = executor.start_block()
        pbs.wait_for(lambda: pbs.jobs()[first] == "R")
        second = executor.start_block()
        pbs.run("qhold", second)
        pbs.wait_for(lambda: pbs.jobs()[second] == "H")
        pbs.run("qsig", "-s", "suspend", first)
        pbs.wait_for(lambda: pbs.jobs()[first] == "S")
        assert refreshed(executor) == [JobState.RUNNING, JobState.PENDING]
        shown: list[str] = []
        made.blocks.progress = type("Bars", (), {"note": lambda _, what, text: shown.append(text), "event": print})()
        made.blocks.look()
        assert f"job {first} SUSPENDED (Job run at " in shown[-1]
        assert f"job {second} HELD (Job held by " in shown[-1] and "; a user's hold)" in shown[-1]
        assert made.blocks.stopped("packs")[0].startswith(f"job {first}: SUSPENDED")
        states = {fields["job_id"]: fields["state"] for event, fields in made.events if event == "job"}
        assert states[second].startswith("HELD (") and states[first].startswith("SUSPENDED (")
        pbs.run("qrls", second)
        pbs.wait_for(lambda: pbs.jobs()[second] == "R")
        assert refreshed(executor) == [JobState.RUNNING, JobState.RUNNING]


@pytest.mark.slow
@pytest.mark.parametrize("pbs", [{"transit": 0.5, "exiting": 1.0}], indirect=True)
def test_a_block_in_transit_waits_and_one_that_exits_still_holds_its_nodes(pbs, tmp_path):
    with driver(tmp_path / "scripts") as made:
        job_id = made.executor.start_block()
        assert refreshed(made.executor) == [JobState.PENDING]
        assert made.blocks._jobs.states[job_id] == "TRANSIT"
        pbs.wait_for(lambda: pbs.jobs()[job_id] == "R")
        pbs.run("qdel", job_id)
        pbs.wait_for(lambda: pbs.jobs()[job_id] == "E")
        assert refreshed(made.executor) == [JobState.RUNNING]
        pbs.wait(job_id)
        assert refreshed(made.executor) == [JobState.COMPLETED]


def test_a_silent_server_changes_no_state_and_is_told(pbs, tmp_path):
    with driver(tmp_path / "scripts") as made:
        job_id = made.executor.start_block()
        pbs.wait_for(lambda: pbs.jobs()[job_id] == "R")
        made.blocks.look()
        assert refreshed(made.executor) == [JobState.RUNNING]
        with pbs.away():
            said = made.look_until("PBS has given no answer since ")
            assert "qstat: cannot connect to server fakepbs (errno=15010)" in said
            assert said.endswith("it is asked again every 1 s, and until then jobs count as what they were")
            assert refreshed(made.executor) == [JobState.RUNNING]
            assert made.blocks._jobs.states[job_id].startswith("RUNNING")
            assert made.executor.provider.max_blocks == 0
            assert made.blocks.lost("packs") == {}
        made.look_until("PBS answers again, after ")
        assert made.executor.provider.max_blocks == 1
        assert sum("no answer" in sentence for sentence in made.said) == 1
        assert ("note", {"sentence": said}) in made.events


@pytest.mark.slow
def test_a_server_that_lets_commands_wait_does_not_hold_up_the_driver(pbs, tmp_path, monkeypatch):
    monkeypatch.setattr("flows.sites.scheduler.COMMAND_SECONDS", 3)
    monkeypatch.setattr("flows.sites.blocks.PATIENCE", 0.2)
    with driver(tmp_path / "scripts") as made:
        job_id = made.executor.start_block()
        pbs.wait_for(lambda: pbs.jobs()[job_id] == "R")
        made.blocks.look()
        with pbs.away(silent=True):
            time.sleep(0.3)
            begun = time.monotonic()
            made.blocks.look()
            assert time.monotonic() - begun < 2
            assert "qstat gave no answer within 3 s" in made.look_until("PBS has given no answer since ")
        made.look_until("PBS answers again")


def test_a_block_that_could_not_be_submitted_for_silence_is_no_failed_one(pbs, tmp_path):
    with driver(tmp_path / "scripts") as made:
        with pbs.away():
            assert made.executor.start_block() == ""
            made.look_until("PBS has given no answer since ")
            assert made.executor.provider.max_blocks == 0
        made.look_until("PBS answers again")
        assert made.executor.provider.max_blocks == 1
        assert made.executor.start_block() != ""
        assert not any("refused" in sentence and "another block" in sentence for sentence in made.said)


def test_what_cannot_be_cancelled_is_told_and_the_next_driver_cancels_it(pbs, tmp_path):
    with driver(tmp_path / "scripts", nodes_per_block=3) as made:
        job_id = made.executor.start_block()
        made.blocks.look()
        made.lease.withdraw()
        with pbs.away():
            made.blocks.cancel()
        assert f"job {job_id} could not be cancelled: qstat refused: Connection refused" in made.said[-1]
        assert made.said[-1].endswith(f"to end it: qdel {job_id}; the next start tries again")
        # As a driver that has ended.
        text = made.lease.path.read_text().replace(f'"pid": {os.getpid()}', '"pid": 4194305')
        made.lease.path.write_text(text)
        said: list[str] = []
        with pbs.away():
            assert end_leftovers(tmp_path / "packs", said.append, Stop()) == 0
        assert said[-1].startswith(f"a job of it could not be cancelled: {job_id}: qstat refused: ")
        assert end_leftovers(tmp_path / "packs", said.append, Stop()) == 0
        assert said[-1] == "1 jobs that an earlier driver could not cancel have been cancelled"
        assert pbs.wait(job_id) is None
        assert end_leftovers(tmp_path / "packs", said.append, Stop()) == 0
        assert len(said) == 2


def test_ended_blocks_are_asked_about_at_the_end(pbs, tmp_path):
    with driver(tmp_path / "scripts") as made:
        job_id = made.executor.start_block()
        made.blocks.look()
        made.blocks._jobs.states[job_id] = "ended"
        made.blocks.cancel()
        assert pbs.wait(job_id) in (271, None)


def test_a_block_that_is_given_back_ends_with_status_0_and_a_waiting_one_leaves_the_queue(pbs, tmp_path):
    with driver(tmp_path / "scripts", nodes_per_block=2) as made:
        runs = made.executor.start_block()
        pbs.wait_for(lambda: pbs.jobs()[runs] == "R")
        waits = made.executor.start_block()
        made.blocks.look()
        assert made.executor.provider.cancel([runs, waits]) == [True, True]
        made.blocks.cancel()
        assert [pbs.wait(runs), pbs.wait(waits)] == [0, None]
        assert pbs.job(runs)["comment"].endswith(" and finished")
        assert "No such process" not in Path(made.executor.provider.resources[runs]["job_stderr_path"]).read_text()
        assert made.said == []


@pytest.mark.parametrize("pbs", [{"kill_delay": 1.0}], indirect=True)
def test_a_deleted_block_says_nothing_of_its_watchers(pbs, tmp_path):
    with driver(tmp_path / "scripts") as made:
        job_id = made.executor.start_block()
        pbs.wait_for(lambda: pbs.jobs()[job_id] == "R")
        time.sleep(1)
        pbs.run("qdel", job_id)
        assert pbs.wait(job_id) == 271
        made.blocks.look()
        (log,) = made.blocks.lost("packs").values()
        assert "No such process" not in log.read_text()


@pytest.mark.slow
def test_a_block_that_does_not_end_by_itself_is_cancelled(pbs, tmp_path, monkeypatch):
    monkeypatch.setattr("flows.sites.blocks.END_SECONDS", 1.0)
    with driver(tmp_path / "scripts") as made:
        made.executor.provider.worker_init += "end_pools() { :; }\nkill $giver\n"
        job_id = made.executor.start_block()
        pbs.wait_for(lambda: pbs.jobs()[job_id] == "R")
        made.blocks.look()
        assert made.executor.provider.cancel([job_id]) == [True]
        time.sleep(1.2)
        made.blocks._ask()
        assert pbs.wait(job_id) == 271


def test_a_block_that_can_never_run_is_given_up_with_the_words_of_pbs(pbs, tmp_path, monkeypatch):
    with driver(tmp_path / "scripts", nodes_per_block=3) as made:
        job_id = made.executor.start_block()
        pbs.wait_for(lambda: "comment" in pbs.job(job_id))
        made.blocks.look()
        made.blocks._ask()
        made.blocks.look()
        monkeypatch.setattr("flows.sites.blocks.NEVER_SECONDS", 0.0)
        with pytest.raises(SchedulerError) as raised:
            made.blocks.look()
        words = "QUEUED (Can Never Run: Not enough total nodes available); it was given up"
        assert str(raised.value) == f"PBS has said for 0 s of job {job_id}, the block of packs: {words}"
        assert made.said[-1].startswith("the block of packs asked for nodes_per_block=3, ")
    assert pbs.wait(job_id) is None


@pytest.mark.parametrize("pbs", [{"resources_max": {"": {"nodect": 1}}}], indirect=True)
def test_a_refusal_names_the_keys_of_its_block(pbs, tmp_path):
    with driver(tmp_path / "scripts", nodes_per_block=2, queue="workq") as made:
        assert made.executor.start_block() == ""
        with pytest.raises(SchedulerError, match="PBS refused the block of packs: qsub: Job violates queue and/or"):
            made.blocks.look()
        assert made.said == [
            "the block of packs asked for nodes_per_block=2, cores_per_node=null, gpus_per_node=0, mem_per_node=null, "
            "walltime=01:00:00, queue=workq, account=null"
        ]


def test_the_keys_of_a_block_of_builds_are_its_own_and_those_that_it_inherits():
    site = PbsSite(ranks_per_node=1, queue="workq", account="me", scheduler_options="#PBS -m n")
    assert asked_for(site, "tasks") == (
        "builds.cores_per_node=1, builds.mem_per_node=null, builds.walltime=01:00:00, queue=workq, account=me"
    )
    assert asked_for(site, "packs").endswith("queue=workq, scheduler_options=#PBS -m n, account=me")


LIMITS = {"workq": {"ncpus": 8, "walltime": "02:00:00"}, "": {"nodect": 3}}


@pytest.mark.parametrize("pbs", [{"resources_max": LIMITS}], indirect=True)
@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {"nodes_per_block": 2, "cores_per_node": 5},
            "queue workq takes ncpus=8 at most, and the block asks for ",
        ),
        ({"walltime": "03:00:00", "queue": "workq"}, "queue workq takes walltime=02:00:00 at most, and the "),
        (
            {"nodes_per_block": 4, "queue": "builds"},
            "server fakepbs takes nodect=3 at most, and the block asks ",
        ),
        ({"nodes_per_block": 2, "cores_per_node": 4, "walltime": "02:00:00"}, None),
        ({"cores_per_node": 64, "queue": "builds"}, None),
        ({"queue": "nowhere"}, None),
    ],
)
def test_packs_that_a_queue_will_refuse_are_refused_beforehand(pbs, keys, told):
    site = PbsSite(ranks_per_node=1, **keys)
    if told is None:
        check_limits(site, Pbs())
        return
    with pytest.raises(SchedulerError) as raised:
        check_limits(site, Pbs())
    assert told in str(raised.value)
    assert all(f"{key}={value}" in str(raised.value) for key, value in keys.items())


@pytest.mark.parametrize("umask", [0o027])
def test_a_block_has_the_umask_of_its_submitter(pbs, tmp_path, umask):
    before = os.umask(umask)
    try:
        with driver(tmp_path / "scripts") as made:
            made.executor.provider.worker_init += f"cd {tmp_path}; touch file; umask > umask\n"
            job_id = made.executor.start_block()
            pbs.wait_for(lambda: pbs.jobs()[job_id] == "R" and (tmp_path / "umask").exists())
            made.executor.provider.cancel([job_id])
            assert pbs.wait(job_id) == 0
            assert (tmp_path / "umask").read_text().strip() == f"{umask:04o}"
            errors = Path(made.executor.provider.resources[job_id]["job_stderr_path"])
            assert {path.stat().st_mode & 0o777 for path in (tmp_path / "file", errors)} == {0o666 & ~umask}
    finally:
        os.umask(before)


@pytest.mark.slow
def test_held_and_suspended_blocks_of_slurm_are_not_replaced_and_good_ones_are_completed(slurm_lab, tmp_path):
    with driver(tmp_path / "scripts", SlurmSite, nodes_per_block=4) as made:
        executor = made.executor
        first = executor.start_block()
        slurm_lab.wait_for(lambda: slurm_lab.job(int(first))["JobState"] == "RUNNING")
        second = executor.start_block()
        slurm_lab.run("scontrol", "hold", second)
        slurm_lab.run("scontrol", "suspend", first)
        assert refreshed(executor) == [JobState.RUNNING, JobState.PENDING]
        states = made.blocks._jobs.states
        assert states[first].startswith("SUSPENDED") and states[second].startswith("PENDING (JobHeld")
        slurm_lab.run("scontrol", "resume", first)
        slurm_lab.wait_for(lambda: slurm_lab.job(int(first))["JobState"] == "RUNNING")
        made.blocks.look()
        assert executor.provider.cancel([first, second]) == [True, True]
        made.blocks.cancel()
        assert [slurm_lab.job(int(job))["JobState"] for job in (first, second)] == ["COMPLETED", "CANCELLED"]
        assert slurm_lab.job(int(first))["ExitCode"] == "0:0"
        assert made.said == []


def test_both_executors_of_a_site_watch_their_jobs_together(tmp_path):
    site = PbsSite(ranks_per_node=1, address="127.0.0.1", one_machine=True)
    tasks, packs = parsl_config(site, tmp_path / "runs" / "parsl" / "x", True).executors
    assert tasks.provider.jobs is packs.provider.jobs


def test_a_job_that_parsl_has_listed_and_nobody_watches_yet_waits():
    provider = packs_provider(PbsSite(ranks_per_node=1, one_machine=True))
    provider.jobs.refresh = lambda: None
    provider.resources["7.server"] = {"job_stdout_path": "out", "job_stderr_path": "err"}
    provider._status()
    assert provider.resources["7.server"]["status"].state == JobState.PENDING
