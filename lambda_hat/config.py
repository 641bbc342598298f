"""The configuration schemas: one frozen dataclass per kind of target and per sampler.

Every value is validated where it is made (`__post_init__`), so a configuration that exists can be run.
`n` is the number of data points, `dim` the number of sampled parameters, `n_beta = n * beta` the inverse
temperature of the posterior `exp(-n_beta L_n(w) - gamma/2 |w - w_star|^2)` (Lau et al. 2023, arXiv 2308.12108).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import ClassVar

from lambda_hat.errors import ConfigError, nearest

BUILD_FORMAT = 1
SAMPLE_FORMAT = 1

ACTIVATIONS = ("relu", "tanh", "gelu")
INPUT_LAWS = ("isotropic", "anisotropic", "mixture")
NOISES = ("none", "gaussian", "heteroscedastic", "student_t", "outliers")
LOSSES = ("nll", "mse")
DLN_DATA = ("population", "empirical")
PRECISIONS = ("float32", "float64")
PRECONDS = ("none", "rmsprop", "adam")
ADAPTS = ("burnin", "always")
LOSS_ESTIMATES = ("full", "paired")


def _require(condition: bool, key: str, got: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{key}: got {got!r}, expected {expected}")


def _positive_int(key: str, value: int, least: int = 1) -> None:
    _require(value >= least, key, value, f"an integer of at least {least}")


def _positive(key: str, value: float) -> None:
    _require(math.isfinite(value) and value > 0, key, value, "a finite number above 0")


def _non_negative(key: str, value: float) -> None:
    _require(math.isfinite(value) and value >= 0, key, value, "a finite number of at least 0")


def _fraction(key: str, value: float) -> None:
    _require(0 < value < 1, key, value, "a number strictly between 0 and 1")


def _choice(key: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ConfigError(f"{key}: unknown {value!r}; {nearest(value, valid)}")


# --------------------------------------------------------------------------------------------------------------
# Targets


@dataclass(frozen=True)
class RuntimeConfig:
    """What a process may use. Not part of any id: it decides where a number is computed, not which."""

    cores_per_rank: int = 1

    def __post_init__(self):
        _positive_int("runtime.cores_per_rank", self.cores_per_rank)


@dataclass(frozen=True)
class StoreConfig:
    """Where results lie. Not part of any id, so a store can be moved."""

    root: str = "runs"


@dataclass(frozen=True)
class QuadraticTarget:
    """`L(w) = sum_i a_i w_i^2 / 2` with `rank` non-zero `a_i`; `lambda = rank/2`, multiplicity 1."""

    kind: str = "quadratic"
    dim: int = 4
    rank: int | None = None
    """Number of non-zero curvatures; null means `dim`."""
    eigenvalues: list[float] | None = None
    """The `rank` non-zero curvatures `a_i`; null means all 1."""
    n: int = 1000

    def __post_init__(self):
        _positive_int("target.dim", self.dim)
        _positive_int("target.n", self.n, 3)
        rank = self.dim if self.rank is None else self.rank
        _require(0 <= rank <= self.dim, "target.rank", rank, f"0 to dim = {self.dim}")
        if self.eigenvalues is not None:
            _require(
                len(self.eigenvalues) == rank, "target.eigenvalues", self.eigenvalues, f"{rank} numbers, one per rank"
            )
            for value in self.eigenvalues:
                _positive("target.eigenvalues", value)


def _check_blocks(key: str, blocks: list[list[int]], point: list[float] | None) -> None:
    _require(bool(blocks) and all(blocks), key, blocks, "at least one exponent")
    exponents = [k for block in blocks for k in block]
    _require(all(k >= 1 for k in exponents), key, blocks, "exponents k_i of at least 1, for w_i^(2 k_i)")
    if point is None:
        return
    _require(len(point) == len(exponents), "target.point", point, f"{len(exponents)} coordinates")
    _require(all(math.isfinite(x) for x in point), "target.point", point, "finite coordinates")
    start = 0
    for block in blocks:
        inside = point[start : start + len(block)]
        _require(
            any(x == 0 for x in inside), "target.point", point, "a zero of the loss: one vanishing coordinate per block"
        )
        start += len(block)


@dataclass(frozen=True)
class MonomialTarget:
    """`L(w) = prod_i w_i^(2 k_i)` at `point`; lambda is the least `1/(2 k_i)` over the coordinates that vanish."""

    kind: str = "monomial"
    exponents: list[int] = field(default_factory=lambda: [1, 1])
    """The `k_i`, one per coordinate."""
    point: list[float] | None = None
    """`w_star`; null means the origin. At least one coordinate must be 0."""
    n: int = 1000

    def __post_init__(self):
        _positive_int("target.n", self.n, 3)
        _check_blocks("target.exponents", [self.exponents], self.point)

    @property
    def blocks(self) -> list[list[int]]:
        return [self.exponents]


@dataclass(frozen=True)
class MonomialSumTarget:
    """A sum of monomials over disjoint coordinates; lambdas add, multiplicities add up to `sum m - (blocks - 1)`."""

    kind: str = "monomial_sum"
    blocks: list[list[int]] = field(default_factory=lambda: [[1], [2]])
    """One list of `k_i` per block, each over its own coordinates: [[1], [2]] is `w1^2 + w2^4`."""
    point: list[float] | None = None
    n: int = 1000

    def __post_init__(self):
        _positive_int("target.n", self.n, 3)
        _check_blocks("target.blocks", self.blocks, self.point)


@dataclass(frozen=True)
class DlnTarget:
    """A deep linear network `f(x) = W_L ... W_1 x` at a teacher of the given rank, inputs standard normal."""

    kind: str = "dln"
    widths: list[int] = field(default_factory=lambda: [2, 1, 2])
    """H_0 (inputs), hidden widths, H_L (outputs)."""
    rank: int | None = None
    """Rank of the teacher. Null: full, with dense random factors. Below full: `W_k = diag(A_k, 0)`."""
    n: int = 1000
    data: str = "population"
    """`population`: the closed-form expected loss. `empirical`: `n` drawn data points."""
    noise_std: float = 0.0
    """Standard deviation of the noise on the outputs of empirical data."""

    def __post_init__(self):
        _require(len(self.widths) >= 3, "target.widths", self.widths, "inputs, at least one hidden width, outputs")
        for width in self.widths:
            _positive_int("target.widths", width)
        least = min(self.widths)
        if self.rank is not None:
            _require(0 <= self.rank <= least, "target.rank", self.rank, f"0 to the least width, {least}")
        _positive_int("target.n", self.n, 3)
        _choice("target.data", self.data, DLN_DATA)
        _non_negative("target.noise_std", self.noise_std)
        if self.data == "population" and self.noise_std > 0:
            raise ConfigError("target.noise_std: the population loss has no noise; write target.data: empirical")


@dataclass(frozen=True)
class MlpTarget:
    """A student network trained on data from a teacher; `model`, `data`, `teacher`, `training` describe it."""

    kind: str = "mlp"


@dataclass(frozen=True)
class ModelConfig:
    """A multilayer perceptron."""

    widths: list[int] | None = None
    """Hidden widths. Null: `depth` equal ones, sized by `num_params`."""
    depth: int | None = None
    """Number of hidden layers, with `num_params`."""
    num_params: int | None = None
    """Wanted number of parameters; the nearest that equal widths reach."""
    activation: str = "tanh"
    bias: bool = True

    def __post_init__(self):
        _choice("model.activation", self.activation, ACTIVATIONS)
        if self.widths is not None:
            _require(bool(self.widths), "model.widths", self.widths, "at least one hidden width")
            for width in self.widths:
                _positive_int("model.widths", width)
            _require(self.num_params is None, "model.num_params", self.num_params, "null beside widths: give one")
            _require(
                self.depth is None or self.depth == len(self.widths),
                "model.depth",
                self.depth,
                f"null, or the number of widths, {len(self.widths)}",
            )
        else:
            _require(
                self.num_params is not None and self.depth is not None,
                "model.widths",
                None,
                "either widths, or depth and num_params",
            )
            _positive_int("model.depth", self.depth)
            _positive_int("model.num_params", self.num_params)


@dataclass(frozen=True)
class DataConfig:
    """Inputs `x` of shape (n, input_dim), targets `y = teacher(x) + noise` of shape (n, output_dim)."""

    n: int = 1000
    input_dim: int = 4
    output_dim: int = 1
    input_law: str = "isotropic"
    anisotropy: float = 10.0
    """Ratio of the largest to the smallest input variance (anisotropic), geometric in between."""
    num_components: int = 4
    """Number of clusters (mixture)."""
    separation: float = 2.0
    """Standard deviation of the cluster centres (mixture), in units of the spread inside a cluster."""
    noise: str = "gaussian"
    noise_std: float = 0.1
    """Scale of the noise, in units of y."""
    noise_df: float = 4.0
    """Degrees of freedom (student_t)."""
    outlier_fraction: float = 0.05
    outlier_scale: float = 10.0
    """Standard deviation of an outlier's noise, in units of noise_std."""
    seed: int | None = None
    """Seed of inputs, teacher and noise; null means the target's seed."""

    def __post_init__(self):
        _positive_int("data.n", self.n, 3)
        for key in ("input_dim", "output_dim", "num_components"):
            _positive_int(f"data.{key}", getattr(self, key))
        _choice("data.input_law", self.input_law, INPUT_LAWS)
        _choice("data.noise", self.noise, NOISES)
        _require(
            math.isfinite(self.anisotropy) and self.anisotropy >= 1, "data.anisotropy", self.anisotropy, "at least 1"
        )
        _non_negative("data.separation", self.separation)
        _non_negative("data.noise_std", self.noise_std)
        _positive("data.noise_df", self.noise_df)
        _fraction("data.outlier_fraction", self.outlier_fraction)
        _positive("data.outlier_scale", self.outlier_scale)


