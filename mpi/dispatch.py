"""Handing items out to ranks while they compute: dynamic, longest first, and every rank works.

A thread on rank 0 answers the claims of the other ranks; rank 0's main thread claims through a lock. The thread answers
within milliseconds while rank 0 computes, because XLA releases the interpreter lock. (A passive-target RMA counter
stalls for as long as rank 0 is inside an XLA call; `mpi4py.futures` keeps rank 0 from working.)
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from lambda_hat.errors import EXIT_FAILED, EXIT_INTERRUPTED, LaunchError

CLAIM, ANSWER = 1, 2
POLL_SHORTEST, POLL_LONGEST = 0.0005, 0.005
"""Seconds between two looks for a message. Idle ranks sleep in between: a blocking receive spins, and would take the
core from a rank that computes."""

LAST_WORDS = 0.5
"""Seconds before an abort: Hydra ends the job at once, and drops what it has not yet read of a rank's output."""


@dataclass(frozen=True)
class World:
    """The MPI processes of this launch; `comm` is None where there is only this one."""

    rank: int
    size: int
    comm: Any | None

    def abort(self, code: int) -> NoReturn:
        """End every rank at once with `code`, this process too."""
        sys.stdout.flush()
        sys.stderr.flush()
        if self.comm is not None:
            time.sleep(LAST_WORDS)
            self.comm.Abort(code)
        os._exit(code)


def start_mpi(launched: int | None) -> World:
    """Initialise MPI with the thread support that `dispatch` needs.

    Where mpi4py or its library is missing, a process that was not launched as one of several is a world of its own.
    `launched`: how many processes the launcher says it started, None when there is none.

    Raises LaunchError where MPI is needed and missing, or offers less than MPI_THREAD_SERIALIZED.
    """
    try:
        import mpi4py

        # Only one thread of a process ever calls MPI at a time; MPI_THREAD_MULTIPLE is not everywhere.
        mpi4py.rc.thread_level = "serialized"
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        if launched is not None and launched > 1:
            raise LaunchError(
                f"the launcher started {launched} processes, but mpi4py cannot be used here ({error}); write "
                "pip install 'lambda-hat[mpi]', or start one process without a launcher"
            ) from None
        return World(0, 1, None)
    comm = MPI.COMM_WORLD
    if comm.size == 1:
        return World(0, 1, None)
    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise LaunchError(
            "this MPI library offers less than MPI_THREAD_SERIALIZED, which the hand-out of runs needs; write "
            "mpi: bundled in the site, or load an MPI built with thread support"
        )
    return World(comm.rank, comm.size, comm)


