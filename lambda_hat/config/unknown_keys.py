"""What to write in place of an unknown key: the nearest of ours, or ours for a word of other packages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lambda_hat.config import plain_yaml
from lambda_hat.config.samplers import SAMPLE_SCHEMAS
from lambda_hat.errors import nearest


@dataclass(frozen=True)
class _Word:
    """A word of other packages."""

    ours: str
    """Our key for it."""
    same: str = "the same number"
    """What is to be said of its value."""


_STEP_SIZE = "the same number as devinterp's for SGLD; null: burn-in learns it"
_N_BETA = (
    "the same number if it is given; null: n / log n, where devinterp takes batch / log batch, so that estimates differ"
)
WORDS: dict[str, Sequence[_Word]] = {
    "nbeta": [_Word("n_beta", _N_BETA)],
    "temperature": [_Word("beta", "1 / temperature")],
    "localization": [_Word("gamma")],
    "localisation": [_Word("gamma")],
    "elasticity": [_Word("gamma")],
    "lr": [_Word("step_size", _STEP_SIZE), _Word("initial_step_size", "where burn-in starts to learn it")],
    "learning_rate": [_Word("step_size", _STEP_SIZE), _Word("initial_step_size", "where burn-in starts to learn it")],
    "num_burnin_steps": [_Word("num_burnin")],
    "num_warmup": [_Word("num_burnin")],
    "num_steps_bw_draws": [_Word("thin")],
    "num_samples": [_Word("num_draws")],
    "chains": [_Word("num_chains")],
}
"""Of devinterp, NumPyro and PyMC. Where a sampler has not the first of our keys, the next may do.

devinterp's SGLD steps by `-(lr/2) (nbeta grad + localization (w - w_star)) + sqrt(lr) xi`, as ours does.
"""


_KEYS = {field.name for schema in SAMPLE_SCHEMAS.values() for field in fields(schema)}


def hint(key: str, valid: Collection[str]) -> str:
    """What to write in place of `key`, which is none of the `valid` keys."""
    for word in WORDS.get(key, ()):
        if word.ours in valid:
            return f"write {word.ours}, {word.same}"
    return nearest(key, valid)


def hint_beside_name(key: str, valid: Collection[str]) -> str:
    """The same in an entry of a sampler, whose keys stand under `overrides`."""
    if key in _KEYS:
        return f"write it under overrides, overrides: {{{key}: ...}}"
    return f"under overrides {hint(key, _KEYS)}" if key in WORDS else nearest(key, valid)


def nested(key: str, value: Any) -> str:
    """The hint for a dotted key in a place where keys are nested."""
    for part in reversed(key.split(".")):
        value = {part: value}
    written = plain_yaml.dump_line(value)[1:-1]
    return f"write it nested, {written}; dotted keys stand under sweep and on the command line"
