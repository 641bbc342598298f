import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from lambda_hat.planning.packing import make_packs
from lambda_hat.store.heartbeat import HEARTBEAT_VARIABLE
from lambda_hat.store.layout import Store, read_events, read_json, write_json_atomic
from lambda_hat.workflow_config import compose_study

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = str(ROOT / "mpi" / "run_pack.py")

STUDY = """
targets:
  - {target: quadratic, overrides: {target: {dim: 4, rank: 3}}}
  - {target: monomial}
samplers:
  - {name: sgld, overrides: {num_chains: 2, num_draws: 50, num_burnin: 50}, sweep: {seed: [0, 1]}}
"""

# Sums over 20,000 rows, which XLA splits by the number of cores: where that differs, the last bits do.
STUDY_OF_DATA = """
targets:
  - {target: dln, overrides: {target: {widths: [8, 8, 8], rank: 1, data: empirical, n: 20000}}}
samplers:
  - name: sgld
    overrides: {num_chains: 2, num_draws: 20, num_burnin: 20, step_size: 1e-5, batch_size: null}
    sweep: {seed: [0, 1, 2]}
  - {name: hmc, overrides: {num_chains: 2, num_draws: 10, num_burnin: 20}}
"""

WHERE_AND_WHEN = {"rank", "host", "pid", "pack_id", "site", "started", "sha256"}
WHERE_AND_WHEN |= {"programs_compiled", "programs_loaded"}
"""What an analysis says beside the numbers, and the checksum over it; every key with `seconds` in it too."""


@pytest.fixture
def study(tmp_path):
    path = tmp_path / 'a study\'s "file".yaml'
    path.write_text(STUDY)
    return path


def run(*words, ranks=None, environment=None, timeout=240.0):
    """`python mpi/run_pack.py` from another folder, under mpiexec when `ranks` are given."""
    line = [sys.executable, PROGRAM, *map(str, words)]
    if ranks is not None:
        line = [str(Path(sys.executable).parent / "mpiexec"), "-n", str(ranks), *line]
    env = {key: value for key, value in os.environ.items() if key != "NPROC"} | (environment or {})
    return subprocess.run(line, capture_output=True, text=True, timeout=timeout, cwd="/", env=env)


def pack_of(study, store, path, **changes):
    """A pack file with every run of a study, as a driver writes it: targets are built by others."""
    planned = compose_study(study).runs
    runs = [run_.pack_entry() for run_ in planned]
    pack = {
        "format": 1,
        "pack_id": "pack_test",
        "store_root": str(store),
        "cores_per_rank": 1,
        "expected_ranks": None,
        "runs": runs,
        **changes,
    }
    write_json_atomic(path, pack)
    return planned


def numbers(store: Store, planned) -> dict:
    """Every number of every run: the analysis without place and time, and the trace."""
    import h5netcdf

    found = {}
    for run in planned:
        directory = store.run_dir(run.target_id, run.run_id)
        analysis = read_json(directory / "analysis.json")
        kept = {k: v for k, v in analysis.items() if k not in WHERE_AND_WHEN and "seconds" not in k}
        with h5netcdf.File(directory / "trace.nc") as trace:
            loss = np.asarray(trace["posterior"]["loss"])
        found[run.target_id, run.run_id] = (json.dumps(kept, sort_keys=True), loss.tobytes())
    return found


def events_of(store: Store, pack_id: str) -> list[dict]:
    logs = sorted(store.pack_dir(pack_id).glob("rank-*.jsonl"))
    return [event for log in logs for event in read_events(log)[0]]


