"""What is left to do: the study held against the store. After a loss the driver plans again, and so retries runs."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lambda_hat.id_utils import config_digest
from lambda_hat.planning.packing import PlannedRun, make_packs
from lambda_hat.store.claims import holder
from lambda_hat.store.heartbeat import heartbeat_over, live_heartbeats
from lambda_hat.store.layout import Damage, RunStatus, Store, read_json_or_none
from lambda_hat.workflow_config import Study

Rerun = Literal["failed", "all"] | None


@dataclass(frozen=True)
class Plan:
    """Targets to build and runs to sample now, and what the store already says about the rest."""

    builds: list[str]
    runs: list[PlannedRun]
    cached_targets: list[str]
    cached_runs: list[PlannedRun]
    failed_runs: list[PlannedRun]
    """They failed earlier, and only `--rerun` samples them."""
    blocked_runs: list[PlannedRun]
    """Their target failed earlier, and only `--rerun` builds it."""
    elsewhere: list[PlannedRun]
    """Another driver, or a process that it left, has them in hand: they are not sampled here."""
    damages: list[Damage]
    """Files that were damaged or foreign, and set aside. What they held is built or sampled again."""

    _packs: dict[int, list[list[PlannedRun]]] = field(default_factory=dict, repr=False, compare=False)

    def packs(self, size: int) -> list[list[PlannedRun]]:
        """The runs in packs of at most `size`, each on one site: those of the study's own site first."""
        if size not in self._packs:
            sites: dict[str, list[PlannedRun]] = {}
            for run in self.runs:
                sites.setdefault(run.site, []).append(run)
            self._packs[size] = [pack for site in sorted(sites) for pack in make_packs(sites[site], size)]
        return self._packs[size]


def make_plan(
    store: Store, study: Study, rerun: Rerun = None, own_lease: Path | None = None, look_only: bool = False
) -> Plan:
    """Hold `study` against `store`.

    rerun: "failed" plans failed targets and runs again, "all" every run as well. own_lease: of the driver that asks,
    none of whose packs is under way. look_only: set nothing aside, as for a dry run.
    Raises StoreError where the store cannot be read, StoreUnwritable where damage cannot be set aside.
    """
    plan = Plan([], [], [], [], [], [], [], [])
    statuses = {}
    for target_id, build in study.targets.items():
        statuses[target_id], damages = store.inspect_target(target_id, config_digest(build), move=not look_only)
        plan.damages.extend(damages)
    plan.cached_targets.extend(t for t, status in statuses.items() if status == "built")
    dead = {t for t, status in statuses.items() if status == "failed" and rerun is None}
    in_hand = runs_of_other_drivers(store, own_lease)
    is_over = functools.cache(heartbeat_over)
    entries = functools.cache(store.entries)
    needed: set[str] = set()

    def held(run: PlannedRun) -> bool:
        return holder(store.run_dir(*run.key), own_lease, is_over) is not None

    for run in study.runs:
        there = entries(run.target_id)
        begun = there is None or run.run_id in there
        status: RunStatus = "pending"
        if begun:
            status, damages = store.inspect_run(*run.key, run.digest, move=not look_only)
            plan.damages.extend(damages)
        if status == "finished" and rerun != "all":
            plan.cached_runs.append(run)
        elif run.target_id in dead:
            plan.blocked_runs.append(run)
        elif status == "failed" and rerun is None:
            plan.failed_runs.append(run)
        elif run.key in in_hand or (begun and held(run)):
            plan.elsewhere.append(run)
        else:
            plan.runs.append(run)
            needed.add(run.target_id)
    plan.builds.extend(t for t in study.targets if t in needed and statuses[t] != "built")
    return plan


def runs_of_other_drivers(store: Store, own_lease: Path | None) -> set[tuple[str, str]]:
    """Target and run ids in the packs of drivers that run, other than the one of `own_lease`."""
    leases = [path for path in live_heartbeats(store.packs_dir) if own_lease is None or path.name != own_lease.name]
    if not leases:
        return set()
    marks = {f"-{path.stem[-4:]}-": path.name for path in leases}
    found = set()
    for name in os.listdir(store.packs_dir):
        # pack_<date>-<time>-<mark of the lease>-<round>-<number>: packs of drivers of old are not opened.
        if name.startswith("pack_") and (lease := marks.get(name[len("pack_00000000-000000") :][:6])):
            found |= _runs_of_pack(read_json_or_none(store.pack_dir(name) / "pack.json"), lease)
    return found


def _runs_of_pack(pack: Any, lease: str) -> set[tuple[str, str]]:
    """The runs of a pack file; none where it is damaged, or of another lease."""
    if not isinstance(pack, dict) or Path(str(pack.get("lease"))).name != lease:
        return set()
    runs = pack.get("runs")
    entries = [entry for entry in runs if isinstance(entry, dict)] if isinstance(runs, list) else []
    return {(str(entry.get("target_id")), str(entry.get("run_id"))) for entry in entries}
