"""What a run is expected to cost, before anything is known but its configuration."""

from __future__ import annotations

from lambda_hat.config import (
    BuildConfig,
    DlnBuild,
    HmcConfig,
    NutsConfig,
    SampleConfig,
    SghmcConfig,
    StochasticGradientConfig,
)

SECONDS_PER_STEP = 2e-6
SECONDS_PER_ROW_PARAMETER = 1.6e-10
"""Measured on one core: 310 us for a gradient on 256 rows of a network with 7,705 parameters."""
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
"""Measured on one core, hardly dependent on the target. Runs of one program pay it once, which this leaves out."""
NUTS_STEPS = 16
"""Leapfrog steps of a usual trajectory."""
UNKNOWN_ROWS, UNKNOWN_DIM = 1000, 1000
"""Guesses for a custom target that is not built yet."""


def gradients_per_step(cfg: SampleConfig) -> int:
    """Gradients that one transition of one chain is expected to evaluate."""
    if isinstance(cfg, (HmcConfig, SghmcConfig)):
        return cfg.num_integration_steps
    if isinstance(cfg, NutsConfig):
        return NUTS_STEPS
    return {"mclmc": 2, "adjusted_mclmc": 4}.get(cfg.name, 1)


def estimate_seconds(build: BuildConfig, cfg: SampleConfig) -> float:
    """Expected seconds of one run on one core, compilation included; right to a small factor."""
    num_data = UNKNOWN_ROWS if build.num_data is None else build.num_data
    dim = UNKNOWN_DIM if build.dim is None else build.dim
    # The loss of a linear network is that of the product of its factors, whatever the number of rows.
    full_rows = build.target.widths[0] if isinstance(build, DlnBuild) else max(num_data, 1)
    rows = full_rows
    if isinstance(cfg, StochasticGradientConfig) and num_data and cfg.batch_size is not None:
        rows = cfg.batch_size
    steps = cfg.num_chains * (cfg.num_steps + getattr(cfg, "num_tuning", 0))
    per_gradient = SECONDS_PER_STEP + SECONDS_PER_ROW_PARAMETER * rows * dim
    recorded = cfg.num_chains * cfg.num_draws * SECONDS_PER_ROW_PARAMETER * full_rows * dim / 3
    return SECONDS_COMPILE[cfg.name] + steps * gradients_per_step(cfg) * per_gradient + recorded
