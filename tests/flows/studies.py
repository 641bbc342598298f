"""Studies in folders of their own, for tests in which something happens to them."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import yaml

from lambda_hat.store.layout import read_events
from tests.users import USERS_PYTHON

ROOT = Path(__file__).resolve().parents[2]
PACKED = [USERS_PYTHON, str(ROOT / "flows" / "packed.py")]
SGLD = {"num_draws": 100, "num_burnin": 50, "num_chains": 2, "step_size": 1e-4}
PATIENCE = 400


class Study:
    """A study in a folder of its own, and the drivers that were started for it."""

    def __init__(self, folder: Path, *, targets: list, seeds: int, thin: int):
        sampler = {
            "name": "sgld",
            "overrides": {**SGLD, "thin": thin, "runtime": {"checkpoint_every": 2}},
            "sweep": {"seed": list(range(seeds))},
        }
        (folder / "study.yaml").write_text(yaml.safe_dump({"targets": targets, "samplers": [sampler]}))
        self.folder, self.store = folder, folder / "runs"
        self.drivers: list[subprocess.Popen] = []

    def start(self, *words: str, program: Path = Path(PACKED[1]), log: str = "said") -> subprocess.Popen:
        """A driver in a process group of its own, as a shell starts it in a terminal."""
        command = [PACKED[0], str(program), "--experiments", "study.yaml", *words]
        with (self.folder / log).open("wb") as out:
            self.drivers.append(
                subprocess.Popen(
                    command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                    start_new_session=True, env={**os.environ, "PYTHONPATH": ""},
                )
            )  # fmt: skip
        return self.drivers[-1]

    def run(self, *words: str, status: int = 0) -> str:
        """A driver to its end; what it said."""
        assert self.start(*words).wait(PATIENCE) == status, self.said()
        return self.said()

    def said(self, log: str = "said") -> str:
        return (self.folder / log).read_text()

    def analyses(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted(self.store.rglob("analysis.json"))}

    def wait_until(self, holds, driver: subprocess.Popen) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < deadline, self.said()
            assert driver.poll() is None, self.said()
            time.sleep(0.05)

    def events(self, kind: str) -> list[dict]:
        logs = sorted(self.store.glob("packs/pack_*/rank-*.jsonl"))
        return [event for log in logs for event in read_events(log)[0] if event["event"] == kind]

    def times_computed(self) -> Counter:
        """How often each run was sampled to its end."""
        ends = [event for event in self.events("run_end") if event["status"] == "finished" and not event.get("cached")]
        return Counter(f"{event['target_id']}/{event['run_id']}" for event in ends)

    def assert_finished_once(self, runs: int) -> None:
        computed = self.times_computed()
        assert (len(computed), set(computed.values())) == (runs, {1}), computed
        table = pd.read_parquet(self.folder / "results" / "llc_runs.parquet")
        assert (len(table), set(table["status"])) == (runs, {"finished"})

    def assert_nothing_runs_within(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while left := _processes_of(str(self.folder)):
            assert time.monotonic() < deadline, left
            time.sleep(0.25)


def _processes_of(folder):
    """Command lines of processes that name `folder`, or run in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            where = os.readlink(entry / "cwd")
        except OSError:
            continue
        if folder in line or where.startswith(folder):
            found.append(line)
    return found
