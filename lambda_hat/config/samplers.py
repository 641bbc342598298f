"""Schemas of the samplers: one frozen dataclass each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from lambda_hat.config.common import RuntimeConfig, choice, fraction, non_negative, positive, positive_int, require
from lambda_hat.config.observe import ObserveConfig, check_name
from lambda_hat.errors import ConfigError

SAMPLE_FORMAT = 4
HOW_AT = {"chains_at_once": None, "accumulate": 1, "compute_dtype": None, "observe": None}
"""Keys that say how a run computes and what it watches, with their defaults. The random numbers are those of a run with
the defaults."""
NOT_IN_ID_AT = {**HOW_AT, "n_beta": None}
"""Keys that are no part of an id at these values, their defaults: they are younger than the format."""

LEAST_ADAPTATION = 20
"""Least number of transitions of a burn-in that learns something."""
PRECISIONS = ("float32", "float64")
COMPUTE_DTYPES = ("bfloat16",)
PRECONDS = ("none", "low_rank")
SGLD_PRECONDS = (*PRECONDS, "rmsprop", "adam")
METRICS = ("diagonal", "low_rank", "dense")
GRADIENTS = ("control_variate", "plain")
ADAPTS = ("burnin", "always")
LOSS_ESTIMATES = ("full", "paired")


@dataclass(frozen=True)
class SampleConfig:
    """The keys of every sampler.

    A chain makes `num_burnin + num_draws * thin` transitions and records `num_draws` of them. A file
    `conf/sample/<name>.yaml` of your own changes the defaults of that sampler in every study.
    """

    target_id: str = ""
    """The target's id. It is filled in when a study is composed."""
    name: str = ""
    """The sampler."""
    seed: int = 0
    """Seed of the run's random numbers, together with the run's id."""
    num_chains: int = 4
    """Number of chains, each with its own start and random numbers."""
    num_draws: int = 2000
    """Recorded draws per chain."""
    num_burnin: int | None = None
    """Transitions per chain before the first recorded one, adaptation included. Null: 1000 for hmc and nuts, 3000 for
    both MCLMC, 5000 for mala; for sgld, sghmc and sgnht a quarter of the transitions after burn-in. Arbitrary."""
    thin: int | None = None
    """Transitions from one recorded draw to the next. Null: 1 for hmc, nuts and both MCLMC, 10 for mala; for sgld,
    sghmc and sgnht as many as take 60 gradients (a control variate counts as two), or fewer on a large network, where
    the run's work is bounded."""
    beta: float | None = None
    """Inverse temperature; null means `1 / log n` (Watanabe 2013)."""
    n_beta: float | None = None
    """`n * beta`, in place of `beta`. It is part of the id as it is written, because n may be known only once the
    target is built: the same temperature written as `beta` is another run."""
    gamma: float | None = None
    """Strength of the Gaussian localisation at `w_star`; null means 1, or `dim / prior_radius^2`."""
    prior_radius: float | None = None
    """Typical radius R of the localisation; sets `gamma = dim / R^2`."""
    jitter: float = 1e-3
    """Standard deviation of every chain's own Gaussian start around `w_star`, in units of w. Arbitrary: small, so that
    burn-in starts inside the basin, and not 0, because derivatives of singular losses vanish at `w_star`."""
    restrict: list[str] | None = None
    """Glob patterns over parameter paths, such as `layers/0/*`, or with a part of an array, `layers/0/weight[:, 0:64]`.
    Only what matches is sampled, for the weight-refined LLC; the others stay at `w_star` and do not count in `dim`.
    Null: all are sampled."""
    singular_fluctuation: bool = False
    """Also estimate the singular fluctuation (Watanabe's functional variance) and WAIC; one more pass over the data per
    recorded draw."""
    observe: dict[str, ObserveConfig] | None = None
    """What to record at the draws beside the loss, by names of your choice (`docs/observables.md`). It changes neither
    the chains nor the estimate."""
    precision: str | None = None
    """`float64` or `float32`. Null: float32 for sgld, sghmc and sgnht if it represents `n_beta L_n` to a hundredth of a
    nat, else float64. With several hundred thousand parameters float32 was off by many nats in HMC's energies on CPUs,
    and HMC's adapted steps came out a thousand times too small."""
    slice_rows: int = 16384
    """Rows per slice in which full-data losses and gradients are summed. It bounds their memory."""
    chains_at_once: int | None = None
    """Chains that are computed at a time, a divisor of `num_chains`; the others wait. It bounds the memory of gradients
    and activations to that of so many chains, and changes numbers by rounding alone. Null: all."""
    format: int = SAMPLE_FORMAT
    """Version of the samplers' numbers, which is part of the id. It is filled in."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """What the run's process may use."""

    min_dim: ClassVar[int] = 1
    min_burnin: ClassVar[int] = 0
    default_burnin: ClassVar[int] = 1000
    """Transitions of burn-in that a null stands for. Arbitrary."""
    default_thin: ClassVar[int] = 1
    """Transitions between two draws that a null stands for."""
    is_biased: ClassVar[bool] = False
    """The step size biases its estimate."""

    def __post_init__(self):
        require(0 <= self.seed < 2**32, "seed", self.seed, "an integer from 0 to 2^32 - 1")
        positive_int("num_chains", self.num_chains)
        positive_int("num_draws", self.num_draws, 4)
        positive_int("num_burnin", self.num_burnin, self.min_burnin)
        positive_int("thin", self.thin)
        positive_int("slice_rows", self.slice_rows)
        _divides("chains_at_once", self.chains_at_once, "num_chains", self.num_chains)
        positive("beta", self.beta)
        positive("n_beta", self.n_beta)
        if self.beta is not None and self.n_beta is not None:
            raise ConfigError(
                f"beta: got both beta = {self.beta} and n_beta = {self.n_beta}, which is n times it; give one of them"
            )
        non_negative("gamma", self.gamma)
        positive("prior_radius", self.prior_radius)
        if self.gamma is not None and self.prior_radius is not None:
            raise ConfigError(
                f"gamma: got both gamma = {self.gamma} and prior_radius = {self.prior_radius}, which sets "
                "gamma = dim / prior_radius^2; give one of them"
            )
        non_negative("jitter", self.jitter)
        if self.restrict is not None:
            require(
                bool(self.restrict) and all(self.restrict),
                "restrict",
                self.restrict,
                "patterns such as layers/0/*; null for all parameters",
            )
        for name in self.observe or ():
            check_name(name, "observe")
        choice("precision", self.precision, PRECISIONS)
        steps = (self.num_burnin or 0) + self.num_draws * (self.thin or 1)
        require(steps < 2**32, "num_burnin + num_draws * thin", steps, "fewer than 2^32 transitions of a chain")
        require(
            self.format == SAMPLE_FORMAT,
            "format",
            self.format,
            f"{SAMPLE_FORMAT}, the format that this version samples",
        )

    @property
    def num_steps(self) -> int:
        """Transitions of one chain. The lengths must be filled in (`lambda_hat.config.defaults.resolved`)."""
        assert self.num_burnin is not None and self.thin is not None
        return self.num_burnin + self.num_draws * self.thin


