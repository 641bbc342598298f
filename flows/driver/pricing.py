"""What a plan costs, in sentences that a person reads before anything is paid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from flows.driver.plan import Plan
from flows.driver.request import Request
from flows.sites.site_schemas import BatchSite
from lambda_hat.planning.cost import price
from lambda_hat.planning.packing import PlannedRun
from lambda_hat.workflow_config import Study


def plan_price(request: Request, plan: Plan) -> str:
    """The expected price of a plan, on each of its sites. Every process that compiles a program counts with it."""
    packs = plan.packs(request.study.settings.pack) if request.packed else [[run] for run in plan.runs]
    seconds: dict[str, float] = {}
    for runs in packs:
        seconds[runs[0].site] = seconds.get(runs[0].site, 0.0) + pack_seconds(request, runs)
    return " and ".join(f"{price_of(request, total, site)}{request.on(site)}" for site, total in seconds.items())


def pack_seconds(request: Request, runs: Sequence[PlannedRun]) -> float:
    """Expected rank-seconds of one pack, or of one process."""
    site = runs[0].site
    ranks = request.ranks_on(site) if request.packed else 1
    return request.study.costs_at(site).pack_seconds(((run.cfg.name, run.program, run.cost) for run in runs), ranks)


def longest_run(study: Study, runs: Sequence[PlannedRun]) -> float:
    """Expected seconds of the longest of `runs`, on a rank that compiles its program first."""
    return max(run.cost + study.costs_at(run.site).compile_seconds(run.cfg.name) for run in runs)


def price_of(request: Request, rank_seconds: float, site_name: str = "") -> str:
    """Core-hours or GPU-hours of a site's ranks. Single processes compute on cores."""
    site = request.sites[site_name]
    return price(rank_seconds, site.cores_per_rank, site.gpus_per_node if request.packed else 0, site.ranks_per_gpu)


def plan_sentences(request: Request, plan: Plan) -> Iterator[str]:
    """The plan, what it costs, and the notes of the study."""
    study = request.study
    for note in study.notes:
        yield f"note: {note}"
    packs = len(plan.packs(study.settings.pack)) if request.packed else 0
    in_packs = f" in {packs} packs of at most {study.settings.pack}" if packs else ""
    targets = f"{len(study.targets)} targets ({len(plan.cached_targets)} cached, {len(plan.builds)} to build)"
    cached = f"{len(plan.cached_runs)} cached"
    yield f"plan: {targets}, {len(study.runs)} runs ({cached}, {len(plan.runs)} to sample{in_packs})"
    if plan.runs:
        yield f"expected cost: about {plan_price(request, plan)}, {study.costs.basis}"
        if guessed := study.guessed(request.store.targets_dir):
            yield f"note: a guess for custom targets until they are built and measured ({guessed} of them)"
        for note in idle_notes(request, plan) if request.packed else ():
            yield f"note: {note}"
    elif not plan.failed_runs and not plan.blocked_runs and not plan.elsewhere:
        yield "everything is cached; no sampler is started"
    for runs, what in (
        (plan.failed_runs, "failed earlier"),
        (plan.blocked_runs, "wait for a target that failed earlier"),
    ):
        if runs:
            yield f"{len(runs)} runs {what}; --rerun failed tries them again"


def idle_notes(request: Request, plan: Plan) -> Iterator[str]:
    """Sentences on nodes and ranks that get no work from this plan, and on runs that are longer than a block."""
    packs: dict[str, list[list[PlannedRun]]] = {}
    for runs in plan.packs(request.study.settings.pack):
        packs.setdefault(runs[0].site, []).append(runs)
    for site, of_site in packs.items():
        whose = f"{request.word(site)}: " if len(request.sites) > 1 else ""
        yield from (f"{whose}{note}" for note in _idle_notes(request, site, of_site))


def _idle_notes(request: Request, name: str, packs: list[list[PlannedRun]]) -> Iterator[str]:
    site, pack, runs = request.sites[name], request.study.settings.pack, [run for pack in packs for run in pack]
    idle = (site.packs_per_block - len(packs)) * site.pack_nodes
    if idle > 0:
        fair = math.ceil(len(runs) / site.packs_per_block)
        remedy = f"--pack {fair} gives all of them one" if fair < pack else "ask for fewer"
        yield f"{idle} of the {site.block_nodes} nodes of a block would have no pack; {remedy}"
    ranks = request.ranks_on(name)
    if site.kind != "local" and ranks is not None:
        small = sum(len(runs) < ranks for runs in packs)
        if small:
            yield f"{small} of {len(packs)} packs have fewer runs than their {ranks} ranks, some of which will idle"
    longest = longest_run(request.study, runs)
    if isinstance(site, BatchSite) and longest > site.walltime_seconds:
        key = "write site.walltime=HH:MM:SS" if not name else f"change the walltime of {name}"
        yield (
            f"a run is expected to take {longest:.0f} s, longer than the walltime of a block, "
            f"{site.walltime_seconds} s; it will go on from its checkpoint in further blocks, or {key}"
        )
