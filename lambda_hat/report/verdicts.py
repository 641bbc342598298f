"""The verdicts of `lambda_hat.diagnostics` for those who only look at results, and do without jax."""

from __future__ import annotations

WORST_FIRST = ("diverged", "divergent", "stuck", "not_a_minimum", "unmixed", "drifting", "too_short", "ok")
MAX_RHAT = 1.05
"""Above it chains disagree."""


def rank_of(verdict: object) -> int:
    """Place of a verdict among them, the worst being 0; one that is unknown comes with the worst."""
    return WORST_FIRST.index(verdict) if verdict in WORST_FIRST else 0
