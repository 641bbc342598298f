"""What the observables of a run cost and take, as far as its configuration tells."""

from __future__ import annotations

from collections.abc import Iterable

from lambda_hat.config import NO_ROWS, SampleConfig
from lambda_hat.errors import ConfigError

VALUE = 4
"""Bytes of a kept number."""


def in_words(size: int) -> str:
    """A number of bytes in the unit that suits it."""
    for unit, length in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= length:
            return f"{size / length:.3g} {unit}"
    return f"{size / 2**10:.3g} KiB"


def check_observed(cfg: SampleConfig, num_data: int | None, stores_rows: bool, is_custom: bool, target: str) -> None:
    """Refuse observables that a target cannot have.

    Args:
        cfg: The configuration of a run.
        num_data: Rows of its target's data, 0 for a closed form; None: not known before it is built.
        stores_rows: Whether the data hold the rows themselves.
        is_custom: Whether its loss is the user's own, which may have tokens.
        target: What messages call the target.

    Raises:
        ConfigError: There is one. The message names it.
    """
    for name, what in (cfg.observe or {}).items():
        own_loss = what.function is None
        if num_data == 0 and (own_loss or what.data is not None or what.rows is not None):
            raise ConfigError(
                f"observe.{name}: {target} has no rows: {NO_ROWS['population']}; leave it out, or say under "
                "targets which ones the entry is for"
            )
        if what.per == "token" and not is_custom:
            raise ConfigError(f"observe.{name}: per: token: the rows of {target} have no tokens; write per: row")
        if not stores_rows and (what.data is not None or what.rows is not None):
            raise ConfigError(
                f"observe.{name}: {target} keeps the moments of its data in place of the rows, so that it takes no "
                "other data and no part of them; leave data and rows out"
            )
        if num_data and what.data is None and what.rows is not None and what.rows > num_data:
            raise ConfigError(
                f"observe.{name}: rows: got {what.rows}, but {target} has {num_data}; leave rows out for all"
            )


def passes_over_data(cfg: SampleConfig, num_data: int) -> float:
    """Passes over the full data that the observables of one draw take; those of other data count as of this."""
    observe = (cfg.observe or {}).values()
    return sum(1.0 if what.rows is None or not num_data else what.rows / num_data for what in observe)


def kept_bytes(cfg: SampleConfig, num_data: int | None) -> tuple[int, int]:
    """What a run keeps of single rows.

    Returns:
        The bytes that its configuration tells, and the number of observables of which it tells none.
    """
    rows = unknown = 0
    for what in (cfg.observe or {}).values():
        count = num_data if what.rows is None and what.data is None else what.rows
        if what.function is not None or what.per == "token" or (what.per == "row" and count is None):
            unknown += 1
        elif what.per == "row":
            rows += count or 0
    return VALUE * cfg.num_chains * cfg.num_draws * rows, unknown


def size_of_observed(runs: Iterable[tuple[SampleConfig, int | None]]) -> str | None:
    """A sentence on what all runs of a study keep of single rows; None if they keep nothing.

    Args:
        runs: The configurations, each with the rows of its target's data.
    """
    found = [kept_bytes(cfg, num_data) for cfg, num_data in runs]
    sizes, unknown = [size for size, _ in found if size], sum(unknown > 0 for _, unknown in found)
    words = []
    if sizes:
        words.append(f"{len(sizes)} runs keep up to {in_words(max(sizes))} of rows each, {in_words(sum(sizes))} in all")
    if unknown:
        words.append(
            f"what {unknown} runs keep {'beside that ' * bool(sizes)}is known when they start, and in their notes"
        )
    return f"observe: {'; '.join(words)}" if words else None
