"""The packs of a round: their files and launches, messages while they run, and how each one ended."""

from __future__ import annotations

import glob
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

from flows.driver.deaths import forget, record_deaths, suspects_among
from flows.driver.reasons import explain, is_lost_block, log_tail
from flows.driver.request import Request
from flows.driver.rounds import Round, Unresolved
from flows.driver.sharing import LOOK_SECONDS as SHARING_SECONDS
from flows.driver.sharing import Sharing
from flows.sites.several import packs_label
from flows.sites.site_schemas import BatchSite
from lambda_hat.checkout import ROOT
from lambda_hat.errors import EXIT_OK, EXIT_UNFINISHED, EXIT_USAGE
from lambda_hat.planning.packing import PACK_FORMAT, PlannedRun
from lambda_hat.store.drain import OUT_OF_TIME
from lambda_hat.store.events import RANK_LOGS, Key, PackLog
from lambda_hat.store.layout import CHECKPOINT, write_json_atomic
from lambda_hat.store.process_logs import text_of
from mpi.launchers import unreached_nodes

PROGRAM = [sys.executable, str(ROOT / "mpi" / "run_pack.py")]
LOOK_SECONDS = {"local": 0.2, "shared": 2.0}
"""Seconds between two readings of a pack's logs: more on a parallel file system, and ten times more while it waits."""
UNRESOLVED_SECONDS = 30.0
"""From the last word of a pack's ranks, or its deadline, until the driver takes it for ended whatever Parsl says."""
LAUNCHER_SECONDS = 4.0
"""From the last word of the ranks until the launcher has ended and Parsl has said so."""
MOST_RETURNED = 3
"""So many blocks of a round may be given back for want of a good node; then the scheduler seems to have no other."""
NOT_STARTED = "not started: "
EXIT_NO_SIGN = 124
"""Exit status of a launch that was ended because no rank showed itself."""


def submit_packs(round_: Round) -> None:
    """Submit the builds, then a pack per group of runs. A pack starts when the builds of its targets have ended."""
    round_.submit_builds()
    request = round_.request
    sharing = Sharing(round_, lambda runs: submit_pack(round_, runs, sharing))
    for runs in round_.plan.packs(request.study.settings.pack):
        round_.stop.check()
        submit_pack(round_, runs, sharing)
    if len(request.sites) == 1 and round_.workers.may_have_idle_nodes:
        round_.watch(sharing.look, SHARING_SECONDS)


def submit_pack(round_: Round, runs: list[PlannedRun], sharing: Sharing) -> None:
    """Submit one more pack of the round."""
    request = round_.request
    pack = Pack(round_, f"pack_{round_.name}-{len(round_.pack_dirs):04d}", runs, sharing)
    pack_file = pack.directory / "pack.json"
    write_json_atomic(pack_file, pack.record())
    round_.pack_dirs.append(pack.directory)
    where = {"site": request.word(pack.site_name), "for": packs_label(pack.site_name)}
    round_.log.pack(pack.directory.name, [run.key for run in runs], **(where if len(request.sites) > 1 else {}))
    future = launch(
        request,
        pack.site_name,
        [*PROGRAM, str(pack_file)],
        pack.directory,
        round_.environment,
        sign_of_life=f"{glob.escape(str(pack.directory))}/{RANK_LOGS}",
        deadline=request.stop_at,
        inputs=round_.settled({run.target_id for run in runs}),
    )
    sharing.add(pack)
    round_.watch(pack.look, LOOK_SECONDS["local" if pack.site.kind == "local" else "shared"])
    round_.on_done(future, pack.ended, running=pack.is_running, overdue=pack.overdue)


def launch(
    request: Request, site_name: str, command: list[str], directory: Path, environment: dict[str, str], **options: Any
) -> Future:
    """Submit `command` as one pack of a site, with its output in `directory`. options: more of `run_pack`'s."""
    from flows.apps import run_pack_on

    site = request.sites[site_name]
    out, err = str(directory / "stdout.log"), str(directory / "stderr.log")
    resources = (site.ranks, site.cores_per_rank, site.gpus_per_node)
    options["parsl_resource_specification"] = site.resources
    # A type checker takes an app of Parsl's for its function.
    run_pack = run_pack_on(packs_label(site_name))
    return cast(Future, run_pack(command, site.launcher, *resources, out, err, environment, **options))


def world_of(request: Request, site_name: str) -> dict[str, Any]:
    """What the ranks of a pack on a site are told of the store and of their world."""
    site = request.sites[site_name]
    return {
        "site": request.word(site_name),
        "store_root": str(request.store.root),
        "cores_per_rank": site.cores_per_rank,
        "expected_ranks": site.resources["num_ranks"],
        "gpus_per_node": site.gpus_per_node,
        "ranks_per_gpu": site.ranks_per_gpu,
        "gpu_sharing": site.gpu_sharing,
    }


