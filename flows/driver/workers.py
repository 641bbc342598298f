"""Parsl's workers on a site: started for a block of code, watched, and cleaned up."""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from flows.driver.request import Request
from flows.driver.screen import StudyProgress
from flows.driver.stopping import kill_under
from flows.sites.blocks import Blocks
from flows.sites.executors import PACKS, TASKS, parsl_config
from flows.sites.interchange import end_parsl, fail_where_lost, start_parsl
from flows.sites.limits import check_limits
from flows.sites.scheduler import Pbs
from flows.sites.several import packs_label
from flows.sites.site_schemas import BatchSite, PbsSite
from lambda_hat.store.heartbeat import Heartbeat
from lambda_hat.store.layout import writing

if TYPE_CHECKING:
    from parsl.executors import HighThroughputExecutor
    from parsl.executors.base import ParslExecutor

    from flows.sites.beside import Beside
    from flows.sites.blocks import BatchExecutor


@dataclass(frozen=True)
class Workers:
    """What runs the apps of a driver."""

    heartbeat: Heartbeat
    name: str
    """No other start of workers in this store has it."""
    blocks: Blocks | None
    """None: no scheduler gives blocks for these workers."""
    executors: Sequence[ParslExecutor]

    def lack(self, builds: bool) -> bool:
        """Whether builds are needed and no executor takes them."""
        return builds and all(executor.label != TASKS for executor in self.executors)

    @property
    def lost(self) -> bool:
        """Whether an executor takes nothing any more, so that new workers are needed."""
        # An executor of a Python site may have no such state, as Parsl's ThreadPoolExecutor.
        return any(getattr(executor, "bad_state_is_set", False) for executor in self.executors)

    def show_on(self, progress: StudyProgress) -> None:
        """Show on `progress` what happens to blocks from now on."""
        if self.blocks is not None:
            self.blocks.progress = progress

    def leave_out(self, nodes: Sequence[str]) -> None:
        """Let packs run on no node of these, and SLURM's next blocks have none."""
        self.heartbeat.leave_out(nodes)
        for executor in self.executors:
            if hasattr(executor, "leave_out"):
                cast("Beside", executor).leave_out(nodes)
            elif self.blocks is not None:
                cast("BatchExecutor", executor).provider.left_out = nodes

    @property
    def may_have_idle_nodes(self) -> bool:
        """Whether packs may end, or blocks start, while other packs are at work."""
        return self.blocks is not None or any(getattr(executor, "places", 1) > 1 for executor in self._of_packs)

    @property
    def _of_packs(self) -> list[ParslExecutor]:
        return [executor for executor in self.executors if executor.label == PACKS]

    def places(self) -> int:
        """How many packs the nodes take that are there now."""
        from parsl.executors.high_throughput.errors import CommandClientBadError, CommandClientTimeoutError

        found = 0
        for executor in self._of_packs:
            if self.blocks is None:
                found += cast("Beside", executor).places
                continue
            with contextlib.suppress(CommandClientBadError, CommandClientTimeoutError):
                managers = cast("HighThroughputExecutor", executor).connected_managers()
                found += sum(each["worker_count"] for each in managers if each["active"] and not each["draining"])
        return found

    def keep_blocks(self, wanted: bool) -> None:
        """Give back no block of packs while there will be work for it, though no pack waits."""
        if self.blocks is not None:
            for executor in self._of_packs:
                cast("BatchExecutor", executor).provider.kept = wanted

    def look(self) -> bool:
        """Fail tasks that can get no answer any more, and say what is new about blocks. Returns True.

        Raises as `Blocks.look`.
        """
        for executor in self.executors:
            fail_where_lost(executor)
        if self.blocks is not None:
            self.blocks.look()
        return True


@contextlib.contextmanager
def start_workers(
    request: Request, heartbeat: Heartbeat, builds: bool, say: Callable[[str], None], log_event: Callable[..., None]
) -> Iterator[Workers]:
    """Parsl's workers on the site while the block runs. At its end `heartbeat` is withdrawn.

    builds: whether targets have to be built. Packs alone need no workers for single processes.
    say, log_event: take a sentence, and an event of the driver log with its fields.
    Raises ConfigError, LaunchError and StoreUnwritable where they cannot be started, and SchedulerError where the packs
    would be refused once their targets are built.
    """
    # Where Parsl cannot write its own log, the disk being full, Python would print a traceback for every line.
    logging.raiseExceptions = False
    for site in request.sites.values():
        if isinstance(site, PbsSite) and request.packed and builds:
            check_limits(site, Pbs())
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    with contextlib.ExitStack() as stack:
        name = f"{stamp}-{heartbeat.path.stem[-4:]}"
        run_dir = request.store.root / "parsl" / name
        with writing(run_dir):
            tasks = builds or not request.packed
            others = {packs_label(name): site for name, site in request.sites.items() if name}
            config = parsl_config(request.site, run_dir, request.packed, heartbeat.path, tasks=tasks, others=others)
            kernel = start_parsl(config)
        blocks = None
        sites = {packs_label(name): site for name, site in request.sites.items() if isinstance(site, BatchSite)}
        if sites:
            labels = {*sites, TASKS} if isinstance(request.site, BatchSite) else set(sites)
            batch = cast("list[BatchExecutor]", [one for one in config.executors if one.label in labels])
            site = next(iter(sites.values()))
            blocks = Blocks(site, batch, say, heartbeat, log_event, batch[0].provider.jobs, sites)
            stack.callback(blocks.cancel)
        at_once = partial(_kill_where_interrupted, heartbeat.path)
        stack.push(at_once)
        stack.callback(end_parsl, kernel, config.executors)
        stack.push(at_once)
        # This comes first: what still computes then ends by itself while Parsl shuts down.
        stack.callback(heartbeat.withdraw)
        yield Workers(heartbeat, name, blocks, config.executors)


def _kill_where_interrupted(lease: Path, kind: type | None, error: BaseException | None, trace: Any) -> None:
    """Kill what the driver has started on this machine where it was told a second time to stop."""
    if isinstance(error, KeyboardInterrupt):
        kill_under(lease)