def _divides(key: str, value: int | None, of: str, whole: int) -> None:
    """Raise ConfigError unless `value` is None or divides `whole`, the value of the key `of`."""
    require(value is None or (value >= 1 and whole % value == 0), key, value, f"a divisor of {of}, which is {whole}")


@dataclass(frozen=True)
class StochasticGradientConfig(SampleConfig):
    """The keys that sgld, sghmc and sgnht share: samplers on minibatch gradients, without an accept-reject step."""

    step_size: float | None = None
    """The step size epsilon of SGLD, in units of w^2, or without units under `precond: low_rank`. Null: burn-in learns
    the largest that `heat` allows."""
    heat: float = 0.02
    """Share by which a learned step size may raise the estimate, through discretisation and minibatch noise together,
    as the chain's own gradients measure it. A larger one mixes faster."""
    precond: str | None = None
    """Preconditioner P, learned in burn-in and then frozen: `none` (P = 1), or `low_rank`, a diagonal and 20
    directions. Null: `none` if a `step_size` is given or there are more than 20,000 parameters, else `low_rank`."""
    batch_size: int | None = 32
    """Rows per gradient, drawn with replacement. Null: the full data. Closed-form losses ignore it."""
    accumulate: int = 1
    """Slices of a batch, a divisor of `batch_size`. The gradient is the mean of those of the slices, which are computed
    one after another: the memory is that of one slice. The rows are the same, so that numbers change by rounding alone,
    unless the loss is random. Closed-form losses ignore it."""
    compute_dtype: str | None = None
    """`bfloat16`: gradients of batches are computed in it, forward and backward; parameters, noise and recorded losses
    stay in `precision`, and with control variates `loss_estimate: paired` takes a batch more per draw. Null: in
    `precision`. Closed-form losses ignore it."""
    gradient: str | None = None
    """`plain`: `g_B(w)`. `control_variate`: `g_B(w) - g_B(w_star) + g(w_star)`, which takes two gradients of the batch
    and has no noise at `w_star`. Null: control_variate on batches, plain on the full data and
    for a random loss."""
    loss_estimate: str | None = None
    """`full`: L_n at recorded draws. `paired`: `L_B(w) - L_B(w_star)` on batches drawn independently of w. With control
    variates these are the batches of the steps, averaged over `thin`, unless there is a `compute_dtype`. Null: `full`
    if it takes no more work than the steps, else `paired`."""
    mala_checks: bool = False
    """Also compute how often a Metropolis step would accept (`mala_acceptance`), at 50 draws and on at most 4,096
    rows."""

    def __post_init__(self):
        super().__post_init__()
        positive("step_size", self.step_size)
        positive("heat", self.heat)
        choice("precond", self.precond, self.preconds)
        positive_int("batch_size", self.batch_size)
        choice("gradient", self.gradient, GRADIENTS)
        choice("compute_dtype", self.compute_dtype, COMPUTE_DTYPES)
        self._check_batches()
        choice("loss_estimate", self.loss_estimate, LOSS_ESTIMATES)
        if self.num_burnin is not None and self.num_burnin < LEAST_ADAPTATION and self.learns:
            raise ConfigError(
                f"num_burnin: got {self.num_burnin}, but burn-in learns the step size or the preconditioner here; "
                f"write at least {LEAST_ADAPTATION}, or a step_size and precond: none"
            )

    def _check_batches(self) -> None:
        """Refuse what says how the gradient of a batch is computed where there is no batch."""
        if self.batch_size is not None:
            _divides("accumulate", self.accumulate, "batch_size", self.batch_size)
            return
        full = "but batch_size is null; write a batch_size"
        if self.accumulate != 1:
            raise ConfigError(f"accumulate: got {self.accumulate}, {full}, or slice_rows for slices of the full data")
        if self.compute_dtype is not None:
            raise ConfigError(f"compute_dtype: got {self.compute_dtype}, {full}, or leave it out")

    preconds: ClassVar[tuple[str, ...]] = PRECONDS
    is_biased: ClassVar[bool] = True

    @property
    def learns(self) -> bool:
        """Whether burn-in learns a step size or a preconditioner."""
        return self.step_size is None or self.precond not in (None, "none")


