"""The parts of tuning by themselves: objective, ladder, space, and the experiments file."""

from __future__ import annotations

import dataclasses
import math

import pytest

from lambda_hat.errors import ConfigError
from lambda_hat.tuning.findings import write_experiments
from lambda_hat.tuning.objective import Outcome, cost_to, outcome_of, winner
from lambda_hat.tuning.rungs import RungSearch, acceptance_at
from lambda_hat.tuning.space import first_settings, ladder, space_of
from lambda_hat.workflow_config import compose_study
from tests.tuning.worlds import CURVATURE, World, run_to_its_end, start_at


def outcome(error, cost, verdict="ok"):
    return Outcome(llc=1.0, std_error=0.1, error=error, cost=cost, verdicts=(verdict,))


def row(llc, std_error, **more):
    return {"status": "finished", "verdict": "ok", "llc_mean": llc, "llc_std_error": std_error, "fge": 10.0, **more}


def test_the_error_counts_bias_and_standard_error_and_signs_do_not_cancel():
    found = outcome_of([row(9.0, 0.0), row(11.0, 0.0, fge=20.0)], 10.0)
    assert (found.error, found.cost, found.llc) == (pytest.approx(0.1), 15.0, 10.0)
    assert outcome_of([row(10.0, 4.0)], 10.0).error == pytest.approx(0.4), "a hit by luck"
    assert outcome_of([row(-6.0, 8.0), row(-6.0, 8.0)], -12.0).error == pytest.approx(10 / 12)


@pytest.mark.parametrize(
    "bad",
    [
        {"verdict": "diverged"},
        {"llc_mean": None},
        {"llc_std_error": None},
        {"llc_std_error": math.nan},
        {"status": "failed"},
        {"status": "pending"},
    ],
)
def test_no_outcome_where_a_run_failed_or_diverged(bad):
    assert outcome_of([row(10.0, 0.1), row(10.0, 0.1) | bad], 10.0) is None


def test_the_winner_is_the_cheapest_trusted_outcome_within_the_tolerance():
    outcomes = {
        "cheap": outcome(0.5, 1), "good": outcome(0.04, 10), "better": outcome(0.01, 100), "beaten": outcome(0.6, 2),
        "dear": outcome(0.01, 200), "doubtful": outcome(0.001, 1, "unmixed"),
    }  # fmt: skip
    assert winner(outcomes, 0.05) == "good"
    assert winner(outcomes, 0.001) == "better"
    assert winner({"doubtful": outcomes["doubtful"]}, 0.05) is None
    assert cost_to(0.05, outcomes["good"]) == 10
    assert cost_to(0.05, outcomes["cheap"]) == pytest.approx(100)


def test_the_first_settings_are_the_start_and_its_neighbours():
    cfg = start_at(1e-3).cfg
    settings = first_settings(cfg, space_of(cfg))
    assert settings[0] == {"step_size": 1e-3, "thin": 10, "num_burnin": 200}
    assert [s["step_size"] for s in settings[1:]] == pytest.approx([1e-4, 1e-2, 1e-5, 1e-1, 1e-6, 1.0])
    assert "heat" in space_of(start_at(None).cfg)
    steps = ladder(cfg, 3)
    assert len(steps) == 19 and (steps[0], steps[-1]) == (1e-6, 1.0)


def test_a_metropolis_step_tells_the_bias_of_a_gaussian():
    """At c = eps h the variance is 1 / (1 - c/4) too large, whatever the dimension, and MALA accepts so often."""
    import numpy as np

    rng = np.random.default_rng(0)
    for dim in (6, 100):
        c = 4 * 0.05 / 1.05
        w, noise = rng.normal(size=(2, 4000, dim))
        there = (1 - c / 2) * w + np.sqrt(c) * noise
        accepted = np.minimum(1, np.exp(-c / 8 * np.sum(there**2 - w**2, axis=1)))
        assert acceptance_at(0.05, dim) == pytest.approx(accepted.mean(), abs=0.01)


def test_the_ladder_takes_a_step_of_little_bias_from_a_start_that_is_far_off():
    for start in (1e-1, 1e-5):
        world = World()
        search = RungSearch(start_at(start), 0.05)
        run_to_its_end(search, world)
        assert len(world.sampled) == 19
        step = search.steps[search.winner]
        assert 1 / (1 - step * CURVATURE / 4) - 1 < 0.06
        assert step * CURVATURE > 0.02, "no smaller than it has to be"


def test_the_ladder_takes_nothing_above_a_rung_that_is_not_stable():
    world = World()
    search = RungSearch(start_at(1e-3), 0.05)
    unstable = search.first_runs()[0].run_id
    run_to_its_end(search, world)
    world.rows[unstable] |= {"verdict": "diverged"}
    search.propose(world.look)
    assert search.winner is None


def test_a_ladder_is_refused_for_a_sampler_that_adapts_its_step():
    with pytest.raises(ConfigError, match="hmc adapts its own step size"):
        RungSearch(start_at(None, "hmc"), 0.05)


def test_the_experiments_file_composes_to_the_runs_that_were_found(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "store_root: elsewhere\njax_enable_x64: false\n"
        "targets: [{target: quadratic}, {target: monomial, sweep: {seed: [0, 1]}}]\n"
        "samplers: [{name: sgld, overrides: {gamma: 2.0}}]\n"
    )
    study = compose_study(path)
    ids = list(study.targets)
    found = [
        ({"name": "sgld", "targets": [ids[0]], "overrides": {"gamma": 2.0, "step_size": 1e-5}}, "one: ok"),
        ({"name": "hmc", "targets": ids[1:], "sweep": {"seed": [2, 3]}}, 'two: w1^2 "quoted" # not a comment'),
    ]
    written = tmp_path / "tuned.yaml"
    write_experiments(written, study, found, "by a test")
    again = compose_study(written)
    assert again.targets == study.targets
    assert (again.settings.store_root, again.settings.jax_enable_x64) == ("elsewhere", False)
    runs = [(run.target_id, run.cfg.name, run.cfg.seed, getattr(run.cfg, "step_size", None)) for run in again.runs]
    assert sorted(runs, key=str) == sorted(
        [(ids[0], "sgld", 0, 1e-5), *((i, "hmc", seed, None) for i in ids[1:] for seed in (2, 3))], key=str
    )
    assert all(run.cfg.precision == "float32" for run in again.runs)
    assert dataclasses.replace(again.runs[0].cfg, seed=0).gamma == 2.0
