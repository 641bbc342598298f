"""Parsl's channels: encrypted on every kind of site, and on this machine's loopback wherever no other machine calls."""

from __future__ import annotations

import pytest

from flows.sites.executors import parsl_config
from flows.sites.site_schemas import AllocationSite, LocalSite, PbsSite, SlurmSite


@pytest.mark.parametrize("kind", ["local", "allocation", "slurm", "pbs"])
def test_channels_are_encrypted_on_every_kind_of_site(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nodes").write_text("a\nb\n")
    monkeypatch.setenv("PBS_NODEFILE", str(tmp_path / "nodes"))
    monkeypatch.delenv("SLURM_NODELIST", raising=False)
    site = {
        "local": LocalSite(),
        "allocation": AllocationSite(),
        "slurm": SlurmSite(ranks_per_node=1, address="198.51.100.7"),
        "pbs": PbsSite(ranks_per_node=1, address="198.51.100.7"),
    }[kind]
    with parsl_config(site, tmp_path / "parsl", packs=True) as config:
        assert len(config.executors) == 2
        for executor in config.executors:
            assert executor.encrypted is True
            assert (executor.address == "127.0.0.1") == (kind in ("local", "allocation"))
