import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lambda_hat.planning.preflight import COLUMNS, LINE_PREFIX, judge, read_reports, table
from lambda_hat.store.layout import Store, write_json_atomic
from mpi.check_pack import memory

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = str(ROOT / "mpi" / "check_pack.py")

CHECK = {
    "pack_id": "pack_check",
    "store_root": "/store",
    "cores_per_rank": 1,
    "expected_ranks": 4,
    "expected_nodes": 2,
    "gpus_per_node": 0,
    "ranks_per_gpu": 1,
    "gpu_sharing": "none",
    "needs": ["jax"],
}
GPU_CHECK = {**CHECK, "gpus_per_node": 2}


def report(k, **changes):
    """What rank `k` of four on two nodes says where nothing is wrong."""
    return {
        "pack_id": "pack_check",
        "host": f"n{1 + k // 2}",
        "pid": 100 + k,
        "rank": k,
        "size": 4,
        "launcher_rank": k,
        "launcher_size": 4,
        "launcher_variable": "PMI_SIZE",
        "local_rank": k % 2,
        "local_size": 2,
        "python": "3.11.7",
        "executable": "/venv/bin/python",
        "versions": {"jax": "0.10.1", "jaxlib": "0.10.1", "blackjax": "1.7.1", "mpi4py": "4.1.2"},
        "missing": [],
        "memory_available": 8 << 30,
        "memory_limit": None,
        "errors": {},
        "mpi_library": "MPICH Version: 5.0.2",
        "cores": [k % 2],
        "cores_shared": False,
        "device": None,
        "gpu_id": None,
        "backend": "cpu",
        "device_kind": "cpu",
        "device_memory": None,
        "result": 81046.0,
        "expected": 81046.0,
        "seconds_import": 2.0,
        "seconds_compute": 0.1,
        "seconds_ready": 5.0,
        "store_written": True,
        **changes,
    }


def reports(**changes):
    return [report(k, **changes) for k in range(4)]


def gpu_reports(ids=("GPU-a", "GPU-b", "GPU-c", "GPU-d"), **changes):
    on_gpu = {"backend": "gpu", "device_kind": "NVIDIA H100", "device_memory": 60 << 30, **changes}
    return [report(k, gpu_id=ids[k], device=f"CUDA_VISIBLE_DEVICES={k % 2}", **on_gpu) for k in range(4)]


def without(found, *ranks):
    return [one for one in found if one["rank"] not in ranks]


def with_one(rank, **changes):
    return [*without(reports(), rank), report(rank, **changes)]


def test_a_sound_site_passes():
    assert judge(reports(), CHECK, walltime_seconds=100, longest_run_seconds=90) == []
    assert judge(reports(), {**CHECK, "expected_ranks": None, "expected_nodes": None}) == []
    assert judge(gpu_reports(), GPU_CHECK) == []
    shared = gpu_reports(ids=("GPU-a", "GPU-a", "GPU-b", "GPU-b"))
    assert judge(shared, {**GPU_CHECK, "gpus_per_node": 1, "ranks_per_gpu": 2}) == []
    alone = report(0, size=1, launcher_size=None, launcher_variable=None)
    assert judge([alone], {**CHECK, "expected_ranks": 1, "expected_nodes": 1}) == []


