"""What the Parsl apps do on a worker."""

from __future__ import annotations

import sys
import time

import pytest

from flows import apps


@pytest.fixture
def run(tmp_path):
    def run(code, **more):
        logs = str(tmp_path / "out"), str(tmp_path / "err")
        status = apps.run_process([sys.executable, "-c", code], *logs, {"GREETING": "hello"}, **more)
        return status, (tmp_path / "out").read_text(), (tmp_path / "err").read_text()

    return run


def test_a_process_has_its_environment_and_logs(run):
    code = "import os, sys; print(os.environ['GREETING']); print('bad', file=sys.stderr); sys.exit(7)"
    assert run(code) == (7, "hello\n", "bad\n")


def test_a_launch_without_a_sign_of_life_is_ended(run, tmp_path, monkeypatch):
    monkeypatch.setattr(apps, "START_SECONDS", 0.5)
    begun = time.monotonic()
    status, _, said = run("import time; time.sleep(300)", sign_of_life=f"{tmp_path}/rank-*.jsonl")
    assert status == 124
    assert said == "error: no rank had started after 0 s; the launch was ended\n"
    assert time.monotonic() - begun < 60


def test_a_launch_that_cannot_reach_a_node_is_ended_soon(run, tmp_path, monkeypatch):
    monkeypatch.setattr(apps, "UNREACHED_SECONDS", 0.5)
    words = "srun: error: Task launch for StepId=1.1 failed on node n2: Communication connection failure"
    code = f"import sys, time; print({words!r}, file=sys.stderr, flush=True); time.sleep(300)"
    begun = time.monotonic()
    assert run(code, sign_of_life=f"{tmp_path}/rank-*.jsonl")[0] == 124
    assert time.monotonic() - begun < 60


def test_a_launch_that_shows_itself_may_take_its_time(run, tmp_path, monkeypatch):
    monkeypatch.setattr(apps, "START_SECONDS", 2.0)
    code = f"import time; open({str(tmp_path / 'rank-0.jsonl')!r}, 'w').close(); time.sleep(4); print('done')"
    assert run(code, sign_of_life=f"{tmp_path}/rank-*.jsonl")[:2] == (0, "done\n")
