"""A study whose entries go to sites of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flows.driver.dry_run import show_packs
from flows.driver.options import parse_options
from flows.driver.pricing import plan_sentences
from flows.driver.request import Request
from flows.packed import main
from flows.sites.executors import parsl_config
from flows.sites.several import packs_label, site_word
from flows.sites.site_schemas import LocalSite, SlurmSite
from lambda_hat.errors import ConfigError
from lambda_hat.workflow_config import compose_study

FAT = {"kind": "slurm", "ranks_per_node": 4, "walltime": "00:00:01"}
SGLD = {"name": "sgld", "overrides": {"num_draws": 50, "num_burnin": 20, "step_size": 1e-4}, "sweep": {"seed": [0, 1]}}
HMC = {"name": "hmc"}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The present folder, with a site `fat.yaml` in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fat.yaml").write_text(yaml.safe_dump(FAT))
    return tmp_path


def study(**more) -> str:
    """A study of three targets, one of which goes to the site `fat.yaml`; the samplers go with them."""
    targets = [{"target": "quadratic", "site": "fat.yaml"}, {"target": "monomial"}]
    targets.append({"target": "quadratic", "overrides": {"target": {"dim": 3, "rank": 2}}})
    Path("study.yaml").write_text(yaml.safe_dump({"targets": targets, "samplers": [SGLD, HMC], **more}))
    return "study.yaml"


def request(*words: str) -> Request:
    return Request.from_options(parse_options("", ["--experiments", "study.yaml", *words], packed=True), packed=True)


def where(source: str, **settings) -> dict[str, set[str]]:
    """By target and sampler the sites of its runs."""
    found: dict[str, set[str]] = {}
    composed = compose_study(source, (), settings)
    for run in composed.runs:
        found.setdefault(f"{composed.targets[run.target_id].label} {run.cfg.name}", set()).add(run.site)
    return found


def test_runs_go_where_their_target_goes_and_the_samplers_site_wins(folder):
    own = {"w1^2 w2^2 sgld": {""}, "w1^2 w2^2 hmc": {""}, "quadratic d=3 rank 2 sgld": {""}}
    own["quadratic d=3 rank 2 hmc"] = {""}
    fat = {"quadratic d=10 rank 6 sgld": {"fat.yaml"}, "quadratic d=10 rank 6 hmc": {"fat.yaml"}}
    assert where(study()) == own | fat
    all_hmc = {key: {"slurm"} if key.endswith("hmc") else sites for key, sites in (own | fat).items()}
    assert where(study(samplers=[SGLD, {**HMC, "site": "slurm"}])) == all_hmc
    # The site of the study is its own, however it is called.
    assert where(study(samplers=[SGLD, {**HMC, "site": "local"}])) == own | fat | {"quadratic d=10 rank 6 hmc": {""}}
    assert set.union(*where(study(), site="fat.yaml").values()) == {""}


def test_a_site_is_part_of_no_id(folder):
    one = compose_study(study())
    Path("study.yaml").write_text(Path("study.yaml").read_text().replace("site: fat.yaml\n  ", ""))
    other = compose_study("study.yaml")
    assert list(one.targets) == list(other.targets)
    assert [run.key for run in one.runs] == [run.key for run in other.runs]
    assert (set(one.sites), set(other.sites)) == ({"fat.yaml"}, set())


def test_packs_are_cut_by_site_and_shown_with_it(folder):
    study()
    asked = request("--ranks", "2")
    plan = asked.plan(None, look_only=True)
    sites = [{run.site for run in pack} for pack in plan.packs(4)]
    assert sites == [{""}, {""}, {"fat.yaml"}]
    said = "\n".join([*plan_sentences(asked, plan), *show_packs(asked, plan)])
    assert "9 runs (0 cached, 9 to sample in 3 packs of at most 32)" not in said
    assert "9 to sample in 2 packs of at most 32" in said
    assert "core-hours on local and " in said and "core-hours on fat, " in said
    assert "on 2 ranks of local" in said and "on 4 ranks of fat" in said
    assert "note: fat: 1 of 1 packs have fewer runs than their 4 ranks, some of which will idle" in said
    assert "in further blocks, or change the walltime of fat.yaml" in said


def test_one_site_is_not_named(folder):
    study(targets=[{"target": "quadratic"}])
    asked = request()
    plan = asked.plan(None, look_only=True)
    said = "\n".join([*plan_sentences(asked, plan), *show_packs(asked, plan)])
    assert "local" not in said.replace("localhost", "")


def test_other_commands_keep_to_one_site(folder):
    study()
    args = parse_options("", ["--experiments", "study.yaml"], packed=True)
    asked = Request.from_options(args, packed=True, one_site=True)
    assert list(asked.sites) == [""]
    assert {run.site for run in asked.study.runs} == {""}
    assert "all of it runs on the site local: only lambda-hat run sends entries to their own" in asked.study.notes


REFUSED = [
    ("nosuch", "targets[0]: site: unknown 'nosuch'; "),
    ("none.yaml", "targets[0]: site none.yaml: no such file"),
    (7, "targets[0]: site: got 7, expected a name in conf/site or the path of a file"),
    ("", "targets[0]: site: got '', expected a name in conf/site or the path of a file"),
    ("two.yaml", "targets[0]: site: two.yaml has cores_per_rank = 2, but local, the site of the study, has 1"),
    ("here.yaml", "targets[0]: site: here.yaml and local both compute on this machine, whose cores are for one"),
    ("site.py", "targets[0]: site: site.py beside local: a site in Python goes alone; write it as YAML"),
]


@pytest.mark.parametrize(("site", "words"), REFUSED)
def test_a_site_that_does_not_go_is_refused_and_nothing_changed(folder, site, words):
    Path("two.yaml").write_text(yaml.safe_dump({**FAT, "cores_per_rank": 2}))
    Path("here.yaml").write_text("kind: local\nranks_per_node: 1\n")
    Path("site.py").write_text("config = None\n")
    study(targets=[{"target": "quadratic", "site": site}, {"target": "monomial"}])
    before = sorted(folder.rglob("*"))
    with pytest.raises(ConfigError) as refused:
        main(["--experiments", "study.yaml"])
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert refused.value.exit_code == 2
    assert [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts] == before


def test_one_scheduler_and_one_name(folder):
    study(samplers=[SGLD, {**HMC, "site": "pbs"}])
    with pytest.raises(ConfigError, match=r"samplers\[1\]: site: pbs takes the scheduler pbs, and fat.yaml slurm"):
        request()
    Path("sub").mkdir()
    Path("sub/fat.yaml").write_text(Path("fat.yaml").read_text())
    study(samplers=[SGLD, {**HMC, "site": "sub/fat.yaml"}])
    with pytest.raises(ConfigError, match=r"site: sub/fat.yaml and fat.yaml would go by one name"):
        request()


def test_a_submitted_job_is_on_one_site(folder):
    study()
    with pytest.raises(ConfigError, match=r"fat\.yaml is beside the one job of --submit"):
        main(["--experiments", "study.yaml", "--submit", "slurm", "--nodes", "1", "--dry-run", "site.ranks_per_node=1"])


def test_each_further_site_has_an_executor_for_its_packs(tmp_path):
    thin = SlurmSite(ranks_per_node=1, walltime="00:30:00", address="198.51.100.7")
    others = {"packs_fat": SlurmSite(ranks_per_node=4, address="198.51.100.7"), "packs_thin": thin}
    config = parsl_config(LocalSite(), tmp_path / "parsl", packs=True, others=others)
    assert [executor.label for executor in config.executors] == ["tasks", "packs", "packs_fat", "packs_thin"]
    fat, thin = config.executors[2:]
    assert (fat.provider.walltime, thin.provider.walltime) == ("01:00:00", "00:30:00")
    assert fat.provider.jobs is thin.provider.jobs
    assert config.strategy == "htex_auto_scale"


@pytest.mark.parametrize(
    ("name", "word", "label"),
    [
        ("", "", "packs"),
        ("slurm_gpu", "slurm_gpu", "packs_slurm_gpu"),
        ("my sites/big-mem.yaml", "big-mem", "packs_big_mem"),
    ],
)
def test_a_site_has_a_plain_name(name, word, label):
    assert (site_word(name), packs_label(name)) == (word, label)
