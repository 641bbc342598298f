"""The estimator from Python: one call on a loss, parameters and data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from lambda_hat.config import SAMPLE_SCHEMAS, SampleConfig
from lambda_hat.config.unknown_keys import hint
from lambda_hat.errors import ConfigError, missing_extra
from lambda_hat.estimate.draws import Observation
from lambda_hat.estimate.llc import llc_from_losses
from lambda_hat.execute.progress import telling
from lambda_hat.execute.sampling import Estimate, estimate
from lambda_hat.omegaconf_support import build_dataclass, schema_for
from lambda_hat.store.layout import programs_folder
from lambda_hat.targets.custom import target_of
from lambda_hat.targets.observables import with_functions

if TYPE_CHECKING:
    import xarray

NOT_OPTIONS = ("target_id", "name", "format", "runtime", "prior_radius", "observe")
"""Fields of a sampler's configuration that only a study sets."""


@dataclass(frozen=True)
class LLCEstimate:
    """A local learning coefficient, its standard error, and the verdict on both.

    w_star are the given `params`, and `U(w) = n_beta L_n(w) + gamma/2 |w - w_star|^2` is the potential, in nats.
    Expectations are over the draws of all chains that stayed finite. A number that does not exist is NaN. Numbers
    whose unit is not named have none. In shapes, c = num_chains and d = num_draws.
    """

    llc: float
    """`n_beta (E[L_n(w)] - L_n(w_star))`. Never clipped: it can be negative if w_star is no minimum."""
    std_error: float
    """Standard error of `llc`, from the effective sample size. It does not include the bias of a sampler that accepts
    every step."""
    per_chain: np.ndarray
    """(c,) float64, the estimate of every chain; NaN for a chain that became non-finite."""
    verdict: str
    """`ok`, or what is wrong: diverged, divergent, stuck, not_a_minimum, heated, not_equilibrated, not_local, unmixed,
    drifting, uncertain, too_short."""
    verdict_sentence: str
    """The reason for the verdict, and what to change."""
    sampler: str
    """Name of the sampler."""
    n: int
    """Number of data points."""
    dim: int
    """Number of parameters that moved."""
    n_beta: float
    """Inverse temperature times n, in 1 / (units of the loss)."""
    gamma: float
    """Strength of the localisation, in 1 / (units of params)^2."""
    rhat: float
    """Rank-normalised split R-hat of the loss: 1 if the chains agree."""
    ess: float
    """Effective sample size of the mean loss, in draws over all chains."""
    loss_at_w_star: float
    """`L_n(w_star)` on the full data, in the units of the loss."""
    temperature: float
    """Configurational temperature `E[(w - w_star) . grad U(w)] / dim`: 1 in equilibrium."""
    temperature_std_error: float
    """Standard error of `temperature`."""
    growth: float
    """`n_beta E[(w - w_star) . grad L_n(w)]`, in nats. With `localisation` it adds up to `dim * temperature`."""
    localisation: float
    """`gamma E[|w - w_star|^2]`, in nats."""
    distance: float
    """Root of `E[|w - w_star|^2]`, in the units of params."""
    degree: float
    """`growth / llc`, the degree of growth of the loss along the chains: 2 in a quadratic basin, below 1 if the loss
    levels off."""
    llc_variance: float
    """`n_beta^2 Var[L_n(w)]`, another estimate of the LLC for a homogeneous loss. It does not use `loss_at_w_star`. NaN
    if the recorded losses are themselves estimates."""
    singular_fluctuation: float
    """The singular fluctuation (Watanabe 2010); NaN unless `singular_fluctuation=True` was given."""
    waic: float
    """WAIC in nats per data point, up to the constant that the loss omits; NaN unless `singular_fluctuation=True`."""
    num_gradients: int
    """Gradients evaluated over all chains, of a batch or of the full data, including burn-in."""
    notes: tuple[str, ...]
    """Sentences about how the run went."""
    losses: np.ndarray = field(repr=False)
    """(c, d) float64, the mean losses L_n(w) at the recorded draws, in the units of the loss."""
    observed: dict[str, Observation] = field(default_factory=dict, repr=False)
    """The `observables` by name: `observed["name"].draws`, shape (c, d, ...), and `observed["name"].at_w_star`, shape
    (...)."""

    def to_xarray(self) -> xarray.Dataset:
        """The variables `loss` and `llc`, shape (chain, draw), with the numbers of the estimate as attributes.

        An observable `name` has the axes (chain, draw, name_0, ...), and `name_at_w_star` the last of them.
        """
        try:
            import xarray
        except ModuleNotFoundError as error:
            raise missing_extra("to_xarray", error) or error from None
        llc = llc_from_losses(self.losses, self.loss_at_w_star, self.n_beta)
        dims = ("chain", "draw")
        attributes = (
            "llc", "std_error", "verdict", "sampler", "n", "dim", "n_beta", "gamma", "loss_at_w_star", "temperature",
            "degree",
        )  # fmt: skip
        watched = {}
        for name, one in self.observed.items():
            axes = tuple(f"{name}_{axis}" for axis in range(one.at_w_star.ndim))
            watched |= {name: ((*dims, *axes), one.draws), f"{name}_at_w_star": (axes, one.at_w_star)}
        return xarray.Dataset(
            {"loss": (dims, self.losses), "llc": (dims, llc), **watched},
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
            f"  T = {self.temperature:.3g} +- {self.temperature_std_error:.2g} (1 in equilibrium): growth "
            f"{self.growth:.4g} + localisation {self.localisation:.4g} over dim; degree {self.degree:.3g}",
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
    num_burnin: int | None = None,
    gamma: float = 1.0,
    beta: float | None = None,
    n_beta: float | None = None,
    n: int | None = None,
    seed: int = 0,
    restrict: Sequence[str] | str | None = None,
    observables: Mapping[str, Callable[[Any], Any]] | None = None,
    progress: bool | None = None,
    **sampler_options: Any,
) -> LLCEstimate:
    """Estimate the local learning coefficient of `loss_fn` at `params` (Lau et al. 2023, arXiv 2308.12108, eq. 12).

    `llc = n_beta (E[L_n(w)] - L_n(params))`. Markov chains take the expectation over the posterior
    `exp(-n_beta L_n(w) - gamma/2 |w - params|^2)`. The code is that of a study, and runs in this process.

    Below, "the units of the loss" are nats if the loss is a negative log likelihood.

    Args:
        loss_fn: `(params, batch) -> mean loss`, one real number of shape (). For masked rows or tokens it returns the
            pair (sum of the losses of the rows, sum of their weights), both of shape (), or the losses of tokens and
            their weights, both of shape (batch_size, tokens). If it has a parameter called `key`, it is given a new
            random key per evaluation; only sgld, sghmc and sgnht take such a loss.
        params: any pytree (Equinox, Flax, Haiku, dicts), at a minimum of the loss. Its floating-point arrays, of any
            shapes, are sampled, but for running statistics.
        data: any pytree of arrays of shape (n, ...), whose leading axis counts the data points. `loss_fn` is called
            with batches of it, of shape (batch_size, ...). None for a loss without data.
        sampler: sgld, sghmc, sgnht, mala, hmc, nuts, mclmc or adjusted_mclmc. Default: sgld.
        num_chains: number of independent chains. Default: 4.
        num_draws: recorded draws per chain. Default: 2000.
        num_burnin: transitions per chain before the first draw, which learn step size and metric. Default: as in a
            study, a quarter of the transitions after burn-in for sgld, sghmc and sgnht, 1000 for hmc and nuts, 3000 for
            both MCLMC, 5000 for mala. Arbitrary.
        gamma: strength of the Gaussian localisation, in 1 / (units of params)^2. Default: 1, which is arbitrary.
        beta: inverse temperature, in 1 / (units of the loss). Default: `1 / log n` (Watanabe 2013).
        n_beta: `n * beta`, in 1 / (units of the loss). Give at most one of the two. Default: n times `beta`.
        n: number of data points. Default: the length of the arrays of `data`; required if `data` is None.
        seed: seed of all random numbers of the chains, an integer from 0 to 2^32 - 1. Default: 0.
        restrict: a glob pattern, or several, over parameter paths ("layers/0/*"), or with a part of an array
            ("layers/0/weight[:, 0:64]"). Only what matches moves, for the weight-refined LLC. Default: all parameters
            move.
        observables: by name, functions `params -> array` that are recorded at every draw and at `params`: other losses,
            or the losses of single rows. They change neither the chains nor the estimate. Default: none.
        progress: whether to print the expected cost and the progress to stderr. Default: if stderr is a terminal and
            the estimate takes more than a few seconds. The cost of the loss is measured for this.
        **sampler_options: `step_size`, `batch_size`, `thin`, `jitter`, `precision`, `singular_fluctuation` and the
            other keys of the sampler's configuration, which `docs/configuration.md` lists with their defaults.

    Returns:
        The estimate with its standard error, its verdict and the recorded losses.

    Raises:
        ConfigError: a ValueError, raised before any chain starts, if the loss is no mean over rows, is not finite at
            `params`, has no finite gradient there or does not depend on them; if the arrays of `data` differ in length;
            or if the sampler or an option is unknown.
    """
    schema = schema_for(SAMPLE_SCHEMAS, sampler, "sampler")
    options = _options(schema, sampler, sampler_options)
    if beta is not None and n_beta is not None:
        raise ConfigError(f"beta: got both beta = {beta} and n_beta = {n_beta}, which is n times it; give one of them")
    if data is None and options.get("batch_size") is not None:
        raise ConfigError(f"batch_size: got {options['batch_size']} with data=None; a loss without data has no batches")
    target = with_functions(target_of(loss_fn, params, data, n, programs=programs_folder()), observables)
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
    with telling(target, cfg, progress) as shown:
        return _result(cfg, estimate(target, cfg, shown))


def _options(schema: type[SampleConfig], sampler: str, given: dict[str, Any]) -> dict[str, Any]:
    valid = [f.name for f in fields(schema) if f.name not in NOT_OPTIONS]
    named = [name for name in inspect.signature(estimate_llc).parameters if name != "sampler_options"]
    for key in given:
        if key not in valid:
            raise ConfigError(f"{key}: no option of {sampler}; {hint(key, {*valid, *named})}")
    return given


def _plain(value: Any) -> Any:
    """Convert a scalar array to a number and a tuple to a list, as a configuration holds them."""
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
        temperature=summary.temperature,
        temperature_std_error=summary.temperature_std_error,
        growth=summary.growth,
        localisation=summary.localisation,
        distance=summary.distance,
        degree=summary.degree,
        llc_variance=summary.llc_variance,
        singular_fluctuation=summary.singular_fluctuation,
        waic=summary.waic,
        num_gradients=draws.num_gradients,
        notes=draws.notes,
        losses=draws.loss,
        observed=dict(draws.observed),
    )