@pytest.mark.mpi
def test_the_numbers_are_the_same_under_1_2_and_4_ranks(study, tmp_path):
    study.write_text(STUDY_OF_DATA)
    planned = compose_study(study).runs
    found = {}
    for ranks in (None, 2, 4):
        store = Store(tmp_path / f'a store\'s "{ranks}" ranks')
        done = run("--experiments", study, "--store", store.root, ranks=ranks)
        assert done.returncode == 0, done.stdout + done.stderr
        found[ranks] = numbers(store, planned)
        (folder,) = store.packs_dir.iterdir()
        assert f"{folder.name}: 1 build finished, 4 finished, on {ranks or 1} ranks" in done.stdout
        events = events_of(store, folder.name)
        ended = [(e["target_id"], e["run_id"]) for e in events if e["event"] == "run_end"]
        assert sorted(ended) == sorted(found[ranks])
        assert [e["rank"] for e in events if e["event"] == "end"] == list(range(ranks or 1))
        assert all(0 <= e["busy"] <= e["seconds"] for e in events if e["event"] == "end")
        assert {e["binding"]["num_cores"] for e in events if e["event"] == "start"} == {1}
        assert len(list(folder.glob("rank-*.log"))) == (ranks or 1)
    assert found[None] == found[2] == found[4]

    again = run("--experiments", study, "--store", store.root, ranks=2)
    assert again.returncode == 0
    assert again.stdout == "nothing to do: every run is finished in the store\n"


@pytest.mark.mpi
@pytest.mark.slow
def test_the_numbers_are_the_same_in_packs_of_1_3_and_32(study, tmp_path):
    study.write_text(STUDY_OF_DATA)
    composed = compose_study(study)
    ((target_id, build),) = composed.targets.items()
    found = {}
    for size in (1, 3, 32):
        store = Store(tmp_path / f"packs of {size}")
        for index, pack in enumerate(make_packs(composed.runs, size)):
            runs = [run_.pack_entry() for run_ in pack]
            content = {"format": 1, "pack_id": f"pack_{index}", "store_root": str(store.root), "cores_per_rank": 1}
            builds = [{"target_id": target_id, "config": asdict(build)}] if index == 0 else []
            content |= {"expected_ranks": None, "builds": builds, "runs": runs}
            write_json_atomic(tmp_path / "pack.json", content)
            done = run(tmp_path / "pack.json")
            assert done.returncode == 0, done.stdout + done.stderr
        assert len(list(store.packs_dir.iterdir())) == {1: 4, 3: 2, 32: 1}[size]
        found[size] = numbers(store, composed.runs)
    assert found[1] == found[3] == found[32]


@pytest.mark.mpi
@pytest.mark.slow
def test_a_failing_and_a_blocked_run_leave_the_others_alone(study, tmp_path):
    store = Store(tmp_path / "store")
    planned = pack_of(study, store.root, tmp_path / "pack.json", expected_ranks=2)
    broken, missing = dict.fromkeys(run.target_id for run in planned)
    good_study = tmp_path / "good.yaml"
    good_study.write_text(STUDY.replace("{target: monomial}", "{target: quadratic, seed: 1}"))
    one = compose_study(good_study)
    (spare,) = set(one.targets) - {broken}

    # The first target is there but damaged, the second is not there; a third is sound.
    assert run("--experiments", good_study, "--store", store.root).returncode == 0
    params = store.target_dir(broken) / "params.npz"
    params.write_bytes(params.read_bytes()[:-1])
    pack = read_json(tmp_path / "pack.json")
    sound = [r for r in one.runs if r.target_id == spare]
    pack["runs"] += [run_.pack_entry() for run_ in sound]
    for analysis in store.root.rglob("analysis.json"):
        analysis.unlink()
    write_json_atomic(tmp_path / "pack.json", pack)

    done = run(tmp_path / "pack.json", ranks=2)
    assert done.returncode == 0, done.stderr  # what happened is in the store
    ends = {(e["target_id"], e["run_id"]): e for e in events_of(store, "pack_test") if e["event"] == "run_end"}
    assert len(ends) == len(pack["runs"])
    for run_ in planned:
        end = ends[run_.target_id, run_.run_id]
        run_dir = store.run_dir(run_.target_id, run_.run_id)
        if run_.target_id == broken:
            assert end["status"] == "blocked" and not (run_dir / "error.json").exists()
            assert "its target is damaged" in end["reason"] or "no meta.json" in end["reason"]
            assert f"run {run_.target_id}/{run_.run_id}: blocked" in done.stdout
        else:
            assert run_.target_id == missing
            assert end["status"] == "blocked" and "no meta.json" in end["reason"]
            assert not run_dir.exists()
    assert any("params.npz: it has" in end.get("reason", "") for end in ends.values())
    damaged = sorted(path.name for path in (store.root / "damaged").rglob("*npz*"))
    assert damaged == ["params.npz.1"] and store.target_status(broken) == "missing"
    for run_ in sound:
        assert ends[run_.target_id, run_.run_id]["status"] == "finished"
        assert read_json(store.run_dir(run_.target_id, run_.run_id) / "analysis.json")["pack_id"] == "pack_test"


