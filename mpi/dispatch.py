"""Handing items out to ranks while they compute: dynamic, longest first, and every rank works. Which item goes to
whom is the business of `mpi/handout.py`.

A thread on rank 0 answers the claims of the other ranks; rank 0's main thread claims through a lock. The thread answers
within milliseconds while rank 0 computes, because XLA releases the interpreter lock. (A passive-target RMA counter
stalls for as long as rank 0 is inside an XLA call; `mpi4py.futures` keeps rank 0 from working.)

Where rank 0 drains, nothing more is handed out, and it tells the others, which look for the message between the chunks
of what they compute.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from lambda_hat.drain import Drain
from lambda_hat.errors import EXIT_FAILED, EXIT_INTERRUPTED, LaunchError
from mpi.handout import Handout, Item, outcomes_of

CLAIM, ANSWER, DRAIN = 1, 2, 3
POLL_SHORTEST, POLL_LONGEST = 0.0005, 0.005
"""Seconds between two looks for a message. Idle ranks sleep in between: a blocking receive spins, and would take the
core from a rank that computes."""
SWITCH_INTERVAL = 0.0005
"""Seconds that the coordinator waits for the interpreter at each message while rank 0 traces a program, which holds it;
the interpreter's own interval is 5 ms."""

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


def dispatch(
    world: World, items: Sequence[Item], do: Callable[[str], list[str]], drain: Drain | None = None
) -> Counter[str]:
    """Call `do(key)` once for every item, on whichever rank is free, and count the outcomes that it returned, on all
    ranks alike; those of items that were not handed out are `left`.

    Called by every rank; `items` matters on rank 0 only. `drain`: as of `Handout`; that of another rank is asked for
    when that of rank 0 is. A rank that finds nothing left stays, asleep, until every item of every rank has ended, so
    nothing is under way anywhere when this returns. An exception out of `do` must end the job (`install_abort_hooks`);
    the other ranks would wait for its item.
    """
    drain = drain or Drain()
    if world.rank > 0:
        return _work_remotely(world.comm, world.rank, do, drain)
    handout = Handout(items, drain)
    with _answering(world, handout, drain) if world.size > 1 else contextlib.nullcontext():
        while (key := handout.wait_and_take(world.rank)) is not None:
            handout.end(key, do(key))
    return outcomes_of(handout)


@contextlib.contextmanager
def _answering(world: World, handout: Handout, drain: Drain) -> Iterator[None]:
    """Inside the block the coordinator answers the other ranks; left without an exception, it waits until they have all
    been told that all is done."""
    coordinator = threading.Thread(
        target=_answer_claims, args=(world.comm, world.size, handout, drain), name="coordinator", daemon=True
    )
    coordinator.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        yield
        coordinator.join()
    finally:
        sys.setswitchinterval(interval)


def _arrived(comm: Any, tag: int, **source: int) -> bool:
    # MPICH's probe looks among what was taken in before it takes in what has come: the second one finds that.
    return comm.iprobe(tag=tag, **source) or comm.iprobe(tag=tag, **source)


def _work_remotely(comm: Any, rank: int, do: Callable[[str], list[str]], drain: Drain) -> Counter[str]:
    told = False

    def heard() -> str | None:
        nonlocal told
        if not told and _arrived(comm, DRAIN, source=0):
            told = True
            return comm.recv(source=0, tag=DRAIN)
        return None

    # Asked by this thread alone, which is the only one of this process to call MPI.
    drain.listen(heard)
    ended: tuple[str, list[str]] | None = None
    while True:
        # A claim carries the end of the item before it.
        comm.send((rank, ended), dest=0, tag=CLAIM)
        pause = POLL_SHORTEST
        while not _arrived(comm, ANSWER, source=0):
            time.sleep(pause)
            pause = min(pause * 1.2, POLL_LONGEST)
        key, outcomes = comm.recv(source=0, tag=ANSWER)
        if key is None:
            outcomes, was_told = outcomes
            if was_told and not told:
                comm.recv(source=0, tag=DRAIN)
            return outcomes
        ended = (key, do(key))


def _answer_claims(comm: Any, size: int, handout: Handout, drain: Drain) -> None:
    """The coordinator's thread: ends when every other rank has been told that all is done."""
    idle: deque[int] = deque()
    told = False
    pause = POLL_SHORTEST
    while True:
        while _arrived(comm, CLAIM):
            rank, ended = comm.recv(tag=CLAIM)
            if ended is not None:
                handout.end(*ended)
            idle.append(rank)
            pause = POLL_SHORTEST
        while idle and (key := handout.take(idle[0])) is not None:
            comm.send((key, None), dest=idle.popleft(), tag=ANSWER)
        if not told and drain.reason is not None:
            told = True
            for rank in range(1, size):
                comm.send(drain.reason, dest=rank, tag=DRAIN)
        if handout.done and len(idle) == size - 1:
            for rank in idle:
                comm.send((None, (outcomes_of(handout), told)), dest=rank, tag=ANSWER)
            return
        time.sleep(pause)
        pause = min(pause * 1.2, POLL_LONGEST)
