"""Planning from the store: what is cached, what failed, what is left."""

from __future__ import annotations

import pytest
import yaml

from flows.plan import make_plan
from lambda_hat.store import Store, write_json_atomic
from lambda_hat.workflow_config import compose_study


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.yaml"
    content = {
        "targets": [{"target": "quadratic", "sweep": {"seed": [0, 1, 2]}}],
        "samplers": [{"name": "sgld", "sweep": {"seed": [0, 1]}}],
    }
    path.write_text(yaml.safe_dump(content))
    return compose_study(path)


@pytest.fixture
def store(tmp_path, study):
    """Target 0 built with one run finished and one failed, target 1 failed, target 2 not there."""
    store = Store(tmp_path / "store")
    one, two, _ = study.targets
    write_json_atomic(store.target_dir(one) / "meta.json", {})
    first, second = (run for run in study.runs if run.target_id == one)
    write_json_atomic(store.run_dir(one, first.run_id) / "analysis.json", {})
    write_json_atomic(store.run_dir(one, second.run_id) / "error.json", {})
    write_json_atomic(store.target_dir(two) / "error.json", {})
    return store


def _counts(plan):
    return {
        "builds": len(plan.builds),
        "runs": len(plan.runs),
        "cached": len(plan.cached_runs),
        "failed": len(plan.failed_runs),
        "blocked": len(plan.blocked_runs),
    }


@pytest.mark.parametrize(
    ("rerun", "expected"),
    [
        (None, {"builds": 1, "runs": 2, "cached": 1, "failed": 1, "blocked": 2}),
        ("failed", {"builds": 2, "runs": 5, "cached": 1, "failed": 0, "blocked": 0}),
        ("all", {"builds": 2, "runs": 6, "cached": 0, "failed": 0, "blocked": 0}),
    ],
)
def test_plan(study, store, rerun, expected):
    assert _counts(make_plan(store, study, rerun)) == expected


def test_every_planned_run_is_in_one_pack(study, tmp_path):
    plan = make_plan(Store(tmp_path / "empty"), study)
    packs = plan.packs(4)
    assert [len(pack) for pack in packs] == [3, 3]
    assert {run.run_id for pack in packs for run in pack} == {run.run_id for run in study.runs}


def test_a_built_target_without_runs_left_is_not_built_again(study, tmp_path):
    store = Store(tmp_path / "done")
    for run in study.runs:
        write_json_atomic(store.run_dir(run.target_id, run.run_id) / "analysis.json", {})
    assert _counts(make_plan(store, study))["builds"] == 0
