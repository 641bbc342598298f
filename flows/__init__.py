"""Parsl flows: scripts in a checkout, not an installed package. Never imports jax or mpi4py."""