@dataclass(frozen=True)
class TrainingConfig:
    """Empirical risk minimisation by Adam, then L-BFGS on the full data, each stopped when it no longer improves."""

    learning_rate: float = 1e-2
    """Initial Adam step, decayed by a cosine to 0 over `steps`."""
    steps: int = 5000
    batch_size: int | None = None
    """Null: the full data."""
    patience: int = 500
    """Adam stops early when the full-data loss has not improved by `tolerance` (relative) for this many steps."""
    tolerance: float = 1e-5
    polish_steps: int = 5000
    """At most this many L-BFGS steps after Adam; 0 leaves them out."""
    grad_tolerance: float = 1e-7
    """L-BFGS stops when the largest gradient entry is below this."""

    def __post_init__(self):
        _positive("training.learning_rate", self.learning_rate)
        _positive_int("training.steps", self.steps)
        if self.batch_size is not None:
            _positive_int("training.batch_size", self.batch_size)
        _positive_int("training.patience", self.patience)
        _non_negative("training.tolerance", self.tolerance)
        _positive_int("training.polish_steps", self.polish_steps, 0)
        _non_negative("training.grad_tolerance", self.grad_tolerance)


@dataclass(frozen=True)
class BuildConfig:
    """What every target has. `seed` seeds whatever is random about it."""

    seed: int = 0
    format: int = BUILD_FORMAT
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    store: StoreConfig = field(default_factory=StoreConfig)

    analytic: ClassVar[bool] = True
    """The loss is known in closed form, without data."""

    def __post_init__(self):
        _require(0 <= self.seed < 2**32, "seed", self.seed, "an integer from 0 to 2^32 - 1")
        _require(
            self.format == BUILD_FORMAT, "format", self.format, f"{BUILD_FORMAT}, the format that this version builds"
        )

    @property
    def kind(self) -> str:
        return self.target.kind

    @property
    def n(self) -> int:
        return self.target.n

    @property
    def dim(self) -> int:
        """Number of parameters."""
        raise NotImplementedError

    @property
    def num_data(self) -> int:
        """Rows that the full-data loss reads; 0 for a closed-form loss."""
        return 0

    @property
    def label(self) -> str:
        """A few words that tell the target from others in a table or a picture."""
        raise NotImplementedError


