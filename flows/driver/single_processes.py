"""Processes beside the packs, one Parsl task each: builds of targets, and the runs of an unpacked study."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

from flows.sites.shell_lines import PYTHON_M
from flows.sites.site_schemas import AllocationSite, SiteConfig
from lambda_hat.config import BuildConfig, SampleConfig
from lambda_hat.store.publish import write_config
from mpi.launch import Launch, build_prefix, launch_environment
from mpi.launchers import find_launcher

Config = TypeVar("Config", BuildConfig, SampleConfig)


class SingleProcesses:
    """Starts processes on a site; inside an allocation on its nodes in turn.

    environment: what each process gets beside the environment that it inherits.
    """

    def __init__(self, site: SiteConfig, environment: Mapping[str, str]):
        self._site, self._environment = site, dict(environment)
        self._launcher = find_launcher(site.launcher) if isinstance(site, AllocationSite) else None
        self._nodes = itertools.cycle(site.nodes)

    def configure(self, directory: Path, cfg: Config) -> None:
        """Write `config.yaml` for a process, which gives XLA as many cores as a rank has."""
        write_config(directory, replace(cfg, runtime=replace(cfg.runtime, cores_per_rank=self._site.cores_per_rank)))

    def start(
        self, module: str, words: Sequence[str], directory: Path, log: str, inputs: Sequence[Future] = ()
    ) -> Future:
        """Submit `python -P -m MODULE --config-yaml DIRECTORY/config.yaml WORDS`.

        Returns the future of its exit status. Its output goes to `log`.log and `log`.err in `directory`. It starts once
        `inputs` are done.
        """
        from flows.apps import run_task

        argv = [*PYTHON_M, module, "--config-yaml", str(directory / "config.yaml"), *words]
        argv, env = self._place(argv)
        out, err = str(directory / f"{log}.log"), str(directory / f"{log}.err")
        # A type checker takes an app of Parsl's for its function.
        return cast(Future, run_task(argv, out, err, env, inputs=list(inputs)))

    def _place(self, argv: list[str]) -> tuple[list[str], dict[str, str]]:
        """`argv` and environment on the next node. The process computes on cores: packs own the node's GPUs."""
        env = {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"), **self._environment}
        if self._launcher is None:
            return argv, env
        launch = Launch((next(self._nodes),), 1, self._site.cores_per_rank)
        env |= launch_environment(self._launcher, launch, os.environ)
        prefix = build_prefix(self._launcher, launch.nodes[0], launch.cores_per_rank, {**os.environ, **env})
        return [*prefix, *argv], env
