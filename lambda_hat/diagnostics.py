"""What a run's draws say: the LLC, its standard error, and whether to believe them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from lambda_hat import mixing
from lambda_hat.llc import llc_from_losses
from lambda_hat.samplers.base import Draws
from lambda_hat.waic import singular_fluctuation

MAX_RHAT = 1.05
"""Above it the chains disagree. Vehtari et al. (2021) suggest 1.01 for long runs; a mean to a few per cent is
well served by less."""
MAX_DIVERGENT = 0.005
"""Share of the transitions. Arbitrary: small beside the per cent that an LLC is wanted to."""
MIN_ACCEPTANCE = 0.1
"""Of any chain after burn-in. Arbitrary: targets of adaptation are .5 and above."""
MAX_DESCENT = 0.1
"""How far L_n may fall below L_n(w_star), in nats over the estimate (over 1 where that is smaller): about the share by
which the estimate is too low. Arbitrary."""
MAX_DRIFT = 4.0
"""Difference of the chains' halves over its standard error: one run in 16,000 that is stationary exceeds it."""
BLOCKS = 10
"""Pieces of a chain whose means are looked at where single losses are noisy estimates."""
MAX_REL_ERROR = 0.25
"""Standard error over estimate. Arbitrary: beyond it one digit is not known."""


class Verdict(Enum):
    """Whether to believe a run, worst first; the value is its sentence."""

    DIVERGED = "{dead} of {chains} chains became non-finite; {kept}. Use a smaller step size."
    DIVERGENT = (
        "{divergent} of {transitions} transitions diverged: stiff places were left out. "
        "Use a higher target acceptance, or a smaller step."
    )
    STUCK = (
        "chain {stuck_chain} accepted {least_acceptance:.1%} of its moves, below {min_acceptance:.0%}: it hardly moved."
        " Use more burn-in, or a smaller initial step."
    )
    NOT_A_MINIMUM = (
        "n_beta L_n falls {descent:.3g} nats below its value at w_star: w_star is no minimum, and the estimate is too "
        "low. Train longer, or raise gamma."
    )
    UNMIXED = "the chains disagree (R-hat {rhat:.3f}, above {max_rhat}). Draw longer, with more burn-in."
    DRIFTING = (
        "the halves of the chains differ by {drift:+.3g}, {drift_errors:.1f} standard errors: not burnt in. "
        "Use more burn-in."
    )
    TOO_SHORT = "the standard error is {rel:.0%} of the estimate, above {max_rel:.0%}. Draw longer."
    OK = "the chains agree and the standard error is {rel:.1%} of the estimate."

    @property
    def code(self) -> str:
        """The word for tables."""
        return self.name.lower()


@dataclass(frozen=True)
class Summary:
    """One run in numbers; NaN where a number does not exist."""

    llc_mean: float
    llc_std_error: float
    llc_per_chain: list[float]
    """NaN for chains that died."""
    rhat_max: float
    """Split and rank-normalised; of the halves where there is a single chain."""
    ess_bulk_min: float
    ess_tail_min: float
    ess_mean: float
    """Effective sample size of the mean, which the standard error rests on."""
    acceptance: float
    mala_acceptance: float
    """Of the steps of a sampler that accepts all; small: its step size biases it."""
    num_divergent: int
    loss_mean: float
    singular_fluctuation: float
    singular_fluctuation_std_error: float
    waic: float
    verdict: str
    verdict_sentence: str


def _rhat(llc: np.ndarray) -> float:
    """R-hat of draws (chains, draws) that vary inside at least one chain; a single chain is compared with itself."""
    if len(llc) == 1:
        half = llc.shape[1] // 2
        llc = np.stack([llc[0, :half], llc[0, -half:]])
    if llc.shape[1] < 4:
        return float("nan")
    with np.errstate(divide="ignore", invalid="ignore"):
        return mixing.rhat(llc)


def _between_std_error(llc: np.ndarray) -> float:
    """Standard error of the mean from the chains' means alone; 0 for a single chain."""
    if len(llc) == 1:
        return 0.0
    return float(np.std(llc.mean(axis=1), ddof=1) / np.sqrt(len(llc)))


def _mixing(llc: np.ndarray) -> tuple[float, float, float, float, float]:
    """Standard error of the mean, R-hat, and bulk, tail and mean ESS of draws (chains, draws)."""
    if np.all(llc == llc[:, :1]):
        # Chains that never move: in agreement (a loss that is constant), or stuck at different values.
        agree = bool(np.all(llc == llc[0, 0]))
        ess = float(llc.size) if agree else float(len(llc))
        return _between_std_error(llc), 1.0 if agree else float("inf"), ess, ess, ess
    rhat = _rhat(llc)
    ess_mean = mixing.ess_mean(llc)
    std_error = float(np.std(llc, ddof=1) / np.sqrt(ess_mean))
    if not rhat <= MAX_RHAT:
        std_error = max(std_error, _between_std_error(llc))
    return std_error, rhat, mixing.ess_bulk(llc), mixing.ess_tail(llc), ess_mean


