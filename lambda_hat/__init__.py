"""Local Learning Coefficients of many targets with many samplers, packed into few cluster jobs."""

__version__ = "0.1.0"
