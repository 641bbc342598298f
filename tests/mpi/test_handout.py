"""What goes to whom, in which order: by example, and against a plain model that looks at every item."""

import time
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lambda_hat.store.drain import Drain
from mpi.handout import Handout, Item, outcomes_of


def keys(items):
    return [item.key for item in items]


def test_an_item_whose_need_is_under_way_is_passed_over():
    handout = Handout([Item("build"), Item("run", needs="build"), Item("other")])
    assert [handout.take(0), handout.take(1), handout.take(2)] == ["build", "other", None]
    handout.end("build", ["failed"])
    assert handout.take(2) == "run"
    assert not handout.done


def test_ranks_keep_to_their_programs_among_items_of_similar_cost():
    items = [Item(f"{program}{i}", cost=10.0 - i, program=program) for i in range(3) for program in "ab"]
    handout = Handout([*items, Item("short", cost=1.0, program="a")])
    assert [handout.take(rank) for rank in (0, 1, 1, 0, 1)] == ["a0", "b0", "b1", "a1", "b2"]
    # A rank goes on with another's program when its own has nothing left, and never puts a long item off for a short.
    assert [handout.take(rank) for rank in (1, 0)] == ["a2", "short"]

    handout = Handout([Item("a0", None, 8.0, "a"), Item("b0", None, 7.0, "b"), Item("a1", None, 1.0, "a")])
    assert [handout.take(0), handout.take(0), handout.take(0)] == ["a0", "b0", "a1"]


def test_nothing_is_begun_that_cannot_end_before_the_deadline():
    """Expected seconds are corrected by what the items before took; here each took a hundredth."""
    drain = Drain(time.time() + 50.0)
    handout = Handout([Item("forty", cost=40.0), Item("forty-five", cost=45.0), Item("one", cost=1.0)], drain)
    assert handout.take(0) == "forty"
    handout.end("forty", ["finished"])
    drain.deadline = time.time() + 20.0
    assert handout.take(0) == "forty-five"
    handout.end("forty-five", ["finished"])
    drain.deadline = time.time() - 1
    assert handout.take(0) is None
    assert handout.done and keys(handout.left) == ["one"]

    drain = Drain(time.time() + 50.0)
    handout = Handout([Item("forty", cost=40.0), Item("one", cost=1.0)], drain)
    drain.deadline = time.time() + 20.0
    assert [handout.take(0), handout.take(0)] == ["one", None]
    assert keys(handout.left) == ["forty"] and not handout.done


def test_what_no_allocation_is_long_enough_for_is_begun_all_the_same():
    drain = Drain(time.time() + 50.0)
    handout = Handout([Item("endless", cost=1e6), Item("endless too", cost=1e6)], drain)
    assert handout.take(0) == "endless"
    drain.deadline = time.time() + 5.0
    assert handout.take(1) is None and keys(handout.left) == ["endless too"]


def test_suspects_go_out_last_and_by_themselves():
    items = [Item("killer", cost=9.0, alone=True), Item("a"), Item("b"), Item("killer too", alone=True)]
    handout = Handout(items)
    assert [handout.take(0), handout.take(1), handout.take(2)] == ["a", "b", None]
    handout.end("a", ["finished"])
    assert handout.take(0) is None
    handout.end("b", ["finished"])
    assert [handout.take(0), handout.take(1)] == ["killer", None]
    handout.end("killer", ["finished"])
    assert handout.take(1) == "killer too"


@pytest.mark.parametrize("items", [[Item("run", needs="build")], [Item("a"), Item("a")], [Item("a", needs="a")]])
def test_items_that_could_never_be_handed_out_are_refused(items):
    with pytest.raises(ValueError):
        Handout(items)


def test_what_needs_an_item_that_does_not_go_out_is_left():
    drain = Drain(time.time() + 50.0)
    items = [Item("build", cost=40.0), Item("run", needs="build"), Item("next", needs="run"), Item("other")]
    handout = Handout(items, drain)
    drain.deadline = time.time() + 20.0
    assert [handout.take(0), handout.take(1)] == ["other", None]
    handout.end("other", ["finished"])
    assert handout.done and keys(handout.left) == ["build", "run", "next"]
    assert outcomes_of(handout) == Counter(finished=1, left=3)


