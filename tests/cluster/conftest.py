"""Clusters for the tests: a real SLURM and a fake PBS on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.cluster.fake_pbs import FakePbs
from tests.cluster.slurm_lab import SlurmLab, missing_binaries


def _install() -> None:
    """Install SLURM, or skip with the reason why that failed."""
    lacking = ", ".join(missing_binaries())
    if shutil.which("apt-get") is None:
        pytest.skip(f"SLURM's {lacking} are missing and there is no apt-get to install slurm-wlm and munge")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", "slurm-wlm", "munge"]):
        command = ["apt-get", "-q", *words]
        how = {"env": env, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
        try:
            done = subprocess.run(command, timeout=300, **how)
        except subprocess.TimeoutExpired:
            pytest.skip(f"SLURM's {lacking} are missing, and `{' '.join(command)}` did not end within 300 s")
        if done.returncode != 0:
            pytest.skip(f"SLURM's {lacking} are missing, and `{' '.join(command)}` failed: {done.stderr[-500:]}")
    if missing_binaries():
        pytest.skip(f"slurm-wlm and munge are installed, but not {', '.join(missing_binaries())}")


@pytest.fixture(scope="session")
def _slurm_cluster() -> Iterator[SlurmLab]:
    if os.geteuid() != 0:
        pytest.skip("the SLURM lab needs root: its nodes are namespaces with host names of their own")
    probe = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--uts", "true"], capture_output=True, text=True
    )
    if probe.returncode != 0:
        pytest.skip(f"the SLURM lab needs namespaces, which this machine refuses: {probe.stderr.strip()}")
    if missing_binaries():
        _install()
    with SlurmLab() as lab:
        yield lab


@pytest.fixture
def slurm_lab(_slurm_cluster: SlurmLab) -> Iterator[SlurmLab]:
    """The SLURM of the session, with an empty queue; a job left in it fails the test that left it."""
    yield _slurm_cluster
    deadline = time.monotonic() + 5
    while (left := _slurm_cluster.jobs()) and time.monotonic() < deadline:
        time.sleep(0.1)
    if left:
        _slurm_cluster.cancel_all()
        pytest.fail(f"jobs left in the queue: {left}")


@pytest.fixture
def pbs(request: pytest.FixtureRequest) -> Iterator[FakePbs]:
    """A fake PBS for one test; a job left unfinished fails the test that left it.

    Other than two nodes with history: `@pytest.mark.parametrize("pbs", [{"history": False}], indirect=True)`.
    """
    with FakePbs(**getattr(request, "param", {})) as pbs:
        yield pbs
        deadline = time.monotonic() + 5
        while (left := [job for job, state in pbs.jobs().items() if state != "F"]) and time.monotonic() < deadline:
            time.sleep(0.1)
        if left:
            pytest.fail(f"jobs left unfinished: { {job: pbs.job(job) for job in left} }")
