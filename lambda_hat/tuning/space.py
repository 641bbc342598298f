"""What is searched: the keys of each sampler, the values that they may take, and the settings to begin with.

A key is searched if compiled programs take it as an argument, or if it has few values: a trial should cost its
sampling, not a compilation. All ranges surround the values that the study starts from. Their widths are arbitrary:
a step size may be off by a factor of 1,000.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lambda_hat.config import (
    AdjustedMclmcConfig,
    BuildConfig,
    HmcConfig,
    MalaConfig,
    MclmcConfig,
    NutsConfig,
    SampleConfig,
    SghmcConfig,
    SgnhtConfig,
    StochasticGradientConfig,
)
from lambda_hat.config.defaults import Facts, resolved
from lambda_hat.errors import ConfigError
from lambda_hat.planning.cost import shape_of

STEP_FACTOR = 1000.0
HEAT_FACTOR = 30.0
DIGITS = 3
"""Significant digits of a fraction that is tried: more would be noise."""

Value = int | float


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole numbers if both ends are.

    Attributes:
        low: Least value, above 0 if `log`.
        high: Largest value.
        log: Whether they are drawn evenly in their logarithm.
    """

    low: Value
    high: Value
    log: bool = True

    @property
    def whole(self) -> bool:
        """Whether the numbers are whole."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def draw(self, rng: random.Random) -> Value:
        """A random number of the range."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = rng.uniform(low, high)
        value = math.exp(value) if self.log else value
        return round(value) if self.whole else rounded(value)


@dataclass(frozen=True)
class Choice:
    """One of a few numbers."""

    values: tuple[int, ...]

    def draw(self, rng: random.Random) -> Value:
        """A random one of the values."""
        return rng.choice(self.values)


Space = Mapping[str, Range | Choice]


def words(values: Mapping[str, Value]) -> str:
    """Such as `step_size 0.0001, thin 20`."""
    return ", ".join(f"{key} {value:g}" for key, value in values.items())


def span(space: Space) -> str:
    """Such as `step_size 1e-06 to 1; thin 1 to 40`."""
    parts = []
    for key, values in space.items():
        if isinstance(values, Range):
            parts.append(f"{key} {values.low:g} to {values.high:g}")
        else:
            parts.append(f"{key} {', '.join(map(str, values.values))}")
    return "; ".join(parts)


def rounded(value: Value) -> Value:
    """A fraction to `DIGITS` digits; a whole number as it is."""
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")


def with_lengths(cfg: SampleConfig, build: BuildConfig) -> SampleConfig:
    """`cfg` with the lengths that it has by default on a target, so that they can be searched."""
    shape = shape_of(build)
    filled = resolved(cfg, Facts(shape.dim, shape.num_data))
    return replace(cfg, thin=filled.thin, num_burnin=filled.num_burnin)


def step_key(cfg: SampleConfig) -> str | None:
    """The key that sets the step size, `step_size` or `heat`; None if the sampler adapts its own."""
    if not isinstance(cfg, StochasticGradientConfig):
        return None
    return "heat" if cfg.step_size is None else "step_size"


def space_of(cfg: SampleConfig) -> Space:
    """The keys that are searched around the setting `cfg`, and their values.

    Of sgld, sghmc and sgnht: `step_size`, or `heat` if burn-in learns the step, `thin` and `num_burnin`, and of the
    last two `friction`. The others adapt their steps; of them `num_draws` and `target_acceptance` (mclmc:
    `desired_energy_var`), and of hmc `num_integration_steps`. The lengths of `cfg` are filled in.
    """
    if isinstance(cfg, StochasticGradientConfig):
        key = step_key(cfg)
        assert key is not None and cfg.thin is not None
        factor = STEP_FACTOR if key == "step_size" else HEAT_FACTOR
        space: dict[str, Range | Choice] = {key: _around(getattr(cfg, key), factor)}
        space["thin"] = _whole_around(cfg.thin, 10, 4, least=1)
        if cfg.num_burnin:
            space["num_burnin"] = _whole_around(cfg.num_burnin, 10, 4, least=1)
        if isinstance(cfg, (SghmcConfig, SgnhtConfig)):
            space["friction"] = _including(Range(0.01, 0.9), cfg.friction)
        return space
    space = {"num_draws": _whole_around(cfg.num_draws, 8, 2, least=16)}
    if isinstance(cfg, (MalaConfig, HmcConfig, NutsConfig, AdjustedMclmcConfig)):
        assert cfg.target_acceptance is not None
        space["target_acceptance"] = _including(Range(0.6, 0.98, log=False), cfg.target_acceptance)
    if isinstance(cfg, HmcConfig):
        steps = cfg.num_integration_steps
        space["num_integration_steps"] = Choice(tuple(sorted({max(1, steps * 2**k // 4) for k in range(5)} | {steps})))
    if isinstance(cfg, MclmcConfig):
        space["desired_energy_var"] = _around(cfg.desired_energy_var, 30)
    return space


def ladder(cfg: SampleConfig, per_decade: int) -> list[float]:
    """Step sizes (or `heat`) around that of `cfg`, ascending, `per_decade` to a factor of ten.

    Raises:
        ConfigError: The sampler adapts its own step size.
    """
    key = step_key(cfg)
    if key is None:
        raise ConfigError(
            f"{cfg.name} adapts its own step size, so that a ladder of them says nothing; take sgld, sghmc or sgnht, "
            "or leave out --quick"
        )
    whole = space_of(cfg)[key]
    assert isinstance(whole, Range)
    centre = getattr(cfg, key)
    reach = math.floor(per_decade * math.log10(whole.high / centre) + 1e-6)
    return [rounded(centre * 10 ** (k / per_decade)) for k in range(-reach, reach + 1)]


def first_settings(cfg: SampleConfig, space: Space) -> list[dict[str, Value]]:
    """The settings to begin with: the study's own, then others of its step sizes, nearest first.

    Two neighbours differ by a factor of ten. No search finds the scale more quickly.
    """
    start: dict[str, Value] = {key: getattr(cfg, key) for key in space}
    key = step_key(cfg)
    if key is None:
        return [start]
    centre = getattr(cfg, key)
    others = [step for step in ladder(cfg, 1) if step != rounded(centre)]
    others.sort(key=lambda step: abs(math.log(step / centre)))
    return [start, *({**start, key: step} for step in others)]


def _around(value: float, factor: float) -> Range:
    return Range(value / factor, value * factor)


def _whole_around(value: int, below: int, above: int, least: int) -> Range:
    return Range(min(value, max(least, value // below)), max(value * above, value + 10))


def _including(whole: Range, value: float) -> Range:
    return Range(min(whole.low, value), max(whole.high, value), whole.log)
