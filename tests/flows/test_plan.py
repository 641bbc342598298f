"""Planning from the store: what is cached, what failed, what is left, what is damaged, what others have in hand."""

from __future__ import annotations

import pytest
import yaml

from flows.driver.plan import make_plan
from lambda_hat.store.claims import take
from lambda_hat.store.heartbeat import Heartbeat
from lambda_hat.store.layout import Store, write_json_atomic
from lambda_hat.store.process_identity import whoami
from lambda_hat.store.publish import publish_run, publish_target, write_config
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


def build(store, study, target_id):
    publish_target(store.target_dir(target_id), study.targets[target_id], {}, {"params.npz": b"w", "data.npz": b"d"})


def finish(store, run):
    directory = store.run_dir(run.target_id, run.run_id)
    publish_run(directory, run, write_config(directory, run.cfg), b"trace", {"llc_mean": 1.0})


@pytest.fixture
def store(tmp_path, study):
    """Target 0 built with one run finished and one failed, target 1 failed, target 2 not there."""
    store = Store(tmp_path / "store")
    one, two, _ = study.targets
    build(store, study, one)
    first, second = (run for run in study.runs if run.target_id == one)
    finish(store, first)
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
        "elsewhere": len(plan.elsewhere),
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
    assert _counts(make_plan(store, study, rerun)) == {**expected, "elsewhere": 0}


def test_every_planned_run_is_in_one_pack(study, tmp_path):
    plan = make_plan(Store(tmp_path / "empty"), study)
    packs = plan.packs(4)
    assert [len(pack) for pack in packs] == [3, 3]
    assert {run.run_id for pack in packs for run in pack} == {run.run_id for run in study.runs}


def test_a_built_target_without_runs_left_is_not_built_again(study, tmp_path):
    store = Store(tmp_path / "done")
    for run in study.runs:
        finish(store, run)
    assert _counts(make_plan(store, study))["builds"] == 0


def test_damage_is_named_set_aside_and_done_again(study, store):
    """A target's arrays, and the result of a run."""
    one = next(iter(study.targets))
    run = study.runs[0]
    params, analysis = store.target_dir(one) / "params.npz", store.run_dir(one, run.run_id) / "analysis.json"
    params.write_bytes(b"longer")
    analysis.write_bytes(analysis.read_bytes()[:-20])
    dry = make_plan(store, study, look_only=True)
    assert params.exists() and analysis.exists() and not (store.root / "damaged").exists()
    plan = make_plan(store, study)
    for each in (dry, plan):
        assert [damage.path for damage in each.damages] == [params.parent / "meta.json", params, analysis]
        assert one in each.builds and one not in each.cached_targets
        assert run in each.runs and run not in each.cached_runs
    assert plan.damages[1].moved_to == store.root / "damaged" / "targets" / one / "params.npz.1"
    assert plan.damages[1].moved_to.read_bytes() == b"longer"
    assert not params.exists() and not analysis.exists()
    assert make_plan(store, study).damages == []


def test_another_study_s_run_under_this_id_is_foreign(study, store):
    """Formerly an error that stopped the whole study."""
    first, second = study.runs[:2]
    finish(store, second)
    folders = [store.run_dir(run.target_id, run.run_id) for run in (first, second)]
    (folders[0] / "analysis.json").write_bytes((folders[1] / "analysis.json").read_bytes())
    plan = make_plan(store, study)
    assert [str(damage) for damage in plan.damages] == [
        f"{folders[0] / 'analysis.json'}: foreign: it belongs to {second.run_id!r}; set aside as "
        f"{store.root / 'damaged' / 'targets' / first.target_id / first.run_id / 'analysis.json.1'}"
    ]
    assert first in plan.runs


def test_claimed_runs_are_left_to_their_owner(study, tmp_path):
    store = Store(tmp_path / "store")
    run = study.runs[3]
    claim = take(store.run_dir(run.target_id, run.run_id), None)
    assert make_plan(store, study).elsewhere == [run]
    claim.release()
    assert make_plan(store, study).elsewhere == []
    # One that is being written, as far as can be told.
    (store.run_dir(run.target_id, run.run_id) / "claim-2").write_bytes(b"")
    assert make_plan(store, study).elsewhere == [run]


def _pack(store, under, runs, name="20261125-031500-{mark}-0-0000", **changes):
    content = {"runs": [{"target_id": run.target_id, "run_id": run.run_id} for run in runs], "lease": str(under)}
    path = store.pack_dir(f"pack_{name.format(mark=under.stem[-4:])}") / "pack.json"
    write_json_atomic(path, content | changes)
    return path


def test_packs_of_drivers_that_run_are_left_to_them(study, tmp_path):
    store = Store(tmp_path / "store")
    store.ensure_writable()
    theirs, others = study.runs[:2], study.runs[2:]
    with Heartbeat(store.packs_dir) as other, Heartbeat(store.packs_dir) as own:
        _pack(store, other.path, theirs[:1])
        _pack(store, other.path, theirs[1:], name="20261125-031500-{mark}-1-0001")
        # Neither of a lease that runs: one under the same mark by chance, one of a driver that is no more.
        _pack(store, other.path, others, name="20261125-031501-{mark}-0-0000", lease="/elsewhere/driver_0.lease")
        dead = store.packs_dir / "driver_0123456789ab.lease"
        write_json_atomic(dead, {**whoami(), "started": "long ago", "state": "running"})
        _pack(store, dead, others)
        _pack(store, own.path, others)
        for content in (b"", b"[]", b'{"runs": 3}', b"\xff"):
            _pack(store, other.path, [], name=f"20261125-031502-{{mark}}-0-{len(content)}").write_bytes(content)
        assert make_plan(store, study, own_lease=own.path).elsewhere == theirs
        finish(store, theirs[0])
        plan = make_plan(store, study, own_lease=own.path)
        assert (plan.elsewhere, plan.cached_runs, plan.runs) == (theirs[1:], theirs[:1], others)
    assert make_plan(store, study).elsewhere == []
