import os

import pytest

from lambda_hat.programs.memory import memory_of_node

GIB = 2**30


@pytest.fixture
def machine(tmp_path):
    """(cgroup lines, {path below the cgroups: limit}) -> the memory of a node that has them."""

    def make(lines, limits):
        cgroups, own = tmp_path / "cgroups", tmp_path / "own"
        own.write_text(lines)
        for path, limit in limits.items():
            file = cgroups / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{limit}\n")
        return memory_of_node(cgroups, own)

    return make


PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_without_limits_it_is_all_that_there_is(machine, tmp_path):
    assert memory_of_node(tmp_path / "none", tmp_path / "none") == PHYSICAL
    assert machine("0::/\n", {"memory.max": "max"}) == PHYSICAL
    assert machine("4:memory:/\n", {"memory/memory.limit_in_bytes": 9223372036854771712}) == PHYSICAL


def test_the_tightest_limit_above_counts(machine):
    limits = {"slurm/memory.max": 2 * GIB, "slurm/job_7/memory.max": "max", "slurm/job_7/step_0/memory.max": 3 * GIB}
    assert machine("0::/slurm/job_7/step_0\n", limits) == 2 * GIB
    limits["slurm/job_7/memory.max"] = GIB
    assert machine("0::/slurm/job_7/step_0\n", limits) == GIB


def test_version_1_is_read_beside_version_2(machine):
    lines = "5:cpu,cpuacct:/x\n4:memory:/slurm/uid_1/job_7\n0::/elsewhere\n"
    assert machine(lines, {"memory/slurm/uid_1/memory.limit_in_bytes": GIB, "x/memory.max": 5}) == GIB
