"""Whole studies on the fake PBS: from its login node, and inside one allocation."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lambda_hat.store.umask import process_umask
from tests.cluster.fake_pbs import FakePbs
from tests.cluster.studies import (
    ON_THIS_MACHINE,
    OWN_TMPDIR,
    PATIENCE,
    QUADRATIC,
    WATCHER,
    WORKERS,
    analyses,
    block_script,
    job_logs,
    lose_a_block,
    numbers,
    packed,
    packs,
    slow_clock,
    start_packed,
    write_study,
)
from tests.users import USERS_PYTHON

pytestmark = [pytest.mark.cluster, pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow]

LOGIN = ["--site", "pbs", *ON_THIS_MACHINE]
TWO_PROCESSES = ["site.ranks_per_node=2", "site.nodes_per_pack=2", "site.select_options=mpiprocs=2"]
"""With these PBS writes every node twice into the node file."""


@dataclass
class Done:
    """A study that has ended."""

    said: str
    store: Path
    jobs: dict[str, dict[str, Any]]
    """Those that were submitted for it, with their attributes."""


def wait_for_all(pbs: FakePbs) -> None:
    pbs.wait_for(lambda: set(pbs.jobs().values()) <= {"F"}, PATIENCE)


def run_study(pbs: FakePbs, folder: Path, *words: str) -> Done:
    """A study of four runs to its end, by this way. Its folder has files with the names of modules."""
    before = pbs.jobs()
    for name in ("parsl", "yaml", "numpy", "random", "flows", "mpi"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the user was imported')\n")
    done = packed(pbs, "--experiments", write_study(folder / "study.yaml"), *words, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    wait_for_all(pbs)
    table = pd.read_parquet(folder / "results" / "llc_runs.parquet")
    assert (len(table), set(table["status"])) == (4, {"finished"})
    return Done(done.stdout, folder / "runs", {job: pbs.job(job) for job in pbs.jobs() if job not in before})


@pytest.fixture(scope="module")
def four_nodes() -> Iterator[FakePbs]:
    with FakePbs(nodes=4) as pbs:
        yield pbs


@pytest.fixture(scope="module")
def login(four_nodes: FakePbs, tmp_path_factory) -> Done:
    """From the login node: a pack over a block of two nodes."""
    words = [*LOGIN, *TWO_PROCESSES, "site.nodes_per_block=2", "site.builds.queue=builds"]
    return run_study(four_nodes, tmp_path_factory.mktemp("login"), *words)


@pytest.fixture(scope="module")
def allocation(four_nodes: FakePbs, tmp_path_factory) -> Done:
    """In one allocation of two nodes."""
    words = ["--submit=pbs", "--nodes=2", "--walltime=00:10:00", *TWO_PROCESSES]
    return run_study(four_nodes, tmp_path_factory.mktemp("allocation"), *words)


def assert_no_node_idle(done: Done, nodes: str) -> None:
    (pack,) = packs(done.store)
    assert len(pack.hosts) == 4
    assert len(set(pack.hosts)) == 2 and pack.hosts.count(pack.hosts[0]) == 2
    assert all(host in nodes for host in pack.hosts)


def test_a_pack_of_two_nodes_from_the_login_node(login):
    assert "4 finished" in login.said
    (builds, of_builds), (in_packs, of_packs) = login.jobs.items()
    assert (of_builds["queue"], of_packs["queue"]) == ("builds", "workq")
    assert of_packs["Resource_List"]["select"] == "2:ncpus=2:mpiprocs=2"
    assert f"job {builds} submitted for tasks: 1 node, 01:00:00" in login.said
    assert f"job {in_packs} submitted for packs: 2 nodes, 01:00:00" in login.said
    assert_no_node_idle(login, of_packs["exec_host"])


def test_one_allocation_is_one_job(allocation):
    ((job_id, job),) = allocation.jobs.items()
    assert (job["Job_Name"], job["Exit_status"], job["Resource_List"]["walltime"]) == ("lambda_hat", 0, "00:10:00")
    assert f"submitted job {job_id}; its log will be " in allocation.said
    (log,) = job_logs(allocation.store).values()
    assert "4 finished" in log
    assert_no_node_idle(allocation, job["exec_host"])


def test_both_ways_give_the_same_bits(login, allocation):
    assert len(numbers(login.store)) == 4
    assert numbers(login.store) == numbers(allocation.store)


def test_good_blocks_end_with_status_0(login):
    assert [job["Exit_status"] for job in login.jobs.values()] == [0, 0]
    assert all(job["comment"].endswith(" and finished") for job in login.jobs.values())


@pytest.mark.parametrize("way", ["login", "allocation"])
def test_the_umask_of_the_submitter_holds_in_jobs(request, way):
    done = request.getfixturevalue(way)
    umask = process_umask()
    assert umask != 0o077, "that of PBS"
    # Parsl's certificates are for nobody else, and no other user may write what `rerun` starts.
    files = [path for path in done.store.rglob("*") if path.is_file() and "parsl" not in path.parts]
    modes = {path: path.stat().st_mode & 0o777 for path in files if path.parent.name != "studies"}
    assert set(modes.values()) == {0o666 & ~umask}, modes


@pytest.mark.parametrize("label", ["packs", "tasks"])
def test_the_script_of_a_block(login, label):
    assert block_script(login.store, label) == BLOCKS[label]


BLOCKS = {
    "packs": """\
