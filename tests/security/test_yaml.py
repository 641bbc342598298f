"""What a YAML file may do by itself: it runs nothing, and no id depends on the environment."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.sites.site_schemas import load_site
from lambda_hat.errors import ConfigError
from lambda_hat.omegaconf_support import load_build_config, load_sample_config
from lambda_hat.workflow_config import CONF_DIR, compose_study

STUDY = "targets: [{target: quadratic}]\nsamplers: [{name: sgld}]\n"


def experiments(path: Path) -> None:
    compose_study(path)


def group(path: Path) -> None:
    conf = path.parent / "conf"
    if not conf.exists():
        shutil.copytree(CONF_DIR, conf)
    shutil.copy(path, conf / "target" / "quadratic.yaml")
    study = path.parent / "study.yaml"
    study.write_text(STUDY)
    try:
        compose_study(study, conf_dir=conf)
    except ConfigError as error:
        raise ConfigError(str(error).replace("conf/target/quadratic.yaml", path.name)) from None


def site(path: Path) -> None:
    load_site(str(path))


@pytest.mark.parametrize("read", [experiments, group, site, load_build_config, load_sample_config])
def test_every_reader_loads_safely(tmp_path, monkeypatch, read):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "some.yaml"
    path.write_text("name: x\nkind: !!python/object/apply:os.system ['touch pwned']\n")
    with pytest.raises(ConfigError, match=r"some\.yaml:2: not plain YAML: could not determine a constructor"):
        read(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "${seed}", "a${b}"])
def test_an_id_depends_on_no_environment(tmp_path, value):
    path = tmp_path / "study.yaml"
    path.write_text(f"targets: [{{target: quadratic, seed: '{value}'}}]\nsamplers: [{{name: sgld}}]\n")
    with pytest.raises(ConfigError, match=r"study\.yaml: targets\[0\]: seed: got '.*', but nothing is filled in for"):
        compose_study(path)
    with pytest.raises(ConfigError, match=r"command line: .targets\.0\.seed=.*nothing is filled in for"):
        path.write_text(STUDY)
        compose_study(path, [f"targets.0.seed='{value}'"])


def test_shell_lines_of_a_site_keep_their_variables():
    assert load_site("local", ["worker_init=module load ${MODULE:-x}"]).worker_init == "module load ${MODULE:-x}"
