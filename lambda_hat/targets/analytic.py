"""Losses of a single parameter vector `w` in closed form: quadratics, and sums of monomials."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lambda_hat.config import MonomialBuild, MonomialSumBuild, QuadraticBuild
from lambda_hat.targets.base import Loss, Made

USUAL_BITS = 3
"""Monomials with all k below 2^3 share their programs."""


@dataclass(frozen=True)
class QuadraticLoss(Loss):
    """`L(w) = sum_i a_i w_i^2 / 2`, with `data["eigenvalues"]` of shape (dim,)."""

    def __call__(self, params: dict[str, Array], data: dict[str, Array]) -> Float[Array, ""]:
        return 0.5 * jnp.sum(data["eigenvalues"] * params["w"] ** 2)


@dataclass(frozen=True)
class MonomialLoss(Loss):
    """`L(w) = sum_b prod_i (w_i^2)^k_bi`, with `data["exponents"]` k of shape (blocks, dim); 0 where not in the block.

    The exponents are data, so that monomials of one shape share a compiled program. `bits`: all k are below 2^bits.
    """

    bits: int

    def __call__(self, params: dict[str, Array], data: dict[str, Array]) -> Float[Array, ""]:
        exponents = data["exponents"].astype(jnp.int32)
        # By repeated squaring: derivatives of x^k are NaN at x = 0 in JAX where k is a traced number.
        factor = jnp.broadcast_to(params["w"] ** 2, exponents.shape)
        one = jnp.ones_like(factor)
        powers = one
        for bit in range(self.bits):
            powers = powers * jnp.where((exponents >> bit) & 1 == 1, factor, one)
            # A square that no power needs could overflow, and its derivative would be NaN.
            factor = jnp.where(exponents >> (bit + 1) > 0, factor, one) ** 2
        return jnp.sum(jnp.prod(powers, axis=-1))


def make_loss(cfg: QuadraticBuild | MonomialBuild | MonomialSumBuild) -> Loss:
    """The loss of an analytic target."""
    if isinstance(cfg, QuadraticBuild):
        return QuadraticLoss()
    largest = max(max(block) for block in cfg.target.blocks)
    return MonomialLoss(bits=max(largest.bit_length(), USUAL_BITS))


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