def _drift(llc: np.ndarray) -> tuple[float, float]:
    """Mean of the chains' second halves minus that of their first, and its standard error."""
    half = llc.shape[1] // 2
    if half < 4:
        return 0.0, 0.0
    first, second = llc[:, :half], llc[:, -half:]
    errors = [_mixing(part)[0] for part in (first, second)]
    return float(second.mean() - first.mean()), float(np.hypot(*errors))


def _descent(llc: np.ndarray, exact: bool) -> float:
    """How far below 0 the draws of (chains, draws) reach; the means of blocks, where single draws are noisy."""
    if not exact and llc.shape[1] >= BLOCKS:
        llc = np.stack([block.mean(axis=1) for block in np.array_split(llc, BLOCKS, axis=1)])
    return max(0.0, -float(llc.min()))


def summarize(draws: Draws, loss_at_w_star: float, n_beta: float) -> Summary:
    """Estimate, error and verdict from the chains that stayed finite.

    The standard error is `sd / sqrt(ESS)` with the chains' own effective sample size of the mean (Vehtari et al. 2021,
    arXiv 1903.08008), which shrinks where chains disagree; with R-hat above `MAX_RHAT` it is at least the one that the
    chains' means give. It does not know the bias of an unadjusted sampler.
    """
    llc = llc_from_losses(draws.loss, loss_at_w_star, n_beta)
    alive = np.asarray(draws.chain_alive)
    kept = llc[alive]
    nan = float("nan")
    mean, std_error, rhat, ess_bulk, ess_tail, ess_mean, loss_mean = (nan,) * 7
    drift, drift_error, descent = 0.0, 0.0, 0.0
    if len(kept):
        mean, loss_mean = float(kept.mean()), float(draws.loss[alive].mean())
        std_error, rhat, ess_bulk, ess_tail, ess_mean = _mixing(kept)
        drift, drift_error = _drift(kept)
        descent = _descent(kept, draws.exact_losses)
    acceptance = np.array([nan]) if draws.acceptance is None else draws.acceptance
    least_acceptance = float(np.min(acceptance[alive])) if len(kept) and draws.acceptance is not None else nan
    rel = abs(std_error / mean) if mean != 0 else (0.0 if std_error == 0 else float("inf"))
    num_dead = int((~alive).sum())
    if num_dead:
        verdict = Verdict.DIVERGED
    elif draws.num_divergent > MAX_DIVERGENT * draws.num_transitions:
        verdict = Verdict.DIVERGENT
    elif least_acceptance < MIN_ACCEPTANCE:
        verdict = Verdict.STUCK
    elif descent > MAX_DESCENT * max(abs(mean), 1.0):
        verdict = Verdict.NOT_A_MINIMUM
    elif rhat > MAX_RHAT:
        verdict = Verdict.UNMIXED
    elif abs(drift) > MAX_DRIFT * drift_error:
        verdict = Verdict.DRIFTING
    elif not rel <= MAX_REL_ERROR:
        verdict = Verdict.TOO_SHORT
    else:
        verdict = Verdict.OK
    sentence = verdict.value.format(
        dead=num_dead,
        chains=len(alive),
        kept=f"the estimate is of the other {len(kept)}" if len(kept) else "there is no estimate",
        divergent=draws.num_divergent,
        transitions=draws.num_transitions,
        stuck_chain=int(np.argmin(acceptance)),
        least_acceptance=least_acceptance,
        min_acceptance=MIN_ACCEPTANCE,
        descent=descent,
        rhat=rhat,
        max_rhat=MAX_RHAT,
        drift=drift,
        drift_errors=abs(drift) / drift_error if drift_error else float("inf"),
        rel=rel,
        max_rel=MAX_REL_ERROR,
    )
    fluctuation = None
    if draws.row_moments is not None and len(kept):
        beta = n_beta / draws.row_moments.mean.shape[1]
        fluctuation = singular_fluctuation(draws.row_moments, alive, beta)
    return Summary(
        llc_mean=mean,
        llc_std_error=std_error,
        llc_per_chain=[float(row.mean()) if ok else nan for row, ok in zip(llc, alive, strict=True)],
        rhat_max=rhat,
        ess_bulk_min=ess_bulk,
        ess_tail_min=ess_tail,
        ess_mean=ess_mean,
        acceptance=float(np.mean(acceptance)),
        mala_acceptance=nan if draws.mala_acceptance is None else float(np.mean(draws.mala_acceptance)),
        num_divergent=draws.num_divergent,
        loss_mean=loss_mean,
        singular_fluctuation=nan if fluctuation is None else fluctuation.nu,
        singular_fluctuation_std_error=nan if fluctuation is None else fluctuation.nu_std_error,
        waic=nan if fluctuation is None else fluctuation.waic,
        verdict=verdict.code,
        verdict_sentence=sentence,
    )
