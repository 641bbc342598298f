"""The fake PBS behaves as the real one was seen to."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.cluster.fake_pbs import FakePbs

pytestmark = pytest.mark.cluster


def script(folder: Path, body: str, *directives: str) -> Path:
    path = folder / "job.sh"
    lines = "\n".join(f"#PBS {each}" for each in directives)
    path.write_text(f"#!/bin/bash\n{lines}\n\n{textwrap.dedent(body)}")
    return path


def qstat(pbs: FakePbs, *words: str) -> tuple[int, dict, str]:
    done = pbs.run("qstat", *words, check=False)
    return done.returncode, json.loads(done.stdout), done.stderr


def test_a_job_in_a_login_shell_from_home(pbs, awkward_dir):
    body = """\
        shopt -q login_shell && echo login
        pwd; hostname; cat "$PBS_NODEFILE"; echo "$PBS_ENVIRONMENT $PBS_JOBID $PBS_QUEUE"; echo "$PBS_O_WORKDIR"
        command -v qsub; echo "[$SECRET]"; echo oops >&2; ps -o sid= $$ | xargs test $$ = || echo no session
        exit 7
        """
    out, err = awkward_dir / "out", awkward_dir / "err"
    words = ["-o", out, "-e", err, "-q", "builds", script(awkward_dir, body, "-N first", "-q workq", "-r n")]
    pbs.env["SECRET"] = "of the submitter"
    job_id = pbs.submit(*words, cwd=awkward_dir)
    assert job_id == "1.fakepbs"
    assert pbs.wait(job_id) == 7
    host = "pbsnode1" if os.geteuid() == 0 else os.uname().nodename
    expected = ["login", str(pbs.home), host, "pbsnode1", "PBS_BATCH 1.fakepbs builds", str(awkward_dir)]
    assert out.read_text().splitlines() == [*expected, f"{pbs.folder}/bin/qsub", "[]"]
    assert err.read_text() == "oops\n"
    job = pbs.job(job_id)
    assert (job["Job_Name"], job["queue"], job["Rerunable"]) == ("first", "builds", "False")


def test_joined_output_is_one_file(pbs, tmp_path):
    job_id = pbs.submit(script(tmp_path, "echo out; echo err >&2", "-j oe", f"-o {tmp_path}/both"), cwd=tmp_path)
    assert pbs.wait(job_id) == 0
    assert (tmp_path / "both").read_text() == "out\nerr\n"
    assert {path.name for path in tmp_path.iterdir()} == {"both", "job.sh"}


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("select=2:ncpus=2:mpiprocs=2,place=scatter", "pbsnode1 pbsnode1 pbsnode2 pbsnode2"),
        ("select=2:ncpus=4:mpiprocs=2", "pbsnode1 pbsnode1 pbsnode2 pbsnode2"),
        ("select=2:ncpus=4", "pbsnode1 pbsnode2"),
        ("select=2:ncpus=1", "pbsnode1 pbsnode1"),
    ],
)
def test_the_node_file_has_a_line_per_process(pbs, tmp_path, select, expected):
    job_id = pbs.submit("-o", "nodes", script(tmp_path, "cat $PBS_NODEFILE", f"-l {select}"), cwd=tmp_path)
    assert pbs.wait(job_id) == 0
    assert (tmp_path / "nodes").read_text().split() == expected.split()


@pytest.mark.mpi
@pytest.mark.parametrize("words", ["-ppn 2 -hosts pbsnode1,pbsnode2", "", "-ppn 4 -hosts pbsnode2"])
def test_one_world_of_four(pbs, tmp_path, words):
    program = tmp_path / "world.py"
    program.write_text(
        "import os, socket\nfrom mpi4py import MPI\ncomm = MPI.COMM_WORLD\n"
        "open(f'{comm.rank}-{comm.size}-{socket.gethostname()}.rank', 'w').close()\n"
    )
    mpiexec = Path(sys.executable).parent / "mpiexec"
    body = f"cd {tmp_path}\n{mpiexec} -n 4 {words} {sys.executable} -m mpi4py {program}"
    job_id = pbs.submit("-e", "err", script(tmp_path, body, "-l select=2:ncpus=4:mpiprocs=2"), cwd=tmp_path)
    assert pbs.wait(job_id) == 0, (tmp_path / "err").read_text()
    hosts = ["pbsnode2"] * 4 if "ppn 4" in words else ["pbsnode1", "pbsnode1", "pbsnode2", "pbsnode2"]
    if os.geteuid() != 0:
        hosts = [os.uname().nodename] * 4
    expected = {f"{rank}-4-{host}.rank" for rank, host in enumerate(hosts)}
    assert {path.name for path in tmp_path.glob("*.rank")} == expected


@pytest.mark.mpi
def test_hydra_knows_no_other_host(pbs, tmp_path):
    body = f"{Path(sys.executable).parent}/mpiexec -n 1 -hosts elsewhere hostname"
    job_id = pbs.submit("-e", "err", script(tmp_path, body), cwd=tmp_path)
    assert pbs.wait(job_id) != 0
    assert "Could not resolve hostname elsewhere" in (tmp_path / "err").read_text()


@pytest.mark.parametrize("pbs", [{"accounts": ["physics"]}], indirect=True)
@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["-A", "physics", "-q", "nowhere"], 170, "qsub: Unknown queue"),
        (["-A", "nobody"], 201, "qsub: Invalid Account"),
        ([], 201, "qsub: Invalid Account"),
        (["-A", "physics", "--bogus"], 2, "usage: qsub"),
        (["-A", "physics", "absent.sh"], 1, "qsub: script file:: No such file or directory"),
    ],
)
def test_refusals(pbs, tmp_path, words, status, message):
    refused = pbs.run("qsub", *words, script(tmp_path, "true"), check=False)
    assert (refused.returncode, refused.stdout) == (status, "")
    assert message in refused.stderr
    assert (pbs.submitted, pbs.jobs()) == (0, {})
    assert pbs.wait(pbs.submit("-A", "physics", tmp_path / "job.sh", cwd=tmp_path)) == 0
    assert pbs.submitted == 1


def test_busy_nodes_make_a_job_wait(pbs, tmp_path):
    job = script(tmp_path, "exec sleep 60", "-l select=2:ncpus=4")
    first, second, impossible = pbs.submit(job), pbs.submit(job), pbs.submit("-l", "select=3:ncpus=4", job)
    pbs.wait_for(lambda: "comment" in pbs.job(impossible))
    assert pbs.jobs() == {first: "R", second: "Q", impossible: "Q"}
    assert pbs.job(first)["exec_host"] == "pbsnode1/0*4+pbsnode2/0*4"
    assert pbs.job(second)["comment"].startswith("Not Running: ")
    assert pbs.job(impossible)["comment"].startswith("Can Never Run: ")
    pbs.run("qdel", first)
    pbs.wait_for(lambda: pbs.job(second)["job_state"] == "R")
    pbs.run("qdel", second, impossible)
    assert [pbs.wait(each) for each in (first, second, impossible)] == [271, 271, None]


@pytest.mark.parametrize("pbs", [{"kill_delay": 1.0}], indirect=True)
@pytest.mark.parametrize(("how", "status"), [("qdel", 271), ("walltime", -29)])
def test_term_then_kill(pbs, tmp_path, how, status):
    stubborn = "import os, signal, time\nsignal.signal(signal.SIGTERM, lambda *_: open('term', 'a').write('TERM'))\n"
    stubborn += "open('started', 'w').close()\nend = time.time() + 60\nwhile time.time() < end: time.sleep(1)\n"
    (tmp_path / "stubborn.py").write_text(stubborn)
    body = f"cd {tmp_path}\n{sys.executable} stubborn.py"
    directives = ["-l walltime=00:00:02"] if how == "walltime" else []
    job_id = pbs.submit("-e", "err", "-o", "out", script(tmp_path, body, *directives), cwd=tmp_path)
    pbs.wait_for((tmp_path / "started").exists)
    if how == "qdel":
        pbs.run("qdel", job_id)
    pbs.wait_for((tmp_path / "term").exists)
    assert pbs.jobs() == {job_id: "R"}, "nodes are held until the last process is gone"
    assert not (tmp_path / "out").exists()
    assert pbs.wait(job_id) == status
    assert (tmp_path / "term").read_text() == "TERM"
    assert ("job killed: walltime" in (tmp_path / "err").read_text()) == (how == "walltime")


@pytest.mark.mpi
def test_ranks_get_term_and_go(pbs, tmp_path):
    program = tmp_path / "rank.py"
    program.write_text(
        "import signal, sys, time\nfrom mpi4py import MPI\nrank = MPI.COMM_WORLD.rank\n"
        "def term(*_):\n    open(f'{rank}.term', 'w').close()\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, term)\nopen(f'{rank}.started', 'w').close()\ntime.sleep(60)\n"
    )
    body = f"cd {tmp_path}\n{Path(sys.executable).parent}/mpiexec -n 4 -ppn 2 {sys.executable} {program}"
    job_id = pbs.submit("-e", "err", script(tmp_path, body, "-l select=2:ncpus=4"), cwd=tmp_path)
    pbs.wait_for(lambda: len(list(tmp_path.glob("*.started"))) == 4)
    pbs.run("qdel", job_id)
    assert pbs.wait(job_id) == 271
    assert len(list(tmp_path.glob("*.term"))) == 4


def test_qstat(pbs, tmp_path):
    done = pbs.submit(script(tmp_path, "true", "-l walltime=00:05:00", "-l select=1:ncpus=2"), cwd=tmp_path)
    pbs.wait(done)
    long = pbs.submit(script(tmp_path, "exec sleep 60"), cwd=tmp_path)
    pbs.wait_for(lambda: pbs.job(long)["job_state"] == "R")
    status, answer, _ = qstat(pbs, "-x", "-f", "-F", "json", done, long)
    states = {job_id: (job["job_state"], job.get("Exit_status")) for job_id, job in answer["Jobs"].items()}
    assert (status, states) == (0, {done: ("F", 0), long: ("R", None)})
    resources = {"select": "1:ncpus=2", "walltime": "00:05:00", "nodect": 1, "place": "free"}
    assert answer["Jobs"][done]["Resource_List"] == resources
    assert set(qstat(pbs, "-f", "-F", "json")[1]["Jobs"]) == {long}
    assert qstat(pbs, "-f", "-F", "json", done)[0] == 35
    status, answer, message = qstat(pbs, "-x", "-f", "-F", "json", done, "99.fakepbs")
    assert (status, set(answer["Jobs"]), message) == (153, {done}, "qstat: Unknown Job Id 99.fakepbs\n")
    server = qstat(pbs, "-Bf", "-F", "json")[1]["Server"]["fakepbs"]
    assert (server["job_history_enable"], server["total_jobs"]) == ("True", 2)
    assert pbs.run("qdel", done, "99", check=False).stderr.splitlines() == [
        f"qdel: Job has finished {done}",
        "qdel: Unknown Job Id 99.fakepbs",
    ]
    pbs.run("qdel", long)


@pytest.mark.parametrize("pbs", [{"history": False}, {"history": None}], indirect=True)
def test_without_history_a_running_job_is_not_shown(pbs, tmp_path):
    job_id = pbs.submit(script(tmp_path, "exec sleep 60"), cwd=tmp_path)
    pbs.wait_for(lambda: pbs.job(job_id)["job_state"] == "R")
    status, answer, message = qstat(pbs, "-x", "-f", "-F", "json", job_id)
    assert (status, "Jobs" in answer) == (0, False)
    assert "PBS is not configured to maintain job history" in message
    assert set(qstat(pbs, "-f", "-F", "json", job_id)[1]["Jobs"]) == {job_id}
    assert qstat(pbs, "-Bf", "-F", "json")[1]["Server"]["fakepbs"].get("job_history_enable") in ("False", None)
    pbs.run("qdel", job_id)
    pbs.wait(job_id)
    assert qstat(pbs, "-f", "-F", "json", job_id)[0] == 153


def state(pbs: FakePbs, job_id: str) -> str:
    """As qstat tells it."""
    return qstat(pbs, "-f", "-F", "json", job_id)[1]["Jobs"][job_id]["job_state"]


def test_a_held_job_waits_for_its_release(pbs, tmp_path):
    job = script(tmp_path, "exec sleep 60")
    submitted_so, held = pbs.submit("-h", job, cwd=tmp_path), pbs.submit("-l", "select=3:ncpus=4", job, cwd=tmp_path)
    pbs.run("qhold", held)
    pbs.wait_for(lambda: pbs.jobs() == {submitted_so: "H", held: "H"})
    assert pbs.job(held)["comment"].startswith("Job held by ")
    assert pbs.job(submitted_so)["Hold_Types"] == "u"
    pbs.run("qrls", submitted_so, held)
    pbs.wait_for(lambda: pbs.jobs() == {submitted_so: "R", held: "Q"})
    assert pbs.job(held)["comment"] == "Can Never Run: Insufficient amount of resource: ncpus (R: 12 A: 8 T: 8)"
    pbs.cancel_all()


def test_a_suspended_job_stops_and_frees_its_nodes(pbs, tmp_path):
    body = f"cd {tmp_path}; while :; do date +%s%N > tick; sleep 0.05; done"
    first = pbs.submit(script(tmp_path, body, "-l select=2:ncpus=4"), cwd=tmp_path)
    second = pbs.submit(script(tmp_path, "exec sleep 60", "-l select=2:ncpus=4", "-l place=scatter"), cwd=tmp_path)
    pbs.wait_for((tmp_path / "tick").exists)
    pbs.wait_for(lambda: pbs.job(second).get("comment") == "Not Running: Not enough free nodes available")
    pbs.run("qsig", "-s", "suspend", first)
    pbs.wait_for(lambda: pbs.jobs() == {first: "S", second: "R"})
    seen = (tmp_path / "tick").read_text()
    pbs.run("qsig", "-s", "resume", first)
    time.sleep(0.3)
    assert (state(pbs, first), (tmp_path / "tick").read_text()) == ("S", seen), "its nodes are taken"
    pbs.run("qdel", second)
    pbs.wait_for(lambda: pbs.jobs()[first] == "R" and (tmp_path / "tick").read_text() != seen)
    pbs.cancel_all()


@pytest.mark.parametrize("pbs", [{"transit": 0.5, "exiting": 0.5}], indirect=True)
def test_transit_waiting_and_exiting(pbs, tmp_path):
    job = script(tmp_path, "true")
    seen, job_id = [], pbs.submit("-l", "select=2:ncpus=4", job, cwd=tmp_path)
    pbs.wait_for(lambda: seen.append(pbs.job(job_id)["job_state"]) or seen[-1] == "F")
    assert list(dict.fromkeys(letter for letter in seen if letter in "TEF")) == ["T", "E", "F"]
    later = pbs.submit("-a", time.strftime("%Y%m%d%H%M.%S", time.localtime(time.time() + 2)), job, cwd=tmp_path)
    assert state(pbs, later) == "W"
    assert pbs.wait(later) == 0


def test_a_server_that_is_away(pbs, tmp_path):
    job = script(tmp_path, f"cd {tmp_path}; until [ -e go ]; do sleep 0.05; done; touch gone")
    job_id = pbs.submit(job, cwd=tmp_path)
    with pbs.away():
        for command in ("qsub", "qdel", "qhold"):
            refused = pbs.run(command, job if command == "qsub" else job_id, check=False)
            assert (refused.returncode, refused.stdout) == (255, "")
            assert refused.stderr == f"Connection refused\n{command}: cannot connect to server fakepbs (errno=15010)\n"
        status, answer, message = qstat(pbs, "-f", "-F", "json", job_id)
        assert (status, "Jobs" in answer) == (255, False)
        assert "qstat: cannot connect to server fakepbs (errno=15010)" in message
        (tmp_path / "go").touch()
        pbs.wait_for((tmp_path / "gone").exists)
    assert pbs.wait(job_id) == 0
    with pbs.away(silent=True), pytest.raises(subprocess.TimeoutExpired):
        pbs.run("qstat", "-f", "-F", "json", job_id, timeout=0.5)


LIMITS = {"": {"nodect": 2}, "builds": {"ncpus": 4, "walltime": "01:00:00"}}


@pytest.mark.parametrize("pbs", [{"resources_max": LIMITS}], indirect=True)
def test_limits(pbs, tmp_path):
    job = script(tmp_path, "true", "-l walltime=00:30:00")
    for words in (
        ["-l", "select=3:ncpus=1"],
        ["-q", "builds", "-l", "select=2:ncpus=4"],
        ["-q", "builds", "-l", "walltime=02:00:00"],
    ):
        refused = pbs.run("qsub", *words, job, check=False)
        assert refused.returncode == 188
        assert refused.stderr == "qsub: Job violates queue and/or server resource limits\n"
    assert pbs.wait(pbs.submit("-q", "builds", "-l", "select=1:ncpus=4", job, cwd=tmp_path)) == 0
    answer = qstat(pbs, "-Qf", "-F", "json", "builds")[1]["Queue"]
    assert answer["builds"]["resources_max"] == LIMITS["builds"]
    assert qstat(pbs, "-Bf", "-F", "json")[1]["Server"]["fakepbs"]["resources_max"] == LIMITS[""]
    assert "resources_max" not in qstat(pbs, "-Qf", "-F", "json")[1]["Queue"]["workq"]


@pytest.mark.parametrize(("words", "umask"), [([], 0o077), (["-W", "umask=022"], 0o022)])
def test_the_umask_of_jobs(pbs, tmp_path, words, umask):
    body = f"cd {tmp_path}; touch file; umask"
    job_id = pbs.submit("-o", "out", "-e", "err", *words, script(tmp_path, body), cwd=tmp_path)
    assert pbs.wait(job_id) == 0
    assert (tmp_path / "out").read_text().strip() == f"{umask:04o}"
    modes = {(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "out", "err")}
    assert modes == {0o666 & ~umask}


def test_the_mpiexec_of_pbs(pbs):
    assert pbs.run("mpiexec", "--version").stdout == "pbs_version = 23.06.06\n"
    assert pbs.run("mpiexec", "-n", "1", "true", check=False).returncode == 1


def test_the_comment_of_a_deleted_job_says_who(pbs, tmp_path):
    job_id = pbs.submit(script(tmp_path, "exec sleep 60"), cwd=tmp_path)
    pbs.wait_for(lambda: pbs.job(job_id)["job_state"] == "R")
    pbs.run("qdel", job_id)
    pbs.wait(job_id)
    assert re.search(r"^Job run at .* and terminated by \S+@\S+$", pbs.job(job_id)["comment"])


def alive(mark: str) -> list[str]:
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if mark in line and not line.startswith("ps ")]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_fake(tmp_path, how):
    with FakePbs() as pbs:
        mark = f"sleep 98765.{os.getpid()}"
        job_id = pbs.submit(script(tmp_path, f"setsid {mark} & exec {mark}"), cwd=tmp_path)
        pbs.wait_for(lambda: len(alive(mark)) == 2)
        if how == signal.SIGKILL:
            assert pbs._server is not None
            pbs._server.kill()
    assert alive(mark) == alive(str(pbs.folder)) == []
    assert not pbs.folder.exists()
    assert job_id == "1.fakepbs"
