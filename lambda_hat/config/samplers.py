"""Schemas of the samplers: one frozen dataclass each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from lambda_hat.config.common import RuntimeConfig, choice, fraction, non_negative, positive, positive_int, require
from lambda_hat.errors import ConfigError

SAMPLE_FORMAT = 3

PRECISIONS = ("float32", "float64")
PRECONDS = ("none", "rmsprop", "adam")
ADAPTS = ("burnin", "always")
LOSS_ESTIMATES = ("full", "paired")


@dataclass(frozen=True)
class SampleConfig:
    """What every sampler has. A chain makes `num_burnin + num_draws * thin` transitions and records `num_draws`."""

    target_id: str = ""
    """The target. Filled in when a study is composed."""
    name: str = ""
    """The sampler."""
    seed: int = 0
    """Of every random number of the run, with the run's own id."""
    num_chains: int = 4
    """Chains, each with a start and random numbers of its own."""
    num_draws: int = 2000
    """Recorded draws per chain."""
    num_burnin: int = 1000
    """Transitions per chain before the first recorded one (adaptation included). The default is arbitrary."""
    thin: int = 1
    """Transitions between two recorded draws."""
    beta: float | None = None
    """Inverse temperature; null means `1 / log n` (Watanabe 2013)."""
    gamma: float | None = None
    """Strength of the Gaussian localisation at `w_star`; null means 1, or `dim / prior_radius^2`."""
    prior_radius: float | None = None
    """Typical radius R of the localisation; sets `gamma = dim / R^2`."""
    jitter: float = 1e-3
    """Standard deviation of every chain's own Gaussian start around `w_star`, in units of w. Arbitrary: small, so that
    burn-in starts inside the basin, and not 0, because derivatives of singular losses vanish at `w_star`."""
    restrict: list[str] | None = None
    """Glob patterns over parameter paths, `layers/0/*`: only these parameters are sampled, the others stay at `w_star`.
    `dim` counts what moves. Null: all."""
    singular_fluctuation: bool = False
    """Also estimate the singular fluctuation (Watanabe's functional variance) and WAIC; one more pass over the data per
    recorded draw."""
    precision: str = "float64"
    """float64 or float32. In float32 HMC's energies of several hundred thousand parameters are off by many nats on
    CPUs, and its adapted steps came out a thousand times too small."""
    slice_rows: int = 16384
    """Full-data losses and gradients are summed over slices of this many rows."""
    format: int = SAMPLE_FORMAT
    """Version of what is sampled; part of the id, and filled in."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """What its process may use."""

    min_dim: ClassVar[int] = 1

    def __post_init__(self):
        require(0 <= self.seed < 2**32, "seed", self.seed, "an integer from 0 to 2^32 - 1")
        for key, least in (("num_chains", 1), ("num_draws", 4), ("num_burnin", 0), ("thin", 1), ("slice_rows", 1)):
            positive_int(key, getattr(self, key), least)
        for key in ("beta", "gamma", "prior_radius"):
            value = getattr(self, key)
            if value is not None:
                (non_negative if key == "gamma" else positive)(key, value)
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
        choice("precision", self.precision, PRECISIONS)
        require(
            self.num_steps < 2**32,
            "num_burnin + num_draws * thin",
            self.num_steps,
            "fewer than 2^32 transitions of a chain",
        )
        require(
            self.format == SAMPLE_FORMAT,
            "format",
            self.format,
            f"{SAMPLE_FORMAT}, the format that this version samples",
        )

    @property
    def num_steps(self) -> int:
        """Transitions of one chain."""
        return self.num_burnin + self.num_draws * self.thin


@dataclass(frozen=True)
class StochasticGradientConfig(SampleConfig):
    """What the samplers without an accept-reject step on minibatch gradients share: sgld, sghmc, sgnht."""

    precision: str = "float32"
    step_size: float | None = None
    """epsilon, in the sense of SGLD, units of w^2. Null: `pilot_c / h`, h the largest curvature of the negative log
    posterior along a pilot chain."""
    pilot_c: float = 0.1
    """c above. On a quadratic SGLD's variance comes out `1 / (1 - c/4)` too large, 2.6 % at .1 and 14 % at .5."""
    pilot_steps: int = 1000
    """Steps of the pilot chain, each a gradient and a Hessian-vector product on the full data. Arbitrary."""
    batch_size: int | None = 256
    """Rows per gradient, drawn with replacement; null means the full data. Closed-form losses have no batches."""
    loss_estimate: str = "full"
    """`full`: L_n at recorded draws. `paired`: `L_B(w) - L_B(w_star)` on a fresh batch of `batch_size`."""

    def __post_init__(self):
        super().__post_init__()
        if self.step_size is not None:
            positive("step_size", self.step_size)
        positive("pilot_c", self.pilot_c)
        positive_int("pilot_steps", self.pilot_steps, 10)
        if self.batch_size is not None:
            positive_int("batch_size", self.batch_size)
        choice("loss_estimate", self.loss_estimate, LOSS_ESTIMATES)


