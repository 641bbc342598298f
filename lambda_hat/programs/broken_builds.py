"""Builds of jaxlib that compute wrong numbers. The driver asks too, so nothing here imports jax."""

from __future__ import annotations

import functools
import importlib.metadata

from lambda_hat.errors import ConfigError

BROKEN_ON_CPUS = {"0.10.2": "sums after matrix products (jax issue 39103)"}
"""Versions, and what they compute wrong."""


@functools.cache
def refuse_broken_build() -> None:
    """Refuse the installed jaxlib if it computes wrong numbers on CPUs.

    Raises:
        ConfigError: it does.
    """
    version = importlib.metadata.version("jaxlib")
    if (what := BROKEN_ON_CPUS.get(version)) is not None:
        raise ConfigError(
            f"jaxlib {version} computes wrong numbers on CPUs: {what}; write pip install -U 'jax!={version}' "
            f"'jaxlib!={version}'"
        )
