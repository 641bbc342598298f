"""Nodes on which packs fail: they are left out of the next tries where there are others.

Two things speak against a node:

- Ranks cannot start there, by their own word or the launcher's. Where most nodes are named so, it is the site that is
  wrong, and no node is blamed.
- Launches died there twice, and more often than elsewhere. A launch counts only where it is known on which node it
  died.

A run that dies on two nodes was itself to blame: its deaths speak against no node, and each such run takes one more
death to blame a node. Everything is judged again at every loss, so a node comes back when its runs die elsewhere as
well, and a study whose own code crashes keeps all nodes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from lambda_hat.store.events import Key, PackLog
from mpi.launch import node_name

DEATHS_OF_A_BAD_NODE = 2


@dataclass(frozen=True)
class Death:
    """A launch that died on one node."""

    node: str
    pack_id: str
    runs: frozenset[Key]
    """Those that may have killed it; none where its rank died between two runs."""


@dataclass(frozen=True)
class FailedStart:
    """A launch that did not start, because of some of its nodes."""

    reasons: Mapping[str, str]
    """By node."""
    size: int
    """Nodes of a pack."""


class BadNodes:
    """What a driver knows of nodes. `left_out` changes only in `judge` and `forgive`.

    known: all nodes that there are, of which one is always left. None: a scheduler may give others.
    """

    def __init__(self, known: Collection[str] | None = None) -> None:
        self._known = None if known is None else set(map(node_name, known))
        self._deaths: list[Death] = []
        self._failed_starts: list[FailedStart] = []
        self._began: set[str] = set()
        self._forgiven: set[str] = set()
        self.left_out: dict[str, str] = {}
        """Why each node is left out."""

    def saw(self, log: PackLog) -> None:
        """Note on which nodes the ranks of a pack have begun."""
        self._began |= {node_name(life.host) for life in log.ranks if life.ready is not None}

    def died(self, pack_id: str, hosts: Iterable[str], runs: Iterable[Key]) -> None:
        """A launch died on one of `hosts`. runs: those that may have killed it."""
        nodes = set(map(node_name, hosts))
        if len(nodes) == 1:
            self._deaths.append(Death(nodes.pop(), pack_id, frozenset(runs)))

    def did_not_start(self, reasons: Mapping[str, str], size: int) -> None:
        """A launch did not start. reasons: why, by host. size: nodes of a pack."""
        self._failed_starts.append(FailedStart({node_name(host): why for host, why in reasons.items()}, size))

    def judge(self) -> list[str]:
        """Judge all nodes anew. Returns a sentence for each that is left out, or is not any more."""
        return self._change(self._bad(), "what failed there failed on other nodes as well")

    def forgive(self) -> list[str]:
        """The scheduler gives no other nodes: use those where launches died. Returns a sentence for each."""
        self._forgiven |= self.left_out.keys()
        return self._change(self._bad(), "there is no other")

    def _change(self, bad: dict[str, str], why_back: str) -> list[str]:
        before, self.left_out = self.left_out, bad
        new = [f"node {node} is left out from now on: {why}" for node, why in bad.items() if node not in before]
        return new + [f"node {node} is used again: {why_back}" for node in before if node not in bad]

    def _bad(self) -> dict[str, str]:
        bad = self._by_deaths()
        bad |= self._by_starts(bad)
        if self._known is not None:
            bad = {node: why for node, why in bad.items() if node in self._known}
            if len(bad) == len(self._known):
                return {}
        return bad

    def _by_deaths(self) -> dict[str, str]:
        places = defaultdict(set)
        for death in self._deaths:
            for run in death.runs:
                places[run].add(death.node)
        guilty = {run for run, nodes in places.items() if len(nodes) > 1}
        found = [death for death in self._deaths if not guilty & death.runs]
        counts = Counter(death.node for death in found)
        bad: dict[str, str] = {}
        for node, number in counts.most_common():
            others = sum(count for other, count in counts.items() if other != node and other not in bad)
            if number >= DEATHS_OF_A_BAD_NODE and number > others + len(guilty) and node not in self._forgiven:
                packs = ", ".join(dict.fromkeys(death.pack_id for death in found if death.node == node))
                bad[node] = f"{number} launches died there ({packs})"
        return bad

    def _by_starts(self, dead: Collection[str]) -> dict[str, str]:
        failed = {node for start in self._failed_starts for node in start.reasons}
        others = len(self._began - failed - set(dead))
        bad: dict[str, str] = {}
        for start in self._failed_starts:
            if len(failed) <= max(others, start.size - len(failed)):
                bad |= start.reasons
        return bad