@dataclass(frozen=True)
class SgldConfig(StochasticGradientConfig):
    """Stochastic gradient Langevin dynamics (Welling & Teh 2011), optionally preconditioned.

    `dw = -(step_size/2) P (gamma (w - w_star) + n_beta grad L_batch(w)) + sqrt(step_size P) xi`.
    """

    name: str = "sgld"
    preconds: ClassVar[tuple[str, ...]] = SGLD_PRECONDS
    precond: str | None = None
    """Preconditioner P: `none` (P = 1); `low_rank`, a diagonal and 20 directions learned in burn-in; `rmsprop` or
    `adam`, diagonal. Null: `none` if a `step_size` is given or there are more than 20,000 parameters, else
    `low_rank`."""
    adapt: str = "burnin"
    """rmsprop, adam. `burnin`: P is frozen in the middle of burn-in, at the average of the second moment over the
    quarter before. `always`: P adapts in every step as published, and the chain's stationary law is wrong."""
    decay: float = 0.99
    """Decay of the second moment (rmsprop, adam)."""
    momentum_decay: float = 0.9
    """Decay of the first moment (adam)."""
    damping: float = 1e-3
    """The a in `P = 1 / (a + sqrt(v))`, in units of the loss gradient. Directions without loss gradient get `P = 1/a`.
    Only `gamma` holds them; they relax as fast as the others if a is about `sqrt(gamma) / n_beta`."""
    initial_second_moment: float = 1.0
    """The second moment v before the first gradient. The gradient vanishes at `w_star`, so from v = 0 the first steps
    would have `P = 1/a`."""
    bias_correction: bool = True
    """adam: divide the moments by `1 - decay^t`, after removing the weight of the initial second moment."""
    momentum_in_drift: bool = False
    """adam: the drift uses the first moment in place of the gradient, as published. This is biased."""

    @property
    def learns(self) -> bool:
        """Whether burn-in learns a step size or a preconditioner."""
        moving = self.precond in ("rmsprop", "adam") and self.adapt == "always"
        return self.step_size is None if moving else super().learns

    def __post_init__(self):
        super().__post_init__()
        choice("adapt", self.adapt, ADAPTS)
        fraction("decay", self.decay)
        fraction("momentum_decay", self.momentum_decay)
        positive("damping", self.damping)
        non_negative("initial_second_moment", self.initial_second_moment)
        if self.momentum_in_drift and self.precond != "adam":
            raise ConfigError(f"momentum_in_drift: needs precond: adam, got precond: {self.precond}")


