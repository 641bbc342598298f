"""The estimator from Python: one call on a loss, parameters and data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from lambda_hat.config import SAMPLE_SCHEMAS, SampleConfig
from lambda_hat.errors import ConfigError, nearest
from lambda_hat.execute import Estimate, estimate
from lambda_hat.llc import llc_from_losses
from lambda_hat.omegaconf_support import build_dataclass, schema_for
from lambda_hat.targets.custom import target_of

if TYPE_CHECKING:
    import xarray

NOT_OPTIONS = ("target_id", "name", "format", "runtime", "prior_radius")
"""Fields of a sampler's configuration that belong to a study."""


@dataclass(frozen=True)
class LLCEstimate:
    """A local learning coefficient with its error, and whether to believe it. c = num_chains, d = num_draws."""

    llc: float
    """`n_beta (E[L_n(w)] - L_n(w_star))`. Never clipped; negative where `params` are no minimum."""
    std_error: float
    """Of `llc`, from the chains' own effective sample size; without the bias of a sampler that accepts every step."""
    per_chain: np.ndarray
    """(c,) the estimate of every chain; NaN for one that became non-finite."""
    verdict: str
    """`ok`, or what is wrong: diverged, divergent, stuck, not_a_minimum, unmixed, drifting, too_short."""
    verdict_sentence: str
    sampler: str
    n: int
    """Number of data points."""
    dim: int
    """Number of parameters that moved."""
    n_beta: float
    gamma: float
    rhat: float
    ess: float
    """Effective sample size of the mean loss, over all chains."""
    loss_at_w_star: float
    singular_fluctuation: float
    """NaN unless `singular_fluctuation=True` was asked for."""
    waic: float
    num_gradients: int
    """Gradients evaluated, over all chains, of a batch or of the full data."""
    notes: tuple[str, ...]
    losses: np.ndarray = field(repr=False)
    """(c, d) the mean losses L_n(w) at the recorded draws, float64."""

    def to_xarray(self) -> xarray.Dataset:
        """`loss` and `llc` over (chain, draw), with the numbers of the estimate as attributes."""
        import xarray

        llc = llc_from_losses(self.losses, self.loss_at_w_star, self.n_beta)
        dims = ("chain", "draw")
        attributes = ("llc", "std_error", "verdict", "sampler", "n", "dim", "n_beta", "gamma", "loss_at_w_star")
        return xarray.Dataset(
            {"loss": (dims, self.losses), "llc": (dims, llc)},
            coords={axis: np.arange(size) for axis, size in zip(dims, self.losses.shape, strict=True)},
            attrs={name: getattr(self, name) for name in attributes},
        )

    def __repr__(self) -> str:
        chains, draws = self.losses.shape
        lines = [
            f"LLCEstimate: llc = {self.llc:.4g} +- {self.std_error:.2g}, {self.verdict}",
            f"  {self.verdict_sentence}",
            f"  {self.sampler}: {chains} chains of {draws} draws, {self.num_gradients:,} gradients; R-hat "
            f"{self.rhat:.3f}, effective sample size {self.ess:.0f}",
            f"  dim = {self.dim}, n = {self.n}, n_beta = {self.n_beta:.4g}, gamma = {self.gamma:g}",
            *(f"  note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def estimate_llc(
    loss_fn: Callable[..., Any],
    params: Any,
    data: Any,
    *,
    sampler: str = "sgld",
    num_chains: int = 4,
    num_draws: int = 2000,
    num_burnin: int = 500,
    gamma: float = 1.0,
    beta: float | None = None,
    n_beta: float | None = None,
    n: int | None = None,
    seed: int = 0,
    restrict: Sequence[str] | str | None = None,
    **sampler_options: Any,
) -> LLCEstimate:
    """Estimate the local learning coefficient of `loss_fn` at `params` (Lau et al. 2023, arXiv 2308.12108, eq. 12).

    `llc = n_beta (E[L_n(w)] - L_n(params))`, the mean taken over the posterior
    `exp(-n_beta L_n(w) - gamma/2 |w - params|^2)` by Markov chains. The same code as a study's, in this process.

    loss_fn: `(params, batch) -> mean loss`, one real number, in nats for a log likelihood. With a parameter called
        `key` it also gets a fresh random key per evaluation (sgld, sghmc and sgnht take such a loss).
    params: any pytree (Equinox, Flax, Haiku, dicts), at a minimum of the loss. Its floating-point arrays are sampled.
    data: any pytree of arrays whose leading axis counts the data points, or None for a loss that needs none.
    sampler: sgld, sghmc, sgnht, mala, hmc, nuts, mclmc, adjusted_mclmc.
    num_burnin: steps per chain before the first draw. 500 is arbitrary: look at the verdict, and at `losses`.
    gamma: strength of the Gaussian localisation, in 1 / (units of params)^2. 1 is arbitrary.
    beta, n_beta: inverse temperature, or n times it; by default `beta = 1 / log n` (Watanabe 2013).
    n: number of data points; by default the leading axis of `data`, needed where that is None.
    restrict: glob patterns over parameter paths ("layers/0/*"); only these move, the others stay.
    sampler_options: `step_size`, `batch_size`, `thin`, `jitter`, `precision`, `singular_fluctuation` and the other keys
        of the sampler's configuration (`lambda_hat.config`); chosen or defaulted as in a study where not given.

    Raises ConfigError (a ValueError), before anything is compiled: a loss that is not one real number, not finite at
    `params`, or independent of them; data whose arrays disagree in length; an unknown sampler or option.
    """
    schema = schema_for(SAMPLE_SCHEMAS, sampler, "sampler")
    options = _options(schema, sampler, sampler_options)
    if beta is not None and n_beta is not None:
        raise ConfigError(f"beta: got both beta = {beta} and n_beta = {n_beta}, which is n times it; give one of them")
    if data is None and options.get("batch_size") is not None:
        raise ConfigError(f"batch_size: got {options['batch_size']} with data=None; a loss without data has no batches")
    target = target_of(loss_fn, params, data, n)
    options |= {
        "name": sampler,
        "num_chains": num_chains,
        "num_draws": num_draws,
        "num_burnin": num_burnin,
        "gamma": gamma,
        "beta": beta if n_beta is None else n_beta / target.n,
        "seed": seed,
        "restrict": [restrict] if isinstance(restrict, str) else restrict,
    }
    cfg = build_dataclass(schema, [("estimate_llc", {key: _plain(value) for key, value in options.items()})])
    return _result(cfg, estimate(target, cfg))


def _options(schema: type[SampleConfig], sampler: str, given: dict[str, Any]) -> dict[str, Any]:
    valid = [f.name for f in fields(schema) if f.name not in NOT_OPTIONS]
    named = [name for name in inspect.signature(estimate_llc).parameters if name != "sampler_options"]
    for key in given:
        if key not in valid:
            raise ConfigError(f"{key}: no option of {sampler}; {nearest(key, {*valid, *named})}")
    return given


def _plain(value: Any) -> Any:
    """Numbers and sequences as a configuration holds them."""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def _result(cfg: SampleConfig, found: Estimate) -> LLCEstimate:
    summary, draws = found.summary, found.draws
    return LLCEstimate(
        llc=summary.llc_mean,
        std_error=summary.llc_std_error,
        per_chain=np.array(summary.llc_per_chain),
        verdict=summary.verdict,
        verdict_sentence=summary.verdict_sentence,
        sampler=cfg.name,
        n=found.target.n,
        dim=found.target.dim,
        n_beta=found.posterior.n_beta,
        gamma=found.posterior.gamma,
        rhat=summary.rhat_max,
        ess=summary.ess_mean,
        loss_at_w_star=found.target.loss_at_w_star,
        singular_fluctuation=summary.singular_fluctuation,
        waic=summary.waic,
        num_gradients=draws.num_gradients,
        notes=draws.notes,
        losses=draws.loss,
    )
