"""What the flows share: options, the plan on the screen, the life of one study, and how it ends."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from flows.plan import Plan, make_plan
from flows.progress import StudyProgress
from flows.sites import SiteConfig, load_site, parsl_config
from lambda_hat.config import BuildConfig, RuntimeConfig, SampleConfig
from lambda_hat.errors import EXIT_FAILED, EXIT_OK, EXIT_UNFINISHED, ConfigError, StoreError
from lambda_hat.id_utils import trajectory_id
from lambda_hat.lease import LEASE_VARIABLE, Lease, clear_dead_leases
from lambda_hat.pictures import draw_all
from lambda_hat.report import print_summary, rank_usage
from lambda_hat.results import RunRef, collect, error_line, write_table
from lambda_hat.store import Store, check_folder, read_json, write_config
from lambda_hat.workflow_config import CONF_DIR, PlannedRun, Study, compose_study

Config = TypeVar("Config", BuildConfig, SampleConfig)

POLL = 0.1
TAIL_LINES = 12
MOST_FAILURES = 20
LOG_WIDTH = 120


def parse_options(description: str, argv: list[str] | None, *, packed: bool) -> argparse.Namespace:
    """The options that both flows take; with `packed`, those of packs as well."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument(
        "--experiments", type=Path, default=CONF_DIR / "experiments.yaml", metavar="FILE", help="the study"
    )
    if packed:
        parser.add_argument("--pack", type=int, metavar="N", help="at most N runs in one MPI launch (default 32)")
        parser.add_argument("--ranks", type=int, metavar="R", help="MPI ranks per node (default: one per core)")
    parser.add_argument("--site", metavar="S", help="a name in conf/site, or a .yaml or .py file (default local)")
    parser.add_argument("--store", metavar="DIR", help="targets, runs and packs (default runs)")
    parser.add_argument("--results", metavar="DIR", help="the table and the picture (default results)")
    parser.add_argument("--dry-run", action="store_true", help="show the plan, start nothing")
    parser.add_argument("--rerun", choices=("failed", "all"), help="sample failed runs, or every run, again")
    parser.add_argument(
        "--retries", type=int, metavar="K", help="pack again what was left unfinished, K times (default 1)"
    )
    parser.add_argument("--quiet", action="store_true", help="only trouble and the summary")
    parser.add_argument(
        "words", nargs="*", metavar="key=value", help="overrides of the study; site.key=value of the site"
    )
    return parser.parse_intermixed_args(argv)