@dataclass(frozen=True)
class SghmcConfig(StochasticGradientConfig):
    """Stochastic gradient Hamiltonian Monte Carlo (Chen et al. 2014, arXiv 1402.4102).

    Every transition draws new momenta.
    """

    name: str = "sghmc"
    num_integration_steps: int = 10
    """Steps per transition, with one gradient each."""
    friction: float = 0.1
    """Share of the momentum lost per step. Arbitrary."""

    def __post_init__(self):
        super().__post_init__()
        positive_int("num_integration_steps", self.num_integration_steps)
        fraction("friction", self.friction)


@dataclass(frozen=True)
class SgnhtConfig(StochasticGradientConfig):
    """Stochastic gradient Nosé-Hoover thermostat (Ding et al. 2014).

    The friction follows the kinetic energy, and so absorbs the unknown noise of the minibatches.
    """

    name: str = "sgnht"
    friction: float = 0.1
    """Share of the momentum lost per step at the start; it also sets the injected noise. Arbitrary."""

    def __post_init__(self):
        super().__post_init__()
        fraction("friction", self.friction)


@dataclass(frozen=True)
class HmcConfig(SampleConfig):
    """Hamiltonian Monte Carlo with a fixed number of leapfrog steps, adapted by windows (blackjax)."""

    name: str = "hmc"
    min_burnin: ClassVar[int] = 20
    num_integration_steps: int = 10
    """Leapfrog steps per transition, with one gradient each."""
    target_acceptance: float | None = None
    """Mean acceptance that the step size is adapted to. Null: .99 on closed-form losses and DLNs, else .9."""
    initial_step_size: float = 0.01
    """Step size at which the adaptation starts, in units of w."""
    metric: str | None = None
    """Learned in burn-in: `diagonal` (variances), `low_rank` (a diagonal and 20 directions, from draws and gradients)
    or `dense` (covariances). Null: `low_rank` up to 20,000 parameters, else `diagonal`."""

    def __post_init__(self):
        super().__post_init__()
        positive_int("num_integration_steps", self.num_integration_steps)
        fraction("target_acceptance", self.target_acceptance)
        positive("initial_step_size", self.initial_step_size)
        choice("metric", self.metric, METRICS)


@dataclass(frozen=True)
class MclmcConfig(SampleConfig):
    """Unadjusted microcanonical Langevin (Robnik et al. 2023); biased by its step size."""

    name: str = "mclmc"
    min_burnin: ClassVar[int] = 20
    default_burnin: ClassVar[int] = 3000
    min_dim: ClassVar[int] = 2
    is_biased: ClassVar[bool] = True
    desired_energy_var: float = 1e-4
    """Energy variance per dimension at which burn-in sets the step size. A smaller one gives less bias for more
    gradients. Bias measured on quadratics and reduced rank regression: -1.6 to -1.9 % at 5e-4 (blackjax's default), -.8
    to -1.5 % at 1e-4."""
    metric: str | None = None
    """Learned in burn-in as hmc's metric: `diagonal` or `low_rank`; the kernel supports no `dense` one. Null:
    `low_rank` up to 20,000 parameters, else `diagonal`."""

    def __post_init__(self):
        super().__post_init__()
        positive("desired_energy_var", self.desired_energy_var)
        choice("metric", self.metric, METRICS[:2])


