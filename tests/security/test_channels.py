"""Parsl's channels: encrypted wherever another machine calls, and none where none does."""

from __future__ import annotations

import pytest

from flows.sites.executors import parsl_config
from flows.sites.site_schemas import AllocationSite, LocalSite, PbsSite, SlurmSite


@pytest.mark.parametrize("site", [SlurmSite, PbsSite])
def test_channels_are_encrypted_on_every_batch_site(tmp_path, monkeypatch, site):
    monkeypatch.chdir(tmp_path)
    config = parsl_config(site(ranks_per_node=1, address="198.51.100.7"), tmp_path / "parsl", packs=True)
    assert [executor.encrypted for executor in config.executors] == [True, True]


@pytest.mark.parametrize("site", [LocalSite, AllocationSite])
def test_beside_the_driver_there_are_no_channels(tmp_path, monkeypatch, site):
    (tmp_path / "nodes").write_text("a\nb\n")
    monkeypatch.setenv("PBS_NODEFILE", str(tmp_path / "nodes"))
    monkeypatch.delenv("SLURM_NODELIST", raising=False)
    for executor in parsl_config(site(), tmp_path / "parsl", packs=True).executors:
        assert not hasattr(executor, "address")
        assert not hasattr(executor, "interchange_proc")
