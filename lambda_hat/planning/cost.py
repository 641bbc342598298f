"""What a run is expected to cost: its gradients, counted from its configuration, times seconds that were measured.

A run takes a fixed time, and `expected_seconds` times a factor that is 1 until the store has finished runs
(`planning/calibration.py`). A process compiles every program before its first run of it.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lambda_hat.config import BuildConfig, CustomBuild, DlnBuild, MlpBuild, SampleConfig, StochasticGradientConfig
from lambda_hat.config.defaults import Facts, resolved
from lambda_hat.errors import StoreError
from lambda_hat.planning.observed_size import passes_over_data
from lambda_hat.store.files import read_record

# Seconds on one core in float32, where all cores of the machine compute: up to twice those of an idle machine, which
# `python benchmarks/costs.py --constants` measures.
STEP = 2.5e-6  # a step of all chains, its gradient aside
LONGER_STEP = {"nuts": 1e-5, "mclmc": 8e-6, "adjusted_mclmc": 8e-6}  # the same of these samplers
LOW_RANK_STEP = 4e-6  # more of a stochastic sampler's step with `precond: low_rank`
LAYER = 2.5e-6  # one of the matrix products that follow one another in a gradient, however small
MOVE = 7e-9  # to move one parameter of one chain, its random number included
UNIT = 7e-10  # one number that a network computes for a row, there and back
PRODUCT = 9e-11  # one parameter that a row is multiplied with, there and back
RANDOM = 1e-8  # one random number of a batch
COMPILE = 5.0  # the programs of a sampler, whatever the target; 3 to 8 were measured, up to 18 on busy cores
RUN = 0.05  # to read a target, to summarise and to publish a run

# What is counted, in gradients of as many rows where nothing else is said.
LOSS, CHECK = 1 / 3, 2.0  # a loss, and a check of the step size
NUM_CHECKS, CHECK_ROWS = 50, 4096  # checks of each chain, and rows of each, at most
GRADIENTS = {"mclmc": 2.0, "adjusted_mclmc": 5.0, "nuts": 30.0}  # a transition; of the last two 10 to 1,000 were seen
FLOAT64 = 2.0  # a gradient in float64
BFLOAT16 = 1.4  # a gradient in bfloat16 on a CPU, which computes in float32 all the same; 1.2 to 1.5 were measured
LOW_RANK = 2.5  # a move in a metric of a diagonal and a few directions, in those of a diagonal one
UNKNOWN_ROWS, UNKNOWN_DIM, UNKNOWN_LAYERS = 1000, 1000, 3  # guesses for a custom target; its layers stay one


class Shape(NamedTuple):
    """What the time of a target's gradient depends on."""

    kind: str  # of the target
    dim: int
    rows: int  # of the full data, or as many as a loss without data costs
    num_data: int  # rows that batches are drawn from; 0 for a closed form, which has no batches
    row: float  # seconds of the gradient of a row
    draw: float = 0.0  # seconds to draw a row of a batch
    layers: int = 0  # matrix products that follow one another; 0 for a loss that is one expression
    loss: float = LOSS  # in gradients of the same rows
    is_known: bool = True  # False: a guess, until the target is built


def shape_of(build: BuildConfig, target_dir: Path | None = None) -> Shape:
    """The shape of a target. target_dir: its folder in a store, where a custom one is known as soon as it is built."""
    if isinstance(build, CustomBuild):
        known: dict[str, Any] = {"dim": UNKNOWN_DIM, "num_data": UNKNOWN_ROWS, "measured": None}
        if target_dir is not None:
            with contextlib.suppress(OSError, StoreError):
                known |= read_record(target_dir / "meta.json")
        return measured_shape(known["dim"], known["num_data"], known["measured"])
    dim = build.dim
    assert dim is not None
    if isinstance(build, MlpBuild):
        units = build.data.input_dim + sum(build.widths) + build.data.output_dim
        row, rows = UNIT * units + PRODUCT * dim, build.data.n
        return Shape(build.kind, dim, rows, rows, row, RANDOM, len(build.widths) + 1)
    if isinstance(build, DlnBuild):
        # The loss is that of the product of the factors, whatever the number of rows.
        widths, row = build.target.widths, PRODUCT * dim
        draw = RANDOM * (1 if build.target.keeps_rows else widths[0])
        return Shape(build.kind, dim, widths[0], build.num_data, row, draw, len(widths) - 1)
    return Shape(build.kind, dim, 1, 0, PRODUCT * dim)


def measured_shape(dim: int, num_data: int, measured: dict[str, float] | None) -> Shape:
    """The shape of a custom target of `dim` parameters and `num_data` rows, 0 for a closed form.

    measured: what `lambda_hat.targets.measure` says of its loss; None: a guess.
    """
    found = measured or {"gradient": UNIT * math.sqrt(dim) + PRODUCT * dim, "loss": LOSS}
    rows, is_known = max(num_data, 1), bool(measured)
    return Shape("custom", dim, rows, num_data, found["gradient"], RANDOM, UNKNOWN_LAYERS, found["loss"], is_known)


