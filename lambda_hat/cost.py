"""What a run is expected to cost: what it computes, counted from its configuration, at seconds that were measured.

A run's seconds are a sum over TERMS of how often it does each thing, times what that takes. Without a store the seconds
are DEFAULTS, measured on one core; with one they are those of `costs.json`, which `lambda_hat/calibration.py` fits to
the finished runs of the store, sampler by sampler.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lambda_hat.config import (
    BuildConfig,
    CustomBuild,
    DlnBuild,
    HmcConfig,
    MclmcConfig,
    MlpBuild,
    SampleConfig,
    SghmcConfig,
    SgldConfig,
    StochasticGradientConfig,
    TanhBuild,
)
from lambda_hat.errors import StoreError
from lambda_hat.files import read_record

COSTS_NAME = "costs.json"
COSTS_FORMAT = 1

TERMS = ("run", "step", "layer", "draw", "coordinate", "unit", "product")
"""What a run does: begin; gradients that follow one another, chains moving side by side; those times the layers of the
loss; recorded draws; gradients times chains times parameters; those times rows times units of the network instead; and
times rows times parameters."""
DEFAULTS = {
    "run": 2e-3,
    "step": 1.2e-6,
    "layer": 2.5e-6,
    "draw": 5e-6,
    "coordinate": 6e-9,
    "unit": 6e-10,
    "product": 7e-11,
}
"""Seconds of each, measured on one core in float32."""
STEP = {"nuts": 7e-6}
"""The same of "step" where a sampler does more between two gradients than to move."""
SECONDS_COMPILE = {
    "sgld": 4.0,
    "sghmc": 4.0,
    "sgnht": 4.0,
    "mala": 4.0,
    "hmc": 4.0,
    "nuts": 7.0,
    "mclmc": 12.0,
    "adjusted_mclmc": 12.0,
}
"""Measured on one core, hardly dependent on the target."""
SECONDS_AROUND = 0.05
"""To read a target, to summarise and to publish a run."""
GRADIENTS = {"nuts": 64.0, "adjusted_mclmc": 8.0}
"""Of a transition of the samplers that find out by themselves; from 10 to 1,000 were seen."""
UNKNOWN_ROWS, UNKNOWN_DIM, UNKNOWN_LAYERS = 1000, 1000, 3
"""Guesses for a custom target that is not built yet; its layers stay one."""
WIDE = 2.0
"""A number in float64, in those of float32."""
HVP, LOSS, CHECK = 3.0, 1 / 3, 2.0
"""A gradient with a Hessian-vector product, a loss, and a check of the step size, in gradients."""
NUM_CHECKS = 50
"""At most, in each chain."""
TANH_NODES = 16
RANDOM_UNITS = 40
"""A random number, in units of a network."""


class Shape(NamedTuple):
    """What a loss reads, as far as its time depends on it."""

    kind: str
    """Of the target."""
    dim: int
    rows: int
    """Of the full data; for linear networks those that cost as much."""
    units: int
    """Numbers that are computed for a row on the way."""
    layers: int
    """Products of matrices that follow one another; 0 for a loss that is one expression."""
    batches: bool
    """Minibatches can be drawn from it."""
    batch_units: int
    """The same for a row of a batch, drawing it included."""


def shape_of(build: BuildConfig, meta: dict[str, Any] | None = None) -> Shape:
    """The shape of a target. meta: the record of a custom target that is built, which knows it."""
    kind = build.kind
    if isinstance(build, MlpBuild):
        units = build.data.input_dim + sum(build.widths) + build.data.output_dim
        return Shape(kind, build.dim, build.data.n, units, len(build.widths) + 1, True, units + RANDOM_UNITS)
    if isinstance(build, DlnBuild):
        # The loss of a linear network is that of the product of its factors, whatever the number of rows; rows of a
        # batch are drawn again from their keys.
        widths = build.target.widths
        batches = build.target.data == "empirical"
        return Shape(kind, build.dim, widths[0], 0, len(widths) - 1, batches, RANDOM_UNITS * widths[0])
    if isinstance(build, TanhBuild):
        return Shape(kind, build.dim, TANH_NODES, build.target.hidden, 0, False, 0)
    if isinstance(build, CustomBuild):
        rows, dim = (_known(meta, key, guess) for key, guess in (("num_data", UNKNOWN_ROWS), ("dim", UNKNOWN_DIM)))
        units = math.isqrt(dim)
        return Shape(kind, dim, max(rows, 1), units, UNKNOWN_LAYERS, rows > 0, units + RANDOM_UNITS)
    return Shape(kind, build.dim, 1, 0, 0, False, 0)


def shape_in_store(build: BuildConfig, target_dir: Path) -> Shape:
    """The shape of a target, with what the store knows of a custom one."""
    meta = None
    if isinstance(build, CustomBuild):
        with contextlib.suppress(OSError, StoreError):
            meta = read_record(target_dir / "meta.json")
    return shape_of(build, meta)


def _known(meta: dict[str, Any] | None, key: str, guess: int) -> int:
    value = (meta or {}).get(key)
    return value if type(value) is int and value >= 0 else guess


def gradients_per_transition(cfg: SampleConfig) -> float | None:
    """Gradients of one transition of one chain; None where the sampler finds out as it goes."""
    if isinstance(cfg, (HmcConfig, SghmcConfig)):
        return cfg.num_integration_steps
    if cfg.name in GRADIENTS:
        return None
    return 2 if isinstance(cfg, MclmcConfig) else 1


def transitions(cfg: SampleConfig) -> int:
    """Transitions of one chain, those of a tuner included."""
    return cfg.num_steps + getattr(cfg, "num_tuning", 0)


def work_of(shape: Shape, cfg: SampleConfig, gradients: float) -> tuple[float, ...]:
    """How often a run does what TERMS name. gradients: those of one transition."""
    rows, units, layers = shape.rows, shape.units, shape.layers
    stochastic = isinstance(cfg, StochasticGradientConfig)
    if stochastic and shape.batches and cfg.batch_size is not None:
        # Drawing a batch is one more thing to be waited for.
        rows, units, layers = cfg.batch_size, shape.batch_units, layers + 1
    steps = transitions(cfg) * gradients
    moved = cfg.num_chains * steps
    # Passes over the full data, in gradients, over all chains.
    full = cfg.num_chains * cfg.num_draws * LOSS * (1 + cfg.singular_fluctuation)
    in_turn, coordinates = steps, moved
    if stochastic:
        full += cfg.num_chains * min(cfg.num_draws, NUM_CHECKS) * CHECK
        if cfg.step_size is None:
            turns = 1.5 if isinstance(cfg, SgldConfig) and cfg.precond != "none" else 1.0
            full += turns * HVP * cfg.pilot_steps
            in_turn += turns * HVP * cfg.pilot_steps
            coordinates += turns * HVP * cfg.pilot_steps
    wide = WIDE if cfg.precision == "float64" else 1.0
    return (
        1.0,
        in_turn,
        in_turn * layers,
        float(cfg.num_draws),
        coordinates * shape.dim,
        wide * (moved * rows * units + full * shape.rows * shape.units),
        wide * shape.dim * (moved * rows + full * shape.rows),
    )


@functools.cache
def default_seconds(sampler: str) -> tuple[float, ...]:
    """Of each of TERMS, before anything is measured."""
    return tuple({**DEFAULTS, "step": STEP.get(sampler, DEFAULTS["step"])}.values())


@dataclass(frozen=True)
class SamplerCosts:
    """What one sampler takes."""

    runs: int
    """Finished runs that this was fitted to."""
    seconds: tuple[float, ...]
    """Of each of TERMS."""
    gradients: dict[str, float] = field(default_factory=dict)
    """Of a transition, the mean by kind of target and under "" over all; empty where the configuration says."""
    compile: float | None = None
    """Seconds that a process spends on a program before its first run; None: not known."""


@dataclass(frozen=True)
class CostModel:
    """What the runs of a study are expected to take."""

    runs: int = 0
    """Finished runs that this rests on."""
    around: float = SECONDS_AROUND
    samplers: dict[str, SamplerCosts] = field(default_factory=dict)
    scale: float = 1.0
    """Seconds in those of the defaults, for samplers that no run was finished of."""

    def of(self, sampler: str) -> SamplerCosts:
        """The costs of a sampler."""
        if sampler in self.samplers:
            return self.samplers[sampler]
        return SamplerCosts(0, tuple(self.scale * seconds for seconds in default_seconds(sampler)))

    def seconds(self, shape: Shape, cfg: SampleConfig) -> float:
        """Expected seconds of a run, without compilation."""
        costs = self.of(cfg.name)
        gradients = gradients_per_transition(cfg)
        if gradients is None:
            learned = costs.gradients
            gradients = learned.get(shape.kind, learned.get("", GRADIENTS[cfg.name]))
        work = work_of(shape, cfg, gradients)
        return self.around + sum(map(operator.mul, work, costs.seconds))

    def compile_seconds(self, sampler: str) -> float:
        """Seconds that a process spends on a program before its first run."""
        known = self.of(sampler).compile
        return SECONDS_COMPILE.get(sampler, 4.0) if known is None else known

    def pack_seconds(self, runs: Iterable[tuple[str, str, float]], ranks: int | None = None) -> float:
        """Expected rank-seconds of a pack of (sampler, program, seconds): every rank compiles what it samples.

        ranks: None where their number is not known; then each program is compiled once.
        """
        total = 0.0
        counts: dict[tuple[str, str], int] = defaultdict(int)
        for sampler, program, seconds in runs:
            total += seconds
            counts[sampler, program] += 1
        compiled = (min(count, ranks or 1) * self.compile_seconds(sampler) for (sampler, _), count in counts.items())
        return total + sum(compiled)

    @property
    def basis(self) -> str:
        """What this rests on, for a person who wonders whether to believe it."""
        if not self.runs:
            return "by default costs, those of a CPU core, right to a small factor"
        return f"measured on {self.runs} finished runs of this store"


def price(rank_seconds: float, cores_per_rank: int, gpus_per_node: int, ranks_per_gpu: int) -> str:
    """Core-hours, or GPU-hours where ranks have a GPU."""
    hours = rank_seconds / 3600
    if gpus_per_node > 0:
        return f"{hours / ranks_per_gpu:.2g} GPU-hours"
    return f"{hours * cores_per_rank:.2g} core-hours"


# --------------------------------------------------------------------------------------------------------------
# What the store has measured


def platform_of(backend: str, device: str, cores: int) -> str:
    """What runs must have in common for their times to be compared, as `costs.json` names it."""
    return f"cpu/{cores}" if backend == "cpu" else device


def read_costs(store_root: Path, cores_per_rank: int, gpus_per_node: int) -> CostModel:
    """What the store has measured on ranks like these; the defaults where that is nothing, or cannot be read."""
    platforms = read_platforms(store_root)
    usable = [name for name in platforms if name.startswith("cpu/") is (gpus_per_node == 0)]
    if not usable:
        return CostModel()
    try:
        models = {name: _model(platforms[name]["fitted"]) for name in usable}
    except (KeyError, TypeError, ValueError, AttributeError):
        return CostModel()
    own = platform_of("cpu", "cpu", cores_per_rank)
    # Another number of cores is nearer than the defaults.
    return models[own] if own in models else max(models.values(), key=lambda model: model.runs)


def read_platforms(store_root: Path) -> dict[str, Any]:
    """The content of `costs.json` by platform; empty where there is none, or it is damaged: its loss costs accuracy."""
    try:
        record = read_record(Path(store_root).expanduser() / COSTS_NAME)
    except (OSError, StoreError):
        return {}
    platforms = record.get("platforms")
    if record.get("format") != COSTS_FORMAT or record.get("terms") != list(TERMS) or not isinstance(platforms, dict):
        return {}
    return platforms


def _model(fitted: dict[str, Any]) -> CostModel:
    """Raises KeyError, TypeError, ValueError or AttributeError for what `lambda_hat.calibration.fit` never makes."""
    return CostModel(
        runs=int(fitted["runs"]),
        around=_seconds(fitted["around"]),
        samplers={name: _costs(content) for name, content in fitted["samplers"].items()},
        scale=_seconds(fitted["scale"]),
    )


def _costs(content: dict[str, Any]) -> SamplerCosts:
    seconds = tuple(map(_seconds, content["seconds"]))
    if len(seconds) != len(TERMS):
        raise ValueError(f"{len(seconds)} terms")
    gradients = {str(kind): _seconds(mean) for kind, mean in content["gradients"].items()}
    compiling = content["compile"]
    return SamplerCosts(int(content["runs"]), seconds, gradients, None if compiling is None else _seconds(compiling))


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r}")
    return float(value)
