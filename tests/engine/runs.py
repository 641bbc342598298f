"""Runs of every sampler, small, for the tests of the engine."""

from lambda_hat.config import (
    HmcConfig,
    MalaConfig,
    MclmcConfig,
    NutsConfig,
    SampleConfig,
    SghmcConfig,
    SgldConfig,
    SgnhtConfig,
)


def runs_of_every_kind(**small: int) -> dict[str, SampleConfig]:
    return {
        "sgld": SgldConfig(**small, step_size=1e-3),
        "sgld, learning": SgldConfig(**small),
        "sgld, rmsprop": SgldConfig(**small, precond="rmsprop", mala_checks=True),
        "sghmc": SghmcConfig(**small, step_size=1e-3),
        "sgnht": SgnhtConfig(**small, step_size=1e-3),
        "mala": MalaConfig(**small),
        "hmc": HmcConfig(**small, target_acceptance=0.9),
        "nuts": NutsConfig(**small, target_acceptance=0.8),
        "mclmc": MclmcConfig(**small),
    }
