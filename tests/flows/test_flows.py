"""Both flows through a real Parsl and a real mpiexec on a small grid."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.users import USERS_PYTHON

ROOT = Path(__file__).resolve().parents[2]
BAD_BUILD = {"model": "small", "data": "small", "overrides": {"data": {"n": 20, "noise_std": 1e300}}}
FAST = {"num_draws": 100, "num_burnin": 50, "num_chains": 2}


def study(path, **changes):
    content = {
        "targets": [{"target": "quadratic", "overrides": {"target": {"dim": 3, "rank": 2}}}, {"target": "monomial"}],
        "samplers": [
            {"name": "sgld", "overrides": {**FAST, "step_size": 1e-4}, "sweep": {"seed": [0, 1]}},
            {"name": "hmc", "overrides": FAST},
        ],
    }
    path.write_text(yaml.safe_dump(content | changes))
    return path


def flow(name, *words, cwd, timeout=240):
    return subprocess.run(
        [USERS_PYTHON, str(ROOT / "flows" / name), *map(str, words)],
        capture_output=True, text=True, cwd=cwd, timeout=timeout, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip


def analyses(store):
    return {path: json.loads(path.read_text()) for path in sorted(Path(store).rglob("analysis.json"))}


@pytest.mark.parsl
@pytest.mark.mpi
def test_packed(tmp_path):
    here = tmp_path / 'a quo\'te "and" $(touch pwned) spaces'
    here.mkdir()
    words = ["--experiments", study(here / "study.yaml"), "--pack", "4", "--ranks", "2"]
    done = flow("packed.py", *words, cwd=here)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 finished" in done.stdout
    assert not list(tmp_path.rglob("pwned"))
    table = pd.read_parquet(here / "results" / "llc_runs.parquet")
    assert (len(table), set(table["status"])) == (6, {"finished"})
    assert table["pack_id"].nunique() == 2
    assert set(table["rank"]) <= {0, 1}
    assert (here / "results" / "llc.png").is_file()
    assert f"report    {here / 'results' / 'report.html'}" in done.stdout
    assert (here / "results" / "report.html").is_file()
    for target in (here / "runs" / "targets").iterdir():
        assert (target / "build.log").is_file()
        assert (target / "build.err").is_file()
    for pack in (here / "runs" / "packs").glob("pack_*"):
        names = {p.name for p in pack.iterdir()}
        assert {"pack.json", "stdout.log", "stderr.log", "rank-0000.log", "rank-0001.log"} <= names
    (lease,) = (here / "runs" / "packs").glob("*.lease")
    assert json.loads(lease.read_bytes())["state"] == "ended"

    before = analyses(here / "runs")
    # A report that cannot be made takes nothing down.
    shutil.rmtree(here / "results" / "figures")
    (here / "results" / "figures").write_text("")
    again = flow("packed.py", *words, cwd=here)
    assert again.returncode == 0
    assert "no report: FileExistsError: " in again.stdout
    assert "; lambda-hat report --store=runs --results=results tries again, and shows more" in again.stdout
    assert "everything is cached; no sampler is started" in again.stdout
    assert analyses(here / "runs") == before


@pytest.mark.parsl
@pytest.mark.mpi
@pytest.mark.slow
def test_a_process_per_run_and_a_rerun_give_the_same_numbers(tmp_path):
    words = ["--experiments", study(tmp_path / "study.yaml")]
    packed = [*words, "--pack", "4", "--ranks", "2", "--quiet"]
    done = flow("packed.py", *packed, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    unpacked = flow("parsl_llc.py", *words, "--store", "unpacked", "--results", "other", cwd=tmp_path)
    assert unpacked.returncode == 0, unpacked.stdout + unpacked.stderr
    table, other = (pd.read_parquet(tmp_path / name / "llc_runs.parquet") for name in ("results", "other"))
    pd.testing.assert_series_equal(other["llc_mean"], table["llc_mean"], check_exact=True)
    runs = list((tmp_path / "unpacked" / "targets").glob("*/run_*"))
    assert len(runs) == 6
    assert all((run / "sample.log").is_file() and (run / "sample.err").is_file() for run in runs)

    before = analyses(tmp_path / "runs")
    rerun = flow("packed.py", *packed, "--rerun", "all", "--no-report", "--results", "bare", cwd=tmp_path)
    assert rerun.returncode == 0, rerun.stdout
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["llc_runs.parquet"]
    assert "report.html" not in rerun.stdout
    timing = ("started", "pid", "rank", "pack_id", "site", "programs_compiled", "programs_loaded", "sha256")
    for path, analysis in analyses(tmp_path / "runs").items():
        assert analysis["started"] > before[path]["started"]
        same = {k for k in analysis if not k.startswith("seconds") and k not in timing}
        assert {k: analysis[k] for k in same} == {k: before[path][k] for k in same}


@pytest.mark.parsl
@pytest.mark.mpi
@pytest.mark.slow
def test_a_failed_build_blocks_only_its_own_runs(tmp_path):
    # Two targets end alike. The third has the same last line, and another log.
    make = "def make(scale):\n    if scale == 3:\n        return nowhere(3)\n    return nowhere(scale)\n"
    (tmp_path / "mine.py").write_text(make)
    defect = {"target": {"factory": "mine:make"}, "sweep": {"target.kwargs.scale": [1, 2, 3]}}
    path = study(tmp_path / "study.yaml", targets=[{"target": "quadratic"}, BAD_BUILD, defect])
    done = flow("packed.py", "--experiments", path, "--ranks", "1", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    table = pd.read_parquet(tmp_path / "results" / "llc_runs.parquet")
    assert sorted(table["status"]) == ["blocked"] * 12 + ["finished"] * 3
    reasons = table.loc[table["status"] == "blocked", "reason"]
    assert sum(reasons.str.contains("BuildFailed")) == 3
    assert sum(reasons.str.contains("NameError: name 'nowhere' is not defined")) == 9
    assert "BuildFailed" in done.stdout
    assert "--rerun failed" in done.stdout
    for error in (tmp_path / "runs" / "targets").glob("*/error.json"):
        assert str(error) in done.stdout
    # A log is on the screen twice: where the first of its targets failed, and at the end.
    assert done.stdout.count("    return nowhere(scale)") == done.stdout.count("    return nowhere(3)") == 2
    assert done.stdout.count("not defined; its log ends like that of tgt_") == 1

    again = flow("packed.py", "--experiments", path, cwd=tmp_path)
    assert again.returncode == 1
    assert "12 runs wait for a target that failed earlier; --rerun failed tries them again" in again.stdout
    assert list((tmp_path / "runs" / "packs").glob("pack_*")) != []


LOSS = """
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np