#!/bin/bash
#PBS -S /bin/bash
#PBS -N NAME
#PBS -m n
#PBS -l walltime=01:00:00
#PBS -l select=2:ncpus=2:mpiprocs=2
#PBS -o SCRIPT.stdout
#PBS -e SCRIPT.stderr
#PBS -l place=scatter:excl
#PBS -W umask=UMASK
cd FOLDER
export PYTHONPATH=REPOSITORY
"""
    + OWN_TMPDIR
    + """\
awk '!seen[$0]++' "$PBS_NODEFILE" > "${TMPDIR:-/tmp}/lambda_hat_nodes.$PBS_JOBID"
export PBS_NODEFILE="${TMPDIR:-/tmp}/lambda_hat_nodes.$PBS_JOBID"
export LAMBDA_HAT_BLOCK_SECONDS=3600 LAMBDA_HAT_BLOCK_END=$(( $(date +%s) + 3600 ))
"""
    + WATCHER
    + """\
export JOBNAME="NAME"
"""
    + WORKERS["packs"],
    "tasks": """\
#!/bin/bash
#PBS -S /bin/bash
#PBS -N NAME
#PBS -m n
#PBS -l walltime=01:00:00
#PBS -l select=1:ncpus=1
#PBS -o SCRIPT.stdout
#PBS -e SCRIPT.stderr
#PBS -W umask=UMASK
cd FOLDER
export PYTHONPATH=REPOSITORY
"""
    + OWN_TMPDIR
    + """\
awk '!seen[$0]++' "$PBS_NODEFILE" > "${TMPDIR:-/tmp}/lambda_hat_nodes.$PBS_JOBID"
export PBS_NODEFILE="${TMPDIR:-/tmp}/lambda_hat_nodes.$PBS_JOBID"
export LAMBDA_HAT_BLOCK_SECONDS=3600 LAMBDA_HAT_BLOCK_END=$(( $(date +%s) + 3600 ))
"""
    + WATCHER
    + """\
