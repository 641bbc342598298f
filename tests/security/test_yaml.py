"""Object tags in any YAML that is read: refused with the file's name, and nothing is executed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.sites import load_site
from lambda_hat.errors import ConfigError
from lambda_hat.omegaconf_support import load_build_config, load_sample_config
from lambda_hat.workflow_config import CONF_DIR, compose_study

ROOT = Path(__file__).resolve().parents[2]
TAGS = [
    "!!python/object/apply:os.system ['touch pwned']",
    "!!python/object/new:os.system ['touch pwned']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object/apply:pathlib.Path [pwned]",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch pwned']",
]
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


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("read", [experiments, group, site, load_build_config, load_sample_config])
def test_tags_are_refused(tmp_path, monkeypatch, read, tag):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "some.yaml"
    path.write_text(f"name: x\nkind: {tag}\n")
    with pytest.raises(ConfigError, match=r"some\.yaml:2: not plain YAML: tag '.*': tags are not read"):
        read(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "words", [["targets.0=!!python/name:os.system"], ["site.kind=!!python/object/apply:os.system ['touch pwned']"]]
)
def test_tags_on_the_command_line_are_refused(tmp_path, words):
    (tmp_path / "study.yaml").write_text(STUDY)
    done = subprocess.run(
        [sys.executable, str(ROOT / "flows" / "packed.py"), "--experiments", "study.yaml", *words],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "tags are not read" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


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