def _monomial_label(blocks: list[list[int]], point: list[float] | None) -> str:
    names = itertools.count(1)
    terms = [" ".join(f"w{next(names)}^{2 * k}" for k in block) for block in blocks]
    where = "" if point is None or not any(point) else f" at ({', '.join(f'{x:g}' for x in point)})"
    return " + ".join(terms) + where


@dataclass(frozen=True)
class QuadraticBuild(BuildConfig):
    target: QuadraticTarget = field(default_factory=QuadraticTarget)

    @property
    def label(self) -> str:
        rank = self.target.dim if self.target.rank is None else self.target.rank
        return f"quadratic d={self.target.dim} rank {rank}"

    @property
    def dim(self) -> int:
        return self.target.dim


@dataclass(frozen=True)
class MonomialBuild(BuildConfig):
    target: MonomialTarget = field(default_factory=MonomialTarget)

    @property
    def dim(self) -> int:
        return len(self.target.exponents)

    @property
    def label(self) -> str:
        return _monomial_label(self.target.blocks, self.target.point)


@dataclass(frozen=True)
class MonomialSumBuild(BuildConfig):
    target: MonomialSumTarget = field(default_factory=MonomialSumTarget)

    @property
    def dim(self) -> int:
        return sum(map(len, self.target.blocks))

    @property
    def label(self) -> str:
        return _monomial_label(self.target.blocks, self.target.point)


