"""Whole studies on a real SLURM: from its login node, and inside one allocation."""

from __future__ import annotations

import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from tests.cluster.slurm_lab import Job, SlurmLab
from tests.cluster.studies import (
    BAD_BUILD,
    ON_THIS_MACHINE,
    OWN_TMPDIR,
    PACKED,
    PATIENCE,
    QUADRATIC,
    ROOT,
    WATCHER,
    WORKERS,
    analyses,
    block_script,
    events,
    first_pack,
    job_logs,
    lose_a_block,
    numbers,
    packed,
    packs,
    slow_clock,
    start_packed,
    write_study,
)

pytestmark = [pytest.mark.cluster, pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow]

LOGIN = ["--site", "slurm", *ON_THIS_MACHINE]


@dataclass
class Done:
    """A study that has ended."""

    said: str
    store: Path
    jobs: list[Job]
    """Those that were submitted for it."""


def jobs_after(lab: SlurmLab, last: int) -> list[Job]:
    return sorted(job for job in lab.jobs(finished=True) if job.id > last)


def last_job(lab: SlurmLab) -> int:
    return max((job.id for job in lab.jobs(finished=True)), default=0)


def run_study(lab: SlurmLab, folder: Path, *words: str) -> Done:
    """A study of four runs to its end, by this way."""
    last = last_job(lab)
    done = packed(lab, "--experiments", write_study(folder / "study.yaml"), *words, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    lab.wait_for(lambda: not lab.jobs(), PATIENCE)
    table = pd.read_parquet(folder / "results" / "llc_runs.parquet")
    assert (len(table), set(table["status"])) == (4, {"finished"})
    return Done(done.stdout, folder / "runs", jobs_after(lab, last))


@pytest.fixture(scope="module")
def login(_slurm_cluster: SlurmLab, tmp_path_factory) -> Done:
    """From the login node: two packs on two nodes each, two ranks a node."""
    words = ["--pack=2", "site.ranks_per_node=2", "site.nodes_per_block=2", "site.nodes_per_pack=2"]
    words += ["site.max_blocks=2", "site.builds.partition=builds"]
    return run_study(_slurm_cluster, tmp_path_factory.mktemp("login"), *LOGIN, *words)


@pytest.fixture(scope="module")
def allocation(_slurm_cluster: SlurmLab, tmp_path_factory) -> Done:
    """In one allocation of two nodes, all of which the pack takes."""
    words = ["--submit=slurm", "--nodes=2", "--walltime=00:10:00", "site.ranks_per_node=1", "site.nodes_per_pack=null"]
    return run_study(_slurm_cluster, tmp_path_factory.mktemp("allocation"), *words)


@pytest.fixture(scope="module")
def side_by_side(_slurm_cluster: SlurmLab, tmp_path_factory) -> Done:
    """From the login node: four packs of one node, in one block of two."""
    words = ["--pack=1", "site.ranks_per_node=1", "site.nodes_per_block=2", "site.nodes_per_pack=1"]
    return run_study(_slurm_cluster, tmp_path_factory.mktemp("side"), *LOGIN, *words)


def test_two_packs_of_two_nodes_from_the_login_node(slurm_lab, login):
    assert "4 finished" in login.said
    builds, *of_packs = login.jobs
    assert (builds.partition, builds.name.split(".")[1]) == ("builds", "tasks")
    # One block for each pack and not one more: waiting blocks are kept, and the second is asked for.
    assert [(job.partition, job.name.split(".")[1]) for job in of_packs] == [("debug", "packs")] * 2
    found = packs(login.store)
    assert [len(pack.hosts) for pack in found] == [4, 4]
    assert all(len(set(pack.hosts)) == 2 and pack.hosts.count(pack.hosts[0]) == 2 for pack in found)
    for job in login.jobs:
        assert f"job {job.id} submitted for {job.name.split('.')[1]}: " in login.said


def test_one_allocation_is_one_job(slurm_lab, allocation):
    (job,) = allocation.jobs
    assert (job.name, job.state) == ("lambda_hat", "COMPLETED")
    assert f"submitted job {job.id}; its log will be " in allocation.said
    (log,) = job_logs(allocation.store).values()
    assert "4 finished" in log
    (pack,) = packs(allocation.store)
    assert len(set(pack.hosts)) == len(pack.hosts) == 2


def test_packs_queue_in_a_block_and_run_side_by_side(slurm_lab, side_by_side):
    assert [job.name.split(".")[1] for job in side_by_side.jobs] == ["tasks", "packs"]
    first, second, *later = packs(side_by_side.store)
    assert len(later) == 2
    assert first.hosts != second.hosts
    assert second.begun < first.ended
    assert min(pack.begun for pack in later) > min(first.ended, second.ended)


def test_the_same_bits_on_a_laptop_one_node_and_two_nodes(slurm_lab, login, allocation, side_by_side, tmp_path):
    words = [PACKED[0], ROOT / "mpi" / "run_pack.py", "--experiments", write_study(tmp_path / "study.yaml")]
    mpirun = [Path(PACKED[0]).parent / "mpirun", "-n", "4", *words]
    done = subprocess.run(mpirun, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    here = numbers(tmp_path / "runs")
    assert len(here) == 4
    assert all(isinstance(found["llc_mean"], float) for found in here.values())
    for there in (login, allocation, side_by_side):
        assert numbers(there.store) == here


@pytest.mark.parametrize("label", ["packs", "tasks"])
def test_the_script_of_a_block(slurm_lab, login, label):
    assert block_script(login.store, label) == BLOCKS[label]


BLOCKS = {
    "packs": """\
#!/bin/bash
#SBATCH --job-name=NAME
#SBATCH --output=SCRIPT.stdout
#SBATCH --error=SCRIPT.stderr
#SBATCH --nodes=2
#SBATCH --time=60
#SBATCH --ntasks-per-node=1
#SBATCH --no-requeue
#SBATCH --exclusive
cd FOLDER
export PYTHONPATH=REPOSITORY
"""
    + OWN_TMPDIR
    + """\
export LAMBDA_HAT_BLOCK_SECONDS=3600 LAMBDA_HAT_BLOCK_END=$(( $(date +%s) + 3600 ))
"""
    + WATCHER
    + """\
export JOBNAME="NAME"
"""
    + WORKERS["packs"],
    "tasks": """\
#!/bin/bash
#SBATCH --job-name=NAME
#SBATCH --output=SCRIPT.stdout
#SBATCH --error=SCRIPT.stderr
#SBATCH --nodes=1
#SBATCH --time=60
#SBATCH --ntasks-per-node=1
#SBATCH --no-requeue
#SBATCH --partition=builds
#SBATCH --cpus-per-task=1
cd FOLDER
export PYTHONPATH=REPOSITORY
"""
    + OWN_TMPDIR
    + """\
export LAMBDA_HAT_BLOCK_SECONDS=3600 LAMBDA_HAT_BLOCK_END=$(( $(date +%s) + 3600 ))
"""
    + WATCHER
    + """\
export PARSL_CORES=1
export JOBNAME="NAME"
"""
    + WORKERS["tasks"],
}


def test_a_cancelled_block_is_told_and_only_what_was_lost_is_sampled_again(slurm_lab, tmp_path):
    path = write_study(tmp_path / "study.yaml", seeds=10, thin=8000, targets=[QUADRATIC])
    store = tmp_path / "runs"

    def cancel() -> str:
        (job,) = (job for job in slurm_lab.jobs() if ".packs." in job.name)
        slurm_lab.run("scancel", str(job.id))
        return str(job.id)

    job_id, said = lose_a_block(
        slurm_lab, ["--experiments", path, "--pack=10", "site.ranks_per_node=1", *LOGIN], store, cancel
    )
    assert "10 finished" in said
    (lost,) = (line for line in said.splitlines() if "lost with their block" in line)
    number = int(re.search(r"(\d+) of 10 runs finished", lost)[1])
    assert 2 <= number < 10
    # What was under way may have kept its state when the scheduler's TERM came.
    kept = sum(map(int, re.findall(r"(\d+) (?:paused with a checkpoint|left for later)", lost)))
    assert kept <= 1
    assert f"{10 - number - kept} lost with their block (job {job_id} ended: " in lost
    assert "they are packed again, what is finished is kept" in lost
    logs = [Path(word) for word in lost.partition("logs: ")[2].split(" and ")]
    assert len(logs) == 2 and all(log.exists() for log in logs)
    assert f"JOB {job_id} ON n" in said
    assert f"{10 - number} runs were left unfinished; packing them again" in said


def test_what_a_killed_driver_left_is_cancelled_by_the_next_one_and_sampled_once(slurm_lab, tmp_path):
    path = write_study(tmp_path / "study.yaml", seeds=8, thin=20000, targets=[QUADRATIC])
    store, log = tmp_path / "runs", tmp_path / "said"
    words = ["--experiments", path, "--pack=4", "site.ranks_per_node=1", "site.nodes_per_block=4", *LOGIN]
    words += ["site.nodes_per_pack=4", "site.max_blocks=2"]
    killed = start_packed(slurm_lab, *words, cwd=tmp_path, log=log)
    try:
        # All nodes are in one block, so the other one waits.
        def one_runs_and_one_waits() -> bool:
            states = [job.state for job in slurm_lab.jobs() if ".packs." in job.name]
            return sorted(states) == ["PENDING", "RUNNING"] and len(events(store, "run_start")) == 4

        slurm_lab.wait_for(lambda: one_runs_and_one_waits() or killed.poll() is not None, PATIENCE)
        assert killed.poll() is None, log.read_text()
        left = {job.id for job in slurm_lab.jobs()}
    finally:
        killed.kill()
        killed.wait()
    ended = time.time()
    driver = start_packed(slurm_lab, *words, cwd=tmp_path, log=log)
    try:
        slurm_lab.wait_for(lambda: not left & {job.id for job in slurm_lab.jobs()}, 60)
        assert driver.wait(PATIENCE) == 0, log.read_text()
    finally:
        driver.kill()
    said = log.read_text()
    assert "an earlier driver was killed on " in said
    assert f"and {len(left)} of its jobs cancelled" in said
    assert "8 finished" in said
    assert "lost with their block" not in said
    first = [event for event in events(store, "run_end") if event["rank_log"].startswith(first_pack(store))]
    assert {event["status"] for event in first} <= {"paused", "finished"}
    assert max(event["time"] for event in first) - ended < 60
    finished = [event for event in events(store, "run_end") if event["status"] == "finished" and "cached" not in event]
    assert len(finished) == len({event["run_id"] for event in finished}) == 8


def test_a_chain_is_bounded_and_reaches_the_end(slurm_lab, tmp_path):
    path = write_study(tmp_path / "study.yaml", seeds=18, thin=8000, targets=[QUADRATIC])
    store, last = tmp_path / "runs", last_job(slurm_lab)
    words = ["--experiments", path, "--submit=slurm", "--nodes=1", "site.ranks_per_node=1"]
    assert packed(slurm_lab, *words, "--walltime=00:00:12", "--chain=1", cwd=tmp_path).returncode == 0
    slurm_lab.wait_for(lambda: not slurm_lab.jobs(), PATIENCE)
    bounded = jobs_after(slurm_lab, last)
    assert [slurm_lab.job(job.id)["ExitCode"] for job in bounded] == ["75:0", "75:0"]
    first, second = job_logs(store).values()
    assert f"submitted job {bounded[1].id} to go on: " in first
    assert "the allocation ends soon: stopped; what is finished is kept" in second
    assert "to go on" not in second

    words += ["--walltime=00:10:00", slow_clock(tmp_path, 575)]
    chained = packed(slurm_lab, *words, "--chain=5", cwd=tmp_path)
    assert chained.returncode == 0, chained.stdout + chained.stderr
    slurm_lab.wait_for(lambda: not slurm_lab.jobs(), PATIENCE)
    cut, last_one = jobs_after(slurm_lab, bounded[1].id)
    assert [slurm_lab.job(job.id)["ExitCode"] for job in (cut, last_one)] == ["75:0", "0:0"]
    *_, first, second = job_logs(store).values()
    left = int(re.search(r"^runs .*\b(\d+) pending$", first, flags=re.M)[1])
    assert f"submitted job {last_one.id} to go on: " in first
    assert f"18 runs ({18 - left} cached, {left} to sample" in second
    assert "18 finished" in second
    assert "to go on" not in second


def test_a_job_that_fails_for_another_reason_is_not_followed(slurm_lab, tmp_path):
    path, last = write_study(tmp_path / "study.yaml", targets=[BAD_BUILD]), last_job(slurm_lab)
    words = ["--experiments", path, "--submit=slurm", "--nodes=1", "--walltime=00:10:00", "--chain=5"]
    assert packed(slurm_lab, *words, "site.ranks_per_node=1", cwd=tmp_path).returncode == 0
    slurm_lab.wait_for(lambda: not slurm_lab.jobs(), PATIENCE)
    (job,) = jobs_after(slurm_lab, last)
    assert slurm_lab.job(job.id)["ExitCode"] == "1:0"
    (log,) = job_logs(tmp_path / "runs").values()
    assert "BuildFailed" in log
    assert "to go on" not in log


def script(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    return path


def test_singletons_are_refused_before_any_run(slurm_lab, tmp_path):
    program = f"{PACKED[0]} {ROOT / 'mpi' / 'run_pack.py'}"
    path = write_study(tmp_path / "study.yaml")
    job = script(
        tmp_path / "job.sh", f"exec srun --mpi=none -n 2 {program} --experiments {path} --store {tmp_path}/runs"
    )
    number = slurm_lab.submit("-N2", "--ntasks-per-node=1", "-o", tmp_path / "out", job, cwd=tmp_path)
    assert slurm_lab.wait(number, PATIENCE) == "FAILED"
    said = (tmp_path / "out").read_text()
    assert slurm_lab.job(number)["ExitCode"] == "2:0", said
    assert (
        "error: the launcher started 2 processes (SLURM_STEP_NUM_TASKS=2), but the MPI world of this one has size 1"
        in said
    )
    assert analyses(tmp_path / "runs") == {}


def test_check_under_srun_names_ranks_and_hosts(slurm_lab, tmp_path):
    words = ["site.flavour=srun", "site.srun_mpi=pmi2", "site.nodes_per_block=2", "site.nodes_per_pack=2"]
    words += ["--experiments", write_study(tmp_path / "study.yaml"), "site.ranks_per_node=2"]
    done = packed(slurm_lab, *LOGIN, "--check", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^([0-3]) +(n\d) .* 4 +[\d.]+ s +ok *$", done.stdout, flags=re.M)
    assert [rank for rank, _ in rows] == list("0123")
    assert len({host for _, host in rows}) == 2
    assert "verdict: ok, packs can run here" in done.stdout


def test_check_tells_singletons_and_a_walltime_that_is_too_short(slurm_lab, tmp_path):
    # A site's srun that speaks no MPI's language.
    (tmp_path / "bin").mkdir()
    srun = script(tmp_path / "bin" / "srun", 'exec /usr/bin/srun "${@/--mpi=pmi2/--mpi=none}"')
    srun.chmod(0o755)
    path = write_study(tmp_path / "study.yaml", thin=4_000_000)
    words = ["--experiments", path, "site.ranks_per_node=2", "site.walltime=00:00:20", "site.flavour=srun"]
    words += [f"site.worker_init=export PATH={srun.parent}:$PATH"]
    done = packed(slurm_lab, *LOGIN, "--check", *words, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "verdict: this site will not do" in done.stdout
    assert "wrong: 2 processes were started (SLURM_STEP_NUM_TASKS=2), and each is alone in an MPI world" in done.stdout
    assert re.search(r"wrong: .*walltime", done.stdout)


def test_gpus_that_no_node_has(slurm_lab, tmp_path):
    path = write_study(tmp_path / "study.yaml", targets=[QUADRATIC])
    done = packed(slurm_lab, *LOGIN, "--experiments", path, "site.gpus_per_node=1", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        "error: SLURM refused the block of packs: sbatch: error: Invalid generic resource (gres) specification"
        in (done.stderr.strip().splitlines()[-1])
    )
    assert slurm_lab.jobs() == []


def test_a_pack_without_the_gpus_that_it_asked_for_refuses(slurm_lab, tmp_path):
    path = write_study(tmp_path / "study.yaml", targets=[QUADRATIC])
    command = " ".join([*PACKED, f"--experiments {path} --site allocation site.gpus_per_node=1"])
    number = slurm_lab.submit(
        "-N1", "-o", tmp_path / "out", script(tmp_path / "job.sh", f"exec {command}"), cwd=tmp_path
    )
    assert slurm_lab.wait(number, PATIENCE) == "FAILED"
    said = (tmp_path / "out").read_text()
    assert slurm_lab.job(number)["ExitCode"] == "2:0", said
    end = said.strip().splitlines()[-1]
    assert re.match(r"error: no pack could be started: rank 0 \(local rank 0 of 1\) on n\d: ", end)
    assert "CUDA_VISIBLE_DEVICES" in end
    assert analyses(tmp_path / "runs") == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*LOGIN, "site.partition=closed", "site.account=nobody"], "SLURM refused the block of tasks: sbatch: error: "),
        (["--submit=slurm", "site.partition=closed"], "sbatch refused: sbatch: error: "),
        (["--submit=slurm", "--walltime=02:00:00"], "Requested time limit is invalid"),
        (["--submit=slurm", "--nodes=9"], "Node count specification invalid"),
        (["--submit=slurm", "--walltime=noon"], "--walltime: got 'noon', expected hours:minutes:seconds"),
        ([*LOGIN, "site.walltime=12h"], "walltime: got '12h', expected hours:minutes:seconds"),
        ([*LOGIN, "--check", "--store=study.yaml/store"], "study.yaml/store: the store cannot be written: "),
    ],
)
def test_refusals_in_the_schedulers_words_leave_nothing(slurm_lab, tmp_path, words, message):
    last = last_job(slurm_lab)
    path = write_study(tmp_path / "study.yaml")
    done = packed(slurm_lab, "--experiments", path, "site.ranks_per_node=1", *words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stdout + done.stderr
    assert jobs_after(slurm_lab, last) == []


@pytest.mark.parametrize("words", [LOGIN, ["--submit=slurm"], [*LOGIN, "--check"]])
def test_no_sbatch_on_the_path(slurm_lab, tmp_path, words):
    path = write_study(tmp_path / "study.yaml")
    env = {**os.environ, "PATH": str(tmp_path)}
    done = packed(slurm_lab, "--experiments", path, "site.ranks_per_node=1", *words, cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert "error: site slurm: no sbatch and no squeue and no scancel on the PATH" in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["study.yaml"]
