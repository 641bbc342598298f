"""One study on this machine and on the fake PBS."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.cluster.fake_pbs import FakePbs
from tests.cluster.studies import (
    ON_THIS_MACHINE,
    PATIENCE,
    QUADRATIC,
    ROOT,
    analyses,
    driver_env,
    lose_a_block,
    numbers,
    packed,
    packs,
    write_study,
)
from tests.users import USERS_PYTHON

pytestmark = [pytest.mark.cluster, pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow]

FAR = {"kind": "pbs", "cores_per_node": 2, "address": "127.0.0.1", "one_machine": True, "poll_seconds": 2}
TARGETS = [{**QUADRATIC, "site": "far.yaml"}, {"target": "monomial"}]
HERE = ["--experiments", "study.yaml", "--site", "local", "--ranks", "2"]


def write(folder: Path, **more) -> None:
    (folder / "far.yaml").write_text(yaml.safe_dump(FAR))
    write_study(folder / "study.yaml", targets=TARGETS, **more)


def sites_of(folder: Path) -> dict[str, set[str]]:
    """By target, where its runs were sampled as the table says."""
    table = pd.read_parquet(folder / "results" / "llc_runs.parquet")
    assert set(table["status"]) == {"finished"}
    return {label: set(part["site"]) for label, part in table.groupby("target")}


def test_two_sites_of_one_scheduler(pbs: FakePbs, tmp_path):
    write(tmp_path)
    words = ["--experiments", "study.yaml", "--site", "pbs", *ON_THIS_MACHINE, "site.ranks_per_node=1"]
    done = packed(pbs, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sites_of(tmp_path) == {"quadratic d=3 rank 2": {"far"}, "w1^2 w2^2": {"pbs"}}
    labels = re.findall(r"job \S+ submitted for (\w+): 1 node", done.stdout)
    assert sorted(labels) == ["packs", "packs_far", "tasks"]
    assert [pbs.job(job)["Exit_status"] for job in pbs.jobs()] == [0, 0, 0]


def test_one_command_and_one_table(pbs: FakePbs, tmp_path):
    far, near = tmp_path / "far", tmp_path / "near"
    for folder in (far, near):
        folder.mkdir()
        write(folder)
    done = packed(pbs, *HERE, cwd=far)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sites_of(far) == {"quadratic d=3 rank 2": {"far"}, "w1^2 w2^2": {"local"}}
    ((job_id, _),) = pbs.jobs().items()
    assert f"job {job_id} submitted for packs_far: 1 node, 01:00:00" in done.stdout
    hosts = {frozenset(pack.hosts) for pack in packs(far / "runs")}
    assert len(hosts) == 2 and frozenset({"pbsnode1"}) in hosts
    words = [USERS_PYTHON, "-m", "lambda_hat.entrypoints.cli", "status", "--store", far / "runs"]
    status = subprocess.run(words, cwd=ROOT, env=driver_env(pbs), capture_output=True, text=True, check=True).stdout
    assert "packs    local: 1: 1 over" in status and "far: 1: 1 over" in status
    # The same study on one site gives the same bits.
    (near / "study.yaml").write_text((near / "study.yaml").read_text().replace("  site: far.yaml\n", ""))
    assert packed(pbs, *HERE, cwd=near).returncode == 0
    assert len(pbs.jobs()) == 1
    assert numbers(near / "runs") == numbers(far / "runs")


def test_a_check_judges_each_site(pbs: FakePbs, tmp_path):
    write(tmp_path)
    done = packed(pbs, *HERE, "--check", cwd=tmp_path)
    assert "checking site local: one pack of 2 ranks" in done.stdout, done.stdout + done.stderr
    assert "checking site far.yaml: one pack of 2 ranks" in done.stdout
    assert "verdict on local: ok" in done.stdout and "verdict on far: ok" in done.stdout
    assert done.returncode == 0


def test_a_block_lost_on_one_site_costs_the_other_nothing(pbs: FakePbs, tmp_path):
    write(tmp_path, seeds=6, thin=8000)

    def cancel() -> str:
        pbs.wait_for(lambda: any(run["site"] == "far" for run in analyses(tmp_path / "runs").values()), PATIENCE)
        (job_id,) = (job for job, state in pbs.jobs().items() if state == "R")
        pbs.run("qdel", job_id)
        return job_id

    job_id, said = lose_a_block(pbs, HERE, tmp_path / "runs", cancel)
    (lost,) = (line for line in said.splitlines() if "lost with their block" in line)
    assert f"(job {job_id} ended: " in lost and "they are packed again" in lost
    (pack,) = re.findall(r"(pack_\S+): 6 of 6 runs finished", said.partition(lost)[0])
    assert "on rank 1" in said and pack not in lost
    assert sites_of(tmp_path) == {"quadratic d=3 rank 2": {"far"}, "w1^2 w2^2": {"local"}}
