"""What is left to do: the study held against the store. Planning again after a loss is how runs are retried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lambda_hat.packing import RunItem, make_packs
from lambda_hat.store import Store
from lambda_hat.workflow_config import PlannedRun, Study

Rerun = Literal["failed", "all"] | None


@dataclass(frozen=True)
class Plan:
    """Targets to build and runs to sample now, and what the store already says about the rest."""

    builds: list[str]
    runs: list[PlannedRun]
    cached_targets: list[str]
    cached_runs: list[PlannedRun]
    failed_runs: list[PlannedRun]
    """Failed earlier; left alone without `--rerun failed`."""
    blocked_runs: list[PlannedRun]
    """Their target failed earlier; left alone without `--rerun failed`."""

    def packs(self, size: int) -> list[list[PlannedRun]]:
        """The runs in packs of at most `size`."""
        by_key = {(run.target_id, run.run_id): run for run in self.runs}
        items = [RunItem(run.target_id, run.run_id, run.program, run.cost) for run in self.runs]
        return [[by_key[item.target_id, item.run_id] for item in pack] for pack in make_packs(items, size)]

    @property
    def cost(self) -> float:
        """Expected core-seconds of the runs to sample."""
        return sum(run.cost for run in self.runs)


def make_plan(store: Store, study: Study, rerun: Rerun = None) -> Plan:
    """Hold `study` against `store`.

    `rerun="failed"` tries failed targets and runs again, `"all"` every run as well.
    Raises StoreError where a stored configuration is not the one asked for.
    """
    statuses = {target_id: store.target_status(target_id) for target_id in study.targets}
    for target_id, status in statuses.items():
        if status == "built":
            store.check_target_config(target_id, study.targets[target_id])
    dead = {t for t, status in statuses.items() if status == "failed" and rerun is None}
    plan = Plan([], [], [t for t, status in statuses.items() if status == "built"], [], [], [])
    needed: set[str] = set()
    for run in study.runs:
        status = store.run_status(run.target_id, run.run_id)
        if status == "finished" and rerun != "all":
            store.check_run_config(run.target_id, run.run_id, run.cfg)
            plan.cached_runs.append(run)
        elif run.target_id in dead:
            plan.blocked_runs.append(run)
        elif status == "failed" and rerun is None:
            plan.failed_runs.append(run)
        else:
            plan.runs.append(run)
            needed.add(run.target_id)
    plan.builds.extend(t for t in study.targets if t in needed and statuses[t] != "built")
    return plan
