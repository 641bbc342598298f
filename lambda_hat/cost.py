"""What a run is expected to cost, before anything is known but its configuration."""

from __future__ import annotations

from lambda_hat.config import BuildConfig, HmcConfig, MclmcConfig, SampleConfig, SgldConfig

SECONDS_PER_STEP = 2e-6
SECONDS_PER_ROW_PARAMETER = 1.6e-10
"""Measured on one core: 310 us for a gradient on 256 rows of a network with 7,705 parameters."""
SECONDS_COMPILE = {"hmc": 4.0, "mclmc": 12.0, "sgld": 4.0}
"""Measured on one core, hardly dependent on the target. Runs of one program pay it once, which this leaves out."""


def gradients_per_step(cfg: SampleConfig) -> int:
    """Gradients that one transition of one chain evaluates."""
    if isinstance(cfg, HmcConfig):
        return cfg.num_integration_steps
    return 2 if isinstance(cfg, MclmcConfig) else 1


def estimate_seconds(build: BuildConfig, cfg: SampleConfig) -> float:
    """Expected seconds of one run on one core, compilation included; right to a small factor."""
    full_rows = max(build.num_data, 1)
    rows = full_rows
    if isinstance(cfg, SgldConfig) and build.num_data and cfg.batch_size is not None:
        rows = cfg.batch_size
    steps = cfg.num_chains * (cfg.num_steps + (cfg.num_tuning if isinstance(cfg, MclmcConfig) else 0))
    per_gradient = SECONDS_PER_STEP + SECONDS_PER_ROW_PARAMETER * rows * build.dim
    recorded = cfg.num_chains * cfg.num_draws * SECONDS_PER_ROW_PARAMETER * full_rows * build.dim / 3
    return SECONDS_COMPILE[cfg.name] + steps * gradients_per_step(cfg) * per_gradient + recorded
