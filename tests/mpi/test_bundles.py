"""Runs of one program handed out together, and sampled as lanes of it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lambda_hat.config import SgldConfig
from lambda_hat.config.study_settings import check_lanes
from lambda_hat.errors import ConfigError, CorruptArtifact, StoreUnwritable
from lambda_hat.planning.lanes import even_pieces
from lambda_hat.planning.packing import PlannedRun
from lambda_hat.report.results import collect
from lambda_hat.store.drain import Drain
from lambda_hat.store.layout import EventLog, Store, read_events, read_json
from lambda_hat.workflow_config import compose_study
from mpi import rank as rank_module
from mpi.dispatch import World
from mpi.pack import PACK_DEFAULTS, bundles_of, items_of
from mpi.rank import ClaimedRun

ROOT = Path(__file__).resolve().parents[2]
STUDY = """
targets:
  - {target: quadratic, overrides: {target: {dim: 4, rank: 3}}}
  - {target: quadratic, overrides: {target: {dim: 4, rank: 2}}}
samplers:
  - name: sgld
    overrides: {num_chains: 2, num_draws: 50, num_burnin: 50, step_size: 1e-3}
    sweep: {seed: [0, 1, 2], step_size: [1e-3, 2e-3, 1e+6]}
  - {name: nuts, overrides: {num_chains: 2, num_draws: 20, num_burnin: 40}, sweep: {seed: [0, 1]}}
