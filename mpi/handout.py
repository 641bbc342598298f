"""The state of a hand-out: which item goes to which rank next, and which items have ended.

Nothing here calls MPI. Taking an item costs about the logarithm of the number of items that wait.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from lambda_hat.store.drain import Drain

LEAST_SECONDS = 10.0
"""Time before the deadline in which no run is begun that is longer than the allocation: it would hardly get beyond
compiling."""
LEFT = "left"
"""Outcome of items that were not handed out."""


@dataclass(frozen=True)
class Item:
    """Work to be done once: a build, or runs that one rank gets together."""

    key: str
    needs: str | None = None
    """The item that must have ended before this one starts, however it ended."""
    cost: float = 0.0
    """Expected seconds."""
    program: str | None = None
    """Items with the same program share compiled code, so the second one on a rank is cheaper than the first."""
    alone: bool = False
    """It is suspected of killing its rank, so it goes out after all others, and with nothing else under way."""
    size: int = 1
    """Number of its outcomes."""


class Handout:
    """The state of a hand-out, on rank 0. It is safe to use from several threads.

    Items go out in the given order, with two exceptions:
    - An item that needs another one waits until that one has ended.
    - Compiling often costs more than sampling. So among the items that cost at least half as much as the next one, a
      rank gets one whose program it has compiled already; else one whose program no rank has. Of each program only the
      first waiting item is considered.

    Nothing goes out once `drain` is requested, nor does an item that would run past the deadline by its expected
    seconds, corrected by the time that earlier items took. But an item that is longer than the whole time from the
    start to the deadline is begun all the same, because it would not fit into another allocation either. Items that
    need an item that does not go out do not go out.

    Args:
        items: The items, longest first.
        drain: Asked whether to hand out more; by default there is none.

    Raises:
        ValueError: An item needs one that is not listed before it, or is listed twice.
    """

    def __init__(self, items: Sequence[Item], drain: Drain | None = None):
        known: set[str] = set()
        for item in items:
            if item.needs is not None and item.needs not in known:
                raise ValueError(f"{item.key} needs {item.needs}, which is not an item before it")
            if item.key in known:
                raise ValueError(f"{item.key} is listed twice")
            known.add(item.key)
        self._items = list(items)
        self._waits = [True] * len(self._items)
        self._num_waiting = len(self._items)
        self._drain = drain or Drain()
        self._whole_time = self._drain.time_left
        self._under_way: dict[str, tuple[Item, float]] = {}
        """The items that have gone out and not ended, with the times at which they went out."""
        self._taken = self._expected = 0.0
        """Seconds that the ended items took, and were expected to take."""
        self._suspect_under_way = False
        self._unfit: list[Item] = []
        self._needing: dict[str, list[int]] = defaultdict(list)
        """For items that have not ended, the places of those that need them."""
        # Heaps of the places of ready items. When an item goes out, its place stays in the other heaps until it reaches
        # their top.
        self._together: list[int] = []
        self._suspects: list[int] = []
        self._of_program: dict[str, list[int]] = defaultdict(list)
        self._uncompiled: list[int] = []
        """Items of programs that no rank has compiled."""
        self._compiled: set[str] = set()
        self._programs: dict[int, set[str]] = defaultdict(set)
        """The programs that each rank has compiled, without those of which no item is left."""
        self._num_of_program = Counter(item.program for item in self._items)
        """Number of waiting items of each program, ready or not."""
        self._changed = threading.Condition()
        self.outcomes: Counter[str] = Counter()
        for place, item in enumerate(self._items):
            if item.needs is None:
                self._make_ready(place)
            else:
                self._needing[item.needs].append(place)

    @property
    def done(self) -> bool:
        """Whether every item has ended or will not go out."""
        return not self._under_way and (not self._num_waiting or self._drain.reason is not None)

    @property
    def left(self) -> list[Item]:
        """The items that were not handed out, and will not be."""
        return [*self._unfit, *(item for item, waits in zip(self._items, self._waits, strict=True) if waits)]

    def end(self, key: str, outcomes: Sequence[str]) -> None:
        """Note that the item `key` has ended with these outcomes."""
        with self._changed:
            item, begun = self._under_way.pop(key)
            # While a suspect is under way, nothing else is.
            self._suspect_under_way = False
            if item.cost > 0:
                self._taken += time.monotonic() - begun
                self._expected += item.cost
            for place in self._needing.pop(key, ()):
                self._make_ready(place)
            self.outcomes.update(outcomes)
            self._changed.notify_all()

    def let_go(self) -> list[str]:
        """Give up half of the items that wait, every second one beginning with the longest. Returns their keys.

        Items that need others, are needed, or go out alone stay.
        """
        with self._changed:
            free = [place for place, waits in enumerate(self._waits) if waits and self._is_free(self._items[place])]
            for place in free[::2]:
                self._remove(place)
            self._changed.notify_all()
            return [self._items[place].key for place in free[::2]]

    def _is_free(self, item: Item) -> bool:
        return not item.alone and item.needs is None and item.key not in self._needing

    def take(self, rank: int) -> str | None:
        """Take an item for `rank`; None where there is none at the moment."""
        with self._changed:
            if self._suspect_under_way or self._drain.reason is not None:
                return None
            place = self._choose(rank)
            if place is None and not self._under_way:
                place = self._first(self._suspects)
            if place is None:
                return None
            item = self._items[place]
            self._remove(place)
            self._under_way[item.key] = (item, time.monotonic())
            self._suspect_under_way = item.alone
            if item.program is not None:
                self._compiled.add(item.program)
                self._programs[rank].add(item.program)
            return item.key

    def wait_and_take(self, rank: int) -> str | None:
        """Take an item for `rank`, waiting while items that others need are under way; None when everything is done."""
        with self._changed:
            while True:
                key = self.take(rank)
                if key is not None or self.done:
                    return key
                # The wait is bounded, because nobody notifies the hand-out of a drain.
                self._changed.wait(1.0)

    def _choose(self, rank: int) -> int | None:
        """The place of the next item for `rank`, suspects aside."""
        first = self._first(self._together)
        if first is None or self._items[first].program is None:
            return first
        least = self._items[first].cost / 2
        own = min(self._first_of_own(rank, least), default=None)
        if own is not None:
            return own
        new = self._first(self._uncompiled, lambda item: item.program not in self._compiled)
        return first if new is None or self._items[new].cost < least else new

    def _first_of_own(self, rank: int, least: float) -> Iterator[int]:
        """For every program that `rank` has compiled, the first place, if its item costs at least `least`."""
        for program in list(self._programs[rank]):
            if not self._num_of_program[program]:
                self._programs[rank].remove(program)
                continue
            place = self._first(self._of_program[program])
            if place is not None and self._items[place].cost >= least:
                yield place

    def _first(self, heap: list[int], wanted: Callable[[Item], bool] = lambda item: True) -> int | None:
        """The first place of a heap whose item waits, is wanted, and fits before the deadline."""
        while heap:
            place = heap[0]
            if self._waits[place] and wanted(self._items[place]):
                if self._fits(self._items[place]):
                    return place
                self._give_up(place)
            heappop(heap)
        return None

    def _fits(self, item: Item) -> bool:
        expected = item.cost * (self._taken / self._expected if self._expected else 1.0)
        if expected > self._whole_time:
            return self._drain.time_left > min(LEAST_SECONDS, 0.5 * self._whole_time)
        return expected <= self._drain.time_left

    def _make_ready(self, place: int) -> None:
        item = self._items[place]
        if item.alone:
            heappush(self._suspects, place)
            return
        heappush(self._together, place)
        if item.program is not None:
            heappush(self._of_program[item.program], place)
            if item.program not in self._compiled:
                heappush(self._uncompiled, place)

    def _give_up(self, place: int) -> None:
        """Give up an item that does not fit before the deadline, and all items that need it."""
        places = [place]
        for unfit in places:
            self._remove(unfit)
            self._unfit.append(self._items[unfit])
            places += self._needing.pop(self._items[unfit].key, ())

    def _remove(self, place: int) -> None:
        self._waits[place] = False
        self._num_waiting -= 1
        self._num_of_program[self._items[place].program] -= 1


def outcomes_of(handout: Handout) -> Counter[str]:
    """The number of outcomes of each kind; those of items that were not handed out are `left`."""
    return handout.outcomes + Counter({LEFT: sum(item.size for item in handout.left)})
