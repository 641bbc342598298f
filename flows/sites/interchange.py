"""The interchange: the process through which one of Parsl's executors reaches its workers.

How it starts, what happens when it is lost, and how Parsl ends.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import InvalidStateError
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from flows.sites.shell_lines import PYTHON_M, TO_FILE
from lambda_hat.errors import LaunchError

if TYPE_CHECKING:
    from parsl import Config, DataFlowKernel
    from parsl.executors import HighThroughputExecutor
    from parsl.executors.base import ParslExecutor

ANSWER_SECONDS = 20.0
"""Parsl takes an interchange that gave no answer for so long for gone. An answer takes milliseconds."""
LOOK_SECONDS = 0.5
"""Between two looks whether an interchange that takes no task has ended."""


def start_by_module(executor: HighThroughputExecutor, parsl_dir: Path) -> None:
    """Let Parsl start its processes with this interpreter, and let the interchange end when this process does.

    The interchange's complaints, such as that it cannot write its log, go to a file in `parsl_dir`.
    """
    package = "parsl.executors.high_throughput"
    # Parsl finds its scripts by name on the PATH, and the first line that pip gives a script breaks where the path of
    # the environment has a space. Parsl fills braces in twice.
    python = shlex.join(PYTHON_M).replace("{", "{{{{").replace("}", "}}}}")
    executor.launch_cmd = executor.launch_cmd.replace(
        "process_worker_pool.py", f"{python} {package}.process_worker_pool"
    )
    # A killed driver would leave the interchange, and with it the worker pools, behind for minutes. Ctrl-C is for the
    # driver alone, which then shuts the interchange down. MPIExecutor's constructor refuses a list here.
    wrapper = [["setsid"], ["setpriv", "--pdeathsig", "TERM"]]
    prefix = [word for words in wrapper if shutil.which(words[0]) for word in words]
    complaints = ["sh", "-c", TO_FILE, str(parsl_dir / f"interchange-{executor.label}.err")]
    executor.interchange_launch_cmd = [*complaints, *prefix, *PYTHON_M, f"{package}.interchange"]


class InterchangeLost(Exception):
    """The interchange of an executor has ended."""


def bound_waits(executor: HighThroughputExecutor) -> None:
    """Let Parsl wait no longer than ANSWER_SECONDS for an interchange that has started.

    One that was killed gives no answer and takes no task: the thread that sends them, and the end of the driver, would
    wait for ever.
    """
    start, shutdown = executor.start, executor.shutdown
    in_use, closed = threading.Lock(), threading.Event()

    def start_bounded() -> None:
        start()
        client, tasks = executor.command_client, executor.outgoing_q
        client.run = partial(client.run, timeout_s=ANSWER_SECONDS)
        tasks.put = partial(put, tasks.put, tasks.zmq_socket)

    def put(send: Callable[[Any], None], socket: Any, message: Any) -> None:
        import zmq

        socket.setsockopt(zmq.SNDTIMEO, int(1000 * LOOK_SECONDS))
        # A message that nobody has taken when Parsl ends is for nobody.
        socket.setsockopt(zmq.LINGER, 0)
        deadline, process = time.monotonic() + ANSWER_SECONDS, executor.interchange_proc
        assert process is not None
        while time.monotonic() < deadline and process.poll() is None:
            with in_use, contextlib.suppress(zmq.Again):
                if closed.is_set() or executor.bad_state_is_set:
                    break
                send(message)
                return
        raise InterchangeLost("its interchange takes no task")

    def close(*args: Any, **kwargs: Any) -> None:
        # Closing a socket while another thread waits in it ends the process.
        closed.set()
        with in_use:
            shutdown(*args, **kwargs)

    executor.start, executor.shutdown = start_bounded, close


def fail_where_lost(executor: ParslExecutor) -> None:
    """Let an executor's tasks fail where its interchange has been killed. Parsl never looks for that."""
    from parsl.executors import HighThroughputExecutor

    if not isinstance(executor, HighThroughputExecutor):
        return
    process = executor.interchange_proc
    if process is None or process.poll() is None or executor.bad_state_is_set:
        return
    # A task that has just got its result is settled already.
    with contextlib.suppress(InvalidStateError):
        executor.set_bad_state_and_fail_all(
            InterchangeLost(f"its interchange, process {process.pid}, has ended with status {process.returncode}")
        )


def keep_waiting_blocks(executor: HighThroughputExecutor) -> None:
    """Let Parsl give back no block when it has none too many, or while its provider keeps them.

    Its strategy then asks to scale in by 0 blocks, which takes every idle one. A block that waits in the queue counts
    as idle: it would be cancelled and submitted again without end (seen: 8 jobs in place of 2).
    """
    scale_in = executor.scale_in

    def scale_in_some(blocks: int, max_idletime: float | None = None) -> list[str]:
        # Without an idle time all have to go.
        kept = max_idletime is not None and getattr(executor.provider, "kept", False)
        return scale_in(blocks, max_idletime) if blocks and not kept else []

    executor.scale_in = scale_in_some


def start_parsl(config: Config) -> DataFlowKernel:
    """Start Parsl. Raises OSError, and LaunchError where its interchange was killed as it started."""
    import parsl

    with contextlib.ExitStack() as stack:
        stack.push(partial(_tell_of_lost_start, config.run_dir))
        return parsl.load(config)


def _tell_of_lost_start(
    run_dir: str, kind: type | None, error: BaseException | None, trace: TracebackType | None
) -> None:
    # Parsl raises a plain Exception for this.
    if "Interchange failed to start" in str(error):
        raise LaunchError(f"{error}; logs: {run_dir}; run the same command again") from None


def end_parsl(kernel: DataFlowKernel, executors: Sequence[ParslExecutor]) -> None:
    """End Parsl. It asks nothing of an executor whose interchange is known to be gone."""
    from parsl.executors.high_throughput.errors import CommandClientBadError, CommandClientTimeoutError

    for executor in executors:
        fail_where_lost(executor)
    # An executor that was lost just now ends with this process, and so do its workers.
    with contextlib.suppress(CommandClientBadError, CommandClientTimeoutError):
        kernel.cleanup()