"""


def pack(programs, **changes):
    """Runs "t/0", "t/1", ... by (target, program)."""
    cfg = SgldConfig()
    runs = [PlannedRun(target, str(i), cfg, "", 0, program, 1.0) for i, (target, program) in enumerate(programs)]
    return PACK_DEFAULTS | {"runs": runs, "builds": {}, **changes}


def bundles(pack, ranks=1):
    return sorted(bundles_of(pack, ranks).values())


def test_without_lanes_every_run_goes_out_by_itself():
    assert bundles(pack([("t", "a")] * 3)) == [["t/0"], ["t/1"], ["t/2"]]


def test_a_bundle_is_of_one_program_no_larger_than_lanes_and_leaves_every_rank_its_share():
    one = [("t", "a")] * 10
    assert sorted(map(len, bundles(pack(one, lanes=4)))) == [3, 3, 4]
    assert sorted(map(len, bundles(pack(one, lanes=64)))) == [10]
    assert sorted(map(len, bundles(pack(one, lanes="auto"), ranks=4))) == [2, 2, 3, 3]
    mixed = pack([("t", "a"), ("t", "b"), ("t", "a"), ("t", "b"), ("t", ""), ("t", "")], lanes=8)
    assert bundles(mixed) == [["t/0", "t/2"], ["t/1", "t/3"], ["t/4"], ["t/5"]]


def test_lanes_are_of_one_target_where_it_has_enough_runs():
    enough = [("t", "a")] * 4 + [("u", "a")] * 4
    assert bundles(pack(enough, lanes=4)) == [["t/0", "t/1", "t/2", "t/3"], ["u/4", "u/5", "u/6", "u/7"]]
    few = [(name, "a") for name in "tuvw"]
    assert bundles(pack(few, lanes=2)) == [["t/0", "v/2"], ["u/1", "w/3"]]


def test_suspects_have_no_company():
    suspected = pack([("t", "a")] * 4, lanes=4, suspects=["t/2"])
    assert bundles(suspected) == [["t/0", "t/1", "t/3"], ["t/2"]]
    items = {item.key: item for item in items_of(suspected, 1)}
    assert items["t/2"].alone and not items["t/0"].alone
    assert (items["t/0"].cost, items["t/0"].size) == (3.0, 3)


def test_lanes_are_a_number_or_auto():
    assert [check_lanes("--lanes", value) for value in (1, "8", "auto")] == [1, 8, "auto"]
    for wrong in (0, "-1", "many", 1.5, None, True, "", []):
        with pytest.raises(ConfigError, match=r"--lanes: got .* expected an integer of at least 1, or auto"):
            check_lanes("--lanes", wrong)
    assert even_pieces("abcdefg", 3) == [["a", "d", "g"], ["b", "e"], ["c", "f"]]


class Broken:
    """Stands for `lambda_hat.execute.sampling` where nothing of a program works."""

    def load_run(self, run_dir, target_dir, run):
        return run_dir

    def companions(self, loaded):
        return "one program"

    def width_for(self, loaded, ranks_on_node):
        raise RuntimeError("it cannot be compiled")


@pytest.fixture
def events(tmp_path):
    with EventLog(tmp_path / "rank-0000.jsonl") as log:
        yield log


def rank_of(tmp_path, events, sampling):
    """A rank with a pack of three runs of one program, and what it says."""
    content = pack([("t", "a")] * 3, lanes="auto", pack_id="pack_x")
    said = []
    drain = Drain()
    rank = rank_module.Rank(World(0, 1, None), content, Store(tmp_path), drain, events, None)
    rank._sampling = sampling
    return rank, drain, said


def test_a_program_that_cannot_be_measured_ends_no_rank(tmp_path, events):
    rank, _, _ = rank_of(tmp_path, events, Broken())
    assert list(rank._groups(["t/0", "t/1", "t/2"])) == [(["t/0"], 1), (["t/1"], 1), (["t/2"], 1)]
    (event,) = map(json.loads, (tmp_path / "rank-0000.jsonl").read_text().splitlines())
    assert (event["event"], event["lanes"]) == ("width", 1)


def test_a_damaged_target_in_a_store_that_cannot_be_written_leaves_the_run(tmp_path, monkeypatch, events):
    rank, drain, said = rank_of(tmp_path, events, Broken())

    def end(status, **details):
        said.append((status, details))
        return status

    def refuse(*args, **options):
        raise StoreUnwritable("no space")

    monkeypatch.setattr(rank._store, "inspect_target", refuse)
    claimed = ClaimedRun(rank._runs["t/0"], None, end)
    assert rank._not_finished(claimed, CorruptArtifact("params.npz: damaged")) == "left"
    assert said == [("left", {"reason": "no space", "store_error": True})] and drain.reason == "no space"


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The study sampled run by run, and in lanes on two ranks."""
    folder = tmp_path_factory.mktemp("a study")
    (folder / "study.yaml").write_text(STUDY)
    found = {}
    for name, lanes, launch in (("single", "1", []), ("lanes", "4", ["mpiexec", "-n", "2"])):
        line = [sys.executable, str(ROOT / "mpi" / "run_pack.py"), "--experiments", str(folder / "study.yaml")]
        if launch:
            line = [str(Path(sys.executable).parent / launch[0]), *launch[1:], *line]
        done = subprocess.run(
            [*line, "--store", str(folder / name), "--lanes", lanes], capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found[name] = Store(folder / name), done.stdout
    return compose_study(folder / "study.yaml"), found


@pytest.mark.mpi
@pytest.mark.slow
def test_runs_in_lanes_give_the_estimates_of_single_runs(stores):
    study, found = stores
    (single, _), (lanes, said) = found["single"], found["lanes"]
    assert "2 build finished, 22 finished, on 2 ranks" in said
    widths = {}
    for run in study.runs:
        mine, theirs = (
            read_json(store.run_dir(run.target_id, run.run_id) / "analysis.json") for store in (lanes, single)
        )
        widths[run.target_id, run.run_id] = mine["lanes"]
        assert theirs["lanes"] == 1
        for key in ("num_gradients", "fge", "verdict", "notes", "n_beta"):
            assert mine[key] == theirs[key], key
        if run.cfg.name == "sgld" and mine["llc_mean"] is not None:
            np.testing.assert_allclose(mine["llc_mean"], theirs["llc_mean"], rtol=1e-4)
    of_sgld = [widths[run.target_id, run.run_id] for run in study.runs if run.cfg.name == "sgld"]
    assert set(of_sgld) <= {2, 3, 4} and sum(of_sgld) / len(of_sgld) > 2.5
    assert sorted(collect(lanes, study.runs, study.targets).column("lanes").to_pylist()) == sorted(widths.values())


@pytest.mark.mpi
@pytest.mark.slow
def test_every_run_of_a_group_begins_and_ends_in_the_log(stores):
    _, found = stores
    store, _ = found["lanes"]
    (folder,) = store.packs_dir.iterdir()
    for log in folder.glob("rank-*.jsonl"):
        open_runs = []
        for event in read_events(log)[0]:
            key = (event.get("target_id"), event.get("run_id"))
            if event["event"] == "run_start":
                assert event["lane"] == len(open_runs)
                open_runs.append(key)
            elif event["event"] == "run_end":
                assert event["status"] == "finished" and event["seconds"] > 0
                open_runs.remove(key)
        assert open_runs == []


@pytest.mark.mpi
@pytest.mark.slow
def test_a_group_goes_on_from_its_checkpoints_and_a_damaged_one_alone(tmp_path):
    study = tmp_path / "study.yaml"
    study.write_text(
        """
targets: [{target: quadratic, overrides: {target: {dim: 4, rank: 3}}}]
samplers:
  - name: sgld
    overrides: {num_chains: 2, num_draws: 50, num_burnin: 0, thin: 40000, step_size: 1e-3}
    sweep: {seed: [0, 1, 2]}
"""
    )
    store = Store(tmp_path / "store")
    line = [sys.executable, str(ROOT / "mpi" / "run_pack.py"), "--experiments", str(study), "--lanes", "3"]
    line += ["--store", str(store.root), "samplers.0.overrides.runtime.checkpoint_every=1.1"]
    first = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    runs = [(run.target_id, run.run_id) for run in compose_study(study).runs]
    checkpoints = [store.run_dir(*key) / "checkpoint.npz" for key in runs]
    while not all(path.is_file() for path in checkpoints) and first.poll() is None:
        time.sleep(0.05)
    first.terminate()
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 75, said
    assert "3 paused" in said
    checkpoints[1].write_bytes(b"nothing")
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 finished" in done.stdout
    together = [json.loads((store.run_dir(*key) / "analysis.json").read_text())["lanes"] for key in runs]
    assert together == [2, 1, 2]
