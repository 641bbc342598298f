"""Hands items out to ranks while they compute: dynamically, longest first, and every rank works.

`mpi/handout.py` decides which item goes to which rank. A thread on rank 0 answers the claims of the other ranks, and
the main thread of rank 0 claims through a lock. The thread answers within milliseconds while rank 0 computes, because
XLA releases the interpreter lock. (A passive-target RMA counter would stall while rank 0 is inside an XLA call, and
`mpi4py.futures` would keep rank 0 from working.)

When rank 0 drains, it hands nothing more out, and tells the other ranks, which look for that message between the chunks
of their runs.
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

from lambda_hat.errors import EXIT_FAILED, EXIT_INTERRUPTED, LaunchError, is_interruption
from lambda_hat.store.drain import Drain
from mpi.handout import Handout, Item, outcomes_of

CLAIM, ANSWER, DRAIN = 1, 2, 3
"""Tags of messages."""
POLL_SHORTEST, POLL_LONGEST = 0.0005, 0.005
"""Seconds between two looks for a message. Idle ranks sleep in between, because a blocking receive spins, and would
take the core from a rank that computes."""
SWITCH_INTERVAL = 0.0005
"""Seconds that the coordinator waits for the interpreter at each message, while rank 0 traces a program and holds it.
Python's own interval is 5 ms."""

LAST_WORDS = 0.5
"""Seconds that a rank waits before an abort, because Hydra ends the job at once and drops the output that it has not
read yet."""


@dataclass(frozen=True)
class World:
    """The MPI processes of this launch."""

    rank: int
    size: int
    comm: Any | None
    """The communicator; None: this process is the only one."""

    def abort(self, code: int) -> NoReturn:
        """End every rank, this process included, at once with the exit status `code`."""
        sys.stdout.flush()
        sys.stderr.flush()
        if self.comm is not None:
            time.sleep(LAST_WORDS)
            self.comm.Abort(code)
        os._exit(code)


def start_mpi(launched: int | None) -> World:
    """Initialise MPI with the thread support that `dispatch` needs.

    Without mpi4py or its library, a process that was not launched as one of several is a world of its own.

    Args:
        launched: Number of processes that the launcher says it started; None: there is no launcher.

    Raises:
        LaunchError: MPI is needed and missing, or offers less than MPI_THREAD_SERIALIZED.
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
    """Print to standard error."""
    print(text, file=sys.stderr, flush=True)


def install_abort_hooks(world: World, report: Callable[[str], None] = to_stderr) -> None:
    """Let an uncaught exception on any rank, in any thread, end the whole job at once.

    Without this the other ranks would wait for ever.

    Args:
        world: The processes of this launch.
        report: Called with the traceback, rank and host; by default it prints them.
    """

    def end(kind: type[BaseException], value: BaseException | None, trace: Any, where: str) -> None:
        place = f"rank {world.rank} of {world.size} on {socket.gethostname()}{where}"
        if is_interruption(value):
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
    world: World,
    items: Sequence[Item],
    do: Callable[[str], list[str]],
    drain: Drain | None = None,
    on_begin: Callable[[Handout], None] = lambda handout: None,
) -> Counter[str]:
    """Call `do(key)` once for every item, on whichever rank is free. Every rank calls this.

    A rank that finds nothing left sleeps until every item of every rank has ended, so nothing is under way anywhere
    when this returns. An exception out of `do` must end the job (`install_abort_hooks`), because the other ranks would
    wait for its item.

    Args:
        world: The processes of this launch.
        items: The items; only those of rank 0 count.
        do: Does an item, and returns its outcomes.
        drain: Asked on rank 0 whether to hand out more, as in `Handout`. When it is requested there, it is requested on
            the other ranks as well. By default there is none.
        on_begin: Called on rank 0 with the state of the hand-out, before anything goes out.

    Returns:
        The number of outcomes of each kind, the same on all ranks; those of items not handed out are `left`.
    """
    drain = drain or Drain()
    if world.rank > 0:
        return _work_remotely(world.comm, world.rank, do, drain)
    handout = Handout(items, drain)
    on_begin(handout)
    with _answering(world, handout, drain) if world.size > 1 else contextlib.nullcontext():
        while (key := handout.wait_and_take(world.rank)) is not None:
            handout.end(key, do(key))
    return outcomes_of(handout)


@contextlib.contextmanager
def _answering(world: World, handout: Handout, drain: Drain) -> Iterator[None]:
    """Let the coordinator answer the other ranks inside the block.

    The end of the block waits until all ranks have been told that everything is done, unless there was an exception.
    """
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
    # MPICH's probe looks at received messages before it receives new ones; the second probe finds the new ones.
    return comm.iprobe(tag=tag, **source) or comm.iprobe(tag=tag, **source)


def _work_remotely(comm: Any, rank: int, do: Callable[[str], list[str]], drain: Drain) -> Counter[str]:
    told = False

    def heard() -> str | None:
        nonlocal told
        if not told and _arrived(comm, DRAIN, source=0):
            told = True
            return comm.recv(source=0, tag=DRAIN)
        return None

    # Only this thread asks, and only this thread of the process calls MPI.
    drain.listen(heard)
    ended: tuple[str, list[str]] | None = None
    while True:
        # A claim also reports the end of the item before.
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
    """Run the coordinator's thread until every other rank has been told that everything is done."""
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
