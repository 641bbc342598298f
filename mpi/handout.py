"""Which item goes to which rank next, and which have ended: the state of a hand-out, apart from how it is talked about.

Nothing here calls MPI, and taking an item costs about the logarithm of how many wait.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from lambda_hat.drain import Drain

LEAST_SECONDS = 10.0
"""Before the deadline in which a run that no allocation is long enough for is not begun any more: it would hardly get
beyond compiling."""
LEFT = "left"
"""Outcome of items that were not handed out."""


@dataclass(frozen=True)
class Item:
    """Something to be done once."""

    key: str
    needs: str | None = None
    """An item that must have ended before, however it ended."""
    cost: float = 0.0
    """Expected seconds."""
    program: str | None = None
    """Items of equal program share compiled code, so the second one on a rank is cheaper than the first."""
    alone: bool = False
    """Goes out after all others, and with nothing else under way: it is suspected of killing its rank."""
    size: int = 1
    """How many outcomes it has."""


class Handout:
    """The state of a hand-out, on rank 0; safe to use from several threads.

    Items go out in the given order, longest first, with two exceptions. One whose need is still under way is passed
    over. And of the items that cost at least half as much as the next one, a rank gets one whose program it has
    compiled already, else one whose program no rank has: compiling often costs more than sampling. Of each program only
    the first item that waits is looked at, which is the longest where the order is longest first.

    Nothing goes out once `drain` asks for it, and no item that its expected seconds, corrected by what the items before
    took, would carry over the deadline; one that is longer than the whole time that there was is begun all the same,
    because it would not fit into another allocation either. What needs an item that does not go out does not go out.

    Raises ValueError for an item that needs one which is not listed before it, and for one that is listed twice.
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
        """With the time at which it went out."""
        self._taken = self._expected = 0.0
        """Seconds of what has ended."""
        self._suspect_under_way = False
        self._unfit: list[Item] = []
        self._needing: dict[str, list[int]] = defaultdict(list)
        """Places of the items that need one which has not ended."""
        # Heaps of the places of ready items. A place stays in all of its heaps when its item goes out of one, and is
        # dropped where it comes to the top.
        self._together: list[int] = []
        self._suspects: list[int] = []
        self._of_program: dict[str, list[int]] = defaultdict(list)
        self._uncompiled: list[int] = []
        """Of programs that no rank has."""
        self._compiled: set[str] = set()
        self._programs: dict[int, set[str]] = defaultdict(set)
        """What each rank has compiled, as far as there may be more of it."""
        self._num_of_program = Counter(item.program for item in self._items)
        """Items of each program that wait, ready or not."""
        self._changed = threading.Condition()
        self.outcomes: Counter[str] = Counter()
        for place, item in enumerate(self._items):
            if item.needs is None:
                self._make_ready(place)
            else:
                self._needing[item.needs].append(place)

    @property
    def done(self) -> bool:
        """Every item has ended, or will not go out."""
        return not self._under_way and (not self._num_waiting or self._drain.reason is not None)

    @property
    def left(self) -> list[Item]:
        """Items that were not handed out, and are not going to be."""
        return [*self._unfit, *(item for item, waits in zip(self._items, self._waits, strict=True) if waits)]

    def end(self, key: str, outcomes: Sequence[str]) -> None:
        """Item `key`, handed out before, has ended, with these outcomes."""
        with self._changed:
            item, begun = self._under_way.pop(key)
            # A suspect is the only one under way.
            self._suspect_under_way = False
            if item.cost > 0:
                self._taken += time.monotonic() - begun
                self._expected += item.cost
            for place in self._needing.pop(key, ()):
                self._make_ready(place)
            self.outcomes.update(outcomes)
            self._changed.notify_all()

    def take(self, rank: int) -> str | None:
        """An item for `rank`, or None where there is none now."""
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
        """An item for `rank`, waited for where needs are under way; None when every item has ended."""
        with self._changed:
            while True:
                key = self.take(rank)
                if key is not None or self.done:
                    return key
                # Not for ever: the drain is no event of this hand-out's.
                self._changed.wait(1.0)

    def _choose(self, rank: int) -> int | None:
        """Place of the item for `rank` among those that may go out together."""
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
        """Of every program that `rank` has compiled the first place, where its cost is at least `least`."""
        for program in list(self._programs[rank]):
            if not self._num_of_program[program]:
                self._programs[rank].remove(program)
                continue
            place = self._first(self._of_program[program])
            if place is not None and self._items[place].cost >= least:
                yield place

    def _first(self, heap: list[int], wanted: Callable[[Item], bool] = lambda item: True) -> int | None:
        """The first place of `heap` whose item waits, is wanted and fits before the deadline."""
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
        """The item does not fit before the deadline, and with it nothing that needs it."""
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
    """How many outcomes there were of each kind; those of items that were not handed out are `left`."""
    return handout.outcomes + Counter({LEFT: sum(item.size for item in handout.left)})
