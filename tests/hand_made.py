"""Stores as drivers and ranks leave them, made by hand: what commands that only look at a store are tried on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lambda_hat.config import QuadraticBuild, SgldConfig
from lambda_hat.id_utils import Run, target_id_for
from lambda_hat.store.files import EventLog
from lambda_hat.store.layout import Store, write_json_atomic
from lambda_hat.store.process_identity import whoami
from lambda_hat.store.publish import publish_run, publish_target, write_config
from lambda_hat.store.study_records import TO_SAMPLE, Key, Planned, StudyRecord, write_study

ANALYSIS = {
    "sampler": "sgld", "llc_mean": 1.98, "llc_std_error": 0.02, "llc_per_chain": [1.9, 2.06], "rhat_max": 1.01,
    "ess_bulk_min": 400.0, "ess_tail_min": 300.0, "ess_mean": 350.0, "acceptance": None, "mala_acceptance": 0.99,
    "temperature": 1.02, "temperature_std_error": 0.03, "flat_temperature": 1.0,
    "growth": 4.03, "localisation": 0.05, "distance": 0.22,
    "degree": 2.04, "llc_variance": 2.01,
    "num_divergent": 0, "loss_mean": 0.5, "singular_fluctuation": None, "waic": None, "verdict": "ok",
    "verdict_sentence": "the chains agree and the standard error is 1.0% of the estimate.", "loss_at_w_star": 0.01,
    "n": 1000, "dim": 4, "beta": 0.14, "gamma": 1.0, "n_beta": 144.7, "true_llc": 2.0, "true_multiplicity": 1,
    "true_llc_t": 1.99, "rel_error": -0.005, "rel_error_llc": -0.01,
    "step_size": [1e-4, 1e-4], "num_gradients": 120_000, "fge": 30_000.0,
    "seconds_compile": 1.0, "seconds_sample": 2.0, "seconds_total": 3.3, "notes": ["biased by its step size"],
    "host": "node7", "pid": 100, "cores": 1, "backend": "cpu", "device": "cpu", "rank": 1, "started": 1.79e9,
}  # fmt: skip
"""What a finished run says of itself."""


def gone() -> dict[str, Any]:
    """What `whoami` said in a process of this machine that has ended."""
    code = "import json; from lambda_hat.store.process_identity import whoami; print(json.dumps(whoami()))"
    return json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))


OTHER_HOST = {**whoami(), "host": "login2", "place": "login2/1/2"}
"""A process on another host."""


class HandMade:
    """A study of `num_targets` targets with `num_runs` runs each, which a driver has planned.

    driver: its process, by default this one. record: other fields of the study's record.
    """

    def __init__(self, root: Path, num_targets: int = 2, num_runs: int = 4, driver: dict | None = None, **record: Any):
        self.store = Store(root)
        self.store.packs_dir.mkdir(parents=True)
        self.builds = [QuadraticBuild(seed=seed) for seed in range(num_targets)]
        self.targets = [target_id_for(build) for build in self.builds]
        self.configs = [
            SgldConfig(target_id=target_id, name="sgld", step_size=1e-4, num_chains=2, seed=seed)
            for target_id in self.targets
            for seed in range(num_runs)
        ]
        self.keys: list[Key] = [(cfg.target_id, Run.of(cfg).run_id) for cfg in self.configs]
        self.driver = whoami() if driver is None else driver
        self.record = self.write_record(**record)

    def write_record(self, **record: Any) -> StudyRecord:
        """Write a record of the study, and begin its log."""
        labels = {target_id: build.label for target_id, build in zip(self.targets, self.builds, strict=True)}
        fields = {
            "name": "20261126-031502-abcd", "directory": str(self.store.root.parent), "store": str(self.store.root),
            "command": [sys.executable, "flows/packed.py", "--experiments", "study.yaml"], "driver": self.driver,
            "started": time.time() - 60, "site": "local", "packed": True, "ranks": 2, "cached_targets": 0,
            "cached_runs": 0, "targets": labels, "builds": list(self.targets),
            "runs": [Planned(*key, 10.0, TO_SAMPLE) for key in self.keys],
        }  # fmt: skip
        made = StudyRecord(**{**fields, **record})
        write_study(self.store.root, made).close()
        self.log = self.store.root / "studies" / f"{made.name}.jsonl"
        return made

    def say(self, event: str, **fields: Any) -> None:
        """Let the driver write an event."""
        with EventLog(self.log) as log:
            log.append(event, **fields)

    def lease(self, age: float = 0.0, **record: Any) -> Path:
        """The driver's lease as it was written `age` seconds ago."""
        path = self.store.packs_dir / "driver_0123456789ab.lease"
        path.write_text(json.dumps({**self.driver, "count": 3, "state": "running", "jobs": [], **record}))
        then = time.time() - age
        os.utime(path, (then, then))
        self.say("lease", lease=path.name)
        return path

    def build(self, *numbers: int) -> None:
        """Let targets be built."""
        for number in numbers:
            build = self.builds[number]
            meta = {"n": build.n, "dim": build.dim, "loss_at_w_star": 0.0, "true_llc": 2.0, "true_multiplicity": 1}
            directory = self.store.target_dir(self.targets[number])
            publish_target(directory, build, meta, {"params.npz": b"w", "data.npz": b"d"})

    def pack(self, *places: int) -> Path:
        """Submit a pack of these runs."""
        directory = self.store.pack_dir(f"pack_{self.record.name}-0-{len(list(self.store.packs_dir.iterdir())):04d}")
        runs = [{**self.names(place), "config": asdict(self.configs[place])} for place in places]
        write_json_atomic(directory / "pack.json", {"format": 1, "pack_id": directory.name, "runs": runs})
        self.say("pack", pack_id=directory.name, runs=list(places))
        return directory

    def rank(self, pack: Path, rank: int, *events: dict[str, Any], size: int = 2) -> None:
        """What a rank of a pack writes after its start."""
        path = pack / f"rank-{rank:04d}.jsonl"
        begun = path.exists()
        with EventLog(path) as log:
            if not begun:
                log.append("start", rank=rank, size=size, host="node7", pid=100 + rank)
            for event in events:
                log.append(**event, rank=rank)

    def start(self, place: int, **more: Any) -> dict[str, Any]:
        return {"event": "run_start", **self.names(place), "lane": 0, **more}

    def end(self, place: int, status: str, **more: Any) -> dict[str, Any]:
        return {"event": "run_end", **self.names(place), "status": status, "seconds": 2.0, **more}

    def names(self, place: int) -> dict[str, str]:
        return dict(zip(("target_id", "run_id"), self.keys[place], strict=True))

    def run_dir(self, place: int) -> Path:
        return self.store.run_dir(*self.keys[place])

    def finish(self, place: int, trace: bytes = b"trace", **analysis: Any) -> None:
        """Let a run be finished in the store."""
        directory, cfg = self.run_dir(place), self.configs[place]
        publish_run(directory, Run.of(cfg), write_config(directory, cfg), trace, {**ANALYSIS, **analysis})

    def fail(self, place: int, **error: Any) -> None:
        """Let a run have failed in the store."""
        write_config(self.run_dir(place), self.configs[place])
        record = {"type": "ValueError", "message": "no such thing", "rank": 1, "host": "node7", "time": time.time()}
        write_json_atomic(self.run_dir(place) / "error.json", {**record, **error})
