"""Searches against a sampler whose law is known: what they find, what they go on from, and when they give up."""

from __future__ import annotations

import pytest

from lambda_hat.errors import CorruptArtifact
from lambda_hat.tuning.search import Search
from tests.tuning.worlds import CURVATURE, LLC, World, run_to_its_end, search_at, start_at

GOOD = 0.1 / CURVATURE


@pytest.mark.parametrize("off", [100, 1 / 100, 1, 31.41592])
def test_a_setting_within_the_tolerance_is_found_from_a_step_that_is_far_off(tmp_path, world, off):
    search = search_at(GOOD * off, tmp_path)
    run_to_its_end(search, world)
    assert search.is_within and search.lost is None
    assert abs(search.confirmed.llc / LLC - 1) < 0.05
    assert len(search.settings) == 24
    found = search.judged[search.winner]
    cheaper = [o for o in search.judged.values() if o.trusted and o.error <= 0.05 and o.cost < found.cost]
    assert not cheaper


def test_what_diverged_is_never_told_as_a_value(tmp_path, world):
    search = search_at(GOOD * 100, tmp_path, trials=8)
    run_to_its_end(search, world)
    trials = search._history.trials
    large = {t.number for t in trials if t.values["step_size"] * CURVATURE >= 4}
    assert 0 in large and {t.number for t in trials if t.end == "pruned"} == large
    assert not large & set(search.outcomes)


def test_an_interrupted_search_goes_on_and_samples_nothing_twice(tmp_path, world):
    undisturbed = World()
    whole = search_at(GOOD * 100, tmp_path / "whole", trials=12)
    run_to_its_end(whole, undisturbed)

    search = search_at(GOOD * 100, tmp_path / "cut", trials=12)
    for batch in range(100):
        wanted = search.propose(world.look)
        if not wanted:
            break
        # Half of a batch is sampled when the driver is killed.
        world.sample(wanted[: len(wanted) // 2 if batch % 2 else None])
        search = search_at(GOOD * 100, tmp_path / "cut", trials=12)
    assert world.sampled and len(world.sampled) == len(set(world.sampled))
    assert sorted(world.sampled) == sorted(undisturbed.sampled)
    assert search.settings == whole.settings and search.winner == whole.winner

    more = search_at(GOOD * 100, tmp_path / "cut", trials=16)
    before = len(world.sampled)
    run_to_its_end(more, world)
    assert len(more.settings) == 16
    assert len(world.sampled) - before <= 4 * 2 + 2 * 6, "what was tried is not sampled again"


def test_a_lost_file_costs_no_run(tmp_path, world):
    search = search_at(GOOD / 100, tmp_path, trials=8)
    run_to_its_end(search, world)
    search.path.unlink()
    before = list(world.sampled)
    again = search_at(GOOD / 100, tmp_path, trials=8)
    assert again.propose(world.look) == []
    assert world.sampled == before and again.settings == search.settings


def test_a_damaged_file_is_named_and_nothing_is_asked_for(tmp_path, world):
    search = search_at(GOOD, tmp_path, trials=4)
    world.sample(search.propose(world.look))
    data = search.path.read_bytes()
    for damaged in (data[:-5], data.replace(b"asked", b"asket"), b""):
        search.path.write_bytes(damaged)
        with pytest.raises(CorruptArtifact, match=r"search_sgld_\w+\.json: damaged: .*; move it away and run again"):
            search_at(GOOD, tmp_path, trials=4).propose(world.look)
        assert search.path.read_bytes() == damaged


def test_a_dry_run_counts_the_settings_whose_runs_are_decided(tmp_path, world):
    search = search_at(GOOD, tmp_path)
    assert search.num_tried(world.look) == 0 and not search.path.exists()
    wanted = search.propose(world.look)
    world.sample(wanted[:5])
    assert search_at(GOOD, tmp_path).num_tried(world.look) == 2, "two seeds each, and the third setting has one run"


def test_hopeless_settings_are_skipped_and_known_as_such_later(tmp_path, world):
    search = search_at(GOOD * 100, tmp_path)
    run_to_its_end(search, world)
    numbers = [trial.number for trial in search._history.trials]
    assert len(numbers) == 24 and max(numbers) > 23, "some were skipped"
    again = search_at(GOOD * 100, tmp_path)
    assert again.propose(world.look) == []
    assert [trial.number for trial in again._history.trials] == numbers


def test_searches_of_other_starts_and_targets_lie_apart(tmp_path):
    assert search_at(GOOD, tmp_path).path != search_at(2 * GOOD, tmp_path).path
    assert search_at(GOOD, tmp_path).path == search_at(GOOD, tmp_path, trials=99).path


def test_without_an_exact_value_one_long_run_is_the_reference(tmp_path):
    world = World(exact=False)
    search = search_at(GOOD, tmp_path, trials=16)
    run_to_its_end(search, world)
    references = [run_id for run_id in world.sampled if run_id.startswith("run_nuts_")]
    assert [search.reference.source] == references
    assert search.is_within


def test_a_reference_that_is_not_ok_is_doubled_once_and_then_given_up(tmp_path):
    world = World(exact=False)
    world.change = lambda row: row | ({"verdict": "unmixed"} if row["mala_acceptance"] is None else {})
    search = search_at(GOOD, tmp_path, trials=8)
    run_to_its_end(search, world)
    references = [run_id for run_id in world.sampled if run_id.startswith("run_nuts_")]
    assert len(references) == 2
    assert search.lost.startswith("its reference is not to be trusted, also at twice the length: unmixed")


def test_a_target_without_reference_is_left_out_where_none_is_wanted(tmp_path):
    search = search_at(GOOD, tmp_path, sampler=None)
    run_to_its_end(search, World(exact=False))
    assert search.lost == "its exact value is not known, and --reference none makes no other"


def test_a_target_that_cannot_be_built_and_runs_that_fail(tmp_path, world):
    world.change = lambda row: row | {"status": "blocked", "reason": "its target could not be built: BuildFailed"}
    search = search_at(GOOD, tmp_path / "blocked")
    run_to_its_end(search, world)
    assert search.lost == (
        "its target could not be built: BuildFailed; lambda-hat run --experiments study.yaml --rerun failed "
        "tries to build it again"
    )

    failing = World()
    failing.change = lambda row: row | {"status": "failed", "reason": "RuntimeError"} if row["mala_acceptance"] else row
    search = search_at(GOOD, tmp_path / "failed", trials=6)
    run_to_its_end(search, failing)
    assert search.winner is None and not search.outcomes
    assert {trial.end for trial in search._history.trials} <= {"failed", "pruned"}


@pytest.mark.parametrize("name", ["mala", "hmc", "nuts", "mclmc", "adjusted_mclmc", "sghmc", "sgnht"])
def test_every_sampler_has_settings_to_search(tmp_path, world, name):
    start = start_at(GOOD if name.startswith("sg") else None, name)
    search = Search(start, search_at(GOOD, tmp_path).reference, tmp_path, trials=5, batch=5, seeds=1, tolerance=0.05)
    wanted = search.propose(world.look)
    assert len({run.run_id for run in wanted}) == 5
    assert all(run.cfg.name == name for run in wanted)
