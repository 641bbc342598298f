"""Executors beside the driver, on this machine or inside an allocation: threads that start processes and wait for them.

No scheduler is asked for nodes there, so Parsl needs neither an interchange nor pools of workers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from parsl.executors import ThreadPoolExecutor

from flows.sites.good_nodes import choose
from flows.sites.shell_lines import with_checkout
from flows.sites.site_schemas import AllocationSite, SiteConfig
from lambda_hat.errors import EXIT_UNFINISHED, ConfigError


@dataclass(frozen=True)
class Place:
    """Where one task at a time runs its process."""

    nodes: tuple[str, ...]
    environ: Mapping[str, str]
    """The environment of the process, to which the task adds its own."""


class Beside(ThreadPoolExecutor):
    """An executor with a thread per place. A task gets the free place of its time as the argument `place`.

    A place whose nodes are left out takes others.
    """

    def __init__(self, label: str, places: Sequence[Place]):
        super().__init__(label, max_threads=len(places))
        self.places = len(places)
        self._free: SimpleQueue[Place] = SimpleQueue()
        for place in places:
            self._free.put(place)
        self._nodes = [node for place in places for node in place.nodes]
        self._free_nodes = set(self._nodes)
        self._bad: set[str] = set()
        self._over = False
        self._changed = threading.Condition()

    def leave_out(self, nodes: Iterable[str]) -> None:
        """Leave these nodes out from now on, and no others. At least one is left."""
        with self._changed:
            self._bad = set(nodes)
            self._changed.notify_all()

    def submit(self, func: Any, resource_specification: dict[str, Any], *args: Any, **kwargs: Any) -> Future:
        """Call `func` on the next free thread. Every task of an executor takes one place, whatever it specifies."""
        return self.executor.submit(self._on_a_place, func, *args, **kwargs)

    def shutdown(self, block: bool = True) -> None:
        """End the threads. Tasks that wait for nodes end with the status of what is left for later."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        super().shutdown(block)

    def _on_a_place(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        place = self._free.get()
        nodes = self._take(place.nodes)
        try:
            if place.nodes and not nodes:
                return EXIT_UNFINISHED
            return func(*args, place=Place(nodes, place.environ), **kwargs)
        finally:
            with self._changed:
                self._free_nodes |= set(nodes)
                self._changed.notify_all()
            self._free.put(place)

    def _take(self, share: tuple[str, ...]) -> tuple[str, ...]:
        """Nodes for a task on the place of `share`; none where the executor has ended."""
        nodes = [*share, *(node for node in self._nodes if node not in share)]
        with self._changed:
            while share and not self._over:
                if found := choose(nodes, self._free_nodes, self._bad, len(share)):
                    self._free_nodes -= set(found)
                    return found
                self._changed.wait()
        return ()


def environment_beside(site: SiteConfig) -> dict[str, str]:
    """The environment of the processes that are started beside the driver, with what `worker_init` sets.

    Raises ConfigError where `worker_init` fails.
    """
    environ = {**os.environ, "PYTHONPATH": with_checkout(os.environ)}
    if not isinstance(site, AllocationSite):
        # A launcher would look for its nodes in the job that this machine is in.
        environ.pop("SLURM_NODELIST", None)
    if not site.worker_init.strip():
        return environ
    # The lines may print; what they set comes out of a descriptor of its own.
    script = f'exec 3>&1 1>&2\n{site.worker_init}\nexec "$0" -0 >&3'
    command = ["bash", "-c", script, shutil.which("env") or "env"]
    done = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise ConfigError(f"worker_init: its lines ended with status {done.returncode}{said and f': {said}'}")
    return dict(entry.split("=", 1) for entry in os.fsdecode(done.stdout).split("\0") if "=" in entry)