class Pack:
    """One pack of a round."""

    def __init__(self, round_: Round, pack_id: str, runs: list[PlannedRun], sharing: Sharing | None = None):
        self._round, self._request, self._store = round_, round_.request, round_.request.store
        self.directory = self._store.pack_dir(pack_id)
        self._runs: dict[Key, PlannedRun] = {run.key: run for run in runs}
        self.site_name = runs[0].site
        self.site = self._request.sites[self.site_name]
        self._suspects = suspects_among(self._store, self._runs)
        self._log = PackLog(self.directory)
        self._sharing, self._let_go = sharing, 0

    def record(self) -> dict:
        """What `mpi/run_pack.py` reads."""
        settings = self._request.study.settings
        return {
            "format": PACK_FORMAT,
            "pack_id": self.directory.name,
            **world_of(self._request, self.site_name),
            "deadline": self._request.stop_at,
            "lease": str(self._round.workers.heartbeat.path),
            "suspects": self._suspects,
            "lanes": settings.lanes,
            "compile_cache": settings.compile_cache,
            "builds": [],
            "runs": [run.pack_entry() for run in self._runs.values()],
        }

    def look(self) -> bool:
        """Say what the ranks have written since the last call. Returns whether they have begun."""
        for end in self._log.read():
            run = self._runs.get(end.key)
            if run is None:
                continue
            words = [word for word in (end.status, end.reason, end.verdict) if word is not None]
            sentence = f"{': '.join(words)} in {end.seconds:.1f} s on rank {end.life.rank}"
            target_failed = end.status == "blocked" and self._store.target_status(run.target_id) == "failed"
            if end.status in ("finished", "failed") or target_failed:
                self._round.run_ended(run, sentence, failed=end.status != "finished")
            else:
                # Neither done nor failed: it goes on in another pack.
                self._round.run_goes_on(run, sentence)
        self._round.nodes.saw(self._log)
        self._hand_on()
        return self._log.begun

    def _hand_on(self) -> None:
        """Hand on the runs that the ranks have let go of since the last call."""
        answers = [keys for life in self._log.ranks for keys in life.let_go]
        for keys in answers[self._let_go :]:
            runs = [self._runs.pop(key) for key in keys if key in self._runs]
            if self._sharing is not None:
                self._sharing.answered(self, runs)
        self._let_go = len(answers)

    @property
    def takes_questions(self) -> bool:
        """Whether its ranks have begun, and not ended."""
        return self._log.running

    @property
    def seconds_left(self) -> float:
        """Expected seconds of the runs that have not begun."""
        begun = self._log.ends.keys() | {key for keys in self._log.in_flight.values() for key in keys}
        return sum(run.cost for key, run in self._runs.items() if key not in begun)

    def is_running(self) -> bool:
        """Whether its ranks are at work, or ended so lately that Parsl is about to say so."""
        self.look()
        ending = self._log.over and time.monotonic() - self._log.changed > LAUNCHER_SECONDS
        return self._log.begun and not ending

    def overdue(self) -> str | None:
        """Why it must have ended, whatever Parsl says; None while Parsl may still say so."""
        deadline = self._request.stop_at
        if self._log.over and time.monotonic() - self._log.changed > UNRESOLVED_SECONDS:
            return f"its ranks ended {UNRESOLVED_SECONDS:.0f} s ago"
        if self._log.begun and deadline is not None and time.time() > deadline + UNRESOLVED_SECONDS:
            return f"its deadline was {UNRESOLVED_SECONDS:.0f} s ago"
        return None

    def ended(self, future: Future) -> None:
        """Say how many of its runs are finished, and why others are not; count what was lost, and blame the culprit."""
        self.look()
        self._round.unwatch(self.look)
        if self._sharing is not None:
            self._sharing.ended(self)
        store, log, outcome = self._store, self._log, self._round.outcome
        states = {key: store.run_status(*key) for key in self._runs}
        for key, state in states.items():
            if state == "finished" and f"{key[0]}/{key[1]}" in self._suspects:
                forget(store.run_dir(*key))
        ends = log.ends.values()
        outcome.advanced |= any(end.advanced or (end.status == "finished" and not end.cached) for end in ends)
        outcome.store_error = outcome.store_error or next((end.reason for end in ends if end.store_error), None)
        failure, status = future.exception(), None
        if failure is None:
            status = future.result()
        sentence = f"{self.directory.name}: {list(states.values()).count('finished')} of {len(states)} runs finished"
        unfinished = [key for key, state in states.items() if state == "pending"]
        unfinished = [key for key in unfinished if store.target_status(key[0]) != "failed"]
        # Ranks that end well without having taken all runs had too little time for the rest.
        unfit = status == EXIT_OK and any(key not in log.ends for key in unfinished)
        drains = [life.drained for life in log.ranks if life.drained is not None]
        drained = bool(drains) or status == EXIT_UNFINISHED or unfit
        block_lost = is_lost_block(failure)
        waiting = self._waiting(unfinished, drained and not block_lost)
        sentence += "".join(f", {count} {how}" for how, count in waiting.items() if count)
        lost = len(unfinished) - sum(waiting.values())
        if drained and not block_lost:
            why = next(iter(drains), OUT_OF_TIME)
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
        unstarted = self._nodes_without_ranks() if status else {}
        if unstarted:
            self._round.nodes.did_not_start(unstarted, self.site.pack_nodes)
            self._round.tell_of_nodes(self._round.nodes.judge())
        if block_lost:
            outcome.causes["block"] += 1
            if (told := last_line(self.directory / "stderr.log")).startswith(NOT_STARTED):
                outcome.no_good_node += 1
                if outcome.no_good_node >= MOST_RETURNED:
                    self._round.tell_of_nodes(self._round.nodes.forgive())
                self._say_ended(f"{sentence}, {lost} left for later ({told})", warn=True)
                return
            self._say_ended(f"{sentence}, {lost_with_block(self._round, self, lost)}", failed=True)
            return
        reason = explain(future, self.directory / "error.json", self.directory / "stderr.log")
        if not (self.directory / "stderr.log").is_file() or not (self.directory / "stderr.log").stat().st_size:
            reason += log_tail(self.directory / "stdout.log")
        self._say_ended(f"{sentence}, {lost} lost: {reason}", failed=True)
        # A launcher that was itself killed, or showed no rank, says nothing of any run. Nor does a node that failed.
        if status is not None and status > 0 and status not in (EXIT_USAGE, EXIT_NO_SIGN) and not unstarted:
            self._blame(f"the launch ended with exit status {status}")
        else:
            outcome.causes["launch"] += 1

    def _say_ended(self, sentence: str, *, failed: bool = False, warn: bool = False) -> None:
        self._round.progress.finished("packs", sentence, failed=failed, warn=warn)
        self._round.log.append("pack_end", pack_id=self.directory.name, sentence=sentence.partition("\n")[0])

    def _waiting(self, unfinished: list[Key], drained: bool) -> dict[str, int]:
        """Counts of the unfinished runs that were not lost, by how they wait."""
        ends = [end and end.status for end in map(self._log.ends.get, unfinished)]
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
        """Whether a run was paused with a checkpoint to go on from."""
        end = self._log.ends.get(key)
        if end is None or end.status != "paused":
            return False
        return end.advanced or (self._store.run_dir(*key) / CHECKPOINT).is_file()

    def _nodes_without_ranks(self) -> dict[str, str]:
        """The nodes on which ranks could not start, and why."""
        found = unreached_nodes(text_of(self.directory / "stderr.log") + text_of(self.directory / "stdout.log"))
        return found | {life.host: life.refused for life in self._log.ranks if life.refused is not None}

    def _blame(self, how: str) -> None:
        dead, condemned, news = record_deaths(self._store, self._log, self.site.flavour, how, self._round.nodes)
        self._round.tell_of_nodes(news)
        outcome = self._round.outcome
        outcome.causes["rank"] += len(dead) or 1
        outcome.quarantined += len(condemned)
        for key in condemned:
            told = f"its rank died twice: set aside, see {self._store.run_dir(*key) / 'error.json'}"
            self._round.run_ended(self._runs[key], told, failed=True)


