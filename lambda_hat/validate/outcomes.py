"""How the rows of the noisy suite are judged: right or wrong, the four outcomes, and the bars. No jax."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

MAX_STD_ERRORS, MAX_ERROR = 3.0, 0.05
"""An estimate is wrong if its error exceeds the sum of this many standard errors and this share of the answer."""
CHANCE_STD_ERRORS = 4.0
"""A miss of at most this many standard errors (and the same share) may be chance. An honest error exceeds them once in
16,000 pairs."""
OK_RIGHT, OK_WRONG = "ok and right", "ok and wrong"
NOT_OK_WRONG, NOT_OK_RIGHT = "not ok and wrong", "not ok though right"
OUTCOMES = (OK_RIGHT, OK_WRONG, NOT_OK_WRONG, NOT_OK_RIGHT)
FEWEST_PAIRS = 300
"""Least number of pairs in the whole suite: that none of a few pairs is ok and wrong would mean little."""
LEAST_OK_RIGHT = 0.7
"""Least share of all pairs that must be ok and right."""
LEAST_OF_DEFAULT, DEFAULTS = 0.9, ("hmc", "nuts", "sgld")
"""Least share that must be ok and right among the pairs of these samplers with nothing set."""


def judge(
    verdict: str, llc: float, std_error: float, exact: float, exact_std_error: float = 0.0
) -> dict[str, float | str]:
    """Compare one estimate with its answer.

    An estimate is right if its error is at most 3 standard errors + 5 %. The standard errors of the estimate and of a
    judged answer add in quadrature. NaN is wrong.

    Args:
        verdict: the code of the verdict.
        llc: the estimate.
        std_error: its standard error.
        exact: the answer.
        exact_std_error: the standard error of a judged answer; 0 if it is exact.

    Returns:
        `exact`, `exact_std_error`, `rel_error`, `z` and the `outcome`.
    """
    error = math.hypot(std_error, exact_std_error)
    off = abs(llc - exact)
    is_right = off <= MAX_STD_ERRORS * error + MAX_ERROR * abs(exact)
    if verdict == "ok":
        outcome = OK_RIGHT if is_right else OK_WRONG
    else:
        outcome = NOT_OK_RIGHT if is_right else NOT_OK_WRONG
    return {
        "exact": exact,
        "exact_std_error": exact_std_error,
        "rel_error": llc / exact - 1,
        "z": (llc - exact) / error if error > 0 else math.nan,
        "outcome": outcome,
    }


def may_be_chance(row: dict[str, Any]) -> bool:
    """Whether a row is ok and wrong, but by at most 4 standard errors + 5 %, so that another seed should decide.

    The rule is the same for every sampler: the 5 % allow for bias, the standard errors for chance.
    """
    if row["outcome"] != OK_WRONG or any(row[name] is None for name in ("llc", "std_error", "exact")):
        return False
    error = math.hypot(row["std_error"], row["exact_std_error"])
    return abs(row["llc"] - row["exact"]) <= CHANCE_STD_ERRORS * error + MAX_ERROR * abs(row["exact"])


def key_of(row: dict[str, Any]) -> tuple[str, str, int]:
    """The setting, target and seed that name a pair, whichever seed it was last sampled with."""
    return row["setting"], row["target"], row["pair_seed"]


def deciding(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last row of every pair, which decides."""
    return list({key_of(row): row for row in rows}.values())


def counts(rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    """The number of rows with each of the four outcomes."""
    found = Counter(row["outcome"] for row in rows)
    return {outcome: found[outcome] for outcome in OUTCOMES}


class Bar(NamedTuple):
    """A bar of the suite in words, the figure reached, and whether it is met."""

    wanted: str
    figure: str
    is_met: bool


def bars(rows: Sequence[dict[str, Any]]) -> list[Bar]:
    """The bars for the deciding rows. The number of pairs is not among them: it is a bar of the whole suite only."""
    found, total = counts(rows), len(rows)
    result = [
        Bar("ok and wrong: 0", f"{found[OK_WRONG]} of {total}", found[OK_WRONG] == 0),
        _share("ok and right", found[OK_RIGHT], total, LEAST_OK_RIGHT),
    ]
    for sampler in DEFAULTS:
        own = [row for row in rows if row["sampler"] == sampler and row["is_default"]]
        if own:
            result.append(_share(f"ok and right with {sampler}", counts(own)[OK_RIGHT], len(own), LEAST_OF_DEFAULT))
    return result


def _share(what: str, count: int, total: int, least: float) -> Bar:
    share = count / total
    return Bar(f"{what}: at least {least:.0%}", f"{count} of {total}, {share:.1%}", share >= least)
