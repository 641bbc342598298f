"""What the flows share: options, the plan on the screen, the life of one study, and how it ends."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console

from flows.blocks import Blocks
from flows.deadlines import MARGIN, margin, parse_deadline, scheduler_deadline
from flows.executors import TASKS, fail_where_lost, parsl_config
from flows.journal import Journal, keep_journal
from flows.plan import Plan, Rerun, make_plan
from flows.progress import StudyProgress
from flows.rounds import OutOfTime, Round, log_tail
from flows.scheduler import require_scheduler
from flows.sites import AllocationSite, BatchSite, SiteConfig, load_site
from flows.stopping import Stop, Stopped
from flows.tries import Tries
from lambda_hat.config import BuildConfig, SampleConfig
from lambda_hat.cost import price, read_costs, shape_in_store
from lambda_hat.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_UNFINISHED,
    ConfigError,
    LaunchError,
    StoreError,
)
from lambda_hat.lanes import check_lanes
from lambda_hat.lease import Lease
from lambda_hat.logs import log_of
from lambda_hat.store import Store, check_folder, writing
from lambda_hat.workflow_config import CONF_DIR, PlannedRun, Study, compose_study
from mpi.launch import Launch, Launcher, build_prefix, find_launcher, launch_environment

if TYPE_CHECKING:
    from parsl import Config as ParslConfig
    from parsl import DataFlowKernel
    from parsl.executors.base import ParslExecutor

Config = TypeVar("Config", BuildConfig, SampleConfig)

MOST_FAILURES = 20
LOG_WIDTH = 120


def options_parser(description: str, *, packed: bool) -> argparse.ArgumentParser:
    """The options that both flows take; with `packed`, those of packs as well."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument(
        "--experiments", type=Path, default=CONF_DIR / "experiments.yaml", metavar="FILE", help="the study"
    )
    if packed:
        parser.add_argument("--pack", type=int, metavar="N", help="at most N runs in one MPI launch (default 32)")
        parser.add_argument(
            "--lanes", metavar="K", help="K runs of one program side by side on a rank, or auto (default 1)"
        )
        parser.add_argument("--ranks", type=int, metavar="R", help="MPI ranks per node (default: one per core)")
        parser.add_argument("--check", action="store_true", help="try the site with one small pack, and judge it")
        parser.add_argument("--submit", choices=("slurm", "pbs"), help="submit a job that runs the study inside itself")
        parser.add_argument("--nodes", type=int, metavar="N", help="with --submit: nodes of the job")
        parser.add_argument("--walltime", metavar="HH:MM:SS", help="with --submit: how long the job may take")
        parser.add_argument(
            "--chain", type=int, metavar="K", help="with --submit: at most K more jobs where time runs out (default 0)"
        )
    parser.add_argument("--site", metavar="S", help="a name in conf/site, or a .yaml or .py file (default local)")
    parser.add_argument("--store", metavar="DIR", help="targets, runs and packs (default runs)")
    parser.add_argument("--results", metavar="DIR", help="the table, the report and its figures (default results)")
    parser.add_argument(
        "--deadline",
        metavar="WHEN",
        help="stop in time for WHEN, with every run checkpointed: 2026-11-25T18:00, +12:00:00 from now, or seconds "
        "since the epoch",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the plan, start nothing")
    parser.add_argument("--rerun", choices=("failed", "all"), help="sample failed runs, or every run, again")
    parser.add_argument(
        "--retries",
        type=int,
        metavar="K",
        help="pack again what was left unfinished, until K tries in a row get nothing done (default 1, 0: never)",
    )
    parser.add_argument("--quiet", action="store_true", help="only trouble and the summary")
    parser.add_argument(
        "words", nargs="*", metavar="key=value", help="overrides of the study; site.key=value of the site"
    )
    return parser


def parse_options(description: str, argv: list[str] | None, *, packed: bool) -> argparse.Namespace:
    """What a command says in the options of `options_parser`."""
    return options_parser(description, packed=packed).parse_intermixed_args(argv)


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
    stop_at: float | None = None
    """Seconds since the epoch at which packs drain, for the allocation ends soon after."""
    give_up_at: float | None = None
    """Seconds since the epoch at which packs that have not ended are waited for no more."""
    stop: Stop = field(default_factory=Stop)
    on_out_of_time: Callable[[], None] = lambda: None
    """Called where the study stopped at `stop_at` with runs left."""
    journal: Journal = field(default_factory=Journal)
    """What this start writes down for those who ask how it goes."""
    more: Callable[[], bool] = lambda: False
    """Called where nothing is left to sample: whether it has put another study in the place of this one."""
    _launcher: Launcher | None = None
    """What starts single processes on the nodes of the allocation that this study is in."""
    _nodes: Iterator[str] = field(default_factory=lambda: iter(()))
    console: Console = field(default_factory=lambda: Console(width=None if sys.stdout.isatty() else LOG_WIDTH))

    @classmethod
    def from_options(cls, args: argparse.Namespace, *, packed: bool) -> Flow:
        """Compose study and site; ConfigError for whatever could not run, before anything is touched."""
        options = {"pack": getattr(args, "pack", None), "retries": args.retries, "site": args.site}
        options |= {"store_root": args.store, "results_root": args.results}
        options["lanes"] = getattr(args, "lanes", None)
        given = {key: value for key, value in options.items() if value is not None}
        if "lanes" in given:
            check_lanes("--lanes", given["lanes"])
        for option in ("pack", "retries"):
            least = 1 if option == "pack" else 0
            if option in given and given[option] < least:
                raise ConfigError(f"--{option}: got {given[option]}, expected an integer of at least {least}")
        study = compose_study(args.experiments, args.words, given)
        site = load_site(
            study.settings.site,
            study.site_overrides,
            {
                "--ranks": ("ranks_per_node", getattr(args, "ranks", None)),
                "--nodes": ("nodes_per_block", getattr(args, "nodes", None)),
                "--walltime": ("walltime", getattr(args, "walltime", None)),
            },
        )
        stop_at = scheduler_deadline(os.environ) if isinstance(site, AllocationSite) else None
        kept = MARGIN[1]
        if getattr(args, "deadline", None) is not None:
            deadline, now = parse_deadline(args.deadline, time.time()), time.time()
            kept = margin(deadline - now)
            stop_at = min(deadline - kept, math.inf if stop_at is None else stop_at)
        store = Store(study.settings.store_root)
        costs = read_costs(store.root, site.cores_per_rank, site.gpus_per_node)
        return cls(
            study=study.priced(costs, store.targets_dir),
            store=store,
            site=site,
            results_root=Path(study.settings.results_root).expanduser().absolute(),
            rerun=args.rerun,
            quiet=args.quiet,
            packed=packed,
            stop_at=stop_at,
            give_up_at=None if stop_at is None else stop_at + kept / 2,
            _launcher=find_launcher(site.launcher) if isinstance(site, AllocationSite) else None,
            _nodes=itertools.cycle(site.nodes),
        )

    def run(self, submit: Callable[[Flow, Round], None], dry_run: Callable[[Flow, Plan], None], dry: bool) -> int:
        """Plan, run rounds until nothing is left or the retries are used up, collect, report; the exit status."""
        started = time.monotonic()
        if not dry:
            self.check_folders()
        plan = self.plan(self.rerun, look_only=dry)
        if dry or not self.quiet:
            self.show_plan(plan)
        if dry:
            dry_run(self, plan)
            return EXIT_OK
        if isinstance(self.site, BatchSite):
            require_scheduler(self.site.kind).check_server()
        self.make_folders()
        with keep_journal(self, plan) as self.journal:
            self.journal.exit_status = self._carry_out(plan, submit, started)
        return self.journal.exit_status

    def _carry_out(self, plan: Plan, submit: Callable[[Flow, Round], None], started: float) -> int:
        tries = Tries(self, submit)
        stopped = in_a_hurry = False
        if plan.runs or plan.elsewhere:
            with self.stop.on_signals():
                try:
                    tries.run(plan)
                except Stopped:
                    stopped = in_a_hurry = True
                except OutOfTime:
                    in_a_hurry = True
                    self.say("the allocation ends soon: stopped; what is finished is kept")
                    if self.plan(None).runs:
                        self.on_out_of_time()
        status = self.report(time.monotonic() - started, tries, page=not (in_a_hurry or self.is_late))
        return EXIT_INTERRUPTED if stopped else status

    @property
    def is_late(self) -> bool:
        """Whether the time at which packs drain is over."""
        return self.stop_at is not None and time.time() >= self.stop_at

    def plan(self, rerun: Rerun, own_lease: Path | None = None, look_only: bool = False) -> Plan:
        """The study held against the store as it is now."""
        return make_plan(self.store, self.study, rerun, own_lease=own_lease, look_only=look_only)

    @contextlib.contextmanager
    def workers(self, lease: Lease, builds: bool = True) -> Iterator[Workers]:
        """Parsl's workers on the site, for the duration of the block; `lease` is withdrawn at its end.

        builds: whether there are targets to build; packs alone need no workers for single processes.
        """
        # Where Parsl's own log cannot be written, the disk being full, Python would print a traceback for every line.
        logging.raiseExceptions = False
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        with contextlib.ExitStack() as stack:
            name = f"{stamp}-{lease.path.stem[-4:]}"
            run_dir = self.store.root / "parsl" / name
            with writing(run_dir):
                config = stack.enter_context(
                    parsl_config(self.site, run_dir, self.packed, lease.path, tasks=builds or not self.packed)
                )
                kernel = _load(config)
            blocks = None
            if isinstance(self.site, BatchSite):
                blocks = Blocks(self.site, config.executors, self.say, lease, self.journal)
                stack.callback(blocks.cancel)
            # Withdrawing the lease first lets everything that still computes end by itself while Parsl shuts down.
            stack.callback(_clean_up, kernel, config.executors)
            stack.callback(lease.withdraw)
            yield Workers(lease, name, blocks, config.executors)

    def on_site(self, cfg: Config) -> Config:
        """`cfg` for a process of its own on this site: it gives XLA as many cores as a rank has."""
        return replace(cfg, runtime=replace(cfg.runtime, cores_per_rank=self.site.cores_per_rank))

    def place(self, argv: list[str], env: dict[str, str]) -> tuple[list[str], dict[str, str]]:
        """`argv` and environment of one process beside the packs: on the next node, if this is an allocation.

        It computes on cores: a pack on the same node owns the GPUs.
        """
        env = {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"), **env}
        if self._launcher is None:
            return argv, env
        launch = Launch((next(self._nodes),), 1, self.site.cores_per_rank)
        env |= launch_environment(self._launcher, launch, os.environ)
        prefix = build_prefix(self._launcher, launch.nodes[0], launch.cores_per_rank, {**os.environ, **env})
        return [*prefix, *argv], env

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
            self.say(f"expected cost: about {self.price(self.seconds(plan))}, {self.study.costs.basis}")
            for note in self.idle_notes(plan) if self.packed else ():
                self.say(f"note: {note}")
        elif not plan.failed_runs and not plan.blocked_runs and not plan.elsewhere:
            self.say("everything is cached; no sampler is started")
        for runs, what in (
            (plan.failed_runs, "failed earlier"),
            (plan.blocked_runs, "wait for a target that failed earlier"),
        ):
            if runs:
                self.say(f"{len(runs)} runs {what}; --rerun failed tries them again")

    def seconds(self, plan: Plan) -> float:
        """Expected rank-seconds of a plan, compilation in every process that needs it included."""
        packs = plan.packs(self.study.settings.pack) if self.packed else [[run] for run in plan.runs]
        return sum(self.pack_seconds(runs) for runs in packs)

    def pack_seconds(self, runs: list[PlannedRun]) -> float:
        """Expected rank-seconds of one pack."""
        ranks = self.num_ranks if self.packed else 1
        return self.study.costs.pack_seconds(((run.cfg.name, run.program, run.cost) for run in runs), ranks)

    def longest_run(self, runs: list[PlannedRun]) -> float:
        """Expected seconds of the run that takes longest, where it is the first one of its program on a rank."""
        return max(run.cost + self.study.costs.compile_seconds(run.cfg.name) for run in runs)

    @property
    def num_ranks(self) -> int | None:
        """Ranks of a pack; None where the site does not say, and only a node of it could."""
        site = self.site
        told = site.kind == "local" or site.ranks_per_node or site.gpus_per_node or site.node_cores
        return site.resources["num_ranks"] if told else None

    def price(self, rank_seconds: float) -> str:
        """Core-hours or GPU-hours of the site's ranks; single processes compute on cores."""
        site = self.site
        return price(rank_seconds, site.cores_per_rank, site.gpus_per_node if self.packed else 0, site.ranks_per_gpu)

    def idle_notes(self, plan: Plan) -> Iterator[str]:
        """Sentences on nodes and ranks that this plan would leave without work, and on runs that no block is long
        enough for."""
        site, packs = self.site, plan.packs(self.study.settings.pack)
        idle = (site.packs_per_block - len(packs)) * site.pack_nodes
        if idle > 0:
            fair = math.ceil(len(plan.runs) / site.packs_per_block)
            remedy = f"--pack {fair} gives all of them one" if fair < self.study.settings.pack else "ask for fewer"
            yield f"{idle} of the {site.block_nodes} nodes of a block would have no pack; {remedy}"
        ranks = self.num_ranks
        if site.kind != "local" and ranks is not None:
            small = sum(len(pack) < ranks for pack in packs)
            if small:
                yield f"{small} of {len(packs)} packs have fewer runs than their {ranks} ranks, some of which will idle"
        longest = self.longest_run(plan.runs)
        if isinstance(site, BatchSite) and longest > site.walltime_seconds:
            yield (
                f"a run is expected to take {longest:.0f} s, longer than the walltime of a block, "
                f"{site.walltime_seconds} s; it will go on from its checkpoint in further blocks, or write "
                "site.walltime=HH:MM:SS"
            )

    def check_folders(self) -> None:
        """StoreError, before anything is made, where store or results folder cannot be written."""
        check_folder(self.store.root, "store", "give another one with --store DIR or store_root: DIR")
        check_folder(self.results_root, "results folder", "give another one with --results DIR")

    def make_folders(self) -> None:
        """Make store and results folder; StoreError, before either is made, where one cannot be written."""
        self.check_folders()
        self.store.ensure_writable()
        self.results_root.mkdir(parents=True, exist_ok=True)

    def report(self, seconds: float, tries: Tries, page: bool) -> int:
        """Collect the table, draw the pictures, with `page` make that as well, print the summary; the exit status says
        how the plan stands."""
        # pandas, pyarrow and matplotlib take longer to import than a small study to plan.
        from lambda_hat.calibration import update_costs
        from lambda_hat.report import draw_pictures, write_pictures, write_report
        from lambda_hat.results import RunRef, collect, write_table
        from lambda_hat.summary import print_summary, rank_usage

        refs = [RunRef(r.target_id, r.run_id, self.study.targets[r.target_id], r.cfg) for r in self.study.runs]
        table = collect(self.store, refs)
        shapes = {t: shape_in_store(build, self.store.target_dir(t)) for t, build in self.study.targets.items()}
        # What the next study is expected to cost is worth less than this one's table.
        with contextlib.suppress(StoreError):
            update_costs(self.store, table, [(shapes[ref.target_id], ref.cfg) for ref in refs])
        try:
            where = {"table": write_table(table, self.results_root)}
            pictures = draw_pictures(table)
            where |= write_pictures(pictures, self.results_root)
        except OSError as error:
            raise StoreError(f"{self.results_root}: cannot be written: {error.strerror or error}") from None
        if page:
            where |= self._guarded(lambda: write_report(self.store, table, self.results_root, pictures).page)
        where["store"] = self.store.root
        usage = rank_usage(tries.pack_dirs)
        print_summary(table, self.console, seconds=seconds, usage=usage, where=where, tries=tries.tally.line())
        statuses = set(table.column("status").to_pylist())
        self._say_failures(table.to_pylist())
        if not page:
            self.say(f"no time for the page of the study; {self._report_command()} makes it")
        if "pending" in statuses:
            self.say("some runs are unfinished: run the same command again to continue")
            return EXIT_UNFINISHED
        return EXIT_FAILED if statuses & {"failed", "blocked"} else EXIT_OK

    def _guarded(self, make_page: Callable[[], Path]) -> dict[str, Path]:
        """Where the page of the study lies; empty where it could not be made, which is said and no more: the study
        itself stands in the table."""
        try:
            return {"report": make_page()}
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            self.say(f"no report: {why}; {self._report_command()} tries again, and shows more")
            return {}

    def _report_command(self) -> str:
        words = [f"--store={os.path.relpath(self.store.root)}", f"--results={os.path.relpath(self.results_root)}"]
        return shlex.join(["lambda-hat", "report", *words])

    def _say_failures(self, rows: list[dict]) -> None:
        trouble = [row for row in rows if row["status"] in ("failed", "blocked")]
        tails: set[Path] = set()
        for row in trouble[:MOST_FAILURES]:
            failed = row["status"] == "failed"
            directory = Path(row["run_dir"]) if failed else self.store.target_dir(row["target_id"])
            self.say(f"{row['status']}: {row['target_id']}/{row['run_id']}: {row['reason']}")
            self.say(f"    see {directory / 'error.json'}")
            log = log_of(self.store, directory) if failed else directory / "build.err"
            if log not in tails and (tail := log_tail(log)):
                tails.add(log)
                self.say(tail.lstrip("\n"))
        if len(trouble) > MOST_FAILURES:
            self.say(f"... and {len(trouble) - MOST_FAILURES} more; the table has every reason")
        if trouble:
            words = " ".join([*_original_words(), "--rerun", "failed"])
            self.say(f"to run just these again: {words}")

    def say(self, sentence: str) -> None:
        self.console.print(sentence, soft_wrap=True, markup=False, highlight=False)


def _original_words() -> list[str]:
    words = [word for word in sys.argv[1:] if word != "--dry-run"]
    return ["python", shlex.quote(os.path.relpath(sys.argv[0])), *map(shlex.quote, words)]


def _load(config: ParslConfig) -> DataFlowKernel:
    """Start Parsl. Raises OSError, and LaunchError where its interchange was killed as it started."""
    import parsl

    try:
        return parsl.load(config)
    except Exception as error:
        # Parsl has no class of its own for this.
        if "Interchange failed to start" not in str(error):
            raise
        raise LaunchError(f"{error}; logs: {config.run_dir}; run the same command again") from None


def _clean_up(kernel: DataFlowKernel, executors: Sequence[ParslExecutor]) -> None:
    """End Parsl. It asks nothing of an executor whose interchange is known to be gone."""
    from parsl.executors.high_throughput.errors import CommandClientBadError, CommandClientTimeoutError

    for executor in executors:
        fail_where_lost(executor)
    # One that was lost just now ends with this process, and so do its workers.
    with contextlib.suppress(CommandClientBadError, CommandClientTimeoutError):
        kernel.cleanup()


@dataclass
class Workers:
    """What a study has while its workers run."""

    lease: Lease
    name: str
    """Unique to this start of a driver."""
    blocks: Blocks | None
    executors: Sequence[ParslExecutor]
    progress: StudyProgress | None = None

    def lack(self, builds: bool) -> bool:
        """Whether there is no executor for builds that are needed."""
        return builds and all(executor.label != TASKS for executor in self.executors)

    @property
    def lost(self) -> bool:
        """Whether an executor takes nothing any more, so that workers have to be started anew."""
        return any(executor.bad_state_is_set for executor in self.executors)

    def look(self) -> bool:
        """Fail what can get no answer any more, and say what is new about the blocks, where a scheduler gives them.

        Raises as `Blocks.look`.
        """
        for executor in self.executors:
            fail_where_lost(executor)
        if self.blocks is not None:
            self.blocks.progress = self.progress
            self.blocks.look()
        return True
