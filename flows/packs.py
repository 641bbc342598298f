"""The packs of a round: their files, their launches, what is said of them while they run, and how each one ended."""

from __future__ import annotations

import glob
import sys
import time
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from flows.deaths import forget, record_deaths, suspects_among
from flows.rounds import Round, Unresolved, explain, is_lost_block, log_tail
from lambda_hat.drain import OUT_OF_TIME
from lambda_hat.errors import EXIT_OK, EXIT_UNFINISHED, EXIT_USAGE
from lambda_hat.follow import Key, PackLog
from lambda_hat.store import write_json_atomic
from lambda_hat.workflow_config import PlannedRun

if TYPE_CHECKING:
    from flows.study import Flow

PROGRAM = [sys.executable, str(Path(__file__).resolve().parents[1] / "mpi" / "run_pack.py")]
PACK_FORMAT = 1
LOOK_SECONDS = {"local": 0.2, "shared": 2.0}
"""How often a pack's logs are read. A parallel filesystem should not feel it; packs that wait are looked at less."""
CHECKPOINT = "checkpoint.npz"
UNRESOLVED_SECONDS = 30.0
"""After the last word of a pack's ranks, or its deadline, until the driver takes it for ended whatever Parsl says."""
LAUNCHER_SECONDS = 4.0
"""In which a launcher ends, and Parsl says so, after the last word of the ranks."""
EXIT_NO_SIGN = 124
"""Of a launch that was ended because no rank showed itself."""


def submit_packs(flow: Flow, round_: Round) -> None:
    """Submit the builds, then a pack per group of runs; each starts when its own targets have settled."""
    from flows.apps import run_pack

    round_.submit_builds()
    site = flow.site
    for index, runs in enumerate(round_.plan.packs(flow.study.settings.pack)):
        flow.stop.check()
        pack = Pack(round_, f"pack_{round_.name}-{index:04d}", runs)
        pack_file = pack.directory / "pack.json"
        write_json_atomic(pack_file, pack.record())
        round_.pack_dirs.append(pack.directory)
        flow.journal.pack(pack.directory.name, runs)
        future = run_pack(
            [*PROGRAM, str(pack_file)],
            site.launcher,
            site.cores_per_rank,
            site.gpus_per_node,
            str(pack.directory / "stdout.log"),
            str(pack.directory / "stderr.log"),
            round_.environment,
            sign_of_life=f"{glob.escape(str(pack.directory))}/rank-*.jsonl",
            deadline=flow.stop_at,
            inputs=round_.settled({run.target_id for run in runs}),
            parsl_resource_specification=site.resources,
        )
        round_.watch(pack.look, LOOK_SECONDS["local" if site.kind == "local" else "shared"])
        round_.on_done(future, pack.ended, running=pack.is_running, overdue=pack.overdue)


