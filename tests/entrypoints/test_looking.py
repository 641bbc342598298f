"""`lambda-hat status`, `show`, `logs` and `rerun` on stores that were made by hand."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys

import h5netcdf
import numpy as np
import pytest

from lambda_hat.entrypoints.cli import main
from lambda_hat.store.layout import write_json_atomic
from lambda_hat.store.process_identity import whoami
from tests.hand_made import OTHER_HOST, HandMade, gone

WIDTH = 80
DEATH = {"rank": 3, "host": "node8", "how": "exit status 9", "log": "/l", "time": 1.79e9}
SCRIPT = """import os, sys
print("ran in", os.getcwd(), "with", sys.argv[1:])
sys.exit(7)
"""


@pytest.fixture
def made(tmp_path, monkeypatch) -> HandMade:
    """Two targets with four runs each, planned by a driver that has died; the working directory is its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    made = HandMade(tmp_path / "runs", driver=gone())
    made.build(0, 1)
    return made


@pytest.fixture
def command(capsys):
    """Runs `lambda-hat WORDS`; its exit status, and what it wrote to stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        return ended.value.code, *capsys.readouterr()

    return run


def trace(llc: np.ndarray, n_beta: float = 144.7) -> bytes:
    """A `trace.nc` whose estimates are `llc` (chains, draws)."""
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        file.attrs["loss_at_w_star"], file.attrs["n_beta"] = 0.01, n_beta
        group = file.create_group("posterior")
        group.dimensions = {"chain": llc.shape[0], "draw": llc.shape[1]}
        group.create_variable("loss", ("chain", "draw"), data=0.01 + llc / n_beta)
    return buffer.getvalue()


# --------------------------------------------------------------------------------------------------------------
# status


def test_status_of_a_study_whose_driver_died(made, command):
    made.lease(age=60)
    pack = made.pack(0, 1, 2, 3)
    reason = "ValueError: \x1b[31m" + "a long reason " * 12
    made.rank(pack, 0, made.start(0), made.end(0, "finished"), made.start(1), made.end(1, "failed", reason=reason))
    status, said, complaints = command("status")
    assert (status, complaints) == (0, "")
    lines = said.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert "\x1b" not in said and not any(line.endswith(" ") for line in lines)
    assert re.search(
        rf"^driver   died on {re.escape(made.driver['host'])} \(process \d+\), started \d\d:\d\d:\d\d$", said, re.M
    )
    assert re.search(r"^runs     8: 1 finished, 1 failed, 6 waiting$", said, re.M)
    assert " ".join(said.split()).count("a long reason") == 12
    assert re.search(r"^4 +in no pack yet$", said, re.M) and re.search(r"^2 +left by a pack that ended$", said, re.M)
    assert (
        "died; run the same command again to continue:\n    python flows/packed.py --experiments study.yaml\n" in said
    )
    assert "to try the failed ones again: lambda-hat rerun --failed\n" in said


def test_a_command_from_another_folder_is_told_with_it(made, command, tmp_path, monkeypatch):
    (tmp_path / "else where").mkdir()
    monkeypatch.chdir(tmp_path / "else where")
    _, said, _ = command("status", "--store", "../runs")
    assert f"cd {tmp_path} && python flows/packed.py" in said.replace("\n", "")


def test_status_of_a_job_inside_which_the_driver_died(made, command):
    made.write_record(
        name="20261126-040000-abcd",
        job_script="/x/job.pbs",
        command=["python", "flows/packed.py", "--site", "allocation"],
    )
    _, said, _ = command("status")
    assert "--site allocation" in said.partition("to continue:")[0]
    assert said.partition("to continue:\n")[2].startswith("    python flows/packed.py --experiments study.yaml\n")


def test_a_driver_whose_runs_are_all_there_collects_the_results(made, command):
    made.driver = whoami()
    made.write_record(name="20261126-040000-abcd")
    for place in range(8):
        made.finish(place)
    assert "it collects the results" in " ".join(command("status")[1].split())


def test_a_chain_goes_on_by_itself(made, command):
    made.write_record(name="20261126-040000-abcd", job_script="/x/job.pbs")
    made.say("next_job", job_id="13.pbs")
    made.say("end", status=75)
    _, said, _ = command("status")
    assert "job 13.pbs was submitted to go on" in said and "to continue" not in said


@pytest.mark.parametrize(
    ("status", "words", "goes_on"),
    [
        (0, "every run is finished", False),
        (1, "some runs failed", False),
        (75, "unfinished", True),
        (130, "stopped", True),
    ],
)
def test_how_a_driver_ended(made, command, status, words, goes_on):
    made.say("end", status=status)
    _, said, _ = command("status")
    assert re.search(rf"^driver   ended .*: .*{words}$", said, re.M)
    assert ("run the same command again to continue:" in said) == goes_on


def test_watching_ends_with_the_study(made, tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", WAITS], **pipes) as child:
        made.write_record(name="20261126-040000-abcd", driver=json.loads(child.stdout.readline()))
        words = [sys.executable, "-m", "lambda_hat.entrypoints.cli", "status", "--watch", "0.1"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as watching:
            # A long name of a folder takes several lines.
            while not (line := watching.stdout.readline()).startswith("driver"):
                assert line
            assert "at work on" in line
            child.stdin.close()
            child.wait()
            rest, _ = watching.communicate(timeout=30)
    assert watching.returncode == 0
    assert "driver   died on" in rest


WAITS = """import json, sys
from lambda_hat.store.process_identity import whoami
print(json.dumps(whoami()), flush=True)
sys.stdin.read()
"""


def test_ctrl_c_ends_watching_and_says_nothing(made):
    made.write_record(name="20261126-040000-abcd", driver=whoami())
    words = [sys.executable, "-m", "lambda_hat.entrypoints.cli", "status", "--watch=30"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        while not watching.stdout.readline().startswith("runs"):
            pass
        watching.send_signal(signal.SIGINT)
        _, complaints = watching.communicate(timeout=30)
    assert (watching.returncode, complaints) == (130, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["status", "--store", "absent"],
            "absent: no store there; name one with --store DIR, or run lambda-hat run",
        ),
        (["status", "--watch", "0"], "--watch: got 0, expected a number of seconds above 0"),
        (["status", "--watch", "nan"], "--watch: got nan, expected a number of seconds above 0"),
        (["logs", "sgld", "--lines", "0"], "--lines: got 0, expected an integer of at least 1"),
        (["rerun"], "write lambda-hat rerun --failed"),
        (["rerun", "--failed", "--store", "absent"], "absent: no store there"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(made, command, words, message):
    status, said, complaints = command(*words)
    assert (status, said) == (2, "")
    assert message in complaints and len(complaints.splitlines()) == 1


# --------------------------------------------------------------------------------------------------------------
# Which run


def test_ways_to_name_a_run(made, command):
    made.finish(0)
    target_id, run_id = made.keys[0]
    digest = run_id.rpartition("_")[2]
    for words in (
        [run_id], ["sgld", digest[:5]], [digest[:5]], [f"sgld_{digest[:4]}"], [f"{target_id}/{run_id}"],
        [target_id[:8], "sgld", digest[:5]], [made.run_dir(0)], [os.path.relpath(made.run_dir(0))],
        [made.run_dir(0), "--store", "nowhere"],
    ):  # fmt: skip
        status, said, complaints = command("show", *words)
        assert (status, complaints) == (0, ""), words
        assert said.splitlines()[0] == f"run       {run_id}"


def test_runs_that_are_called_so_or_nearly_are_listed(made, command):
    status, said, complaints = command("show", "sgld")
    assert (status, said) == (2, "")
    assert "sgld: 8 runs are called so; give more of the name:\n" in complaints
    target_id, run_id = made.keys[0]
    assert f"    {run_id[4:].replace('_', ' ')} of {target_id} ({made.builds[0].label})\n" in complaints
    digest = made.keys[2][1].rpartition("_")[2]
    wrong = digest[:7] + ("0" if digest[7] != "0" else "1")
    status, _, complaints = command("logs", wrong)
    assert status == 2
    assert f"{wrong}: no such run in {made.store.root}; did you mean one of these?\n    sgld {digest} of" in complaints
    status, _, complaints = command("show", "mine/run", "--store", "nowhere")
    assert (status, complaints.partition(";")[0]) == (2, "error: mine/run: no folder of a run there")
    _, _, complaints = command("show", "zzz")
    assert "zzz: no such run in" in complaints and "it has 8 runs" in complaints


# --------------------------------------------------------------------------------------------------------------
# show


def test_show_of_a_finished_run(made, command):
    rng = np.random.default_rng(0)
    made.finish(0, trace(1.99 + rng.normal(size=(2, 400)) * 0.3), pack_id="pack_x")
    status, said, _ = command("show", made.keys[0][1])
    assert status == 0
    assert max(map(len, said.splitlines())) <= WIDTH and "\x1b" not in said
    assert re.search(
        r"^changed   num_chains = 2   \(default 4\)\n {10}step_size = 0.0001   \(default null\)$", said, re.M
    )
    assert "λ̂         1.98 ± 0.02   exact: λ_t = 1.99, λ = 2, which agrees" in said
    assert "verdict   ok: the chains agree and the standard error is 1.0% of the estimate." in said
    assert "T         1.02 ± 0.03 (1 in equilibrium): (4.03 growth of the loss + 0.05\n" in said
    assert "along     degree 2.04, distance from w_star 0.22, nβ² Var[L] 2.01\n" in said
    assert "note      biased by its step size" in said
    assert "3.3 s in all, 1.0 s compiling, 2.0 s sampling, 120,000 gradients" in said
    assert "rank 1 of pack_x on node7, 1 core of cpu" in said
    assert "num_draws = 2000" in said.partition("defaults")[2]
    picture = said.partition("running λ̂ of every chain, and the exact λ_t = 1.99\n")[2]
    assert len(re.findall("[⠁-⣿]", picture)) > 40
    levels = [float(number) for number in re.findall(r"^ +([\d.]+) \|", picture, re.M)]
    assert min(levels) < 1.99 < max(levels) and max(levels) - min(levels) < 0.5


def test_show_says_what_the_allowance_of_a_step_is_needed_for_and_leaves_out_what_there_is_not(made, command):
    numbers = ("temperature", "temperature_std_error", "growth", "localisation", "distance", "degree", "llc_variance")
    made.finish(0, llc_mean=2.1, verdict="heated", verdict_sentence="too hot", **dict.fromkeys(numbers))
    status, said, _ = command("show", made.keys[0][1])
    said = " ".join(said.split())
    assert status == 0
    assert "λ_t = 1.99, λ = 2, which is missed by no more than its step size may bias it" in said
    assert "verdict heated: too hot" in said
    assert "equilibrium" not in said and "degree" not in said


def test_chains_that_died_and_traces_that_are_damaged_are_told(made, command):
    llc = np.full((2, 50), np.nan)
    llc[0, :10] = 2.0
    made.finish(0, trace(llc), verdict="diverged", llc_mean=None, llc_std_error=None, llc_per_chain=[None, None])
    status, said, _ = command("show", made.keys[0][1])
    assert status == 0
    assert "λ̂         – ± –" in said and "chains    –, –" in said
    made.finish(1, b"no netCDF")
    status, said, complaints = command("show", made.keys[1][1])
    assert (status, complaints) == (0, "")
    assert "trace.nc: cannot be drawn" in " ".join(said.split())
    (made.run_dir(1) / "analysis.json").write_text("{}")
    assert "damaged: its checksum does not fit" in " ".join(command("show", made.keys[1][1])[1].split())


def test_show_of_runs_without_a_result(made, command):
    made.fail(
        0, message="no \x1b[31mway", traceback="Traceback (most recent call last):\n  \x1b[2J\nValueError: no way\n"
    )
    write_json_atomic(made.run_dir(0) / "deaths.json", [DEATH])
    made.driver = whoami()
    made.write_record(name="20261126-040000-abcd")
    pack = made.pack(1, 2)
    made.rank(pack, 1, made.start(1))
    _, said, _ = command("show", made.keys[0][1])
    assert "failed    ValueError: no �[31mway" in said
    assert "traceback Traceback (most recent call last):" in said and "\x1b" not in said
    assert "a rank died while sampling it" in said
    _, said, _ = command("show", made.keys[1][1])
    assert re.search(r"^state     running on rank 1 on node7 for \d+ s, expected 10 s$", said, re.M)
    _, said, _ = command("show", made.keys[2][1])
    assert "state     waiting: in a pack that is running" in said
    assert "seed = 2   (default 0)" in said, "what its pack says of it"
    _, said, _ = command("show", made.keys[3][1])
    assert "state     waiting: in no pack yet" in said


# --------------------------------------------------------------------------------------------------------------
# logs


def test_logs_are_the_lines_between_the_ends(made, command):
    names = ["/".join(key) for key in made.keys]
    pack = made.pack(0, 1, 2)
    made.rank(
        pack, 0, made.start(0), made.end(0, "finished"), made.start(1), made.end(1, "failed", reason="ValueError: no"),
        made.start(2),
    )  # fmt: skip
    lines = ["start of XLA", f"[rank 0] run {names[0]}: finished in 2.0 s", "a warning of 1", "Traceback of 1"]
    lines += [f"[rank 0] run {names[1]}: failed in 2.0 s", "a warning of 2 \x1b[31m"]
    (pack / "rank-0000.log").write_text("\n".join(lines) + "\n")
    made.fail(1, traceback="Traceback (most recent call last):\nValueError: no\n")
    status, said, _ = command("logs", made.keys[0][1])
    assert status == 0
    heading = rf"== rank 0 on node7, {pack.name}, \d\d:\d\d:\d\d: "
    assert re.fullmatch(rf"{heading}finished in 2.0 s\n{re.escape(chr(10).join(lines[:2]))}\n", said)
    _, said, _ = command("logs", made.keys[1][1])
    first, second = said.split("\n\n")
    assert re.fullmatch(rf"{heading}failed in 2.0 s: ValueError: no\n{re.escape(chr(10).join(lines[2:5]))}", first)
    assert second == f"== {made.run_dir(1)}/error.json\nTraceback (most recent call last):\nValueError: no\n"
    _, said, _ = command("logs", made.keys[2][1])
    assert re.fullmatch(rf"{heading}has not ended\na warning of 2 �\[31m\n", said)
    _, said, _ = command("logs", made.keys[1][1], "--lines", 1)
    assert f"... 2 lines before these; see {pack / 'rank-0000.log'}\n[rank 0] run" in said
    _, said, _ = command("logs", made.keys[7][1])
    assert said == f"{names[7]}: nothing was logged; waiting: in no pack yet\n"


def test_lanes_share_what_was_printed_while_they_were_sampled(made, command):
    names = ["/".join(key) for key in made.keys]
    pack = made.pack(0, 1, 2)
    ends = [made.end(place, "finished") for place in (1, 2)]
    made.rank(pack, 0, made.start(0), made.end(0, "finished"), made.start(1), made.start(2, lane=1), *ends)
    lines = [f"[rank 0] run {names[0]}: finished in 2.0 s", "of both"]
    lines += [f"[rank 0] run {names[place]}: finished in 2.0 s" for place in (1, 2)]
    (pack / "rank-0000.log").write_text("\n".join(lines) + "\n")
    for place in (1, 2):
        _, said, _ = command("logs", made.keys[place][1])
        assert said.splitlines()[1:] == ["of both", lines[1 + place]]


def test_logs_of_every_try_and_of_single_processes(made, command):
    first, second = made.pack(0), made.pack(0)
    made.rank(first, 0, made.start(0), made.end(0, "paused", reason="its driver has ended"))
    made.rank(second, 1, made.start(0), made.end(0, "finished"))
    made.run_dir(0).mkdir()
    (made.run_dir(0) / "sample.err").write_text("by itself\n")
    write_json_atomic(made.run_dir(0) / "deaths.json", [DEATH])
    _, said, _ = command("logs", made.keys[0][1])
    parts = said.split("\n\n")
    assert [part.split(",")[0].split("\n")[0] for part in parts] == [
        "== rank 0 on node7", "== rank 1 on node7", f"== {made.run_dir(0) / 'sample.err'}",
        "== ranks that died while sampling it",
    ]  # fmt: skip
    assert "paused in 2.0 s: its driver has ended" in parts[0]
    assert "rank 3 on node8: exit status 9; /l" in parts[3]


# --------------------------------------------------------------------------------------------------------------
# rerun


@pytest.fixture
def recorded(made, tmp_path) -> HandMade:
    """A study with a failed run, whose script only says how it was started."""
    folder = tmp_path / "a 'folder'"
    (folder / "flows").mkdir(parents=True)
    (folder / "flows" / "packed.py").write_text(SCRIPT)
    words = [sys.executable, "flows/packed.py", "--experiments", "my study.yaml", "--rerun=all"]
    made.record = made.write_record(name="20261126-040000-abcd", command=words, directory=str(folder))
    made.fail(0)
    return made


def rerun(*words: str) -> subprocess.CompletedProcess:
    words = (sys.executable, "-m", "lambda_hat.entrypoints.cli", "rerun", "--failed", *words)
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def test_rerun_becomes_the_recorded_command(recorded):
    done = rerun()
    folder = recorded.record.directory
    told = f"""in {folder}: python flows/packed.py --rerun failed --experiments 'my study.yaml'\n"""
    words = ["--rerun", "failed", "--experiments", "my study.yaml"]
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout == f"{told}ran in {folder} with {words}\n"
    assert f"with {[*words, '--dry-run']}" in rerun("--dry-run").stdout


def test_rerun_starts_nothing_where_nothing_failed(recorded, command):
    (recorded.run_dir(0) / "error.json").unlink()
    status, said, _ = command("rerun", "--failed")
    assert (status, said) == (0, f"{recorded.store.root}: no run of the newest study has failed; nothing was started\n")


def test_rerun_refuses_what_it_should_not_start(recorded, command, tmp_path):
    record = recorded.store.root / "studies" / f"{recorded.record.name}.json"

    def refused() -> str:
        status, said, complaints = command("rerun", "--failed")
        assert (status, said, len(complaints.splitlines())) == (2, "", 1)
        return complaints

    by_hand = "python flows/packed.py --rerun failed --experiments 'my study.yaml'"
    record.chmod(0o666)
    assert "others can write there, so this command is not started from here" in refused()
    assert by_hand in refused()
    recorded.driver = whoami()
    recorded.write_record(name="20261126-040001-abcd")
    recorded.fail(0)
    assert "the driver of this study is still at work on" in refused()
    recorded.driver = gone()
    words = {"command": recorded.record.command, "directory": recorded.record.directory}
    recorded.write_record(name="20261126-040002-abcd", store="/elsewhere/runs", **words)
    recorded.fail(0)
    assert "this store was in /elsewhere/runs when its command was recorded" in refused()
    assert f"{by_hand} --store {recorded.store.root}" in refused()
    for number, (key, value, what) in enumerate(
        [
            ("directory", "/gone", "/gone: the folder that this study was started with is gone"),
            ("command", [sys.executable, "gone.py"], "gone.py: the script that this study was started with is gone"),
            (
                "command",
                [sys.executable, "flows/tune.py"],
                "a search, in which a failed trial is a result",
            ),
            ("command", ["/gone/python", "flows/packed.py"], "/gone/python: the Python that this study was started"),
        ]
    ):
        recorded.write_record(name=f"20261126-04001{number}-abcd", **{**words, key: value})
        recorded.fail(0)
        assert what in refused()


def test_rerun_without_a_recorded_command(command, tmp_path):
    (tmp_path / "targets").mkdir()
    status, _, complaints = command("rerun", "--failed", "--store", tmp_path)
    assert status == 2
    assert f"write it yourself: lambda-hat run --experiments FILE --store {tmp_path} --rerun failed" in complaints


def test_status_of_a_driver_elsewhere_that_is_silent(tmp_path, command):
    made = HandMade(tmp_path / "runs", driver=OTHER_HOST)
    made.lease(age=30)
    made.build(0)
    _, said, _ = command("status", "--store", made.store.root)
    assert re.search(r"no sign of life for 3\d s from login2 \(process \d+\)", " ".join(said.split()))