@dataclass(frozen=True)
class MalaConfig(SampleConfig):
    """Metropolis-adjusted Langevin (Roberts & Tweedie 1996) on the full data, its step size adapted in burn-in."""

    name: str = "mala"
    min_burnin: ClassVar[int] = 20
    default_burnin: ClassVar[int] = 5000
    default_thin: ClassVar[int] = 10
    target_acceptance: float = 0.8
    """Mean acceptance that the step size is adapted to. .574 is optimal in many dimensions, but singular targets have
    stiff places, where a smaller step sticks less."""
    initial_step_size: float = 0.001
    """Step size at which the adaptation starts, in units of w^2 as SGLD's `step_size`."""
    metric: str | None = None
    """Learned in burn-in: `diagonal` (variances), `low_rank` (a diagonal and 20 directions, from draws and gradients)
    or `dense` (covariances). Null: `low_rank` up to 20,000 parameters, else `diagonal`."""

    def __post_init__(self):
        super().__post_init__()
        fraction("target_acceptance", self.target_acceptance)
        positive("initial_step_size", self.initial_step_size)
        choice("metric", self.metric, METRICS)


@dataclass(frozen=True)
class NutsConfig(SampleConfig):
    """The No-U-Turn sampler (Hoffman & Gelman 2014), adapted by windows (blackjax)."""

    name: str = "nuts"
    min_burnin: ClassVar[int] = 40
    max_num_doublings: int = 10
    """A trajectory has at most `2^max_num_doublings` steps."""
    target_acceptance: float | None = None
    """Mean acceptance that the step size is adapted to. Null: .99 on closed-form losses and DLNs, else .98."""
    initial_step_size: float = 0.01
    """Step size at which the adaptation starts, in units of w."""
    metric: str | None = None
    """Learned in burn-in: `diagonal` (variances), `low_rank` (a diagonal and 20 directions, from draws and gradients)
    or `dense` (covariances). Null: `low_rank` up to 20,000 parameters, else `diagonal`."""

    def __post_init__(self):
        super().__post_init__()
        positive_int("max_num_doublings", self.max_num_doublings)
        fraction("target_acceptance", self.target_acceptance)
        positive("initial_step_size", self.initial_step_size)
        choice("metric", self.metric, METRICS)


@dataclass(frozen=True)
class AdjustedMclmcConfig(SampleConfig):
    """Metropolis-adjusted microcanonical Langevin (Robnik et al. 2025); unbiased."""

    name: str = "adjusted_mclmc"
    min_burnin: ClassVar[int] = 20
    default_burnin: ClassVar[int] = 3000
    min_dim: ClassVar[int] = 2
    target_acceptance: float = 0.9
    """Mean acceptance that the step size is adapted to."""
    initial_step_size: float = 0.01
    """Step size at which the adaptation starts, in units of w."""
    metric: str | None = None
    """As for mclmc."""

    def __post_init__(self):
        super().__post_init__()
        fraction("target_acceptance", self.target_acceptance)
        positive("initial_step_size", self.initial_step_size)
        choice("metric", self.metric, METRICS[:2])


SAMPLE_SCHEMAS: dict[str, type[SampleConfig]] = {
    "sgld": SgldConfig,
    "sghmc": SghmcConfig,
    "sgnht": SgnhtConfig,
    "mala": MalaConfig,
    "hmc": HmcConfig,
    "nuts": NutsConfig,
    "mclmc": MclmcConfig,
    "adjusted_mclmc": AdjustedMclmcConfig,
}
BIASED_SAMPLERS = tuple(name for name, schema in SAMPLE_SCHEMAS.items() if schema.is_biased)
"""Names of the samplers whose estimate the step size biases."""