def lost_with_block(round_: Round, pack: Pack, lost: int) -> str:
    """What happens to the runs of a pack whose block is gone, and the logs that say why."""
    then = "they are packed again" if round_.request.study.settings.retries else "the same command samples them"
    blocks, directory, label = round_.workers.blocks, pack.directory, packs_label(pack.site_name)
    if blocks is None or not isinstance(pack.site, BatchSite):
        return f"{lost} lost with the workers, which have died; {then}, what is finished is kept; log: {directory}"
    jobs = blocks.lost(label)
    if not jobs and (stopped := blocks.stopped(label)):
        return f"{lost} lost because their block was stopped ({'; '.join(stopped)}); {then}, what is finished is kept"
    which = f"job {', '.join(jobs)} ended: " if jobs else ""
    logs = [directory, *jobs.values()]
    sentence = (
        f"{lost} lost with their block ({which}cancelled, out of time, or a node failed); {then}, what is finished is "
        f"kept; logs: {' and '.join(map(str, logs))}"
    )
    return sentence + "".join(map(log_tail, jobs.values()))


def last_line(log: Path) -> str:
    """The last line of a log that names an error, else its last line."""
    lines = text_of(log).splitlines()
    errors = [line for line in lines if "error: " in line]
    return (errors or lines or [f"see {log}"])[-1]
