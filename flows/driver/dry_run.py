"""`--dry-run`: what a study would submit."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence

from flows.driver.packs import PROGRAM
from flows.driver.plan import Plan
from flows.driver.pricing import pack_seconds, price_of
from flows.driver.request import Request
from flows.sites.site_schemas import BatchSite, SiteConfig
from mpi.launch import launch_line
from mpi.launchers import assume_launcher, find_launcher


def show_packs(request: Request, plan: Plan) -> Iterator[str]:
    """A line per target, and two per pack: what it holds and how it is launched."""
    # A launcher that is missing is told before the first target.
    lines = {name: launch_on(site, [*PROGRAM, "PACK.json"]) for name, site in request.sites.items()}
    yield from target_lines(request, plan)
    for index, runs in enumerate(plan.packs(request.study.settings.pack)):
        site, targets = runs[0].site, len({run.target_id for run in runs})
        yield (
            f"pack {index}: {len(runs)} runs of {targets} targets, about "
            f"{price_of(request, pack_seconds(request, runs), site)} on "
            f"{request.sites[site].resources['num_ranks']} ranks{request.on(site, 'of')}"
        )
        yield f"    {lines[site]}"
    yield "dry run: nothing was started"


def target_lines(request: Request, plan: Plan) -> Iterator[str]:
    """A line per target: its id, what is there of it, its label."""
    for target_id, cfg in request.study.targets.items():
        state = "build" if target_id in plan.builds else request.store.target_status(target_id)
        yield f"target {target_id}  {state:<7} {cfg.label}"


def launch_on(site: SiteConfig, command: Sequence[str]) -> str:
    """The line that launches a pack of a site. Raises ConfigError where its launcher is missing on this machine."""
    launcher = assume_launcher(site.launcher) if isinstance(site, BatchSite) else find_launcher(site.launcher)
    return shlex.join(launch_line(launcher, site.launch(site.nodes[: site.pack_nodes]), list(command), os.environ))