@dataclass(frozen=True)
class RegressionBuild(BuildConfig):
    """A target whose loss compares outputs: `nll` is Gaussian with standard deviation `sigma`, summed over outputs
    and without its constant, `|y - f(x)|^2 / (2 sigma^2)`; `mse` is averaged over outputs."""

    loss: str = "nll"
    sigma: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        _choice("loss", self.loss, LOSSES)
        _positive("sigma", self.sigma)


@dataclass(frozen=True)
class DlnBuild(RegressionBuild):
    target: DlnTarget = field(default_factory=DlnTarget)

    @property
    def dim(self) -> int:
        widths = self.target.widths
        return sum(a * b for a, b in itertools.pairwise(widths))

    @property
    def num_data(self) -> int:
        return self.target.n if self.target.data == "empirical" else 0

    @property
    def label(self) -> str:
        rank = min(self.target.widths) if self.target.rank is None else self.target.rank
        return f"dln {'-'.join(map(str, self.target.widths))} rank {rank}, {self.target.data}"


def mlp_num_params(widths: list[int], input_dim: int, output_dim: int, bias: bool) -> int:
    """Number of parameters of a network with the given hidden widths."""
    sizes = [input_dim, *widths, output_dim]
    return sum((a + bias) * b for a, b in itertools.pairwise(sizes))


def mlp_widths(model: ModelConfig, input_dim: int, output_dim: int) -> list[int]:
    """Hidden widths of `model`: as given, or `depth` equal ones whose parameter count is nearest to `num_params`."""
    if model.widths is not None:
        return list(model.widths)

    def count(width: int) -> int:
        return mlp_num_params([width] * model.depth, input_dim, output_dim, model.bias)

    width = 1
    while count(width + 1) <= model.num_params:
        width += 1
    width = min((width, width + 1), key=lambda w: abs(count(w) - model.num_params))
    return [width] * model.depth


@dataclass(frozen=True)
class MlpBuild(RegressionBuild):
    target: MlpTarget = field(default_factory=MlpTarget)
    model: ModelConfig = field(default_factory=lambda: ModelConfig(widths=[8]))
    data: DataConfig = field(default_factory=DataConfig)
    teacher: ModelConfig | None = None
    """Null: a network of the student's architecture."""
    training: TrainingConfig = field(default_factory=TrainingConfig)

    analytic: ClassVar[bool] = False

    @property
    def n(self) -> int:
        return self.data.n

    @property
    def widths(self) -> list[int]:
        return mlp_widths(self.model, self.data.input_dim, self.data.output_dim)

    @property
    def dim(self) -> int:
        return mlp_num_params(self.widths, self.data.input_dim, self.data.output_dim, self.model.bias)

    @property
    def num_data(self) -> int:
        return self.data.n

    @property
    def label(self) -> str:
        sizes = [self.data.input_dim, *self.widths, self.data.output_dim]
        return f"mlp {'-'.join(map(str, sizes))} {self.model.activation}"


BUILD_SCHEMAS: dict[str, type[BuildConfig]] = {
    "quadratic": QuadraticBuild,
    "monomial": MonomialBuild,
    "monomial_sum": MonomialSumBuild,
    "dln": DlnBuild,
    "mlp": MlpBuild,
}


# --------------------------------------------------------------------------------------------------------------
# Samplers


