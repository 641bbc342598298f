"""Local Learning Coefficients of many targets with many samplers, packed into few cluster jobs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lambda_hat.api import LLCEstimate, estimate_llc
    from lambda_hat.estimate.observed import refined_llc
    from lambda_hat.estimate.responses import influence, susceptibility
    from lambda_hat.many.call import estimate_llcs
    from lambda_hat.report.results import load_results
    from lambda_hat.report.trace import load_observed, load_trace

__all__ = [
    "LLCEstimate",
    "estimate_llc",
    "estimate_llcs",
    "influence",
    "load_observed",
    "load_results",
    "load_trace",
    "refined_llc",
    "susceptibility",
]

_WHERE = {
    "LLCEstimate": "api",
    "estimate_llc": "api",
    "estimate_llcs": "many.call",
    "influence": "estimate.responses",
    "load_observed": "report.trace",
    "load_results": "report.results",
    "load_trace": "report.trace",
    "refined_llc": "estimate.observed",
    "susceptibility": "estimate.responses",
}


def __getattr__(name: str):
    # On first use, since the driver of a study imports this package and must not wait for jax or pandas.
    if name in _WHERE:
        try:
            return getattr(import_module(f"lambda_hat.{_WHERE[name]}"), name)
        except ModuleNotFoundError as error:
            from lambda_hat.errors import missing_extra

            raise missing_extra(f"lambda_hat.{name}", error) or error from None
    if name == "__version__":
        from importlib.metadata import version

        return version("lambda_hat")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