@pytest.mark.parametrize(
    "found, check, told",
    [
        ([], CHECK, "no rank has reported into /store"),
        (
            reports(rank=0, size=1),
            CHECK,
            "4 processes were started (PMI_SIZE=4), and each is alone in an MPI world of size 1 (MPICH Version: 5.0.2)",
        ),
        (reports(size=2), CHECK, "ranks 0-3 on n1, n2: an MPI world of 2, expected 4"),
        (
            without(reports(), 1, 2),
            {**CHECK, "expected_nodes": 2},
            "2 ranks have reported, expected 4; nothing from rank 1-2",
        ),
        (
            [*reports(), report(0, pid=7, cores=[5])],
            {**CHECK, "expected_nodes": None},
            "5 ranks have reported, expected 4",
        ),
        (
            [report(k, host="n1", cores=[k]) for k in range(4)],
            CHECK,
            "ranks ran on 1 nodes (n1), expected 2; nodes_per_pack",
        ),
        (with_one(2, host="n1", cores=[7]), CHECK, "spread unevenly over the nodes (n1 3, n2 1)"),
        (
            with_one(3, errors={"mpi": "the launcher started 4 processes, but mpi4py cannot be used here (x)"}),
            CHECK,
            "rank 3 on n2 cannot use MPI: the launcher started 4 processes",
        ),
        (with_one(3, errors={"binding": "two ranks"}), CHECK, "rank 3 on n2 cannot take cores and a GPU as asked: two"),
        (
            with_one(3, errors={"import": "ImportError: libfoo"}),
            CHECK,
            "rank 3 on n2 cannot import lambda_hat: ImportError",
        ),
        (
            with_one(3, errors={"store": "PermissionError: denied"}),
            CHECK,
            "rank 3 on n2 cannot write into the store /store; give a folder that every node can write with --store "
            "DIR: PermissionError: denied",
        ),
        (
            [report(k, missing=["blackjax"] if k > 1 else []) for k in range(4)],
            CHECK,
            "ranks 2-3 on n2: no module blackjax for /venv/bin/python; install it there, or let worker_init",
        ),
        (reports(), GPU_CHECK, "ranks 0-3 on n1, n2: computes on cpu, but gpus_per_node is 2"),
        (gpu_reports(), CHECK, "computes on gpu, but gpus_per_node is 0"),
        (
            gpu_reports(ids=("GPU-a", "GPU-b", "GPU-c", "GPU-c")),
            GPU_CHECK,
            "ranks 2-3 on n2 share the GPU GPU-c (CUDA_VISIBLE_DEVICES=0, CUDA_VISIBLE_DEVICES=1), but",
        ),
        (
            with_one(1, cores=[0]),
            CHECK,
            "ranks 0-1 on n1 share cores: 2 ranks of 1 on 1 cores of n1; write ranks_per_node: 1, or let the launcher",
        ),
        (
            reports(),
            {**CHECK, "cores_per_rank": 2},
            "ranks 0-1 on n1: got 1 of 2 cores; write cores_per_rank: 1, or ask the scheduler for 2",
        ),
        (
            with_one(3, python="3.12.1"),
            CHECK,
            "different versions of python: 3.11.7 for ranks 0-2 on n1, n2; 3.12.1 for rank 3 on n2; let every node use",
        ),
        (
            with_one(0, versions={**report(0)["versions"], "jax": "0.10.2"}),
            CHECK,
            "different versions of jax: 0.10.1 for ranks 1-3 on n1, n2; 0.10.2 for rank 0 on n1",
        ),
        (with_one(3, result=81045.0), CHECK, "rank 3 on n2: a small sum came out as 81045.0, which is 81046.0"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_write(found, check, told):
    sentences = judge(found, check)
    assert [sentence for sentence in sentences if told in sentence], sentences


@pytest.mark.parametrize("found", [with_one(3, result=1.0), with_one(3, python="3.12.1"), with_one(1, cores=[0])])
def test_one_fault_is_one_sentence(found):
    assert len(judge(found, CHECK)) == 1


def test_singletons_are_one_sentence():
    (sentence,) = judge(reports(rank=0, size=1), CHECK)
    assert "mpi: bundled" in sentence and "srun_mpi" in sentence


@pytest.mark.parametrize(
    "walltime, longest, told",
    [
        (94, 90, "walltime: 94 s, but a rank is ready after 5 s, and the longest run takes about 90 s; write at least"),
        (4, None, 'ready after 5 s; write at least walltime: "00:01:00"'),
        (3600, 7200, 'walltime: "02:01:00"'),
        (95, 90, None),
        (None, 90, None),
    ],
)
def test_a_walltime_shorter_than_the_longest_run_is_told(walltime, longest, told):
    sentences = judge(reports(), CHECK, walltime_seconds=walltime, longest_run_seconds=longest)
    assert (sentences == []) if told is None else told in sentences[0]


def test_the_table_has_a_row_for_every_rank():
    found = [*reversed(gpu_reports(memory_limit=4 << 30))]
    found[0] |= {"missing": ["blackjax"], "result": 1.0}
    rows = table(found)
    assert [row[0] for row in rows] == ["0", "1", "2", "3"] and {len(row) for row in rows} == {len(COLUMNS)}
    first, last = (dict(zip(COLUMNS, row, strict=True)) for row in (rows[0], rows[3]))
    assert first["device"] == "NVIDIA H100 CUDA_VISIBLE_DEVICES=0"
    assert first["memory"] == "4.0 GiB, GPU 60.0 GiB"
    assert (first["world"], first["MPI"], first["verdict"]) == ("4", "MPICH Version: 5.0.2", "ok")
    assert last["verdict"] == "no blackjax, wrong sum"
    alone = table(reports(rank=0, size=1))
    assert [(row[0], row[-1]) for row in alone] == [(str(rank), "alone") for rank in range(4)]
    bare = report(0)
    for key in ("rank", "size", "mpi_library", "cores", "device", "device_kind", "backend", "result", "expected"):
        del bare[key]
    bare["errors"] = {"mpi": "no library", "binding": "no GPU"}
    assert table([bare])[0][-1] == "mpi, binding"
    judge([bare], CHECK)


@pytest.mark.parametrize(
    "lines, files, limit",
    [
        ("0::/job/step\n", {"job/memory.max": "4096", "job/step/memory.max": "max", "memory.max": "8192"}, 4096),
        ("9:cpu:/\n4:memory:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": "2048"}, 2048),
        ("4:memory:/job\n", {"memory/memory.limit_in_bytes": str((1 << 63) - 4096)}, None),
        ("0::/\n", {}, None),
    ],
)
def test_memory_is_the_nodes_and_the_least_limit(tmp_path, lines, files, limit):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(lines)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   7 kB\n")
    for name, text in files.items():
        path = tmp_path / "cg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    found = memory(tmp_path / "proc", tmp_path / "cg")
    assert found == {"memory_available": 7168, "memory_limit": limit}


# --------------------------------------------------------------------------------------------------------------
# The program


def check_file(tmp_path, **changes):
    check = {**CHECK, "store_root": str(tmp_path / 'a store\'s "root"'), "expected_ranks": 2, "expected_nodes": 1}
    check |= {"needs": ["jax", "blackjax", "mpi4py.MPI"], **changes}
    write_json_atomic(tmp_path / "CHECK.json", check)
    return check, Store(check["store_root"]).pack_dir(check["pack_id"])


def command(tmp_path, ranks=None):
    launcher = [] if ranks is None else [str(Path(sys.executable).parent / "mpiexec"), "-n", str(ranks)]
    return [*launcher, sys.executable, PROGRAM, str(tmp_path / "CHECK.json")]


def start(line, **environment):
    env = {key: value for key, value in os.environ.items() if key not in ("NPROC", "JAX_PLATFORMS")} | environment
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/", env=env)


def end(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.mpi
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: two ranks share it")
def test_two_ranks_report_and_pass(tmp_path):
    check, folder = check_file(tmp_path)
    code, out, err = end(start(command(tmp_path, ranks=2)))
    assert (code, out) == (0, ""), err
    found = read_reports(folder)
    assert len(found) == len(list(folder.iterdir())) == 2
    assert judge(found, check, walltime_seconds=600, longest_run_seconds=60) == []
    for rank, (one, row) in enumerate(zip(found, table(found), strict=True)):
        assert (one["rank"], one["size"], one["launcher_rank"], one["host"]) == (rank, 2, rank, socket.gethostname())
        assert one["result"] == one["expected"] and one["backend"] == "cpu" and one["memory_available"] > 0
        assert 0 < one["seconds_import"] < one["seconds_ready"]
        assert row[-1] == "ok" and "MPICH" in one["mpi_library"]
    assert found[0]["cores"] != found[1]["cores"]


def test_singletons_report_and_are_judged(tmp_path):
    check, folder = check_file(tmp_path)
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    pair = [start(command(tmp_path), SLURM_PROCID=k, SLURM_LOCALID=k, **step) for k in "01"]
    assert [end(process)[0] for process in pair] == [0, 0]
    found = read_reports(folder)
    assert [(one["launcher_rank"], one["rank"], one["size"]) for one in found] == [(0, 0, 1), (1, 0, 1)]
    sentences = judge(found, check)
    assert "2 processes were started (SLURM_STEP_NUM_TASKS=2), and each is alone" in sentences[0]
    assert [row[-1] for row in table(found)] == ["alone", "alone"]


@pytest.mark.mpi
def test_what_fails_on_a_rank_is_in_its_report(tmp_path):
    check, folder = check_file(tmp_path, gpus_per_node=1, needs=["jax", "no_such_module", "jax.nothing", "no.such"])
    code, _, err = end(start(command(tmp_path, ranks=2), CUDA_VISIBLE_DEVICES="0", SLURM_JOB_GPUS="0"))
    assert code == 0, err
    sentences = judge(read_reports(folder), check)
    told = "\n".join(sentences)
    assert "ranks 0-1 on" in told and "cannot take cores and a GPU as asked: rank 0 (local rank 0 of 2)" in told
    assert "2 ranks on this node and 1 GPU" in told and "CUDA_VISIBLE_DEVICES=0, SLURM_JOB_GPUS=0" in told
    assert told.count("no module") == 3 and "no module no.such for" in told


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/kfd"), reason="this machine has GPUs")
def test_a_rank_without_its_gpu_says_so(tmp_path):
    check, folder = check_file(tmp_path, gpus_per_node=1, expected_ranks=1)
    assert end(start(command(tmp_path)))[0] == 0
    (sentence,) = judge(read_reports(folder), check)
    assert "cannot compute as asked: rank 0" in sentence and "jax sees cpu" in sentence and "jax plugins" in sentence


def test_a_report_that_cannot_be_written_is_printed(tmp_path):
    (tmp_path / "file").write_text("")
    check, folder = check_file(tmp_path, store_root=str(tmp_path / "file" / "store"), expected_ranks=1)
    code, out, err = end(start(command(tmp_path)))
    assert code == 2 and out.startswith(LINE_PREFIX) and "cannot be written: Not a directory" in err
    (found,) = read_reports(folder, f"a line of the scheduler\n{out}{LINE_PREFIX}{{half")
    (sentence,) = judge([found], check)
    assert "rank 0 on" in sentence and "cannot write into the store" in sentence and "Not a directory" in sentence


@pytest.mark.parametrize(
    "text, told", [(None, "cannot be read: No such file"), ("{", "not valid JSON"), ("{}", "pack_id: missing")]
)
def test_a_bad_check_file_is_told_by_one_rank(tmp_path, text, told):
    if text is not None:
        (tmp_path / "CHECK.json").write_text(text)
    for rank, says in (("0", True), ("1", False)):
        code, _, err = end(start(command(tmp_path), SLURM_STEP_NUM_TASKS="2", SLURM_PROCID=rank, SLURM_LOCALID=rank))
        assert code == 2 and (told in err and "Traceback" not in err if says else err == "")


def test_reports_that_are_half_written_are_left_out(tmp_path):
    (tmp_path / "check-0000-n1-1.json").write_text("{")
    write_json_atomic(tmp_path / "check-0001-n1-2.json", report(1))
    assert [one["rank"] for one in read_reports(tmp_path)] == [1]
    assert json.loads(json.dumps(report(1))) == report(1)