class Model:
    """The rules, item by item: what waits is a list, looked through for every item that goes out."""

    def __init__(self, items):
        self.waiting, self.under_way, self.ended = list(items), {}, set()
        self.programs = defaultdict(set)

    def take(self, rank):
        ready = [item for item in self.waiting if item.needs is None or item.needs in self.ended]
        together = [item for item in ready if not item.alone]
        if any(item.alone for item in self.under_way.values()) or (self.under_way and not together) or not ready:
            return None
        item = self.choose(rank, together) if together else ready[0]
        self.waiting.remove(item)
        self.under_way[item.key] = item
        if item.program is not None:
            self.programs[rank].add(item.program)
        return item.key

    def choose(self, rank, ready):
        if ready[0].program is None:
            return ready[0]
        similar = [item for item in ready if item.program is not None and item.cost >= ready[0].cost / 2]
        compiled = set().union(*self.programs.values())
        own = (item for item in similar if item.program in self.programs[rank])
        new = (item for item in similar if item.program not in compiled)
        return next(own, None) or next(new, None) or ready[0]

    def end(self, key):
        del self.under_way[key]
        self.ended.add(key)


@st.composite
def item_lists(draw):
    """Builds, and runs of few programs, longest first, that need one of them or nothing; some lists have suspects."""
    builds = [f"build{i}" for i in range(draw(st.integers(0, 4)))]
    run = st.tuples(
        st.sampled_from([None, *builds]), st.sampled_from([0.0, 1.0, 2.0, 3.0, 7.0]), st.sampled_from([None, *"abcd"]),
        st.booleans() if draw(st.booleans()) else st.just(False),
    )  # fmt: skip
    runs = sorted(draw(st.lists(run, max_size=25)), key=lambda run: -run[1])
    return [*map(Item, builds), *(Item(f"run{i}", *run) for i, run in enumerate(runs))]


@settings(max_examples=300, deadline=None)
@given(items=item_lists(), num_ranks=st.integers(1, 5), data=st.data())
def test_ranks_get_what_the_model_gives_them(items, num_ranks, data):
    handout, model = Handout(items), Model(items)
    busy = {}
    while model.waiting or busy:
        rank = data.draw(st.integers(0, num_ranks - 1))
        if rank in busy:
            key = busy.pop(rank)
            handout.end(key, ["finished"])
            model.end(key)
            continue
        key = handout.take(rank)
        assert key == model.take(rank)
        if key is not None:
            busy[rank] = key
        assert handout.done == (not model.waiting and not busy)
        assert handout.left == model.waiting
    assert outcomes_of(handout) == Counter(finished=len(items))


@settings(max_examples=100, deadline=None)
@given(items=item_lists(), seconds=st.lists(st.sampled_from([0.5, 1.5, 2.5, 100.0]), min_size=1, max_size=40))
def test_with_a_deadline_every_item_ends_once_or_is_left(items, seconds):
    """The time left is drawn anew for every item, so that at times much and at times nothing fits."""

    class Clock(Drain):
        time_left = 5.0

    drain = Clock()
    handout = Handout(items, drain)
    ended = []
    for left in seconds * (len(items) + 1):
        drain.time_left = left
        key = handout.take(0)
        if key is None:
            break
        item = next(item for item in items if item.key == key)
        assert item.needs is None or item.needs in ended
        handout.end(key, ["finished"])
        ended.append(key)
    assert handout.done
    assert sorted([*ended, *keys(handout.left)]) == sorted(item.key for item in items)
    assert outcomes_of(handout)["left"] == len(items) - len(ended)


def test_every_second_item_that_waits_is_let_go_of():
    items = [Item("build"), Item("a", cost=9.0), Item("b", cost=8.0, program="p"), Item("c", cost=7.0, program="p")]
    items += [Item("needs", needs="build", cost=6.0), Item("suspect", cost=5.0, alone=True), Item("d", cost=4.0)]
    handout = Handout(items)
    assert [handout.take(0), handout.take(1)] == ["build", "a"]
    assert handout.let_go() == ["b", "d"]
    assert handout.let_go() == ["c"]
    assert handout.let_go() == []
    handout.end("build", ["finished"])
    assert [handout.take(0), handout.take(0)] == ["needs", None]
    handout.end("a", ["finished"])
    handout.end("needs", ["finished"])
    assert handout.take(0) == "suspect"
    handout.end("suspect", ["finished"])
    assert handout.done and handout.left == [] and outcomes_of(handout) == Counter(finished=4)