@dataclass(frozen=True)
class SgldConfig(StochasticGradientConfig):
    """Stochastic gradient Langevin dynamics (Welling & Teh 2011), optionally preconditioned.

    `dw = -(step_size/2) P (gamma (w - w_star) + n_beta grad L_batch(w)) + sqrt(step_size P) xi`.
    """

    name: str = "sgld"
    precond: str = "none"
    """Diagonal preconditioner P: `none` (P = 1), `rmsprop` or `adam`."""
    adapt: str = "burnin"
    """`burnin`: P is frozen after burn-in, at the second moment's average over its second half. `always`: the published
    algorithm, whose stationary law is wrong."""
    decay: float = 0.99
    """Decay of the second moment (rmsprop, adam)."""
    momentum_decay: float = 0.9
    """Decay of the first moment (adam)."""
    damping: float = 1e-3
    """a in `P = 1 / (a + sqrt(v))`, in units of the loss gradient. Directions without loss gradient get `P = 1/a`; they
    are held by `gamma` alone, and relax as fast as the others where a is about `sqrt(gamma) / n_beta`."""
    initial_second_moment: float = 1.0
    """v before the first gradient. At `w_star` the gradient is zero: from 0, the first steps would have `P = 1/a`."""
    bias_correction: bool = True
    """adam: divide the moments by `1 - decay^t`, the initial second moment weighted out."""
    momentum_in_drift: bool = False
    """adam: the drift uses the first moment in place of the gradient; biased, as published."""

    def __post_init__(self):
        super().__post_init__()
        choice("precond", self.precond, PRECONDS)
        choice("adapt", self.adapt, ADAPTS)
        fraction("decay", self.decay)
        fraction("momentum_decay", self.momentum_decay)
        positive("damping", self.damping)
        non_negative("initial_second_moment", self.initial_second_moment)
        if self.precond != "none" and self.adapt == "burnin" and self.num_burnin < 1:
            raise ConfigError(
                f"num_burnin: got {self.num_burnin}, but precond: {self.precond} with adapt: burnin learns its "
                "preconditioner there; write num_burnin of at least 1"
            )
        if self.momentum_in_drift and self.precond != "adam":
            raise ConfigError(f"momentum_in_drift: needs precond: adam, got precond: {self.precond}")


@dataclass(frozen=True)
class SghmcConfig(StochasticGradientConfig):
    """Stochastic gradient Hamiltonian Monte Carlo (Chen et al. 2014, arXiv 1402.4102), momenta drawn anew per
    transition."""

    name: str = "sghmc"
    num_integration_steps: int = 10
    """Steps, one gradient each, per transition."""
    friction: float = 0.1
    """Share of the momentum lost per step. Arbitrary."""

    def __post_init__(self):
        super().__post_init__()
        positive_int("num_integration_steps", self.num_integration_steps)
        fraction("friction", self.friction)


@dataclass(frozen=True)
class SgnhtConfig(StochasticGradientConfig):
    """Stochastic gradient Nosé-Hoover thermostat (Ding et al. 2014): the friction follows the kinetic energy, which
    takes up the unknown noise of the minibatches."""

    name: str = "sgnht"
    friction: float = 0.1
    """Share of the momentum lost per step at the start, and the noise that is put in. Arbitrary."""

    def __post_init__(self):
        super().__post_init__()
        fraction("friction", self.friction)


