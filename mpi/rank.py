"""One rank of a pack: it builds targets, samples runs singly or as lanes, and records what happened."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Any, cast

from lambda_hat.config import BuildConfig, CustomBuild
from lambda_hat.config.study_settings import AUTO
from lambda_hat.errors import CorruptArtifact, LambdaHatError, Paused, StoreError, StoreUnwritable, guarded
from lambda_hat.id_utils import Run
from lambda_hat.planning.lanes import even_pieces
from lambda_hat.programs.cores import Binding
from lambda_hat.store import claims
from lambda_hat.store.drain import Drain
from lambda_hat.store.layout import EventLog, Store, error_line
from mpi.devices import check_gpu
from mpi.dispatch import World
from mpi.handout import LEFT, Handout
from mpi.launcher_variables import launcher_local_size
from mpi.pack import Pack, builders_of, bundles_of, key_of


class Console:
    """Inside the block everything that this process prints, native libraries included, goes to a file.

    Args:
        path: The file.
        prefix: Start of the lines of `say`.
    """

    def __init__(self, path: Path, prefix: str):
        self._path, self._prefix = path, prefix

    def __enter__(self) -> Console:
        _flush()
        self._stdout, self._stderr = (os.fdopen(os.dup(stream), "w", buffering=1) for stream in (1, 2))
        self._log = self._path.open("a", buffering=1)
        for stream in (1, 2):
            os.dup2(self._log.fileno(), stream)
        for stream in (sys.stdout, sys.stderr):
            cast(TextIOWrapper, stream).reconfigure(line_buffering=True)
        faulthandler.enable()
        return self

    def __exit__(self, *exc: object) -> None:
        _flush()
        os.dup2(self._stdout.fileno(), 1)
        os.dup2(self._stderr.fileno(), 2)

    def say(self, line: str) -> None:
        """Print one line, after the prefix, to the file and to the stdout from before the block."""
        for stream in (self._log, self._stdout):
            # A full disk costs only this line. A single write keeps the lines of different ranks whole.
            with contextlib.suppress(OSError):
                stream.write(f"{self._prefix} {line}\n")

    def alarm(self, text: str) -> None:
        """Print `text` to the file and to the stderr from before the block."""
        for stream in (self._log, self._stderr):
            with contextlib.suppress(OSError):
                stream.write(f"{text}\n")
                stream.flush()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()


def _print_traceback(error: BaseException) -> None:
    with contextlib.suppress(OSError):
        traceback.print_exception(error)


@dataclass(frozen=True)
class ClaimedRun:
    """A run whose claim this rank holds."""

    run: Run
    claim: claims.Claim
    end: Callable[..., str]
    """Records how the run ended, as `Rank._begin` returned it."""


class Rank:
    """Does the items of one rank, each inside a guard, and writes the events."""

    def __init__(self, world: World, pack: Pack, store: Store, drain: Drain, events: EventLog, console: Console):
        self._world, self._store, self._drain, self._events, self._console = world, store, drain, events, console
        self._heartbeat = None if pack["lease"] is None else Path(pack["lease"])
        self._builds, self._runs = pack["builds"], {key_of(run): run for run in pack["runs"]}
        self._bundles, self._lanes = bundles_of(pack, world.size), pack["lanes"]
        self._builders = builders_of(pack)
        self._ranks_on_node = launcher_local_size(os.environ) or 1
        self._context = {"rank": world.rank, "pack_id": pack["pack_id"], "site": pack["site"]}
        self._busy = 0.0

    def begin(self, binding: Binding) -> None:
        """Write `start`, import what samples, and write `ready`.

        Args:
            binding: Cores and GPU of this process.

        Raises:
            LaunchError: jax does not see the GPU.
        """
        self._events.append(
            "start",
            **self._context,
            size=self._world.size,
            host=socket.gethostname(),
            pid=os.getpid(),
            binding=asdict(binding),
        )
        begun = time.monotonic()
        # Only now, because XLA counts the cores of the process when it starts.
        from lambda_hat.execute import build, failure_record, sampling, this_process

        if binding.device is not None:
            check_gpu(self._world.rank, binding, this_process.visible_devices)
        self._build_into, self._record_failure = build.build_into, failure_record.record_failure
        self._sampling = sampling
        self._events.append("ready", seconds=time.monotonic() - begun, **this_process.where_am_i())

    def finish(self, seconds: float) -> None:
        """Write `end` with the seconds of the whole process and those inside builds and runs."""
        if self._drain.reason is not None:
            self._events.append("drain", rank=self._world.rank, reason=self._drain.reason)
        self._events.append("end", rank=self._world.rank, busy=self._busy, seconds=seconds)

    def do(self, key: str) -> list[str]:
        """Build the target or sample the runs of an item.

        Returns:
            The outcome of each; that of a target has `build` before it.
        """
        begun = time.monotonic()
        try:
            return [f"build {self._build(key)}"] if key in self._builds else self._do_runs(self._bundles[key])
        finally:
            self._busy += time.monotonic() - begun

    def _build(self, target_id: str) -> str:
        directory = self._store.target_dir(target_id)
        end = self._begin("build", target_id=target_id)
        if self._store.target_status(target_id) == "built":
            return end("finished", cached=True)

        def build() -> str:
            self._build_into(directory, self._builds[target_id], self._checkpoints_beside(target_id))
            return end("finished")

        return guarded(build, lambda error: self._failed(end, directory, error))

    def _checkpoints_beside(self, target_id: str) -> dict[str, BuildConfig]:
        """The other targets that the build of a custom target makes, by id."""
        if not isinstance(self._builds[target_id], CustomBuild):
            return {}
        others = [t for t, builder in self._builders.items() if builder == target_id != t]
        return {t: self._builds[t] for t in others if self._store.target_status(t) != "built"}

    def _do_runs(self, keys: Sequence[str]) -> list[str]:
        """Sample runs that are expected to share a program, together where they do, and return their outcomes."""
        if len(keys) == 1:
            return self._run(keys, 1)
        return [outcome for group, width in self._groups(keys) for outcome in self._run(group, width)]

    def _groups(self, keys: Sequence[str]) -> Iterator[tuple[list[str], int]]:
        """The keys in groups of runs that can be lanes of one program, each with the number of its lanes."""
        together: dict[Hashable, dict[str, Any]] = {}
        for key in keys:
            # Where a run cannot be loaded, the attempt to sample it alone shows why.
            found = guarded(partial(self._load, key), lambda error: None)
            if found is None:
                yield [key], 1
            else:
                together.setdefault(found[0], {})[key] = found[1]
        for group in together.values():
            most = len(group)
            if self._lanes == AUTO and most > 1:
                most = self._width_for(list(group.values()))
            pieces = even_pieces(list(group), most)
            for piece in pieces:
                yield piece, len(pieces[0])

    def _load(self, key: str) -> tuple[Hashable, Any]:
        """The key of the runs that can be lanes beside this one, and the run with its target."""
        loaded = self._sampling.load_run(*self._whereabouts(self._runs[key]))
        return self._sampling.companions(loaded), loaded

    def _width_for(self, group: list[Any]) -> int:
        begun = time.monotonic()
        # If the program cannot be measured, the attempt to sample each run alone shows why.
        lanes = guarded(lambda: self._sampling.width_for(group, self._ranks_on_node), lambda error: 1)
        self._events.append("width", rank=self._world.rank, lanes=lanes, seconds=time.monotonic() - begun)
        return lanes

    def _whereabouts(self, run: Run) -> tuple[Path, Path, Run]:
        """The folder of a run, the folder of its target, and the run."""
        return self._store.run_dir(*run.key), self._store.target_dir(run.target_id), run

    def _run(self, keys: Sequence[str], width: int) -> list[str]:
        """Claim and sample runs that are lanes of one program, and return their outcomes."""
        taken = [self._take(self._runs[key], lane) for lane, key in enumerate(keys)]
        outcomes = [outcome for outcome in taken if isinstance(outcome, str)]
        return outcomes + self._sample([run for run in taken if isinstance(run, ClaimedRun)], width)

    def _take(self, run: Run, lane: int) -> ClaimedRun | str:
        """Claim a run. Returns the claimed run, or the outcome of one that is not to be sampled here."""
        target_id, run_dir = run.target_id, self._store.run_dir(*run.key)
        end = self._begin("run", target_id=target_id, run_id=run.run_id, lane=lane)
        if self._drain.reason is not None:
            return end(LEFT, reason=self._drain.reason)
        if self._store.target_status(target_id) != "built":
            return end("blocked", reason=self._why_blocked(target_id))
        try:
            claim = claims.take(run_dir, self._heartbeat, **self._context)
        except StoreError as error:
            return self._failed(end, run_dir, error)
        if claim is None:
            return end("elsewhere", reason=f"another process samples it: {_who(claims.holder(run_dir))}")
        if self._store.run_status(*run.key) == "finished":
            claim.finished()
            return end("finished", cached=True)
        return ClaimedRun(run, claim, end)

    def _sample(self, runs: Sequence[ClaimedRun], width: int) -> list[str]:
        """Sample claimed runs, and return their outcomes."""
        outcomes: list[str] = []

        def sample() -> list[str]:
            for analysis in self._analyses([claimed.run for claimed in runs], width):
                run = runs[len(outcomes)]
                outcomes.append(run.end("finished", verdict=analysis["verdict"]))
                run.claim.finished()
            return outcomes

        def failed(error: Exception) -> list[str]:
            rest = runs[len(outcomes) :]
            if not isinstance(error, (Paused, StoreUnwritable)) and len(runs) > 1:
                # Sampling each run alone shows which one failed.
                return outcomes + [outcome for run in rest for outcome in self._sample([run], 1)]
            for run in rest:
                outcomes.append(self._not_finished(run, error))
                run.claim.release()
            return outcomes

        return guarded(sample, failed)

    def _analyses(self, runs: Sequence[Run], width: int) -> Iterator[dict[str, Any]]:
        """The analysis of each run, as soon as it is published."""
        shared = (self._context, self._drain, self._ranks_on_node)
        if len(runs) > 1:
            loaded = [self._sampling.load_run(*self._whereabouts(run)) for run in runs]
            yield from self._sampling.sample_together(loaded, *shared, width)
        else:
            for run in runs:
                yield self._sampling.sample_into(*self._whereabouts(run), *shared, self._store.set_aside)

    def _not_finished(self, claimed: ClaimedRun, error: Exception) -> str:
        """Record why a run has no analysis, and return its outcome."""
        run, end = claimed.run, claimed.end
        if isinstance(error, Paused):
            return end("paused", reason=error.reason, advanced=error.advanced)
        try:
            damages = self._damages(error, run.target_id)
        except StoreUnwritable as unwritable:
            return self._cannot_write(end, unwritable)
        if damages:
            return end("blocked", reason=f"its target is damaged, and is to be built again: {damages}")
        return self._failed(end, self._store.run_dir(*run.key), error)

    def _damages(self, error: Exception, target_id: str) -> str:
        """What is wrong with the files of a target, after setting them aside; empty where nothing is."""
        if not isinstance(error, CorruptArtifact):
            return ""
        try:
            _, damages = self._store.inspect_target(target_id, None, thorough=True)
        except StoreUnwritable:
            raise
        except StoreError as refusal:
            return str(refusal)
        # Another rank may have set them aside already.
        return "; ".join(map(str, damages)) or (str(error) if self._store.target_status(target_id) != "built" else "")

    def _failed(self, end: Callable[..., str], directory: Path, error: Exception) -> str:
        """Write the failure of a build or a run, with its traceback, into `error.json`."""
        if isinstance(error, StoreUnwritable):
            return self._cannot_write(end, error)
        try:
            self._record_failure(directory, error, self._context)
        except StoreUnwritable as unwritable:
            return self._cannot_write(end, unwritable)
        if not isinstance(error, LambdaHatError):
            # The message of our own errors says everything; error.json has the traceback in any case.
            _print_traceback(error)
        return end("failed", reason=_sentence(error), see=str(directory / "error.json"))

    def _cannot_write(self, end: Callable[..., str], error: StoreUnwritable) -> str:
        """Request the drain, because no other run could be written either."""
        self._drain.request(str(error))
        return end(LEFT, reason=str(error), store_error=True)

    def _begin(self, what: str, lane: int | None = None, **names: str) -> Callable[..., str]:
        """Write the event `<what>_start`.

        Returns:
            A function (status, **details) that writes the event `<what>_end` and a line, and returns the status.
        """
        where = {} if lane is None else {"lane": lane}
        self._events.append(f"{what}_start", rank=self._world.rank, **names, **where)
        begun = time.monotonic()

        def end(status: str, **details: Any) -> str:
            seconds = time.monotonic() - begun
            record = {"status": status, "seconds": seconds, **details}
            self._events.append(f"{what}_end", rank=self._world.rank, **names, **record)
            more = "".join(f", {key}: {value}" for key, value in details.items())
            self._console.say(f"{what} {'/'.join(names.values())}: {status} in {seconds:.1f} s{more}")
            return status

        return end

    def _why_blocked(self, target_id: str) -> str:
        if self._store.target_status(target_id) == "failed":
            return f"its target could not be built: {error_line(self._store.target_dir(target_id) / 'error.json')}"
        return "its target is not built: no meta.json"


class Sharing:
    """Lets go of runs for another pack whenever the driver asks for that, on rank 0.

    Args:
        pack: The pack.
        ranks: Size of the MPI world.
        events: Of rank 0; they tell the driver which runs.
    """

    def __init__(self, pack: Pack, ranks: int, events: EventLog):
        self._pack_id, self._bundles, self._events = pack["pack_id"], bundles_of(pack, ranks), events
        self._handout: Handout | None = None
        self._answered = 0

    def begin(self, handout: Handout) -> None:
        """Answer from now on, out of what waits in `handout`."""
        self._handout = handout

    def hear(self, record: dict[str, Any]) -> None:
        """Take the driver's heartbeat."""
        asked = record.get("let_go")
        if self._handout is None or not isinstance(asked, list):
            return
        for _ in range(asked.count(self._pack_id) - self._answered):
            runs = [run for key in self._handout.let_go() for run in self._bundles[key]]
            # A driver that dies before it reads this leaves the runs to the next one.
            self._events.append("let_go", rank=0, runs=[run.split("/") for run in runs])
            self._answered += 1


def _who(record: dict[str, Any] | None) -> str:
    if not record:
        return "it has just ended"
    return f"process {record.get('pid')} on {record.get('host')}, pack {record.get('pack_id')}"


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