class Pack:
    """One pack of a round."""

    def __init__(self, round_: Round, pack_id: str, runs: list[PlannedRun]):
        self._round, self._flow = round_, round_.flow
        self.directory = self._flow.store.pack_dir(pack_id)
        self._runs: dict[Key, PlannedRun] = {(run.target_id, run.run_id): run for run in runs}
        self._suspects = suspects_among(self._flow.store, self._runs)
        self._log = PackLog(self.directory)

    def record(self) -> dict:
        """What `mpi/run_pack.py` reads."""
        site = self._flow.site
        return {
            "format": PACK_FORMAT,
            "pack_id": self.directory.name,
            "store_root": str(self._flow.store.root),
            "cores_per_rank": site.cores_per_rank,
            "expected_ranks": site.resources["num_ranks"],
            "gpus_per_node": site.gpus_per_node,
            "ranks_per_gpu": site.ranks_per_gpu,
            "deadline": self._flow.stop_at,
            "lease": str(self._round.lease.path),
            "suspects": self._suspects,
            "lanes": self._flow.study.settings.lanes,
            "compile_cache": self._flow.study.settings.compile_cache,
            "builds": [],
            "runs": [
                {
                    "target_id": run.target_id,
                    "run_id": run.run_id,
                    "config": asdict(run.cfg),
                    "cost": run.cost,
                    "program": run.program,
                }
                for run in self._runs.values()
            ],
        }

    def look(self) -> bool:
        """Say what the ranks have written since the last call; whether they have begun."""
        for event in self._log.read():
            run = self._runs.get((event["target_id"], event["run_id"]))
            if run is None:
                continue
            status = event["status"]
            words = [str(event[key]) for key in ("status", "reason", "verdict") if event.get(key) is not None]
            sentence = f"{': '.join(words)} in {event['seconds']:.1f} s on rank {event['rank']}"
            target_failed = status == "blocked" and self._flow.store.target_status(run.target_id) == "failed"
            if status in ("finished", "failed") or target_failed:
                self._round.run_ended(run, sentence, failed=status != "finished")
            else:
                # Neither done nor failed: it goes on in another pack.
                self._round.run_goes_on(run, sentence)
        return self._log.begun

    def is_running(self) -> bool:
        """Whether ranks of it are at work, or have just ended, so that Parsl is about to say so."""
        self.look()
        ending = self._log.over and time.monotonic() - self._log.changed > LAUNCHER_SECONDS
        return self._log.begun and not ending

    def overdue(self) -> str | None:
        """Why it has ended, whatever Parsl says; None while that can be left to Parsl."""
        deadline = self._flow.stop_at
        if self._log.over and time.monotonic() - self._log.changed > UNRESOLVED_SECONDS:
            return f"its ranks ended {UNRESOLVED_SECONDS:.0f} s ago"
        if self._log.begun and deadline is not None and time.time() > deadline + UNRESOLVED_SECONDS:
            return f"its deadline was {UNRESOLVED_SECONDS:.0f} s ago"
        return None

    def ended(self, future: Future) -> None:
        """Say how many of its runs are there, and why any are not; count what was lost, and whose fault it was."""
        self.look()
        self._round.unwatch(self.look)
        store, log, outcome = self._flow.store, self._log, self._round.outcome
        states = {key: store.run_status(*key) for key in self._runs}
        for key, state in states.items():
            if state == "finished" and f"{key[0]}/{key[1]}" in self._suspects:
                forget(store.run_dir(*key))
        outcome.advanced |= log.advanced
        outcome.store_error = outcome.store_error or log.store_error
        failure, status = future.exception(), None
        if failure is None:
            status = future.result()
        sentence = f"{self.directory.name}: {list(states.values()).count('finished')} of {len(states)} runs finished"
        unfinished = [key for key, state in states.items() if state == "pending"]
        unfinished = [key for key in unfinished if store.target_status(key[0]) != "failed"]
        # Ranks that end well without having taken all runs had too little time for the rest.
        unfit = status == EXIT_OK and any(key not in log.ends for key in unfinished)
        drained = bool(log.drains) or status == EXIT_UNFINISHED or unfit
        block_lost = is_lost_block(failure)
        waiting = self._waiting(unfinished, drained and not block_lost)
        sentence += "".join(f", {count} {how}" for how, count in waiting.items() if count)
        lost = len(unfinished) - sum(waiting.values())
        if drained and not block_lost:
            why = next(iter(log.drains.values()), OUT_OF_TIME)
            outcome.causes["time" if why == OUT_OF_TIME else "drain"] += bool(unfinished)
            outcome.out_of_time |= why == OUT_OF_TIME
            more = f", {lost} lost on the way" if lost > 0 else ""
            self._say_ended(f"{sentence}{more} ({why})", warn=bool(unfinished))
            return
        if isinstance(failure, Unresolved) or (status == EXIT_OK and lost <= 0):
            outcome.causes["unresolved"] += isinstance(failure, Unresolved)
            more = f", {lost} lost ({failure})" if failure is not None and lost > 0 else ""
            self._say_ended(f"{sentence}{more}", failed=lost > 0, warn=sum(waiting.values()) > 0)
            return
        if status == EXIT_USAGE:
            outcome.refusals.append(last_line(self.directory / "stderr.log").removeprefix("error: "))
        if block_lost:
            outcome.causes["block"] += 1
            self._say_ended(f"{sentence}, {lost_with_block(self._round, self.directory, lost)}", failed=True)
            return
        reason = explain(future, self.directory / "error.json", self.directory / "stderr.log")
        if not (self.directory / "stderr.log").is_file() or not (self.directory / "stderr.log").stat().st_size:
            reason += log_tail(self.directory / "stdout.log")
        self._say_ended(f"{sentence}, {lost} lost: {reason}", failed=True)
        # A launcher that was itself killed, or showed no rank, says nothing of any run.
        if status is not None and status > 0 and status not in (EXIT_USAGE, EXIT_NO_SIGN):
            self._blame(f"the launch ended with exit status {status}")
        else:
            outcome.causes["launch"] += 1

    def _say_ended(self, sentence: str, *, failed: bool = False, warn: bool = False) -> None:
        self._round.progress.finished("packs", sentence, failed=failed, warn=warn)
        self._flow.journal.append("pack_end", pack_id=self.directory.name, sentence=sentence.partition("\n")[0])

    def _waiting(self, unfinished: list[Key], drained: bool) -> dict[str, int]:
        """How many of the unfinished runs were not lost, and what they wait as."""
        ends = [self._log.ends.get(key, {}).get("status") for key in unfinished]
        begun = {key for keys in self._log.in_flight.values() for key in keys}
        in_flight = sum(key in begun for key in unfinished)
        not_begun = ends.count(None) - in_flight if drained else 0
        kept = sum(self._is_kept(key) for key in unfinished)
        return {
            "paused with a checkpoint": kept,
            "left for later": ends.count("left") + ends.count("paused") - kept + not_begun,
            "sampled elsewhere": ends.count("elsewhere"),
            "waiting for their target": ends.count("blocked"),
        }

    def _is_kept(self, key: Key) -> bool:
        """Whether a run was paused with anything to go on from, and not before its first step."""
        end = self._log.ends.get(key, {})
        paused = end.get("status") == "paused"
        return paused and (end.get("advanced") is True or (self._flow.store.run_dir(*key) / CHECKPOINT).is_file())

    def _blame(self, how: str) -> None:
        dead, condemned = record_deaths(self._flow.store, self._log, self._flow.site.flavour, how)
        outcome = self._round.outcome
        outcome.causes["rank"] += len(dead) or 1
        outcome.quarantined += len(condemned)
        for key in condemned:
            told = f"its rank died twice: set aside, see {self._flow.store.run_dir(*key) / 'error.json'}"
            self._round.run_ended(self._runs[key], told, failed=True)


def lost_with_block(round_: Round, directory: Path, lost: int) -> str:
    """What became of the runs of a pack whose block is gone, and where to read why."""
    then = "they are packed again" if round_.flow.study.settings.retries else "the same command samples them"
    if round_.blocks is None:
        return f"{lost} lost with the workers, which have died; {then}, what is finished is kept; log: {directory}"
    jobs = round_.blocks.lost("packs")
    which = f"job {', '.join(jobs)} ended: " if jobs else ""
    logs = [directory, *jobs.values()]
    sentence = (
        f"{lost} lost with their block ({which}cancelled, out of time, or a node failed); {then}, what is finished is "
        f"kept; logs: {' and '.join(map(str, logs))}"
    )
    return sentence + "".join(map(log_tail, jobs.values()))


def last_line(log: Path) -> str:
    """The last line of a log that a person wants to read: of an error, where there is one."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    errors = [line for line in lines if "error: " in line]
    return (errors or lines or [f"see {log}"])[-1]
