"""What was printed while one run was sampled: its lines in the logs of the ranks that attempted it.

A rank prints a line when a run ends. The lines between that one and the one before belong to the run, or to all lanes
of its program.
"""

from __future__ import annotations

import re

from lambda_hat.store.events import RANK_LOGS, Attempt, Key, lives_of
from lambda_hat.store.layout import Store
from lambda_hat.store.process_logs import text_of

_END = re.compile(r"\[rank \d+\] (?:run|build) (\S+): \w+ in [\d.]+ s\b")


def attempts(store: Store, key: Key) -> list[tuple[Attempt, list[str]]]:
    """Every attempt at a run with the lines that its rank printed, the first one first."""
    found: list[tuple[Attempt, list[str]]] = []
    for events in store.packs_dir.glob(f"pack_*/{RANK_LOGS}"):
        # Parsing every event of a large store would take long.
        if key[1] not in text_of(events):
            continue
        lines, ends = text_of(events.with_suffix(".log")).splitlines(), 0
        for attempt in (attempt for life in lives_of(events) for attempt in life.attempts if attempt.key == key):
            found.append((attempt, _section(lines, attempt, ends)))
            ends += attempt.status is not None
    return sorted(found, key=lambda item: item[0].begun)


def _section(lines: list[str], attempt: Attempt, earlier_ends: int) -> list[str]:
    """The lines of an attempt in its rank's log, in which the run ended `earlier_ends` times before."""
    name, group = "/".join(attempt.key), {"/".join(lane.key) for lane in attempt.group}
    ends = [(index, match[1]) for index, line in enumerate(lines) if (match := _END.match(line))]
    if attempt.status is None:
        return lines[max((index for index, item in ends if item not in group), default=-1) + 1 :]
    own = [index for index, item in ends if item == name]
    if earlier_ends >= len(own):
        return []
    last = own[earlier_ends]
    before = (index for index, item in ends if index < last and (item not in group or item == name))
    section = lines[max(before, default=-1) + 1 : last + 1]
    # The lines that say how other lanes ended are not its own.
    return [line for line in section if not (match := _END.match(line)) or match[1] == name]
