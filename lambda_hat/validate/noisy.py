"""The noisy suite: every sampler at its default settings, on noisy data whose answer is known exactly or judged.

A pair is a setting on a target with a seed. A setting is the name of a sampler and, if it takes minibatches, a batch
size; nothing else is set. Targets are made from seeds, and exact answers are for the same data that are sampled.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from lambda_hat.config import SAMPLE_SCHEMAS, DataConfig, MlpBuild, ModelConfig, SampleConfig, StochasticGradientConfig
from lambda_hat.errors import ConfigError
from lambda_hat.validate.exact import exact_llc_t
from lambda_hat.validate.judged import judgement, network, record_of
from lambda_hat.validate.models import Logistic, Mixture, Model, Poisson, Squares
from lambda_hat.validate.outcomes import judge

BATCH_SIZES = (32, 256, None)
"""Rows per gradient of the samplers that take minibatches; None: all rows."""
NUM_SEEDS = 2
"""Number of seeds of every setting on every target."""
DATA_SEED = 13
"""Seed of the data of every target, beside its own number. Arbitrary."""
REGRESSION_ROWS, WIDE_ROWS, LIKELIHOOD_ROWS = 5000, 5000, 2000
"""Rows of the data of linear regressions, of wide ones, and of the other models."""
SIGMAS = (0.1, 1.0, 10.0, 100.0)
"""Standard deviations of the noise of linear regressions."""
BADLY_SCALED = (1e5**-0.25, 1e5**0.25)
"""Least and largest standard deviation of a design along its axes. The condition number of the Hessian is 1e5. The axes
are rotated at random, so that no diagonal metric fits."""
COLLINEAR = (1e-5, 1.0)
"""The same for a design that itself has the condition number 1e5. Along its narrow axes only the localisation acts."""
LABELLED = 0.3
"""Expected share of the rows that have a label in the masked mean."""


class Known(NamedTuple):
    """A target, and the answer of a perfect sampler on it."""

    target: Any
    """lambda_hat.targets.Target."""
    answer: Callable[[float, float], tuple[float, float]]
    """Takes `(n_beta, gamma)`; returns the answer and its standard error, 0 if it is exact."""
    is_judged: bool
    """Whether the answer comes from a judge."""


@dataclass(frozen=True)
class NoisyTarget:
    """One target of the suite."""

    label: str
    make: Callable[[], Known]
    """Builds the target."""
    program: str
    """Equal for targets whose loss and shapes are the same."""
    rows: int
    dim: int


@dataclass(frozen=True)
class Setting:
    """A sampler at its defaults; the batch size is set, if it takes minibatches."""

    sampler: str
    batch_size: int | None = None
    """Rows per gradient; None: all rows."""

    @property
    def has_batches(self) -> bool:
        """Whether the sampler takes minibatches."""
        return issubclass(SAMPLE_SCHEMAS[self.sampler], StochasticGradientConfig)

    @property
    def is_default(self) -> bool:
        """Whether this is the setting of a user who gives only the name of the sampler."""
        schema = SAMPLE_SCHEMAS[self.sampler]
        return not issubclass(schema, StochasticGradientConfig) or self.batch_size == schema.batch_size

    @property
    def label(self) -> str:
        """The name of the sampler and, if it takes minibatches, the batch size."""
        size = "all" if self.batch_size is None else self.batch_size
        return f"{self.sampler} {size}" if self.has_batches else self.sampler

    def config(self, target: str, seed: int) -> SampleConfig:
        """The configuration of a run, as a study composes it."""
        batch: dict[str, Any] = {} if self.is_default else {"batch_size": self.batch_size}
        return SAMPLE_SCHEMAS[self.sampler](target_id=target, seed=seed, **batch)


@dataclass(frozen=True)
class Pair:
    """A setting on a target with a seed, for `run_jobs`."""

    setting: Setting
    label: str
    """The label of the target."""
    seed: int
    """The seed of the run; it differs from `pair_seed` if the pair is sampled again."""
    pair_seed: int
    """The seed that names the pair."""

    @property
    def program(self) -> tuple[str, str]:
        """Equal for pairs that share a compiled program."""
        return self.setting.label, _named(self.label).program

    @property
    def work(self) -> float:
        """The cost relative to that of other pairs, which balances the worker processes."""
        target = _named(self.label)
        rows = self.setting.batch_size if self.setting.has_batches and self.setting.batch_size else target.rows
        steps = {"nuts": 30, "hmc": 10, "sghmc": 10}.get(self.setting.sampler, 1)
        return 1 + steps * rows * target.dim / 1e5

    def run(self) -> dict[str, Any]:
        """The result of `run_pair`."""
        return run_pair(self)


def linear(
    sigma: float,
    dim: int = 5,
    rows: int = REGRESSION_ROWS,
    scales: tuple[float, float] = (1.0, 1.0),
    weight: str = "one",
    seed: int = 0,
) -> Known:
    """Linear regression with a weighted squared error.

    Args:
        sigma: standard deviation of the noise.
        dim: number of parameters.
        rows: number of data points.
        scales: least and largest standard deviation of the design along its axes; the others lie between them.
        weight: the factor of the squares. `one`: 1; `likelihood`: 1 / (2 sigma^2), for a loss in nats; `mask`: 0 for
            rows without a label and 1 for the others, divided by the mean.
        seed: the number of the target.
    """
    rng = np.random.default_rng([DATA_SEED, seed])
    axes, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    x = rng.normal(size=(rows, dim)) * np.geomspace(*scales, dim) @ axes.T
    y = x @ rng.normal(size=dim) + sigma * rng.normal(size=rows)
    weights = np.ones(rows)
    if weight == "likelihood":
        weights /= 2 * sigma**2
    elif weight == "mask":
        mask = rng.random(rows) < LABELLED
        weights = mask / mask.mean()
    return _modelled(Squares(x, y, weights), "SquaresLoss")


def logistic(dim: int = 3, rows: int = LIKELIHOOD_ROWS) -> Known:
    """Logistic regression: labels of probability 1 / (1 + e^-z). The first column of the design is 1."""
    rng = np.random.default_rng([DATA_SEED, 1])
    x = np.column_stack([np.ones(rows), rng.normal(size=(rows, dim - 1))])
    z = x @ np.linspace(-0.5, 1.5, dim)
    return _modelled(Logistic(x, (rng.random(rows) < 1 / (1 + np.exp(-z))).astype(float)), "LogisticLoss")


def poisson(dim: int = 2, rows: int = LIKELIHOOD_ROWS) -> Known:
    """Poisson regression: counts of mean e^z. The first column of the design is 1."""
    rng = np.random.default_rng([DATA_SEED, 2])
    x = np.column_stack([np.ones(rows), rng.normal(size=(rows, dim - 1))])
    return _modelled(Poisson(x, rng.poisson(np.exp(x @ np.full(dim, 0.6))).astype(float)), "PoissonLoss")


def mixture(distance: float, rows: int = LIKELIHOOD_ROWS) -> Known:
    """A mixture of two normal laws, whose means lie `distance` apart. At distance 0 the true point is singular."""
    rng = np.random.default_rng([DATA_SEED, 3])
    x = rng.normal(size=rows) + distance / 2 * rng.choice([-1, 1], rows)
    start = max(distance / 2, 0.5)
    return _modelled(Mixture(x, (-start, start)), "MixtureLoss")


def judged(label: str, build: MlpBuild) -> Known:
    """A trained network at its judged point."""
    return Known(network(label, build), lambda n_beta, gamma: judgement(label, n_beta, gamma), True)


def _modelled(model: Model, loss: str) -> Known:
    from lambda_hat.targets import Target
    from lambda_hat.validate import losses

    w_star = model.minimum()
    at_w_star = float(model.loss(w_star[None])[0])
    data = model.arrays()
    rows = len(data["x"])
    target = Target(getattr(losses, loss)(), {"w": w_star}, data, False, rows, at_w_star, None, None)
    return Known(target, lambda n_beta, gamma: (exact_llc_t(model, w_star, n_beta, gamma), 0.0), False)


def _linear(label: str, **numbers: Any) -> NoisyTarget:
    dim, rows = numbers.get("dim", 5), numbers.get("rows", REGRESSION_ROWS)
    return NoisyTarget(label, partial(linear, **numbers), f"squares {dim}", rows, dim)


def _network(label: str, build: MlpBuild) -> NoisyTarget:
    assert build.dim is not None
    return NoisyTarget(label, partial(judged, label, build), label, build.n, build.dim)


NETWORKS: dict[str, MlpBuild] = {
    "tanh 4-8-1": MlpBuild(seed=42),
    "tanh 2-3-1": MlpBuild(seed=2, model=ModelConfig(widths=[3]), data=DataConfig(input_dim=2)),
    "relu 2-3-1": MlpBuild(seed=2, model=ModelConfig(widths=[3], activation="relu"), data=DataConfig(input_dim=2)),
}
"""The networks of the suite. A random network of the same architecture makes their data, n = 1,000, with noise of .1.
With these seeds training ends at a point where the gradient vanishes."""

TARGETS: tuple[NoisyTarget, ...] = (
    *(_linear(f"linear, sigma {sigma:g}", sigma=sigma, seed=10 + i) for i, sigma in enumerate(SIGMAS)),
    *(
        _linear(f"linear, sigma {sigma:g}, condition 1e5", sigma=sigma, scales=BADLY_SCALED, seed=20 + i)
        for i, sigma in enumerate(SIGMAS)
    ),
    _linear("linear, sigma 1, collinear", sigma=1.0, scales=COLLINEAR, seed=25),
    _linear("likelihood, sigma 3", sigma=3.0, weight="likelihood", seed=30),
    _linear("masked mean, sigma 10", sigma=10.0, weight="mask", seed=40),
    _linear("linear d=32, sigma 1", sigma=1.0, dim=32, rows=WIDE_ROWS, seed=50),
    NoisyTarget("logistic d=3", logistic, "logistic", LIKELIHOOD_ROWS, 3),
    NoisyTarget("Poisson d=2", poisson, "poisson", LIKELIHOOD_ROWS, 2),
    NoisyTarget("mixture, means 4 apart", partial(mixture, 4.0), "mixture", LIKELIHOOD_ROWS, 2),
    NoisyTarget("mixture, means equal", partial(mixture, 0.0), "mixture", LIKELIHOOD_ROWS, 2),
    *(_network(label, build) for label, build in NETWORKS.items()),
)


def _named(label: str) -> NoisyTarget:
    return next(target for target in TARGETS if target.label == label)


@cache
def known(label: str) -> Known:
    """The target of this label. It is built once in a process."""
    return _named(label).make()


@cache
def answer(label: str, n_beta: float, gamma: float) -> tuple[float, float]:
    """The answer of a perfect sampler on the target of this label, and its standard error."""
    return known(label).answer(n_beta, gamma)


def settings_of(sampler: str) -> list[Setting]:
    """The settings of a sampler in the suite: its default and, if it takes minibatches, all `BATCH_SIZES`."""
    schema = SAMPLE_SCHEMAS[sampler]
    if not issubclass(schema, StochasticGradientConfig):
        return [Setting(sampler)]
    sizes = dict.fromkeys([*BATCH_SIZES, schema.batch_size])
    return [Setting(sampler, size) for size in sizes]


def select(samplers: Sequence[str], only: str, seed: int) -> list[Pair]:
    """All pairs of the settings of these samplers, the matching targets, and the seeds.

    Args:
        samplers: their names.
        only: a glob pattern over the labels of targets.
        seed: the first of `NUM_SEEDS` seeds.

    Raises:
        ConfigError: if no target matches, or a matching network was never judged.
    """
    targets = [target for target in TARGETS if fnmatchcase(target.label, only)]
    if not targets:
        raise ConfigError(f"--only {only!r}: matches no target; they are {'; '.join(t.label for t in TARGETS)}")
    for target in targets:
        if target.label in NETWORKS:
            record_of(target.label)
    seeds = [(seed + i) % 2**32 for i in range(NUM_SEEDS)]
    return [
        Pair(setting, target.label, s, s)
        for name in samplers
        for setting in settings_of(name)
        for target in targets
        for s in seeds
    ]


def again(pairs: Sequence[Pair], keys: Collection[tuple[str, str, int]]) -> list[Pair]:
    """The pairs named by `keys` (setting, target, pair seed), each with a seed that no pair has had."""
    return [
        replace(pair, seed=(pair.seed + NUM_SEEDS) % 2**32)
        for pair in pairs
        if (pair.setting.label, pair.label, pair.pair_seed) in keys
    ]


def networks(only: str) -> dict[str, MlpBuild]:
    """The networks whose label matches a glob pattern.

    Raises:
        ConfigError: if none does.
    """
    chosen = {label: build for label, build in NETWORKS.items() if fnmatchcase(label, only)}
    if not chosen:
        raise ConfigError(f"--only {only!r}: matches no network; they are {'; '.join(NETWORKS)}")
    return chosen


SUMMARY_FIELDS = (
    "temperature", "temperature_std_error", "growth", "localisation", "distance", "degree", "llc_variance",
)  # fmt: skip
"""The fields of a `Summary` that a row takes under their own names."""


def run_pair(pair: Pair) -> dict[str, Any]:
    """Sample one pair by the code of a study's runs, and judge it. A refused run gives a row without numbers."""
    from lambda_hat.execute.sampling import estimate

    started, worked = time.perf_counter(), time.process_time()
    target = known(pair.label).target
    row = {
        "target": pair.label,
        "setting": pair.setting.label,
        "sampler": pair.setting.sampler,
        "batch_size": pair.setting.batch_size if pair.setting.has_batches else None,
        "is_default": pair.setting.is_default,
        "seed": pair.seed,
        "pair_seed": pair.pair_seed,
        "dim": target.dim,
        "n": target.n,
        "judged": known(pair.label).is_judged,
    }
    try:
        found = estimate(target, pair.setting.config(pair.label, pair.seed))
    except ConfigError as error:
        row |= dict.fromkeys((*NUMBERS, *SUMMARY_FIELDS), math.nan)
        row |= {"verdict": "refused", "verdict_sentence": str(error)}
        row |= judge("refused", math.nan, math.nan, math.nan)
    else:
        row |= _numbers_of(found)
        exact = answer(pair.label, row["n_beta"], row["gamma"])
        row |= judge(row["verdict"], row["llc"], row["std_error"], *exact)
    seconds = {"seconds": time.perf_counter() - started, "seconds_cpu": time.process_time() - worked}
    return row | seconds


NUMBERS = ("n_beta", "gamma", "llc", "std_error", "rhat", "ess", "step_size", "num_gradients", "fge")
"""The other numbers of a row, which a refused run lacks as well."""


def _numbers_of(found: Any) -> dict[str, Any]:
    """The entries of a row that come from a lambda_hat.execute.sampling.Estimate."""
    summary, draws = found.summary, found.draws
    return {
        "n_beta": found.posterior.n_beta,
        "gamma": found.posterior.gamma,
        "llc": summary.llc_mean,
        "std_error": summary.llc_std_error,
        **{name: getattr(summary, name) for name in SUMMARY_FIELDS},
        "rhat": summary.rhat_max,
        "ess": summary.ess_mean,
        "step_size": float(np.mean(draws.step_size)),
        "num_gradients": draws.num_gradients,
        "fge": draws.fge,
        "verdict": summary.verdict,
        "verdict_sentence": summary.verdict_sentence,
        "notes": list(draws.notes),
        "seconds_compile": draws.seconds_compile,
        "seconds_sample": draws.seconds_sample,
    }
