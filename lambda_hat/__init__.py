"""Local Learning Coefficients of many targets with many samplers, packed into few cluster jobs."""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["LLCEstimate", "estimate_llc"]


def __getattr__(name: str):
    # On first use, since the driver of a study imports this package and must not wait for jax.
    if name in __all__:
        from lambda_hat import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
