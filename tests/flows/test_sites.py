"""Sites: layers, refusals, and what they derive."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from flows.sites.site_schemas import (
    SITE_SCHEMAS,
    AllocationSite,
    allocated_nodes,
    format_walltime,
    load_site,
    parse_walltime,
)
from lambda_hat.errors import ConfigError

CONF = Path(__file__).resolve().parents[2] / "conf" / "site"


@pytest.fixture(autouse=True)
def _outside_of_any_job(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "PBS_")) or name == "NCPUS":
            monkeypatch.delenv(name)


@pytest.fixture
def in_pbs_job(monkeypatch, tmp_path):
    """A PBS job of two nodes with two processes each."""
    node_file = tmp_path / "nodes"
    node_file.write_text("b\nb\na\na\n")
    monkeypatch.setenv("PBS_NODEFILE", str(node_file))
    monkeypatch.setenv("NCPUS", "6")


def test_the_local_site():
    site = load_site("local", ["ranks_per_node=3", "cores_per_rank=2"])
    assert (site.kind, site.mpi, site.ranks) == ("local", "bundled", 3)
    assert site.resources == {"num_nodes": 1, "ranks_per_node": 3, "num_ranks": 3}
    assert load_site("local", options={"--ranks": ("ranks_per_node", 5)}).ranks == 5
    assert load_site("local").ranks >= 1


def test_a_site_file_anywhere(awkward_dir):
    path = awkward_dir / "mine.yaml"
    path.write_text("kind: slurm\nranks_per_node: 2\nwalltime: 12:00:00\nbuilds: {partition: big, mem_per_node: 64}\n")
    site = load_site(str(path))
    assert (site.ranks, site.walltime_seconds, site.builds.partition) == (2, 12 * 3600, "big")


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_site_of_the_repository_loads(path, in_pbs_job):
    assert load_site(path.stem).kind == path.stem.partition("_")[0]


@pytest.mark.parametrize("kind", sorted(SITE_SCHEMAS))
def test_every_key_of_a_kind_has_its_line_in_the_file_of_that_kind(kind):
    text = (CONF / f"{kind}.yaml").read_text()
    unneeded = {"local": {"srun_mpi"}, "allocation": {"worker_init"}}.get(kind, set())
    for field in dataclasses.fields(SITE_SCHEMAS[kind]):
        assert field.name in unneeded or f"\n{field.name}:" in text, field.name


@pytest.mark.parametrize(
    ("name", "words", "options", "message"),
    [
        ("loca", [], {}, r"--site: unknown 'loca'; did you mean 'local'"),
        ("local", [], {"--ranks": ("ranks_per_node", 0)}, r"--ranks: got 0, expected an integer of at least 1"),
        ("local", ["rank_per_node=1"], {}, r"unknown key 'rank_per_node'; did you mean 'ranks_per_node'"),
        ("local", ["mpi=bundle"], {}, r"mpi: unknown 'bundle'; did you mean 'bundled'"),
        ("local", ["flavour=hydr"], {}, r"flavour: unknown 'hydr'; did you mean 'hydra'"),
        ("local", ["cores_per_rank=0"], {}, r"cores_per_rank: got 0"),
        ("local", ["kind=slrum"], {}, r"kind: unknown 'slrum'; did you mean 'slurm'"),
        ("local", ["nodes_per_pack=2"], {}, r"nodes_per_pack: got 2, more than the 1 nodes of a block"),
        ("local", ["nodes_per_block=2"], {}, r"unknown key 'nodes_per_block'; did you mean 'nodes_per_pack'"),
        ("local", ["gpus_per_node=2", "ranks_per_node=1"], {}, r"ranks_per_node: got 1, .* would leave GPUs idle"),
        ("local", ["gpus_per_node=1", "ranks_per_node=2"], {}, r"ranks_per_node: got 2, .* GPUs that others use"),
        ("local", ["gpu_sharing=mps"], {}, r"gpu_sharing: got 'mps', but gpus_per_node is 0"),
        ("slurm", ["gpu_sharing=mps"], {}, r"gpu_sharing: got 'mps', but gpus_per_node is 0"),
        ("local", ["gpu_sharing=mp"], {}, r"gpu_sharing: unknown 'mp'; did you mean 'mps'"),
        ("slurm", ["queue=big"], {}, r"unknown key 'queue'; .*valid: .*partition"),
        ("pbs", ["partition=big"], {}, r"unknown key 'partition'; .*valid: .*queue"),
        ("slurm", ["builds.queue=big"], {}, r"unknown key 'builds.queue'; .*valid: .*partition"),
        ("slurm", ["nodes_per_block=2", "nodes_per_pack=4"], {}, r"got 4, more than the 2 nodes of a block"),
        ("slurm", ["nodes_per_block=5", "nodes_per_pack=2"], {}, r"would leave 1 of the 5 nodes of a block idle"),
        ("slurm", ["walltime=12h"], {}, r"walltime: got '12h', expected hours:minutes:seconds"),
        ("slurm", ["builds.walltime=x"], {}, r"builds.walltime: got 'x'"),
        ("slurm", [], {"--walltime": ("walltime", "noon")}, r"--walltime: got 'noon'"),
        ("slurm", ["address=127.0.0.1"], {}, r"address: got 127.0.0.1, which compute nodes cannot reach"),
        ("slurm", ["interface=lo"], {}, r"address: got lo, which compute nodes cannot reach"),
        ("slurm", ["address=10.0.0.1", "interface=ib0"], {}, r"interface: got ib0 beside address 10.0.0.1"),
        ("slurm", ["min_blocks=3"], {}, r"max_blocks: got 1, fewer than min_blocks = 3"),
        ("slurm", ["lost_blocks=0"], {}, r"lost_blocks: got 0"),
        ("slurm", ["srun_mpi=none"], {}, r"srun_mpi: got 'none'"),
        ("pbs", ["cores_per_node=4", "ranks_per_node=8"], {}, r"cores_per_node: got 4, but 8 ranks of 1 cores need 8"),
        ("absent.yaml", [], {}, r"absent\.yaml: no such file"),
        ("absent.py", [], {}, r"absent\.py: no such file"),
        ("allocation", [], {}, r"this is not inside a SLURM or PBS job"),
    ],
)  # fmt: skip
def test_refusals(name, words, options, message):
    with pytest.raises(ConfigError, match=message):
        load_site(name, words, options)


def test_a_batch_site_must_say_how_many_ranks_a_node_has():
    with pytest.raises(ConfigError, match="ranks_per_node: missing; give it, or cores_per_node"):
        load_site("slurm").resources  # noqa: B018
    assert load_site("slurm", ["cores_per_node=8", "cores_per_rank=2"]).ranks == 4
    assert load_site("slurm_gpu").resources == {"num_nodes": 1, "ranks_per_node": 4, "num_ranks": 4}
    assert load_site("slurm", ["gpus_per_node=2", "ranks_per_gpu=3"]).ranks == 6


def test_packs_of_one_block():
    assert load_site("slurm", ["nodes_per_block=6", "nodes_per_pack=2"]).packs_per_block == 3
    whole = load_site("slurm", ["nodes_per_block=6", "nodes_per_pack=null", "ranks_per_node=4"])
    assert (whole.packs_per_block, whole.resources["num_ranks"]) == (1, 24)


def test_the_cluster_on_one_machine_may_use_its_loopback():
    assert load_site("slurm", ["address=127.0.0.1", "one_machine=true"]).address == "127.0.0.1"


def test_an_allocation_names_each_node_once(in_pbs_job):
    site = load_site("allocation", ["nodes_per_pack=null"])
    assert (site.nodes, site.ranks) == (["b", "a"], 6)
    assert site.resources == {"num_nodes": 2, "ranks_per_node": 6, "num_ranks": 12}
    with pytest.raises(ConfigError, match="nodes_per_pack: got 3, more than the 2 nodes of a block"):
        load_site("allocation", ["nodes_per_pack=3"])


def test_gpus_of_an_allocation_are_not_left_idle_in_silence(in_pbs_job, monkeypatch):
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    with pytest.raises(ConfigError, match=r"SLURM gave this job 4 on each node .*site\.gpus_per_node=4"):
        load_site("allocation")
    assert load_site("allocation", ["gpus_per_node=4"]).ranks == 4


def test_a_node_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"PBS_NODEFILE: .*absent"):
        allocated_nodes({"PBS_NODEFILE": str(tmp_path / "absent")})


def test_the_local_site_inside_a_job_of_several_nodes(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "4")
    with pytest.raises(ConfigError, match=r"inside a SLURM job of 4 nodes .*--site allocation"):
        load_site("local")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    assert load_site("local").nodes == ["localhost"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12:00:00", 43200), ("1-02:03:04", 93784), ("30:00", 1800), ("3600", 3600), ("00:01:00", 60), (" 90 ", 90)],
)
def test_walltimes(text, seconds):
    assert parse_walltime("walltime", text) == seconds
    assert parse_walltime("walltime", format_walltime(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "0", "00:00:00", "-5", "1:2", "a:b:c", "1h"])
def test_walltimes_that_do_not_parse(text):
    with pytest.raises(ConfigError, match=r"walltime: got .*, expected hours:minutes:seconds"):
        parse_walltime("walltime", text)


def test_an_allocation_is_described_by_the_scheduler(monkeypatch, tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\necho \"$3\" | tr , '\\n'\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_NODELIST", "n1,n2")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "8")
    assert (AllocationSite().nodes, AllocationSite(cores_per_rank=2).ranks) == (["n1", "n2"], 4)
    scontrol.write_text("#!/bin/sh\necho no such nodes >&2; exit 1\n")
    with pytest.raises(ConfigError, match="scontrol show hostnames n1,n2: no such nodes"):
        AllocationSite().nodes  # noqa: B018