@pytest.mark.parametrize("words", [["--experiments", "STUDY"], ["PACK"]])
@pytest.mark.parametrize("rank", [0, 3])
def test_a_singleton_of_several_is_refused_before_any_work(study, tmp_path, words, rank):
    pack_of(study, tmp_path / "store", tmp_path / "pack.json")
    files = {"STUDY": study, "PACK": tmp_path / "pack.json"}
    environment = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
    done = run(*(files.get(word, word) for word in words), environment=environment)
    assert done.returncode == 2
    # One of the four says it.
    assert ("started 4 processes" in done.stderr and "has size 1" in done.stderr) == (rank == 0)
    assert not (tmp_path / "store").exists()


def test_a_pack_for_several_ranks_is_refused_by_one(study, tmp_path):
    pack_of(study, tmp_path / "store", tmp_path / "pack.json", expected_ranks=4)
    done = run(tmp_path / "pack.json")
    assert done.returncode == 2
    assert "meant for 4 ranks" in done.stderr and "mpiexec -n 4" in done.stderr
    assert not (tmp_path / "store").exists()


def test_dry_run_says_what_would_be_done_and_does_nothing(study, tmp_path):
    store = tmp_path / "store"
    done = run("--experiments", study, "--store", store, "--dry-run", "samplers.0.sweep.seed=[5]")
    assert done.returncode == 0, done.stderr
    quadratic, monomial = compose_study(study).targets
    lines = done.stdout.splitlines()
    assert "2 targets to build, 2 runs, about" in lines[0] and str(store) in lines[0]
    assert sorted(lines[1:3]) == sorted([f"  build {quadratic}", f"  build {monomial}"])
    assert all(line.startswith("  run tgt_") for line in lines[3:]) and len(lines) == 5
    assert not store.exists()


@pytest.mark.parametrize(
    "words, told",
    [
        ([], "give either PACK.json or --experiments FILE"),
        (["PACK", "--store", "x"], "a pack file says all"),
        (["PACK", "a=b"], "a pack file says all"),
        (["no such file.json"], "no such file.json: cannot be read: No such file"),
        (["STUDY"], "not valid JSON"),
        (["--experiments", "missing.yaml"], "missing.yaml: no such file"),
        (["--experiments", "STUDY", "samplers.0.nam=hmc"], "unknown key 'nam'"),
        (["--experiments", "STUDY", "site.ranks_per_node=2"], "the launcher is the site here"),
        (["--experiments", "STUDY", "--cores-per-rank", "0"], "--cores-per-rank: got 0"),
        (["--experiments", "STUDY", "--gpus-per-node", "-1"], "--gpus-per-node: got -1"),
        (["--experiments", "STUDY", "--ranks-per-gpu", "0"], "--ranks-per-gpu: got 0"),
        (["PACK", "--gpus-per-node", "1"], "a pack file says all"),
    ],
)
def test_bad_input_is_refused_with_one_message(study, tmp_path, words, told):
    files = {"STUDY": study, "PACK": tmp_path / "pack.json"}
    pack_of(study, tmp_path / "store", tmp_path / "pack.json")
    store = ["--store", tmp_path / "store"] if "--experiments" in words else []
    done = run(*(files.get(word, word) for word in words), *store)
    assert done.returncode == 2
    assert told in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "change, told",
    [
        ({"format": 7}, "not a pack file of format 1"),
        ({"runs": None}, "runs: missing"),
        ({"gpus_per_node": "two"}, "pack.json: gpus_per_node: got 'two', expected an integer of at least 0"),
        ({"ranks_per_gpu": 0}, "pack.json: ranks_per_gpu: got 0, expected an integer of at least 1"),
        ({"compile_cache": 1}, "pack.json: compile_cache: got 1, expected true or false"),
        ({"seed": 7}, "the file was edited"),
        ({"target_id": "tgt_000000000000"}, "the file was edited"),
    ],
)
def test_a_pack_file_that_was_not_written_by_us_is_refused(study, tmp_path, change, told):
    path = tmp_path / "pack.json"
    pack_of(study, tmp_path / "store", path)
    pack = read_json(path)
    if "seed" in change:
        pack["runs"][0]["config"]["seed"] = 7
    elif "target_id" in change:
        pack["runs"][0].update(change)
    elif change.get("runs", True) is None:
        del pack["runs"]
    else:
        pack.update(change)
    write_json_atomic(path, pack)
    done = run(path)
    assert done.returncode == 2
    assert told in done.stderr and "Traceback" not in done.stderr