@dataclass
class Flow:
    """One study on one site."""

    study: Study
    store: Store
    site: SiteConfig
    results_root: Path
    rerun: str | None
    quiet: bool
    packed: bool
    console: Console = field(default_factory=lambda: Console(width=None if sys.stdout.isatty() else LOG_WIDTH))

    @classmethod
    def from_options(cls, args: argparse.Namespace, *, packed: bool) -> Flow:
        """Compose study and site; ConfigError for whatever could not run, before anything is touched."""
        options = {"pack": getattr(args, "pack", None), "retries": args.retries, "site": args.site}
        options |= {"store_root": args.store, "results_root": args.results}
        given = {key: value for key, value in options.items() if value is not None}
        for option in ("pack", "retries"):
            least = 1 if option == "pack" else 0
            if option in given and given[option] < least:
                raise ConfigError(f"--{option}: got {given[option]}, expected an integer of at least {least}")
        study = compose_study(args.experiments, args.words, given)
        site = load_site(study.settings.site, study.site_overrides, getattr(args, "ranks", None))
        return cls(
            study=study,
            store=Store(study.settings.store_root),
            site=site,
            results_root=Path(study.settings.results_root).expanduser().absolute(),
            rerun=args.rerun,
            quiet=args.quiet,
            packed=packed,
        )

    def run(self, submit: Callable[[Flow, Round], None], dry_run: Callable[[Flow, Plan], None], dry: bool) -> int:
        """Plan, run rounds until nothing is left or the retries are used up, collect, report; the exit status."""
        started = time.monotonic()
        plan = make_plan(self.store, self.study, self.rerun)
        if dry or not self.quiet:
            self.show_plan(plan)
        if dry:
            dry_run(self, plan)
            return EXIT_OK
        self.make_folders()
        pack_dirs: list[Path] = []
        if plan.runs:
            with _interruptible():
                pack_dirs = self._rounds(plan, submit)
        return self.report(time.monotonic() - started, pack_dirs)

    def _rounds(self, plan: Plan, submit: Callable[[Flow, Round], None]) -> list[Path]:
        import parsl

        pack_dirs: list[Path] = []
        left_behind = clear_dead_leases(self.store.packs_dir)
        if left_behind:
            self.say("an earlier driver was killed here; what it left running has been told to stop")
            time.sleep(2.0)
            plan = make_plan(self.store, self.study, self.rerun)
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        with contextlib.ExitStack() as stack:
            lease = stack.enter_context(Lease(self.store.packs_dir))
            run_dir = self.store.root / "parsl" / f"{stamp}-{lease.path.stem[-4:]}"
            config = stack.enter_context(parsl_config(self.site, run_dir, packs=self.packed))
            kernel = parsl.load(config)
            # Withdrawing the lease first lets everything that still computes end by itself while Parsl shuts down.
            stack.callback(kernel.cleanup)
            stack.callback(lease.withdraw)
            self._discard(plan.runs)
            for attempt in range(self.study.settings.retries + 1):
                if attempt:
                    # What failed has been recorded; only what was lost on the way is tried again.
                    plan = make_plan(self.store, self.study)
                    if not plan.runs:
                        break
                    self.say(
                        f"{len(plan.runs)} runs were left unfinished; packing them again ({attempt} of "
                        f"{self.study.settings.retries} retries)"
                    )
                round_ = Round(self, plan, lease, f"{stamp}-{lease.path.stem[-4:]}-{attempt}")
                with round_.progress:
                    submit(self, round_)
                    round_.wait()
                pack_dirs += round_.pack_dirs
        return pack_dirs

    def _discard(self, runs: list[PlannedRun]) -> None:
        """Remove what an earlier try left of runs that are now to be sampled: its failure, or, when all runs are wanted
        again, its result. Were it left, a run that is then lost would pass for the old one."""
        for run in runs:
            for name in ("error.json", "analysis.json"):
                (self.store.run_dir(run.target_id, run.run_id) / name).unlink(missing_ok=True)

    def on_site(self, cfg: Config) -> Config:
        """`cfg` for a process of its own on this site: it gives XLA as many cores as a rank has."""
        return replace(cfg, runtime=RuntimeConfig(cores_per_rank=self.site.cores_per_rank))

    def show_plan(self, plan: Plan) -> None:
        """Print the plan and the notes of the grid."""
        for note in self.study.notes:
            self.say(f"note: {note}")
        packs = math.ceil(len(plan.runs) / self.study.settings.pack) if self.packed else 0
        in_packs = f" in {packs} packs of at most {self.study.settings.pack}" if packs else ""
        targets = f"{len(self.study.targets)} targets ({len(plan.cached_targets)} cached, {len(plan.builds)} to build)"
        self.say(
            f"plan: {targets}, {len(self.study.runs)} runs ({len(plan.cached_runs)} cached, {len(plan.runs)} to "
            f"sample{in_packs})"
        )
        if plan.runs:
            self.say(f"expected cost: about {plan.cost / 3600:.2g} core-hours, right to a small factor")
        elif not plan.failed_runs and not plan.blocked_runs:
            self.say("everything is cached; no sampler is started")
        for runs, what in (
            (plan.failed_runs, "failed earlier"),
            (plan.blocked_runs, "wait for a target that failed earlier"),
        ):
            if runs:
                self.say(f"{len(runs)} runs {what}; --rerun failed tries them again")

    def make_folders(self) -> None:
        """Make store and results folder; StoreError, before either is made, where one cannot be written."""
        check_folder(self.results_root, "results folder", "give another one with --results DIR")
        self.store.ensure_writable()
        self.results_root.mkdir(parents=True, exist_ok=True)

    def report(self, seconds: float, pack_dirs: list[Path]) -> int:
        """Collect the table, draw the picture, print the summary; the exit status says how the plan stands."""
        refs = [RunRef(r.target_id, r.run_id, self.study.targets[r.target_id], r.cfg) for r in self.study.runs]
        table = collect(self.store, refs)
        try:
            where = {"table": write_table(table, self.results_root)}
            where |= draw_all(table, self.results_root)
        except OSError as error:
            raise StoreError(f"{self.results_root}: cannot be written: {error.strerror or error}") from None
        where["store"] = self.store.root
        print_summary(table, self.console, seconds=seconds, usage=rank_usage(pack_dirs), where=where)
        statuses = set(table.column("status").to_pylist())
        self._say_failures(table.to_pylist())
        if "pending" in statuses:
            self.say("some runs are unfinished: run the same command again to continue")
            return EXIT_UNFINISHED
        return EXIT_FAILED if statuses & {"failed", "blocked"} else EXIT_OK

    def _say_failures(self, rows: list[dict]) -> None:
        trouble = [row for row in rows if row["status"] in ("failed", "blocked")]
        tails: set[Path] = set()
        for row in trouble[:MOST_FAILURES]:
            failed = row["status"] == "failed"
            directory = Path(row["run_dir"]) if failed else self.store.target_dir(row["target_id"])
            self.say(f"{row['status']}: {row['target_id']}/{row['run_id']}: {row['reason']}")
            self.say(f"    see {directory / 'error.json'}")
            log = self._log_of(directory) if failed else directory / "build.err"
            if log not in tails and (tail := log_tail(log)):
                tails.add(log)
                self.say(tail.lstrip("\n"))
        if len(trouble) > MOST_FAILURES:
            self.say(f"... and {len(trouble) - MOST_FAILURES} more; the table has every reason")
        if trouble:
            words = " ".join([*_original_words(), "--rerun", "failed"])
            self.say(f"to run just these again: {words}")

    def _log_of(self, run_dir: Path) -> Path:
        """Where a failed run's process wrote: its rank's log, or its own in the unpacked flow."""
        record = read_json(run_dir / "error.json")
        if "pack_id" in record:
            return self.store.pack_dir(record["pack_id"]) / f"rank-{record['rank']:04d}.log"
        return run_dir / "sample.err"

    def say(self, sentence: str) -> None:
        self.console.print(sentence, soft_wrap=True, markup=False, highlight=False)


