"""The targets of the samplers' tests."""

from tests.samplers.conftest import target

__all__ = ["target"]
