"""Losses of a single parameter vector `w` in closed form: quadratics, and sums of monomials."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lambda_hat.config import MonomialBuild, MonomialSumBuild, QuadraticBuild
from lambda_hat.targets.base import Loss, Made


@dataclass(frozen=True)
class QuadraticLoss:
    """`L(w) = sum_i a_i w_i^2 / 2`, with `data["eigenvalues"]` of shape (dim,)."""

    def __call__(self, params: dict[str, Array], data: dict[str, Array]) -> Float[Array, ""]:
        return 0.5 * jnp.sum(data["eigenvalues"] * params["w"] ** 2)


@dataclass(frozen=True)
class MonomialLoss:
    """`L(w) = sum_b prod_i (w_i^2)^k_bi`, with `data["exponents"]` k of shape (blocks, dim); 0 where not in the block.

    The exponents are data, so that all monomials of one shape share a compiled program.
    """

    def __call__(self, params: dict[str, Array], data: dict[str, Array]) -> Float[Array, ""]:
        return jnp.sum(jnp.prod((params["w"] ** 2) ** data["exponents"], axis=-1))


def make_loss(cfg: QuadraticBuild | MonomialBuild | MonomialSumBuild) -> Loss:
    """The loss of an analytic target."""
    return QuadraticLoss() if isinstance(cfg, QuadraticBuild) else MonomialLoss()


def make(cfg: QuadraticBuild | MonomialBuild | MonomialSumBuild) -> Made:
    """`w_star` {"w": (dim,)} and the constants of the loss."""
    if isinstance(cfg, QuadraticBuild):
        return Made({"w": np.zeros(cfg.dim)}, {"eigenvalues": eigenvalues(cfg)}, {})
    point = cfg.target.point
    w_star = np.zeros(cfg.dim) if point is None else np.array(point, dtype=np.float64)
    exponents = np.zeros((len(cfg.target.blocks), cfg.dim))
    start = 0
    for row, block in zip(exponents, cfg.target.blocks, strict=True):
        row[start : start + len(block)] = block
        start += len(block)
    return Made({"w": w_star}, {"exponents": exponents}, {})


def eigenvalues(cfg: QuadraticBuild) -> np.ndarray:
    """The curvatures `a_i`, shape (dim,), zeros last."""
    rank = cfg.dim if cfg.target.rank is None else cfg.target.rank
    values = np.zeros(cfg.dim)
    values[:rank] = 1.0 if cfg.target.eigenvalues is None else cfg.target.eigenvalues
    return values