def _original_words() -> list[str]:
    words = [word for word in sys.argv[1:] if word != "--dry-run"]
    return ["python", shlex.quote(os.path.relpath(sys.argv[0])), *map(shlex.quote, words)]


class Round:
    """One pass over what is left: builds, then whatever the flow submits for the runs."""

    def __init__(self, flow: Flow, plan: Plan, lease: Lease, name: str):
        packs = math.ceil(len(plan.runs) / flow.study.settings.pack) if flow.packed else 0
        self.flow, self.plan, self.name = flow, plan, name
        self.environment = {LEASE_VARIABLE: str(lease.path)}
        self.progress = StudyProgress(
            flow.console, targets=len(plan.builds), packs=packs, runs=len(plan.runs), quiet=flow.quiet
        )
        self.pack_dirs: list[Path] = []
        self._pending: dict[Future, Callable[[Future], None]] = {}
        self._watchers: list[Callable[[], None]] = []
        self._builds: dict[str, Future] = {}

    def submit_builds(self) -> None:
        """Submit one app per missing target; one for all the missing checkpoints of a training."""
        from flows.apps import run_task

        store = self.flow.store
        targets = self.flow.study.targets
        trainings: dict[str, list[str]] = {}
        for target_id in self.plan.builds:
            trainings.setdefault(trajectory_id(targets[target_id]) or target_id, []).append(target_id)
        for target_ids in trainings.values():
            for target_id in target_ids:
                write_config(store.target_dir(target_id), self.flow.on_site(targets[target_id]))
                (store.target_dir(target_id) / "error.json").unlink(missing_ok=True)
            directory = store.target_dir(target_ids[0])
            argv = module_command("lambda_hat.entrypoints.build_target", directory)
            argv += ["--target-id", target_ids[0], "--target-dir", str(directory)]
            future = run_task(argv, str(directory / "build.log"), str(directory / "build.err"), self.environment)
            self._builds |= dict.fromkeys(target_ids, future)
            self.on_done(future, partial(self._builds_ended, target_ids))

    def settled(self, target_ids: set[str]) -> list[Future]:
        """Futures that are done once the builds of these targets have ended, well or badly: Parsl would take a pack
        down with a failed dependency."""
        return [_settled(self._builds[t]) for t in sorted(target_ids) if t in self._builds]

    def on_done(self, future: Future, then: Callable[[Future], None]) -> None:
        """Call `then(future)` from `wait` once `future` is done."""
        self._pending[future] = then

    def watch(self, look: Callable[[], None]) -> None:
        """Call `look()` at every poll of `wait`."""
        self._watchers.append(look)

    def wait(self) -> None:
        """Until everything submitted has ended."""
        while self._pending:
            for look in self._watchers:
                look()
            for future in [future for future in self._pending if future.done()]:
                self._pending.pop(future)(future)
            time.sleep(POLL)
        for look in self._watchers:
            look()

    def _builds_ended(self, target_ids: list[str], future: Future) -> None:
        for target_id in target_ids:
            self._build_ended(target_id, self.flow.store.target_dir(target_ids[0]), future)

    def _build_ended(self, target_id: str, where: Path, future: Future) -> None:
        flow, directory = self.flow, self.flow.store.target_dir(target_id)
        label = flow.study.targets[target_id].label
        if flow.store.target_status(target_id) == "built":
            self.progress.finished("targets", f"built {target_id} ({label})")
            for warning in read_json(directory / "meta.json")["build"]["warnings"]:
                self.progress.say(f"warning: {target_id} ({label}): {warning}", style="yellow")
            return
        reason = explain(future, directory / "error.json", where / "build.err")
        self.progress.finished("targets", f"target {target_id} ({label}) was not built: {reason}", failed=True)

    def run_ended(self, run: PlannedRun, sentence: str, *, failed: bool) -> None:
        label = self.flow.study.targets[run.target_id].label
        self.progress.finished("runs", f"{run.target_id}/{run.run_id} ({label}): {sentence}", failed=failed)


def module_command(module: str, directory: Path) -> list[str]:
    """`python -m module --config-yaml directory/config.yaml`, by this interpreter."""
    return [sys.executable, "-m", module, "--config-yaml", str(directory / "config.yaml")]


def explain(future: Future, error_file: Path, log: Path) -> str:
    """Why something has no result: its `error.json`, else Parsl's exception, and the tail of its log with the path."""
    if error_file.is_file():
        reason = error_line(error_file)
    elif future.exception() is not None:
        reason = f"{type(future.exception()).__name__}: {future.exception()}"
    else:
        reason = f"exit status {future.result()}"
    return f"{reason}{log_tail(log)}"


def log_tail(log: Path) -> str:
    """The last lines of a log with its path, for a message; empty where there are none."""
    try:
        lines = log.read_text(errors="replace").rstrip().splitlines()[-TAIL_LINES:]
    except OSError:
        return ""
    if not lines:
        return ""
    return "\n    " + "\n    ".join([f"{log} ends with:", *lines])


def _settled(future: Future) -> Future:
    plain: Future = Future()
    future.add_done_callback(lambda _: plain.set_result(None))
    return plain


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends a study as Ctrl-C does: the executors are shut down on the way out."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
