"""Packs: every run once, none over the size, the same whatever the order."""

from __future__ import annotations

import math
import random
from operator import attrgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambda_hat.config import SgldConfig
from lambda_hat.errors import ConfigError
from lambda_hat.planning.packing import PlannedRun, _best_exchange, _fill, make_packs

CFG = SgldConfig()


def planned(target_id, run_id, program, cost):
    return PlannedRun(target_id, run_id, CFG, "", 0, program, cost)


items_strategy = st.lists(
    st.builds(
        planned,
        target_id=st.sampled_from(["tgt_a", "tgt_b", "tgt_c", "tgt_d"]),
        run_id=st.integers(0, 500).map(lambda i: f"run_{i}"),
        program=st.sampled_from(["p", "q"]),
        cost=st.sampled_from([0.0, 1.0, 2.5, 100.0]),
    ),
    max_size=80,
    unique_by=lambda item: (item.target_id, item.run_id),
)


@given(items_strategy, st.integers(1, 40))
def test_every_run_is_in_exactly_one_pack_and_none_is_over_size(items, size):
    packs = make_packs(items, size)
    key = attrgetter("key")
    assert sorted((item for pack in packs for item in pack), key=key) == sorted(items, key=key)
    assert all(0 < len(pack) <= size for pack in packs)
    assert len(packs) == math.ceil(len(items) / size)


@given(items_strategy, st.integers(1, 40), st.randoms(use_true_random=False))
def test_order_does_not_matter(items, size, rng):
    shuffled = list(items)
    rng.shuffle(shuffled)
    assert make_packs(shuffled, size) == make_packs(items, size)


@given(items_strategy, st.integers(1, 40))
def test_longest_first_inside_a_pack(items, size):
    for pack in make_packs(items, size):
        costs = [item.cost for item in pack]
        assert costs == sorted(costs, reverse=True)


def plain_put(packs, group, size):
    """The lightest pack with room for all of it, else as much as fits into the emptiest, looking at every pack."""
    lightest = lambda pack: (sum(item.cost for item in pack), packs.index(pack))  # noqa: E731
    roomy = [pack for pack in packs if len(pack) + len(group) <= size]
    chosen = min(roomy, key=lightest) if roomy else min(packs, key=lambda pack: (len(pack), *lightest(pack)))
    space = size - len(chosen)
    chosen += group[:space]
    if group[space:]:
        plain_put(packs, group[space:], size)


@given(
    st.lists(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.sampled_from([0.0, 1.0, 2.5]))), max_size=30)
)
def test_a_group_goes_to_the_lightest_pack_that_has_room(groups):
    size = 9
    items = [[planned(f"t{g}", f"r{i}", "p", cost) for i in range(n)] for g, (n, cost) in enumerate(groups)]
    number = math.ceil(sum(map(len, items)) / size)
    packs, plain = [[] for _ in range(number)], [[] for _ in range(number)]
    _fill(packs, items, size)
    for group in items:
        plain_put(plain, group, size)
    assert packs == plain


costs_strategy = st.lists(st.sampled_from([0.0, 1.0, 2.5, 4.0, 7.0]), min_size=1, max_size=12)


@given(costs_strategy, costs_strategy, st.floats(0.01, 5))
def test_the_best_exchange_is_that_of_all_pairs(heavy, light, wanted):
    heavy, light = (
        [planned("t", str(i), "p", cost) for i, cost in enumerate(sorted(costs))] for costs in (heavy, light)
    )
    given, got = _best_exchange(heavy, light, wanted)
    assert abs(given.cost - got.cost - wanted) == min(abs(a.cost - b.cost - wanted) for a in heavy for b in light)


@pytest.mark.parametrize("seed", range(20))
def test_costs_are_even(seed):
    """A quarter of the runs ten times as long: no pack carries more than the fair share and one long run."""
    rng = random.Random(seed)
    items = [
        planned(f"tgt_{rng.randrange(6)}", f"run_{i}", rng.choice("pq"), rng.uniform(1, 2) * (10 if i % 4 == 0 else 1))
        for i in range(rng.randint(60, 200))
    ]
    packs = make_packs(items, 20)
    loads = [sum(item.cost for item in pack) for pack in packs]
    assert max(loads) <= sum(loads) / len(loads) + max(item.cost for item in items)


def test_uneven_count_is_spread_instead_of_leaving_a_small_last_pack():
    items = [planned("tgt_a", f"run_{i:03d}", "p", 1.0) for i in range(100)]
    assert sorted(len(pack) for pack in make_packs(items, 32)) == [25, 25, 25, 25]


def test_runs_of_a_target_stay_together():
    items = [planned(f"tgt_{t}", f"run_{i}", "p", 1.0) for t in range(6) for i in range(8)]
    random.Random(0).shuffle(items)
    packs = make_packs(items, 16)
    assert [len({item.target_id for item in pack}) for pack in packs] == [2, 2, 2]


def test_targets_that_share_programs_stay_together():
    items = [planned(f"tgt_{t}", f"run_{i}", f"{t % 2}{i % 2}", 1.0) for t in range(4) for i in range(4)]
    packs = make_packs(items, 8)
    assert [{item.target_id for item in pack} for pack in packs] == [{"tgt_0", "tgt_2"}, {"tgt_1", "tgt_3"}]


def test_a_target_too_large_for_a_pack_is_cut_by_program():
    items = [planned("tgt_a", f"run_{p}{i}", p, 1.0) for p in "pq" for i in range(8)]
    packs = make_packs(items, 8)
    assert [{item.program for item in pack} for pack in packs] == [{"p"}, {"q"}]


def test_no_runs_no_packs():
    assert make_packs([], 4) == []


@pytest.mark.parametrize("size", [0, -3])
def test_size_below_one_is_refused(size):
    with pytest.raises(ConfigError, match=f"--pack: got {size}, expected an integer of at least 1"):
        make_packs([], size)
