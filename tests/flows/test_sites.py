"""Sites: layers, refusals, and the Parsl configuration that comes out."""

from __future__ import annotations

import pytest

from flows.sites import PACKS, TASKS, SiteConfig, load_site, parsl_config
from lambda_hat.errors import ConfigError


def test_the_local_site():
    site = load_site("local", ["ranks_per_node=3", "cores_per_rank=2"])
    assert (site.kind, site.mpi, site.ranks) == ("local", "bundled", 3)
    assert site.resources == {"num_nodes": 1, "ranks_per_node": 3, "num_ranks": 3}
    assert load_site("local", ranks=5).ranks == 5
    assert load_site("local").ranks >= 1


def test_a_site_file_anywhere(awkward_dir):
    path = awkward_dir / "mine.yaml"
    path.write_text("kind: local\nranks_per_node: 2\n")
    assert load_site(str(path)).ranks == 2


@pytest.mark.parametrize(
    ("name", "words", "ranks", "message"),
    [
        ("loca", [], None, r"--site: unknown 'loca'; did you mean 'local'"),
        ("local", [], 0, r"--ranks: got 0, expected an integer of at least 1"),
        ("local", ["rank_per_node=1"], None, r"unknown key 'rank_per_node'; did you mean 'ranks_per_node'"),
        ("local", ["mpi=bundle"], None, r"mpi: unknown 'bundle'; did you mean 'bundled'"),
        ("local", ["flavour=hydr"], None, r"flavour: unknown 'hydr'; did you mean 'hydra'"),
        ("local", ["cores_per_rank=0"], None, r"cores_per_rank: got 0"),
        ("local", ["nodes_per_pack=2"], None, r"nodes_per_pack: got 2, more than nodes_per_block = 1"),
        ("local", ["nodes_per_block=2"], None, r"the local site is one node"),
        ("absent.yaml", [], None, r"absent\.yaml: no such file"),
        ("absent.py", [], None, r"absent\.py: no such file"),
    ],
)
def test_refusals(name, words, ranks, message):
    with pytest.raises(ConfigError, match=message):
        load_site(name, words, ranks)


@pytest.mark.parsl
def test_the_parsl_configuration_of_the_local_site(awkward_dir):
    with parsl_config(SiteConfig(), awkward_dir / "parsl", packs=True) as config:
        executors = {executor.label: executor for executor in config.executors}
        assert set(executors) == {PACKS, TASKS}
        assert config.retries == 0
        for executor in executors.values():
            assert executor.encrypted
            assert executor.address == "127.0.0.1"
            assert executor.heartbeat_threshold <= 20
        assert executors[PACKS].max_workers_per_block == 1
        assert not set(config.run_dir) & set(" '\"`$()")
    with parsl_config(SiteConfig(), awkward_dir / "parsl", packs=False) as config:
        assert [executor.label for executor in config.executors] == [TASKS]


@pytest.mark.parsl
def test_a_python_site(tmp_path):
    path = tmp_path / "site.py"
    path.write_text("import parsl\nsite = {'ranks_per_node': 2}\nconfig = parsl.Config(executors=[])\n")
    site = load_site(str(path))
    assert site.ranks == 2
    with pytest.raises(ConfigError, match="no executor labelled 'tasks'"), parsl_config(site, tmp_path, packs=False):
        pass
    path.write_text("config = 3\n")
    with (
        pytest.raises(ConfigError, match=r"expected a variable `config`, a parsl\.Config"),
        parsl_config(load_site(str(path)), tmp_path, packs=False),
    ):
        pass
