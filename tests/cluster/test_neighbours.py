"""The study beside a job array and xargs on SLURM. What HyperQueue and Snakemake do takes an environment of theirs."""

import re

import pytest

from tests.benchmarks.running import run

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.parsl, pytest.mark.mpi]


@pytest.mark.usefixtures("slurm_lab")
def test_every_way_finishes_the_study_with_its_jobs(tmp_path):
    run("neighbours", "--quick", "--out", tmp_path, "--ways", "array,xargs,this")
    jobs = re.findall(r"^\| \S.+ \| (\d+) \| \d+ \| [\d.]+ \|$", (tmp_path / "neighbours.md").read_text(), re.M)
    assert jobs == ["8", "1", "1"]