export JOBNAME="NAME"
"""
    + WORKERS["tasks"],
}


@pytest.mark.parametrize("pbs", [{"kill_delay": 2.0}], indirect=True)
def test_a_deleted_block_is_told_and_only_what_was_lost_is_sampled_again(pbs, tmp_path):
    path = write_study(tmp_path / "study.yaml", seeds=10, thin=8000, targets=[QUADRATIC])

    def cancel() -> str:
        (job_id,) = (job for job, state in pbs.jobs().items() if state == "R" and ".packs." in pbs.job(job)["Job_Name"])
        pbs.run("qdel", job_id)
        return job_id

    words = ["--experiments", path, "--pack=10", "site.ranks_per_node=1", *LOGIN]
    job_id, said = lose_a_block(pbs, words, tmp_path / "runs", cancel)
    assert "10 finished" in said
    (lost,) = (line for line in said.splitlines() if "lost with their block" in line)
    number = int(re.search(r"(\d+) of 10 runs finished", lost)[1])
    assert 2 <= number < 10
    # What was under way may have kept its state when the scheduler's TERM came.
    kept = sum(map(int, re.findall(r"(\d+) (?:paused with a checkpoint|left for later)", lost)))
    assert kept <= 1
    assert f"{10 - number - kept} lost with their block (job {job_id} ended: " in lost
    assert "they are packed again, what is finished is kept" in lost
    assert f"{10 - number} runs were left unfinished; packing them again" in said
    wait_for_all(pbs)


def test_a_held_block_and_a_silent_server_cost_no_second_block(pbs, tmp_path):
    path, log = write_study(tmp_path / "study.yaml", targets=[QUADRATIC]), tmp_path / "said"
    sleeper = tmp_path / "sleeper.sh"
    sleeper.write_text("exec sleep 600\n")
    # Builds have a node, and packs, which want two, wait.
    busy = pbs.submit("-l", "select=1:ncpus=4", sleeper, cwd=tmp_path)
    words = ["--experiments", path, *LOGIN, "site.ranks_per_node=1", "site.nodes_per_block=2", "site.nodes_per_pack=2"]
    driver = start_packed(pbs, *words, cwd=tmp_path, log=log)

    def blocks() -> list[str]:
        return [job for job in pbs.jobs() if ".packs." in pbs.job(job)["Job_Name"]]

    def until_said(words: str) -> None:
        pbs.wait_for(lambda: words in log.read_text() or driver.poll() is not None, PATIENCE)
        assert driver.poll() is None, log.read_text()

    try:
        pbs.wait_for(lambda: blocks() or driver.poll() is not None, PATIENCE)
        (block,) = blocks()
        pbs.run("qhold", block)
        until_said(f"job {block}: HELD (Job held by ")
        with pbs.away():
            until_said("PBS has given no answer since ")
        until_said("PBS answers again, after ")
        pbs.run("qdel", busy)
        pbs.wait(busy)
        assert blocks() == [block] and pbs.jobs()[block] == "H"
        pbs.run("qrls", block)
        assert driver.wait(PATIENCE) == 0, log.read_text()
    finally:
        driver.kill()
    wait_for_all(pbs)
    assert "2 finished" in log.read_text()
    assert blocks() == [block]
    assert pbs.job(block)["Exit_status"] == 0


def test_a_suspended_block_is_not_replaced_and_its_runs_are_finished_after_it(pbs, tmp_path):
    path, log = write_study(tmp_path / "study.yaml", seeds=6, thin=8000, targets=[QUADRATIC]), tmp_path / "said"
    driver = start_packed(pbs, "--experiments", path, *LOGIN, "site.ranks_per_node=1", cwd=tmp_path, log=log)

    def blocks() -> dict[str, str]:
        return {job: state for job, state in pbs.jobs().items() if ".packs." in pbs.job(job)["Job_Name"]}

    def ended_with_one_block_at_a_time() -> bool:
        assert sum(state != "F" for state in blocks().values()) <= 1
        return driver.poll() is not None

    try:
        pbs.wait_for(lambda: analyses(tmp_path / "runs") or driver.poll() is not None, PATIENCE)
        (block,) = blocks()
        pbs.run("qsig", "-s", "suspend", block)
        pbs.wait_for(lambda: "lost because their block was stopped" in log.read_text(), PATIENCE)
        assert blocks() == {block: "S"}
        pbs.run("qsig", "-s", "resume", block)
        pbs.wait_for(ended_with_one_block_at_a_time, PATIENCE)
        assert driver.wait(PATIENCE) == 0, log.read_text()
    finally:
        driver.kill()
    wait_for_all(pbs)
    said = log.read_text()
    assert f"(job {block}: SUSPENDED (Job run at " in said and "6 finished" in said
    assert len(blocks()) <= 2


def test_a_check_that_is_told_to_stop_leaves_no_job_and_a_later_one_cancels_what_a_killed_one_left(pbs, tmp_path):
    path, log = write_study(tmp_path / "study.yaml", targets=[QUADRATIC]), tmp_path / "said"
    # Two nodes: a block of three waits.
    words = ["--experiments", path, "--check", *LOGIN, "site.ranks_per_node=1", "site.nodes_per_block=3"]

    def waiting_check(number: int) -> subprocess.Popen:
        check = start_packed(pbs, *words, "site.nodes_per_pack=3", cwd=tmp_path, log=log)
        try:
            pbs.wait_for(lambda: "submitted for packs" in log.read_text() or check.poll() is not None, PATIENCE)
            assert len(pbs.jobs()) == number, log.read_text()
        except BaseException:
            check.kill()
            raise
        return check

    stopped = waiting_check(1)
    try:
        stopped.send_signal(signal.SIGTERM)
        assert stopped.wait(60) == 130, log.read_text()
    finally:
        stopped.kill()
    assert "stopped: nothing is left running, and the site was not judged" in log.read_text()
    wait_for_all(pbs)
    killed = waiting_check(2)
    killed.kill()
    killed.wait()
    left = list(pbs.jobs())[-1]
    assert pbs.jobs()[left] == "Q"
    later = waiting_check(3)
    try:
        assert "an earlier driver was killed on " in log.read_text()
        assert "and 1 of its jobs cancelled" in log.read_text()
        assert pbs.wait(left) is None
        later.send_signal(signal.SIGTERM)
        assert later.wait(60) == 130
    finally:
        later.kill()
    wait_for_all(pbs)


@pytest.mark.parametrize("pbs", [{"nodes": 1}], indirect=True)
def test_status_has_the_words_of_pbs_while_there_is_no_allocation(pbs, tmp_path):
    path = write_study(tmp_path / "study.yaml", targets=[QUADRATIC])
    words = ["--experiments", path, *LOGIN, "site.ranks_per_node=1", "site.nodes_per_block=2", "site.nodes_per_pack=2"]
    driver = start_packed(pbs, *words, cwd=tmp_path, log=tmp_path / "said")

    def status() -> str:
        # Not one of the cluster's commands is on this path.
        command = [USERS_PYTHON, "-m", "lambda_hat.entrypoints.cli", "status"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        return " ".join(done.stdout.split()) if done.returncode == 0 else ""

    try:
        pbs.wait_for(lambda: "no allocation yet: PBS says QUEUED (Can Never" in status(), PATIENCE)
        said = status()
        driver.send_signal(signal.SIGINT)
        assert driver.wait(60) == 130, (tmp_path / "said").read_text()
    finally:
        driver.kill()
    (job_id,) = (job for job in pbs.jobs() if ".packs." in pbs.job(job)["Job_Name"])
    assert f"{job_id} packs 2 01:00:00 QUEUED (Can Never Run:" in said
    assert "2 no allocation yet: PBS says QUEUED (Can Never Run: Not enough total nodes available)" in said
    assert "it was stopped" in status() and job_id not in status()
    wait_for_all(pbs)


def test_a_block_near_its_end_takes_no_new_pack_and_ends_by_itself(pbs, tmp_path):
    path = write_study(tmp_path / "study.yaml", seeds=4, thin=40000, targets=[QUADRATIC])
    words = ["--experiments", path, "--pack=1", "--retries=3", "site.ranks_per_node=1", "site.walltime=00:00:40"]
    done = packed(pbs, *words, *LOGIN, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    wait_for_all(pbs)
    assert "4 finished" in done.stdout
    assert "lost with their block" not in done.stdout
    jobs = [pbs.job(job) for job in pbs.jobs()]
    blocks = [job for job in jobs if ".packs." in job["Job_Name"]]
    assert len(blocks) > 1
    assert -29 not in [job["Exit_status"] for job in blocks], "none was ended by its walltime"


def test_a_chain_reaches_the_end(pbs, tmp_path):
    path = write_study(tmp_path / "study.yaml", targets=[QUADRATIC])
    words = ["--experiments", path, "--submit=pbs", "--nodes=1", "site.ranks_per_node=1", slow_clock(tmp_path, 588)]
    done = packed(pbs, *words, "--walltime=00:10:00", "--chain=5", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    wait_for_all(pbs)
    cut, last = pbs.jobs()
    assert [pbs.job(job)["Exit_status"] for job in (cut, last)] == [75, 0]
    logs = job_logs(tmp_path / "runs")
    assert f"submitted job {last} to go on: " in logs[cut]
    assert "2 finished" in logs[last]
    assert "to go on" not in logs[last]


@pytest.mark.parametrize(
    ("pbs", "words", "message"),
    [
        ({"history": False}, LOGIN, "keeps no history of finished jobs (job_history_enable is off)"),
        ({"history": False}, [*LOGIN, "--check"], "write --submit pbs --nodes N, which takes one allocation"),
        ({"accounts": ["physics"]}, LOGIN, "PBS refused the block of tasks: qsub: Invalid Account"),
        ({"accounts": ["physics"]}, [*LOGIN, "site.account=nobody"], "PBS refused the block of tasks: qsub: Invalid"),
        ({"accounts": ["physics"]}, ["--submit=pbs"], "qsub refused: qsub: Invalid Account"),
        (
            {"resources_max": {"": {"ncpus": 4}}},
            [*LOGIN, "site.cores_per_node=8"],
            "PBS would refuse the block of packs",
        ),
        ({}, ["--submit=pbs", "site.queue=nowhere"], "qsub refused: qsub: Unknown queue"),
        ({}, ["--submit=pbs", "--walltime=noon"], "--walltime: got 'noon', expected hours:minutes:seconds"),
    ],
    indirect=["pbs"],
)
def test_refusals_leave_nothing(pbs, tmp_path, words, message):
    path = write_study(tmp_path / "study.yaml")
    done = packed(pbs, "--experiments", path, "site.ranks_per_node=1", *words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stdout + done.stderr
    assert pbs.submitted == 0
    assert analyses(tmp_path / "runs") == {}


@pytest.mark.parametrize("words", [["--submit=pbs", "--nodes=2"], [*LOGIN, "site.nodes_per_block=2"]])
def test_dry_run_shows_and_submits_nothing(pbs, tmp_path, words):
    path = write_study(tmp_path / "study.yaml")
    done = packed(pbs, "--experiments", path, "--dry-run", "site.ranks_per_node=2", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = "#PBS -l select=2:ncpus=2\n" if "--submit=pbs" in words else " -n 2 -ppn 2 -hosts NODE1 "
    assert shown in done.stdout
    assert re.search(r"^dry run: nothing was (submitted|started)$", done.stdout, flags=re.M)
    assert pbs.submitted == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["study.yaml"]