@dataclass(frozen=True)
class HmcConfig(SampleConfig):
    """Hamiltonian Monte Carlo with a fixed number of leapfrog steps, adapted by windows (blackjax)."""

    name: str = "hmc"
    num_integration_steps: int = 10
    """Leapfrog steps, one gradient each, per transition."""
    target_acceptance: float | None = None
    """Mean acceptance that the step size is adapted to; null means .99 on closed-form losses and DLNs, .9 elsewhere."""
    initial_step_size: float = 0.01
    """Where the adaptation begins, in units of w."""

    def __post_init__(self):
        super().__post_init__()
        positive_int("num_integration_steps", self.num_integration_steps)
        if self.target_acceptance is not None:
            fraction("target_acceptance", self.target_acceptance)
        positive("initial_step_size", self.initial_step_size)
        positive_int("num_burnin", self.num_burnin, 20)


@dataclass(frozen=True)
class MclmcConfig(SampleConfig):
    """Unadjusted microcanonical Langevin (Robnik et al. 2023), with blackjax's tuner; biased by its step size."""

    name: str = "mclmc"
    desired_energy_var: float = 1e-4
    """Energy variance per dimension that the tuner aims at; smaller means less bias and more gradients. Measured on
    quadratics and reduced rank regression: -1.6 to -1.9 % at 5e-4 (blackjax's), -.8 to -1.5 % at 1e-4."""
    num_tuning: int = 2000
    """Transitions spent by the tuner, before burn-in."""
    diagonal_preconditioning: bool = True
    """Let the tuner scale every coordinate by its standard deviation."""

    min_dim: ClassVar[int] = 2

    def __post_init__(self):
        super().__post_init__()
        positive("desired_energy_var", self.desired_energy_var)
        positive_int("num_tuning", self.num_tuning, 100)


@dataclass(frozen=True)
class MalaConfig(SampleConfig):
    """Metropolis-adjusted Langevin (Roberts & Tweedie 1996) on the full data, its step size adapted in burn-in."""

    name: str = "mala"
    target_acceptance: float = 0.8
    """Mean acceptance that the step size is adapted to. .574 is best in many dimensions; singular targets are stiffer
    in places, and a smaller step sticks less there."""
    initial_step_size: float = 0.001
    """In units of w^2, as SGLD's `step_size`."""

    def __post_init__(self):
        super().__post_init__()
        fraction("target_acceptance", self.target_acceptance)
        positive("initial_step_size", self.initial_step_size)
        positive_int("num_burnin", self.num_burnin, 20)


@dataclass(frozen=True)
class NutsConfig(SampleConfig):
    """The No-U-Turn sampler (Hoffman & Gelman 2014), adapted by windows (blackjax)."""

    name: str = "nuts"
    max_num_doublings: int = 10
    """A trajectory has at most 2 to this many steps."""
    target_acceptance: float | None = None
    """Mean acceptance that the step size is adapted to; null means .99 on closed-form losses and DLNs, .9 elsewhere."""
    initial_step_size: float = 0.01
    """Where the adaptation begins, in units of w."""

    def __post_init__(self):
        super().__post_init__()
        positive_int("max_num_doublings", self.max_num_doublings)
        if self.target_acceptance is not None:
            fraction("target_acceptance", self.target_acceptance)
        positive("initial_step_size", self.initial_step_size)
        positive_int("num_burnin", self.num_burnin, 40)


@dataclass(frozen=True)
class AdjustedMclmcConfig(SampleConfig):
    """Metropolis-adjusted microcanonical Langevin (Robnik et al. 2025), with blackjax's tuner; unbiased."""

    name: str = "adjusted_mclmc"
    target_acceptance: float = 0.9
    """Mean acceptance that the tuner adapts the step size to."""
    num_tuning: int = 2000
    """Transitions spent by the tuner, before burn-in."""
    diagonal_preconditioning: bool = True
    """Let the tuner scale every coordinate by its standard deviation."""

    min_dim: ClassVar[int] = 2

    def __post_init__(self):
        super().__post_init__()
        fraction("target_acceptance", self.target_acceptance)
        positive_int("num_tuning", self.num_tuning, 100)


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
