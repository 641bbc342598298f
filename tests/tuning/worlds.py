"""Tuning beside a sampler whose bias, noise and limit of stability are known: no run is sampled."""

from __future__ import annotations

import math
import random

from lambda_hat.id_utils import target_id_for
from lambda_hat.tuning.reference import Reference
from lambda_hat.tuning.search import Search
from lambda_hat.tuning.wanted import Start
from lambda_hat.workflow_config import compose_build_cfg, compose_sample_cfg

LLC = 3.0
CURVATURE = 100.0
OVERRIDES = {"num_draws": 500, "thin": 10, "num_burnin": 200}


class World:
    """A store of its own, in which asking for a run samples it: SGLD on a quadratic, in closed form."""

    def __init__(self, exact: bool = True):
        self.exact = exact
        self.rows: dict[str, dict] = {}
        self.sampled: list[str] = []
        self.change = dict

    def look(self, refs):
        return [self.rows.get(ref.run_id, {"status": "pending", "reason": "not sampled yet"}) for ref in refs]

    def sample(self, wanted):
        for run in wanted:
            assert run.run_id not in self.rows, "it is sampled already"
            self.sampled.append(run.run_id)
            self.rows[run.run_id] = self.change(self.row(run))

    def row(self, ref):
        cfg = ref.cfg
        num_steps = (cfg.num_burnin or 0) + cfg.num_draws * (cfg.thin or 1)
        row = {"status": "finished", "reason": None, "verdict": "ok", "verdict_sentence": "", "dim": 6}
        row |= {"true_llc_t": LLC if self.exact else None, "fge": float(cfg.num_chains * num_steps)}
        if cfg.name != "sgld":
            return row | {"llc_mean": LLC, "llc_std_error": 0.005, "mala_acceptance": None}
        c = cfg.step_size * CURVATURE
        if c >= 4:
            return row | {"llc_mean": None, "llc_std_error": None, "mala_acceptance": None, "verdict": "diverged"}
        independent = cfg.num_chains * cfg.num_draws * min(1.0, c * cfg.thin / 2)
        error = LLC / math.sqrt(independent)
        missing = math.exp(-c * cfg.num_burnin)
        mean = LLC / (1 - c / 4) * (1 - missing) + random.Random(ref.run_id).gauss(0, error)
        verdict = "ok" if error < LLC / 4 and missing < 0.1 else "too_short" if missing < 0.1 else "drifting"
        acceptance = math.erfc(c**1.5 * math.sqrt(6) / 8 / math.sqrt(2))
        return row | {"llc_mean": mean, "llc_std_error": error, "mala_acceptance": acceptance, "verdict": verdict}


def start_at(step_size: float | None, name: str = "sgld", **overrides) -> Start:
    """One sampler on a quadratic, from some values."""
    build = compose_build_cfg({"target": "quadratic"})
    target_id = target_id_for(build)
    values = {**OVERRIDES, **overrides} | ({} if step_size is None else {"step_size": step_size})
    cfg = compose_sample_cfg(target_id, {"name": name, "overrides": values}, build=build)
    return Start(target_id, build, cfg, name, values, True, "study.yaml")


def search_at(step_size: float, folder, trials: int = 24, sampler: str | None = "nuts") -> Search:
    start = start_at(step_size)
    reference = Reference(start, sampler, 0.05)
    return Search(start, reference, folder, trials=trials, batch=4, seeds=2, tolerance=0.05)


def run_to_its_end(search, world: World, most: int = 100) -> None:
    """Sample what the search wants until it wants nothing."""
    for _ in range(most):
        wanted = search.propose(world.look)
        if not wanted:
            return
        world.sample(wanted)
    raise AssertionError("it wants runs for ever")