def loss(params, batch):
    if (Path(__file__).parent / "bad").exists() and "PMI_RANK" in os.environ:
        raise RuntimeError("a bad day")
    return 0.5 * jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)


def regression():
    x = np.random.default_rng(0).normal(size=(100, 2))
    return loss, {"w": np.ones(2)}, {"x": x, "y": x.sum(axis=1)}
"""


@pytest.mark.parsl
@pytest.mark.mpi
@pytest.mark.slow
def test_a_failed_run_is_reported_with_its_log_and_only_it_is_run_again(tmp_path):
    (tmp_path / "mine.py").write_text(LOSS)
    (tmp_path / "bad").touch()
    targets = [{"target": {"factory": "mine:regression"}}, {"target": "quadratic"}]
    sgld = {"name": "sgld", "overrides": {**FAST, "step_size": 1e-4}}
    words = ["--experiments", study(tmp_path / "study.yaml", targets=targets, samplers=[sgld]), "--ranks", "1"]
    done = flow("packed.py", *words, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 finished, 1 failed" in done.stdout
    assert "tries  " not in done.stdout, "what failed is not tried again"
    (sound,) = analyses(tmp_path / "runs")
    before = sound.read_bytes()
    (error,) = (tmp_path / "runs" / "targets").glob("*/*/error.json")
    assert f"failed: {error.parent.parent.name}/{error.parent.name}: RuntimeError: a bad day" in done.stdout
    (log,) = tmp_path.glob("runs/packs/*/rank-0000.log")
    assert f"{log} ends with:" in done.stdout
    assert flow("packed.py", *words, cwd=tmp_path).returncode == 1
    assert len(analyses(tmp_path / "runs")) == 1

    (tmp_path / "bad").unlink()
    again = flow("packed.py", *words, "--rerun", "failed", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 runs (1 cached, 1 to sample" in again.stdout
    assert (error.parent / "analysis.json").exists()
    assert not error.exists()
    assert sound.read_bytes() == before


@pytest.mark.parametrize("name", ["packed.py", "parsl_llc.py"])
def test_dry_run_starts_and_writes_nothing(tmp_path, name):
    path = study(tmp_path / "study.yaml")
    done = flow(name, "--experiments", path, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "dry run: nothing was started" in done.stdout
    assert "2 targets (0 cached, 2 to build), 6 runs (0 cached, 6 to sample" in done.stdout
    assert (f"{Path(USERS_PYTHON).parent}/mpiexec " in done.stdout) == (name == "packed.py")
    assert [p.name for p in tmp_path.iterdir()] == ["study.yaml"]


def test_a_dry_check_starts_nothing(tmp_path):
    done = flow("packed.py", "--experiments", study(tmp_path / "study.yaml"), "--check", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mpi/check_pack.py CHECK.json\ndry run: nothing was started" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["study.yaml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "2"], "--nodes: goes with --submit"),
        (["--chain", "2"], "--chain: goes with --submit"),
        (["--submit", "slurm", "--chain", "-1"], "--chain: got -1"),
        (["--submit", "slurm", "--check"], "--check: goes without --submit"),
        (["--submit", "slurm", "--site", "pbs"], "--site pbs: a pbs site, but --submit slurm needs one of that kind"),
        (["--submit", "slurm", "--walltime", "noon"], "--walltime: got 'noon', expected hours:minutes:seconds"),
        (["--submit", "slurm", "site.nodes_per_pack=2"], "nodes_per_pack: got 2, more than the 1 nodes of a block"),
        (["--site", "allocation"], "this is not inside a SLURM or PBS job"),
        (["--pack", "0"], "--pack: got 0, expected an integer of at least 1"),
        (["--ranks", "0"], "--ranks: got 0, expected an integer of at least 1"),
        (["--retries", "-1"], "--retries: got -1, expected an integer of at least 0"),
        (["--site", "slrum"], "--site: unknown 'slrum'"),
        (["--store", "study.yaml/store"], "study.yaml/store: the store cannot be written: "),
        (["--results", "study.yaml/results"], "study.yaml/results: the results folder cannot be written: "),
        (["--experiments", "absent.yaml"], "absent.yaml: no such file"),
        (["samplers.0.nme=hmc"], "samplers[0]: unknown key 'nme'; did you mean 'name'"),
        (["site.rnks=2"], "unknown key 'rnks'"),
        (["targets=[]"], "the grid is empty"),
    ],
)
def test_bad_input_is_one_sentence_exit_2_and_nothing_left_behind(tmp_path, words, message):
    study(tmp_path / "study.yaml")
    if "--experiments" not in words:
        words = ["--experiments", "study.yaml", *words]
    done = flow("packed.py", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["study.yaml"]


def test_no_mpi_launcher(tmp_path):
    study(tmp_path / "study.yaml")
    done = subprocess.run(
        [sys.executable, str(ROOT / "flows" / "packed.py"), "--experiments", "study.yaml", "site.mpi=system"],
        capture_output=True, text=True, cwd=tmp_path, timeout=60, env={**os.environ, "PATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 2
    assert "mpi: system: no mpiexec or mpirun on the PATH" in done.stderr


def test_idle_nodes_and_ranks_and_long_runs_are_told(tmp_path):
    sgld = {"name": "sgld", "overrides": {**FAST, "step_size": 1e-4}, "sweep": {"seed": [0, 1, 2]}}
    words = ["--experiments", study(tmp_path / "study.yaml", samplers=[sgld]), "--site", "slurm", "--dry-run"]

    def notes(*more):
        done = flow("packed.py", *words, "site.nodes_per_block=4", "site.cores_per_node=3", *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if line.startswith("note: ")]

    assert notes("site.nodes_per_block=1") == []
    assert notes() == ["note: 3 of the 4 nodes of a block would have no pack; --pack 2 gives all of them one"]
    assert notes("--pack", "1", "site.nodes_per_block=6") == [
        "note: 6 of 6 packs have fewer runs than their 3 ranks, some of which will idle"
    ]
    (late,) = notes("site.nodes_per_block=1", "site.walltime=00:00:03")
    assert "longer than the walltime of a block, 3 s; it will go on from its checkpoint in further blocks" in late
