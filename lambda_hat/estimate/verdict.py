"""The summary of a run's draws: the LLC, its standard error, and the verdict, which says whether to believe them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from lambda_hat.estimate.convergence import MAX_RHAT, mixing
from lambda_hat.estimate.draws import Draws
from lambda_hat.estimate.llc import llc_from_losses
from lambda_hat.estimate.temperature import STD_ERRORS, grows_slower_than, heat_of
from lambda_hat.estimate.waic import singular_fluctuation

if TYPE_CHECKING:
    import jaxtyping

MAX_DIVERGENT = 0.005
"""Largest share of transitions that may diverge. Arbitrary: small beside the per cent to which an LLC is wanted."""
MIN_ACCEPTANCE = 0.1
"""Least mean acceptance of any chain after burn-in. Arbitrary: adaptation aims at .5 and above."""
MAX_DESCENT = 0.1
"""How far `n_beta L_n` may fall below its value at w_star, as a share of the estimate (of 1 nat if the estimate is
smaller). The estimate is then too low by about this share. Arbitrary."""
MAX_DRIFT = 4.0
"""Largest difference between the halves of the chains, in standard errors. One stationary run in 16,000 exceeds it."""
BLOCKS = 10
"""A chain of noisy losses is cut into this many blocks, whose means stand for single losses in the test for descent."""
MAX_REL_ERROR = 0.25
"""Largest standard error, as a share of the estimate. Arbitrary: beyond it not one digit is known."""
MAX_HEAT = 0.05
"""Largest relative error that the temperature may imply, if its whole excess or lack comes from the loss. A larger one
counts if it also exceeds `STD_ERRORS`. `docs/truth.md` compares temperatures with errors on exact targets."""
MAX_UNKNOWN = 0.1
"""Largest standard error of the temperature. Arbitrary: beyond it the temperature says nothing."""
MIN_DEGREE = 0.25
"""Least degree of growth of the loss along the chains. On wells that level off, estimates that are off by a factor of 2
to 6 have degrees below .2, and estimates of the basin 1.2 to 2. Trained networks in equilibrium have .5 and above
(`docs/truth.md`)."""
LOW_DEGREE = 1.0
"""Below this degree the sentence of an `ok` says that the chains see more than the basin, which has 2 or more."""


class Verdict(Enum):
    """Whether to believe a run, from the worst verdict to the best. The value is the sentence of the verdict."""

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
    HEATED = (
        "the chains are hotter than their posterior (temperature {temperature:.4g} +- {temperature_error:.1g}{of_step}"
        "): the estimate may be {heat} too high. Use a smaller step size or heat, larger batches, gradient: "
        "control_variate, or more burn-in."
    )
    NOT_EQUILIBRATED = (
        "the chains have not spread (temperature {temperature:.4g} +- {temperature_error:.1g}{of_step}): the "
        "estimate may be {cold} too low. Use more burn-in and thin, precond or metric: low_rank, or raise gamma."
    )
    NOT_LOCAL = (
        "the loss has levelled off along the chains (degree of growth {degree:.2g}, where a basin has 2 or more): they "
        "have left the basin of w_star. Raise gamma."
    )
    UNMIXED = "the chains disagree (R-hat {rhat:.3f}, above {max_rhat}). Draw longer, with more burn-in."
    DRIFTING = (
        "the halves of the chains differ by {drift:+.3g}, {drift_errors:.1f} standard errors: not burnt in. "
        "Use more burn-in."
    )
    UNCERTAIN = (
        "the temperature is {temperature:.3g} +- {temperature_error:.1g}, too uncertain to vouch for the estimate. "
        "Draw longer, with more thin, or use larger batches or gradient: control_variate."
    )
    TOO_SHORT = "the standard error is {rel:.0%} of the estimate, above {max_rel:.0%}. Draw longer."
    OK = "the chains agree and the standard error is {rel:.1%} of the estimate."

    @property
    def code(self) -> str:
        """The word that tables show."""
        return self.name.lower()


WORST_FIRST = tuple(verdict.code for verdict in Verdict)
"""The codes of all verdicts, the worst first."""


def place_of(verdict: object) -> int:
    """The place of a code in `WORST_FIRST`, 0 for the worst; an unknown code counts as the worst."""
    return WORST_FIRST.index(verdict) if verdict in WORST_FIRST else 0


WIDE = (
    " The loss levels off along the chains (degree of growth {degree:.2g}, where a basin has 2 or more): the estimate "
    "is of more than the basin of w_star. Raise gamma for the basin alone."
)
"""Added to the sentence of an `ok` whose degree is below `LOW_DEGREE`."""

OF_STEP = "; at this step size {flat:.4g} if the loss were flat"
"""Added to a temperature where it can be seen in its digits."""
SEEN = 1.0005
"""Least temperature of the step alone that four digits tell from 1."""


@dataclass(frozen=True)
class Summary:
    """The numbers of one run, from the chains that stayed finite. A number that does not exist is NaN."""

    llc_mean: float
    """`n_beta (E[L_n(w)] - L_n(w_star))`."""
    llc_std_error: float
    llc_per_chain: list[float]
    """The estimate of every chain; NaN for a chain that became non-finite."""
    rhat_max: float
    """Rank-normalised split R-hat; it compares the halves of a single chain."""
    ess_bulk_min: float
    ess_tail_min: float
    ess_mean: float
    """Effective sample size of the mean, from which the standard error follows."""
    acceptance: float
    """Mean acceptance probability; NaN for samplers that have none."""
    mala_acceptance: float
    """Mean probability that a Metropolis test would accept the steps of a sampler that accepts every step. A small
    value means that the step size biases the sampler."""
    num_divergent: int
    temperature: float
    """This field and the next five are those of `Heat`."""
    temperature_std_error: float
    flat_temperature: float
    growth: float
    localisation: float
    distance: float
    degree: float
    """`growth / llc_mean`: 2 in a quadratic basin, below 1 if the loss levels off."""
    llc_variance: float
    """`n_beta^2 Var[L_n(w)]`; NaN if the recorded losses are noisy estimates."""
    loss_mean: float
    """`E[L_n(w)]`, in the units of the loss."""
    singular_fluctuation: float
    """This field and the next two are those of `SingularFluctuation`; NaN unless the run asks for them."""
    singular_fluctuation_std_error: float
    waic: float
    verdict: str
    """The code of the verdict."""
    verdict_sentence: str


def _drift(llc: jaxtyping.Float[np.ndarray, "chains draws"]) -> tuple[float, float]:
    """The mean of the second halves of the chains minus that of the first halves, and its standard error."""
    half = llc.shape[1] // 2
    if half < 4:
        return 0.0, 0.0
    first, second = llc[:, :half], llc[:, -half:]
    error = float(np.hypot(mixing(first).std_error, mixing(second).std_error))
    return float(second.mean() - first.mean()), error


def _descent(llc: jaxtyping.Float[np.ndarray, "chains draws"], exact: bool) -> float:
    """How far the draws (chains, draws) fall below 0; if they are noisy (not exact), how far the means of blocks do."""
    if not exact and llc.shape[1] >= BLOCKS:
        llc = np.stack([block.mean(axis=1) for block in np.array_split(llc, BLOCKS, axis=1)])
    return max(0.0, -float(llc.min()))


def _percent(share: float) -> str:
    return f"{share:.0%}" if share <= 1 else "more than 100%"


def summarize(draws: Draws, loss_at_w_star: float, n_beta: float, gamma: float, dim: int) -> Summary:
    """Compute the estimate, its standard error and the verdict from the chains that stayed finite.

    `mixing` defines the standard error. It does not include the bias of an unadjusted sampler.

    Args:
        draws: what the chains recorded.
        loss_at_w_star: the loss at `w_star` on the full data.
        n_beta: inverse temperature times the number of data points.
        gamma: strength of the localisation.
        dim: number of parameters that moved.
    """
    llc = llc_from_losses(draws.loss, loss_at_w_star, n_beta)
    alive = np.asarray(draws.chain_alive)
    heat = heat_of(draws, alive, gamma, dim)
    kept = llc[alive]
    nan = float("nan")
    mean, std_error, rhat, ess_bulk, ess_tail, ess_mean, loss_mean = (nan,) * 7
    drift, drift_error, descent = 0.0, 0.0, 0.0
    if len(kept):
        mean, loss_mean = float(kept.mean()), float(draws.loss[alive].mean())
        std_error, rhat, ess_bulk, ess_tail, ess_mean = mixing(kept)
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
    elif heat.excess > max(MAX_HEAT, STD_ERRORS * heat.excess_error):
        verdict = Verdict.HEATED
    elif -heat.excess > max(MAX_HEAT, STD_ERRORS * heat.excess_error):
        verdict = Verdict.NOT_EQUILIBRATED
    elif grows_slower_than(MIN_DEGREE, draws.growth[alive], kept):
        verdict = Verdict.NOT_LOCAL
    elif not rhat <= MAX_RHAT:
        verdict = Verdict.UNMIXED
    elif abs(drift) > MAX_DRIFT * drift_error:
        verdict = Verdict.DRIFTING
    elif not heat.temperature_error <= MAX_UNKNOWN:
        verdict = Verdict.UNCERTAIN
    elif not rel <= MAX_REL_ERROR:
        verdict = Verdict.TOO_SHORT
    else:
        verdict = Verdict.OK
    degree = heat.growth / mean if mean else nan
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
        temperature=heat.temperature,
        temperature_error=heat.temperature_error,
        of_step=OF_STEP.format(flat=heat.flat_temperature) if heat.flat_temperature >= SEEN else "",
        heat=_percent(heat.excess),
        cold=_percent(-heat.excess),
        degree=degree,
    )
    if verdict is Verdict.OK and grows_slower_than(LOW_DEGREE, draws.growth[alive], kept):
        sentence += WIDE.format(degree=degree)
    fluctuation = None
    if draws.row_moments is not None and len(kept):
        beta = n_beta / (draws.row_moments.mean.shape[1] * draws.weight_per_row)
        fluctuation = singular_fluctuation(draws.row_moments, alive, beta, draws.weight_per_row)
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
        temperature=heat.temperature,
        temperature_std_error=heat.temperature_error,
        flat_temperature=heat.flat_temperature,
        growth=heat.growth,
        localisation=heat.localisation,
        distance=heat.distance,
        degree=degree,
        llc_variance=float(np.var(kept)) if len(kept) and draws.exact_losses else nan,
        loss_mean=loss_mean,
        singular_fluctuation=nan if fluctuation is None else fluctuation.nu,
        singular_fluctuation_std_error=nan if fluctuation is None else fluctuation.nu_std_error,
        waic=nan if fluctuation is None else fluctuation.waic,
        verdict=verdict.code,
        verdict_sentence=sentence,
    )