def to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def install_abort_hooks(world: World, report: Callable[[str], None] = to_stderr) -> None:
    """Let an uncaught exception on any rank, in any thread, end the whole job at once; `report` gets its traceback with
    rank and host. Without this the other ranks wait for ever."""

    def end(kind: type[BaseException], value: BaseException | None, trace: Any, where: str) -> None:
        place = f"rank {world.rank} of {world.size} on {socket.gethostname()}{where}"
        if issubclass(kind, KeyboardInterrupt):
            report(f"{place}: interrupted")
            world.abort(EXIT_INTERRUPTED)
        text = "".join(traceback.format_exception(kind, value, trace))
        report(f"{place}: uncaught exception, ending every rank\n{text}")
        world.abort(EXIT_FAILED)

    def in_thread(args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread is not None else "unknown"
        end(args.exc_type, args.exc_value, args.exc_traceback, f", thread {name}")

    sys.excepthook = lambda kind, value, trace: end(kind, value, trace, "")
    threading.excepthook = in_thread


@dataclass(frozen=True)
class Item:
    """Something to be done once."""

    key: str
    needs: str | None = None
    """An item that must have ended before, however it ended."""
    cost: float = 0.0
    """Expected seconds."""
    program: str | None = None
    """Items of equal program share compiled code, so the second one on a rank is cheaper than the first."""


class Handout:
    """The state of a hand-out, on rank 0; safe to use from several threads.

    Items go out in the given order, longest first, with two exceptions. One whose need is still under way is passed
    over. And of the items that cost at least half as much as the next one, a rank gets one whose program it has
    compiled already, else one whose program no rank has: compiling often costs more than sampling.
    """

    def __init__(self, items: Sequence[Item]):
        known: set[str] = set()
        for item in items:
            if item.needs is not None and item.needs not in known:
                raise ValueError(f"{item.key} needs {item.needs}, which is not an item before it")
            if item.key in known:
                raise ValueError(f"{item.key} is listed twice")
            known.add(item.key)
        self._waiting = list(items)
        self._under_way: set[str] = set()
        self._ended: set[str] = set()
        self._programs: dict[int, set[str]] = defaultdict(set)
        self._changed = threading.Condition()
        self.outcomes: Counter[str] = Counter()

    @property
    def done(self) -> bool:
        """Every item has ended."""
        return not self._waiting and not self._under_way

    def end(self, key: str, outcome: str) -> None:
        """Item `key`, handed out before, has ended."""
        with self._changed:
            self._under_way.remove(key)
            self._ended.add(key)
            self.outcomes[outcome] += 1
            self._changed.notify_all()

    def take(self, rank: int) -> str | None:
        """An item for `rank`, or None where there is none now."""
        with self._changed:
            ready = [item for item in self._waiting if item.needs is None or item.needs in self._ended]
            if not ready:
                return None
            item = self._choose(rank, ready)
            self._waiting.remove(item)
            self._under_way.add(item.key)
            if item.program is not None:
                self._programs[rank].add(item.program)
            return item.key

    def _choose(self, rank: int, ready: list[Item]) -> Item:
        if ready[0].program is None:
            return ready[0]
        compiled = set().union(*self._programs.values())
        similar = [item for item in ready if item.program is not None and item.cost >= ready[0].cost / 2]
        own = (item for item in similar if item.program in self._programs[rank])
        new = (item for item in similar if item.program not in compiled)
        return next(own, None) or next(new, None) or ready[0]

    def wait_and_take(self, rank: int) -> str | None:
        """An item for `rank`, waited for where needs are under way; None when every item has ended."""
        with self._changed:
            while True:
                key = self.take(rank)
                if key is not None or self.done:
                    return key
                self._changed.wait()


def dispatch(world: World, items: Sequence[Item], do: Callable[[str], str]) -> Counter[str]:
    """Call `do(key)` once for every item, on whichever rank is free, and count what it returned, on all ranks alike.

    Called by every rank; `items` matters on rank 0 only. A rank that finds nothing left stays, asleep, until every item
    of every rank has ended, so nothing is under way anywhere when this returns. An exception out of `do` must end the
    job (`install_abort_hooks`); the other ranks would wait for its item.
    """
    if world.rank > 0:
        return _work_remotely(world.comm, world.rank, do)
    handout = Handout(items)
    if world.size > 1:
        coordinator = threading.Thread(
            target=_answer_claims, args=(world.comm, world.size, handout), name="coordinator", daemon=True
        )
        coordinator.start()
    while (key := handout.wait_and_take(world.rank)) is not None:
        handout.end(key, do(key))
    if world.size > 1:
        coordinator.join()
    return handout.outcomes


def _work_remotely(comm: Any, rank: int, do: Callable[[str], str]) -> Counter[str]:
    ended: tuple[str, str] | None = None
    while True:
        # A claim carries the end of the item before it.
        comm.send((rank, ended), dest=0, tag=CLAIM)
        pause = POLL_SHORTEST
        while not comm.iprobe(source=0, tag=ANSWER):
            time.sleep(pause)
            pause = min(pause * 1.2, POLL_LONGEST)
        key, outcomes = comm.recv(source=0, tag=ANSWER)
        if key is None:
            return outcomes
        ended = (key, do(key))


def _answer_claims(comm: Any, size: int, handout: Handout) -> None:
    """The coordinator's thread: ends when every other rank has been told that all is done."""
    idle: list[int] = []
    pause = POLL_SHORTEST
    while True:
        while comm.iprobe(tag=CLAIM):
            rank, ended = comm.recv(tag=CLAIM)
            if ended is not None:
                handout.end(*ended)
            idle.append(rank)
            pause = POLL_SHORTEST
        while idle and (key := handout.take(idle[0])) is not None:
            comm.send((key, None), dest=idle.pop(0), tag=ANSWER)
        if handout.done and len(idle) == size - 1:
            for rank in idle:
                comm.send((None, handout.outcomes), dest=rank, tag=ANSWER)
            return
        time.sleep(pause)
        pause = min(pause * 1.2, POLL_LONGEST)