@pytest.mark.mpi
def test_bad_input_is_told_once_by_several_ranks(tmp_path):
    done = run("--experiments", tmp_path / "missing.yaml", ranks=4)
    assert done.returncode == 2
    assert done.stderr.count("missing.yaml: no such file") == 1
    done = run(ranks=4)
    assert done.returncode == 2
    assert done.stderr.count("give either PACK.json") == 1


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [None, 2])
def test_ranks_end_when_their_driver_has(study, tmp_path, ranks):
    store = Store(tmp_path / "store")
    pack_of(study, store.root, tmp_path / "pack.json", expected_ranks=ranks)
    done = run(tmp_path / "pack.json", ranks=ranks, environment={HEARTBEAT_VARIABLE: str(tmp_path / "gone.lease")})
    assert done.returncode == 0
    assert "4 left" in done.stdout and "stopped: its driver has ended" in done.stdout
    drains = [event for event in events_of(store, "pack_test") if event["event"] == "drain"]
    assert [drain["reason"] for drain in drains] == ["its driver has ended"] * (ranks or 1)
    assert not store.targets_dir.exists()


@pytest.mark.mpi
@pytest.mark.skipif(os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/kfd"), reason="this machine has GPUs")
@pytest.mark.parametrize("visible", [None, "0"])
def test_a_pack_for_gpus_stops_where_a_rank_sees_none(study, tmp_path, visible):
    store = Store(tmp_path / "store")
    pack_of(study, store.root, tmp_path / "pack.json", expected_ranks=2, gpus_per_node=1, ranks_per_gpu=2)
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    done = run(tmp_path / "pack.json", ranks=2, environment=environment, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: ") == 1
    told = "CUDA_VISIBLE_DEVICES=0" if visible else "CUDA_VISIBLE_DEVICES not set"
    for word in ("rank 0 (local rank 0 of 2)", socket.gethostname(), told, "jax sees cpu", "jax plugins: none"):
        assert word in done.stderr
    events = events_of(store, "pack_test")
    assert {event["event"] for event in events} <= {"start", "refused"}
    (first, *_) = [event for event in events if event["event"] == "refused" and event["rank"] == 0]
    assert first["reason"] in done.stderr
    bindings = [event["binding"] for event in events if event["event"] == "start"]
    assert {(b["device_variable"], b["device"], b["memory_fraction"]) for b in bindings} == {
        ("CUDA_VISIBLE_DEVICES", "0", 0.375)
    }


@pytest.mark.mpi
@pytest.mark.parametrize(
    "gpus, visible, told",
    [(1, None, "2 ranks on this node and 1 GPU"), (4, None, "2 of 4 GPUs idle"), (2, "", "gave this process none")],
)
def test_gpus_that_do_not_add_up_stop_the_pack(study, tmp_path, gpus, visible, told):
    store = Store(tmp_path / "store")
    pack_of(study, store.root, tmp_path / "pack.json", gpus_per_node=gpus)
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    done = run(tmp_path / "pack.json", ranks=2, environment=environment, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: ") == 1 and told in done.stderr and socket.gethostname() in done.stderr
    assert {event["event"] for event in events_of(store, "pack_test")} == {"refused"}


def test_a_dry_run_for_gpus_counts_gpu_hours(study, tmp_path):
    words = ["--experiments", study, "--store", tmp_path / "store", "--dry-run", "--gpus-per-node", "2"]
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert "GPU-hours, in" in done.stdout.splitlines()[0]