def expected_seconds(shape: Shape, setting: SampleConfig) -> float:
    """Seconds of a run inside compiled programs on one core, by the constants above."""
    cfg: Any = resolved(setting, Facts(shape.dim, shape.num_data))
    is_stochastic = isinstance(setting, StochasticGradientConfig)
    batch_size: int | None = cfg.batch_size if is_stochastic and shape.num_data > 0 else None
    in_batches = batch_size is not None
    has_variate = is_stochastic and cfg.gradient == "control_variate"
    low_rank = "low_rank" in (getattr(cfg, "precond", None), getattr(cfg, "metric", None))
    row = shape.row * (FLOAT64 if cfg.precision == "float64" else 1)
    is_rough = in_batches and cfg.compute_dtype is not None

    # Steps of a chain, one after another; rows of a gradient; passes over the full data for the loss of a draw.
    each = getattr(cfg, "num_integration_steps", GRADIENTS.get(cfg.name, 1.0))
    steps, rows, losses = cfg.num_steps * each, shape.rows, 1.0
    if in_batches:
        rows = batch_size
        if cfg.learns:
            # A second gradient of every step of burn-in tells how large the noise is.
            steps += cfg.num_burnin * each
        if cfg.loss_estimate == "paired":
            # Control variates bring these losses along, unless the steps compute them roughly: then a loss and a
            # gradient at w* are computed once more.
            each_loss = 2.0 if not has_variate else 1 + 1 / shape.loss if is_rough else 0.0
            losses = each_loss * rows / shape.num_data
    watched = passes_over_data(setting, shape.num_data)
    # All passes over the full data, in gradients.
    passes = shape.loss * (1 + cfg.num_chains * cfg.num_draws * (losses + cfg.singular_fluctuation + watched))
    if is_stochastic and cfg.mala_checks:
        checks = cfg.num_chains * min(cfg.num_draws, NUM_CHECKS)
        passes += CHECK * checks * min(1.0, CHECK_ROWS / max(shape.num_data, 1))

    # To draw a batch is one more thing to wait for.
    step = LONGER_STEP.get(cfg.name, STEP) + LAYER * (shape.layers + in_batches)
    step += LOW_RANK_STEP * (low_rank and is_stochastic)
    # Chains at a time, and slices of a batch, go one after another.
    step *= cfg.num_chains / (cfg.chains_at_once or cfg.num_chains) * (cfg.accumulate if in_batches else 1)
    of_row = row * (BFLOAT16 if is_rough else 1) + shape.draw * in_batches
    gradient = MOVE * shape.dim * (LOW_RANK if low_rank else 1) + rows * of_row
    return steps * (step + cfg.num_chains * (1 + has_variate) * gradient) + passes * shape.rows * row


@dataclass(frozen=True)
class CostModel:
    """What the runs of a study are expected to take."""

    runs: int = 0
    """Finished runs that this rests on."""
    run: float = RUN
    """Seconds of a run outside compiled programs."""
    factors: dict[str, float] = field(default_factory=dict)
    """Of `expected_seconds`: that of "sampler/kind of target", else of "sampler", else of "", else 1."""
    compile: dict[str, float] = field(default_factory=dict)
    """Seconds of a sampler's programs, where they are not COMPILE."""

    def seconds(self, shape: Shape, cfg: SampleConfig) -> float:
        """Expected seconds of a run, without compilation."""
        known = [self.factors[key] for key in (f"{cfg.name}/{shape.kind}", cfg.name, "") if key in self.factors]
        return self.run + (known or [1.0])[0] * expected_seconds(shape, cfg)

    def compile_seconds(self, sampler: str) -> float:
        """Seconds that a process spends on a program before its first run."""
        return self.compile.get(sampler, COMPILE)

    def pack_seconds(self, runs: Iterable[tuple[str, str, float]], ranks: int | None = None) -> float:
        """Expected rank-seconds of a pack of (sampler, program, seconds): every rank compiles what it samples.

        ranks: None where their number is not known; then each program is compiled once.
        """
        runs = list(runs)
        programs = Counter((sampler, program) for sampler, program, _ in runs)
        compiled = (min(count, ranks or 1) * self.compile_seconds(sampler) for (sampler, _), count in programs.items())
        return sum(seconds for *_, seconds in runs) + sum(compiled)

    @property
    def basis(self) -> str:
        """What this rests on, in words for the plan."""
        if not self.runs:
            return "from default costs of a CPU core, right to a small factor"
        return f"measured on {self.runs} finished runs of this store"


def price(rank_seconds: float, cores_per_rank: int, gpus_per_node: int, ranks_per_gpu: int) -> str:
    """Core-hours, or GPU-hours where ranks have a GPU."""
    hours = rank_seconds / 3600
    if gpus_per_node > 0:
        return f"{hours / ranks_per_gpu:.2g} GPU-hours"
    return f"{hours * cores_per_rank:.2g} core-hours"
