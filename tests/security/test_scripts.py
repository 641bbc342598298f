"""The scripts of jobs and blocks: words with anything in them arrive as they are, and what cannot is refused first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.sites.providers import builds_provider, packs_provider
from flows.sites.site_schemas import PbsSite, SlurmSite, load_site
from lambda_hat.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
NASTY = "-dash $(touch pwned) `touch pwned`; touch pwned & \"double\" 'single' ${HOME} é \\ {0} %s\nnew line"
STUDY = "targets: [{target: monomial}]\nsamplers: [{name: sgld}]\n"
WORDS_BY_SCHEDULER = {"slurm": ["site.cores_per_node=2"], "pbs": ["site.ranks_per_node=2"]}


@pytest.fixture
def nasty(tmp_path) -> Path:
    folder = tmp_path / NASTY
    folder.mkdir()
    (folder / "-s.yaml").write_text(STUDY)
    return folder


def packed(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "flows" / "packed.py"), *words],
        cwd=cwd, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_the_words_of_a_job_arrive(tmp_path, nasty, scheduler):
    store = tmp_path / "store"
    word = f"results_root={json.dumps(NASTY.replace('${', '$'))}"
    words = ["--experiments=-s.yaml", "--submit", scheduler, "--dry-run", "--store", str(store), word]
    shown = packed(*words, *WORDS_BY_SCHEDULER[scheduler], cwd=nasty)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    script = "#!/bin/bash" + shown.stdout.partition("#!/bin/bash")[2].removesuffix("dry run: nothing was submitted\n")
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert not store.exists()

    stand_in = tmp_path / "python"
    stand_in.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([os.getcwd(), *sys.argv[1:]]), flush=True)\n"
    )
    stand_in.chmod(0o755)
    (store / "jobs").mkdir(parents=True)
    done = subprocess.run(
        ["bash", "-c", script.replace(sys.executable, str(stand_in))],
        cwd=tmp_path, env={**os.environ, "PBS_JOBID": "7"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    (log,) = [path.read_text() for path in store.glob("jobs/*.7.log")] or [done.stdout]
    said = json.loads(log)
    assert said[:8] == [
        str(nasty), str(ROOT / "flows" / "packed.py"), "--experiments", str(nasty / "-s.yaml"), "--store", str(store),
        "--results", str(nasty / NASTY.replace("${", "$")),
    ]  # fmt: skip
    assert word in said
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_a_store_that_no_log_line_can_name_is_refused_before_anything_is_made(nasty, scheduler):
    done = packed("--experiments=-s.yaml", "--submit", scheduler, *WORDS_BY_SCHEDULER[scheduler], cwd=nasty)
    assert done.returncode == 2
    assert (
        "a job's log needs a path of letters, digits and ./+@:_- only; give another one with --store DIR" in done.stderr
    )
    assert [path.name for path in nasty.iterdir()] == ["-s.yaml"]


@pytest.mark.parametrize("make", [packs_provider, builds_provider])
@pytest.mark.parametrize("site", [SlurmSite(ranks_per_node=1), PbsSite(ranks_per_node=1)], ids=lambda s: s.kind)
def test_a_block_starts_in_a_folder_of_any_name(tmp_path, nasty, monkeypatch, site, make):
    monkeypatch.chdir(nasty)
    (tmp_path / "nodes").write_text("a\n")
    lines = f"{make(site).worker_init}\nprintf '%s' \"$PWD|$TMPDIR\""
    env = {"PATH": os.environ["PATH"], "PBS_NODEFILE": str(tmp_path / "nodes"), "PBS_JOBID": "7", "TMPDIR": "/tmp"}
    done = subprocess.run(["bash", "-c", lines], env=env, capture_output=True, text=True, timeout=60, cwd="/")
    where, _, temporary = done.stdout.rpartition("|")
    assert where == str(nasty)
    assert temporary.startswith("/tmp/lh.")
    assert not Path(temporary).exists()
    assert not list(tmp_path.rglob("pwned"))


INJECTED = "a\\n#SBATCH --uid=0\\ntouch pwned"


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("slurm", key)
        for key in ("account", "partition", "qos", "constraint", "builds.partition", "builds.qos", "address")
    ]
    + [("pbs", key) for key in ("account", "queue", "select_options", "builds.queue", "builds.select_options")],
)
def test_a_value_that_would_begin_another_line_is_refused(kind, key):
    words = ["ranks_per_node=1", f'{key}="{INJECTED}"']
    with pytest.raises(ConfigError, match=rf"{key}: got 'a\\n#SBATCH.*expected one word"):
        load_site(kind, words)
    with pytest.raises(ConfigError, match="expected one word"):
        load_site(kind, ["ranks_per_node=1", f"{key}='a b'"])


@pytest.mark.parametrize("key", ["scheduler_options", "builds.scheduler_options"])
def test_options_of_a_scheduler_that_a_shell_would_run_are_refused(key):
    fine = '"#SBATCH --mail-type=END\\n\\n#SBATCH --comment=x y"'
    load_site("slurm", ["ranks_per_node=1", f"{key}={fine}"])
    for line in ("--mail-type=END", "touch pwned", "#SBATCH -x\\rtouch pwned"):
        with pytest.raises(ConfigError, match=f"{key}: got the line .*expected lines that begin with #SBATCH or #PBS"):
            load_site("slurm", ["ranks_per_node=1", f'{key}="{line}"'])


@pytest.mark.parametrize("words", [["--experiments", "-s.yaml"], ["--store", "-dash"], ["-x=1"], ["--", "-x=1"]])
def test_words_that_look_like_options_are_refused(nasty, words):
    done = packed(*words, "--dry-run", cwd=nasty)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert [path.name for path in nasty.iterdir()] == ["-s.yaml"]


def test_a_folder_with_a_leading_dash_is_given_after_an_equals_sign(nasty):
    done = packed("--experiments=-s.yaml", "--store=-dash", "--results=-r", "--dry-run", cwd=nasty)
    assert done.returncode == 0, done.stderr
    assert "dry run: nothing was started" in done.stdout
