"""The Parsl apps.

They run on workers, which know no name of the driver's `__main__`, or in threads of the driver. So apps live in an
importable module and take everything they need as arguments.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parsl import python_app

from flows.sites.deadlines import deadline_in_allocation
from lambda_hat.errors import EXIT_UNFINISHED
from lambda_hat.store.drain import DEADLINE_VARIABLE, Drain, earliest_deadline
from lambda_hat.store.heartbeat import HEARTBEAT_VARIABLE, heartbeat_state
from mpi.launchers import LauncherChoice

if TYPE_CHECKING:
    from flows.sites.beside import Place

START_SECONDS = 600.0
"""The first rank of a launch has to show itself in this time: a thousand ranks import Python from one filesystem."""
UNREACHED_SECONDS = 30.0
"""The same where the launcher has said that it cannot start ranks on some node: Hydra then waits for ever."""


@python_app(executors=["tasks"])
def run_task(
    argv: list[str],
    out_file: str,
    err_file: str,
    env: dict[str, str],
    inputs: Sequence = (),
    place: Place | None = None,
) -> int:
    """Run one process to its end. Returns its exit status; what happened is in the store.

    place: beside the driver, where the process runs. Without time left, or with the driver gone, nothing is started,
    and the status is 75.
    """
    import os

    from flows.apps import give_deadline, not_started, run_process, why_not_to_start

    env = give_deadline(env, None, os.environ if place is None else place.environ)
    if (reason := why_not_to_start(env)) is not None:
        return not_started(reason, err_file)
    return run_process(argv, out_file, err_file, env, place=place)


@python_app(executors=["packs"])
def run_pack(
    command: list[str],
    choice: LauncherChoice,
    ranks_per_node: int,
    cores_per_rank: int,
    gpus_per_node: int,
    out_file: str,
    err_file: str,
    env: dict[str, str],
    limit_seconds: int | None = None,
    sign_of_life: str | None = None,
    deadline: float | None = None,
    inputs: Sequence = (),
    parsl_resource_specification: dict[str, Any] | None = None,
    place: Place | None = None,
) -> int:
    """Launch `command` over as many nodes as Parsl gave this task. Returns the launcher's exit status.

    Nodes that the driver leaves out are changed for others of the block.

    place: beside the driver, these nodes. inputs: futures that are done once the builds of the pack's targets have
    ended. limit_seconds: after so long the launcher is ended, and the status is 124. sign_of_life: as for
    `run_process`. deadline: when the ranks drain at the latest, in seconds since the epoch; they also drain before
    their block or job ends. Without time left, or with the driver gone, nothing is launched, and the status is 75.
    """
    import contextlib
    import os
    import time

    from flows.apps import give_deadline, not_started, run_process, why_not_to_start
    from flows.sites.good_nodes import GIVEN_UP_SECONDS, NoGoodNode, nodes_in_block
    from mpi.launch import RANKS_VARIABLE, Launch, launch_environment, launch_line
    from mpi.launchers import find_launcher

    environ = os.environ if place is None else place.environ
    env = give_deadline(env, deadline, environ)
    if (reason := why_not_to_start(env)) is not None:
        return not_started(reason, err_file)
    with contextlib.ExitStack() as stack:
        if place is None:
            # An MPIExecutor tells a task its nodes through this variable only.
            share = os.environ["PARSL_MPI_NODELIST"].split(",")
            try:
                nodes = stack.enter_context(nodes_in_block(share, environ, env))
            except NoGoodNode as error:
                status = not_started(f"{error}; their block is given back", err_file)
                time.sleep(GIVEN_UP_SECONDS)
                return status
        else:
            nodes = place.nodes
        launch = Launch(nodes, ranks_per_node, cores_per_rank, gpus_per_node)
        launcher = find_launcher(choice, environ)
        env = env | launch_environment(launcher, launch, environ) | {RANKS_VARIABLE: str(launch.ranks)}
        argv = launch_line(launcher, launch, command, {**environ, **env})
        if limit_seconds is not None:
            # An app's own walltime would not kill the command.
            argv = ["timeout", "-k", "5", str(limit_seconds), *argv]
        return run_process(argv, out_file, err_file, env, sign_of_life, place)


@functools.cache
def run_pack_on(label: str) -> Callable[..., Any]:
    """`run_pack` on the executor with this label."""
    return run_pack if label == "packs" else python_app(run_pack.func, executors=[label])


def give_deadline(env: dict[str, str], own: float | None, environ: Mapping[str, str]) -> dict[str, str]:
    """`env` with the time at which its processes have to drain, if there is one. own: that of the pack."""
    deadline = deadline_in_allocation(own, {**environ, **env})
    return env if deadline is None else {**env, DEADLINE_VARIABLE: repr(deadline)}


def why_not_to_start(env: Mapping[str, str]) -> str | None:
    """Why no process with this environment may be started any more. None: it may."""
    if Drain(earliest_deadline(None, env)).time_left <= 0:
        return "no time is left in this allocation"
    if HEARTBEAT_VARIABLE in env and heartbeat_state(Path(env[HEARTBEAT_VARIABLE])) != "live":
        return "its driver has ended"
    return None


def not_started(reason: str, err_file: str) -> int:
    """Write the reason to the log. Returns the exit status of what is left for later."""
    with open(err_file, "a") as err:
        err.write(f"not started: {reason}\n")
    return EXIT_UNFINISHED


def run_process(
    argv: list[str],
    out_file: str,
    err_file: str,
    env: dict[str, str],
    sign_of_life: str | None = None,
    place: Place | None = None,
) -> int:
    """Run `argv` with its output in two files and no standard input. Returns its exit status.

    env: what its environment has beside that of `place`, or of this process. sign_of_life: a pattern of file names.
    Where no such file appears in time, the process is ended with status 124: a launcher whose helpers the scheduler
    refuses may wait for them for ever.
    """
    import glob
    import os
    import subprocess

    from flows.apps import START_SECONDS, UNREACHED_SECONDS
    from lambda_hat.store.process_logs import text_of
    from mpi.launchers import unreached_nodes

    with open(out_file, "ab") as out, open(err_file, "ab") as err:
        environ = os.environ if place is None else place.environ
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**environ, **env},
            # Beside the driver, Ctrl-C is for the driver alone, which then lets its processes checkpoint.
            start_new_session=place is not None,
        )
        begun = time.monotonic()
        while sign_of_life is not None and process.poll() is None and not glob.glob(sign_of_life):
            patience = UNREACHED_SECONDS if unreached_nodes(text_of(Path(err_file))) else START_SECONDS
            if time.monotonic() - begun > patience:
                err.write(f"error: no rank had started after {patience:.0f} s; the launch was ended\n".encode())
                process.terminate()
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                return 124
            time.sleep(0.2)
        return process.wait()