@dataclass(frozen=True)
class SampleConfig:
    """What every sampler has. A chain makes `num_burnin + num_draws * thin` transitions and records `num_draws`."""

    target_id: str = ""
    name: str = ""
    seed: int = 0
    num_chains: int = 4
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
    precision: str = "float64"
    slice_rows: int = 16384
    """Full-data losses and gradients are summed over slices of this many rows."""
    format: int = SAMPLE_FORMAT
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    min_dim: ClassVar[int] = 1

    def __post_init__(self):
        _require(0 <= self.seed < 2**32, "seed", self.seed, "an integer from 0 to 2^32 - 1")
        for key, least in (("num_chains", 1), ("num_draws", 4), ("num_burnin", 0), ("thin", 1), ("slice_rows", 1)):
            _positive_int(key, getattr(self, key), least)
        for key in ("beta", "gamma", "prior_radius"):
            value = getattr(self, key)
            if value is not None:
                (_non_negative if key == "gamma" else _positive)(key, value)
        if self.gamma is not None and self.prior_radius is not None:
            raise ConfigError(
                f"gamma: got both gamma = {self.gamma} and prior_radius = {self.prior_radius}, which sets "
                "gamma = dim / prior_radius^2; give one of them"
            )
        _choice("precision", self.precision, PRECISIONS)
        _require(
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
class SgldConfig(SampleConfig):
    """Stochastic gradient Langevin dynamics (Welling & Teh 2011), optionally preconditioned.

    `dw = -(step_size/2) P (gamma (w - w_star) + n_beta grad L_batch(w)) + sqrt(step_size P) xi`.
    """

    name: str = "sgld"
    precision: str = "float32"
    step_size: float | None = None
    """epsilon above. Null: `pilot_c / h`, h the largest curvature of the negative log posterior along a pilot chain."""
    pilot_c: float = 0.1
    """c above. On a quadratic the variance comes out `1 / (1 - c/4)` too large, 2.6 % at .1 and 14 % at .5."""
    pilot_steps: int = 1000
    """Steps of the pilot chain, each a gradient and a Hessian-vector product on the full data. Arbitrary."""
    batch_size: int | None = 256
    """Rows per gradient, drawn with replacement; null means the full data. Closed-form losses have no batches."""
    precond: str = "none"
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
    loss_estimate: str = "full"
    """`full`: L_n at recorded draws. `paired`: `L_B(w) - L_B(w_star)` on a fresh batch of `batch_size`."""

    def __post_init__(self):
        super().__post_init__()
        if self.step_size is not None:
            _positive("step_size", self.step_size)
        _positive("pilot_c", self.pilot_c)
        _positive_int("pilot_steps", self.pilot_steps, 10)
        if self.batch_size is not None:
            _positive_int("batch_size", self.batch_size)
        _choice("precond", self.precond, PRECONDS)
        _choice("adapt", self.adapt, ADAPTS)
        _fraction("decay", self.decay)
        _fraction("momentum_decay", self.momentum_decay)
        _positive("damping", self.damping)
        _non_negative("initial_second_moment", self.initial_second_moment)
        _choice("loss_estimate", self.loss_estimate, LOSS_ESTIMATES)
        if self.precond != "none" and self.adapt == "burnin" and self.num_burnin < 1:
            raise ConfigError(
                f"num_burnin: got {self.num_burnin}, but precond: {self.precond} with adapt: burnin learns its "
                "preconditioner there; write num_burnin of at least 1"
            )
        if self.momentum_in_drift and self.precond != "adam":
            raise ConfigError(f"momentum_in_drift: needs precond: adam, got precond: {self.precond}")


@dataclass(frozen=True)
class HmcConfig(SampleConfig):
    """Hamiltonian Monte Carlo with a fixed number of leapfrog steps, adapted by windows (blackjax)."""

    name: str = "hmc"
    num_integration_steps: int = 10
    """Leapfrog steps, one gradient each, per transition."""
    target_acceptance: float | None = None
    """Mean acceptance that the step size is adapted to; null means .99 on closed-form losses and DLNs, .9 elsewhere."""
    initial_step_size: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        _positive_int("num_integration_steps", self.num_integration_steps)
        if self.target_acceptance is not None:
            _fraction("target_acceptance", self.target_acceptance)
        _positive("initial_step_size", self.initial_step_size)
        _positive_int("num_burnin", self.num_burnin, 20)


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

    min_dim: ClassVar[int] = 2

    def __post_init__(self):
        super().__post_init__()
        _positive("desired_energy_var", self.desired_energy_var)
        _positive_int("num_tuning", self.num_tuning, 100)


SAMPLE_SCHEMAS: dict[str, type[SampleConfig]] = {"sgld": SgldConfig, "hmc": HmcConfig, "mclmc": MclmcConfig}
