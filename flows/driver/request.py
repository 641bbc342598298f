"""What a command asks for: a study, the store that it goes into, and the site that it runs on."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from flows.driver.plan import Plan, Rerun, make_plan
from flows.sites.batch_jobs import SCRIPT_VARIABLE, enclosing_job
from flows.sites.deadlines import MARGIN, margin, parse_deadline, scheduler_deadline
from flows.sites.scheduler import require_scheduler
from flows.sites.several import load_sites, site_word
from flows.sites.site_schemas import AllocationSite, BatchSite, SiteConfig, known_nodes, load_site
from lambda_hat.config.study_settings import check_lanes
from lambda_hat.errors import ConfigError
from lambda_hat.planning.calibration import read_costs
from lambda_hat.store.layout import Store, check_folder
from lambda_hat.store.process_identity import whoami
from lambda_hat.store.study_records import (
    BLOCKED,
    ELSEWHERE,
    FAILED,
    TO_SAMPLE,
    Planned,
    StudyRecord,
    in_order,
    new_name,
)
from lambda_hat.store.umask import check_umask
from lambda_hat.workflow_config import Study, compose_study
from mpi.launchers import find_launcher


@dataclass(frozen=True)
class Request:
    """One study on its sites."""

    study: Study
    store: Store
    sites: Mapping[str, SiteConfig]
    """By the `site` of runs: under the empty name that of the study, and those that entries name."""
    results_root: Path
    """Where the table and the pictures go; an absolute path."""
    rerun: Rerun
    """Which runs are sampled again though the store has them: failed ones, or all."""
    quiet: bool
    """Say only trouble and the summary."""
    report: bool
    """Draw pictures and the page at the end."""
    packed: bool
    """Runs are sampled in MPI packs; else in one process each."""
    stop_at: float | None = None
    """When packs drain, since the allocation ends soon after; seconds since the epoch. None: nothing ends."""
    give_up_at: float | None = None
    """When the driver stops waiting for packs that have not ended; seconds since the epoch."""

    @classmethod
    def from_options(cls, args: argparse.Namespace, *, packed: bool, one_site: bool = False) -> Request:
        """Compose study and sites from the options of a command. Nothing is written.

        one_site: everything runs on the site of the study, whatever its entries say.
        Raises ConfigError for whatever could not run.
        """
        options = {"pack": getattr(args, "pack", None), "retries": args.retries, "site": args.site}
        options |= {"store_root": args.store, "results_root": args.results}
        options["lanes"] = getattr(args, "lanes", None)
        given = {key: value for key, value in options.items() if value is not None}
        if "lanes" in given:
            check_lanes("--lanes", given["lanes"])
        for option, least in (("pack", 1), ("retries", 0)):
            if option in given and given[option] < least:
                raise ConfigError(f"--{option}: got {given[option]}, expected an integer of at least {least}")
        study = compose_study(args.experiments, args.words, given)
        site = load_site(
            study.settings.site,
            study.site_overrides,
            {
                "--ranks": ("ranks_per_node", getattr(args, "ranks", None)),
                "--nodes": ("nodes_per_block", getattr(args, "nodes", None)),
                "--walltime": ("walltime", getattr(args, "walltime", None)),
            },
        )
        if one_site and study.sites:
            note = f"all of it runs on the site {study.settings.site}: only lambda-hat run sends entries to their own"
            runs = [replace(run, site="") for run in study.runs]
            study = replace(study, runs=runs, sites={}, notes=[*study.notes, note])
        used = {run.site for run in study.runs}
        named = {name: where for name, where in study.sites.items() if name in used}
        sites = load_sites(study.settings.site, site, named)
        stop_at, give_up_at = _end_of_allocation(site, getattr(args, "deadline", None))
        store = Store(study.settings.store_root)
        costs = {name: read_costs(store.root, one.cores_per_rank, one.gpus_per_node) for name, one in sites.items()}
        if isinstance(site, AllocationSite):
            find_launcher(site.launcher)
        return cls(
            study=study.priced(costs.pop(""), store.targets_dir, costs),
            store=store,
            sites=sites,
            results_root=Path(study.settings.results_root).expanduser().absolute(),
            rerun=args.rerun,
            quiet=args.quiet,
            report=not getattr(args, "no_report", False),
            packed=packed,
            stop_at=stop_at,
            give_up_at=give_up_at,
        )

    @property
    def site(self) -> SiteConfig:
        """The site of the study: targets are built there, and runs sampled whose entries name no other."""
        return self.sites[""]

    @property
    def nodes(self) -> list[str] | None:
        """The nodes that packs can ever run on, of which bad ones are left out; None: a scheduler may give any.

        There are none where a study has several sites: what fails on one says nothing of another.
        """
        return known_nodes(self.site) if len(self.sites) == 1 else []

    def word(self, site: str) -> str:
        """What a site is called."""
        return site_word(site or self.study.settings.site)

    def on(self, site: str, before: str = "on") -> str:
        """` on SITE`, where there are several sites; else nothing."""
        return f" {before} {self.word(site)}" if len(self.sites) > 1 else ""

    @property
    def is_late(self) -> bool:
        """Whether packs have to drain by now."""
        return self.stop_at is not None and time.time() >= self.stop_at

    @property
    def num_ranks(self) -> int | None:
        """Ranks of a pack on the site of the study. None: only a node of the site could tell."""
        return self.ranks_on("")

    def ranks_on(self, name: str) -> int | None:
        """Ranks of a pack on one of the sites. None: only a node of it could tell."""
        site = self.sites[name]
        told = site.kind == "local" or site.ranks_per_node or site.gpus_per_node or site.node_cores
        return site.resources["num_ranks"] if told else None

    def plan(self, rerun: Rerun, own_lease: Path | None = None, look_only: bool = False) -> Plan:
        """Hold the study against the store as it is now; the arguments and exceptions are those of `make_plan`."""
        return make_plan(self.store, self.study, rerun, own_lease=own_lease, look_only=look_only)

    def record(self, plan: Plan, submitted: dict[str, str] | None = None) -> StudyRecord:
        """The study as it stands when its driver starts. submitted: the job that is to run it in the driver's place."""
        groups = {TO_SAMPLE: plan.runs, FAILED: plan.failed_runs, BLOCKED: plan.blocked_runs, ELSEWHERE: plan.elsewhere}
        runs = in_order(Planned(*run.key, run.cost, group) for group, runs in groups.items() for run in runs)
        targets = self.study.targets
        return StudyRecord(
            name=new_name(),
            command=[sys.executable, *sys.argv],
            directory=os.getcwd(),
            store=str(self.store.root),
            driver=whoami(),
            started=time.time(),
            site=self.site.kind,
            packed=self.packed,
            ranks=self.num_ranks if self.packed else None,
            cached_targets=len(plan.cached_targets),
            cached_runs=len(plan.cached_runs),
            targets={target_id: targets[target_id].label for target_id in dict.fromkeys(run.target_id for run in runs)},
            builds=plan.builds,
            runs=runs,
            job_script=os.environ.get(SCRIPT_VARIABLE),
            submitted=submitted,
            job=enclosing_job(os.environ) if isinstance(self.site, AllocationSite) else None,
        )

    def check_launch(self) -> None:
        """Refuse sites that packs cannot be launched on. Raises ConfigError."""
        for site in self.sites.values():
            if not isinstance(site, BatchSite) or site.mpi == "bundled":
                find_launcher(site.launcher)
            site.resources  # noqa: B018 - raises where the site does not say how many ranks a node has

    def check_folders(self) -> None:
        """Refuse a store or results folder that cannot be written. Nothing is made.

        Raises StoreError, and ConfigError where this user could not read what it writes.
        """
        check_umask()
        check_folder(self.store.root, "store", "give another one with --store DIR or store_root: DIR")
        check_folder(self.results_root, "results folder", "give another one with --results DIR")

    def prepare(self) -> None:
        """Make the folders, on sites whose scheduler can be used.

        Raises ConfigError where it cannot, and StoreError as `make_folders`.
        """
        self.check_folders()
        for kind in dict.fromkeys(site.kind for site in self.sites.values() if isinstance(site, BatchSite)):
            require_scheduler(kind).check_server()
        self.make_folders()

    def make_folders(self) -> None:
        """Make the store and the results folder. Raises StoreError, with neither made, where one cannot be written."""
        self.check_folders()
        self.store.ensure_writable()
        self.results_root.mkdir(parents=True, exist_ok=True)


def _end_of_allocation(site: SiteConfig, deadline: str | None) -> tuple[float | None, float | None]:
    """When packs drain, and when the driver gives up on them. deadline: the text of the option."""
    stop_at = scheduler_deadline(os.environ) if isinstance(site, AllocationSite) else None
    kept = MARGIN[1]
    if deadline is not None:
        now = time.time()
        when = parse_deadline(deadline, now)
        kept = margin(when - now)
        stop_at = min(when - kept, math.inf if stop_at is None else stop_at)
    return stop_at, None if stop_at is None else stop_at + kept / 2
