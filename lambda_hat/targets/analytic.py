"""Losses of a single parameter vector `w` in closed form: quadratics, monomials, and two with singular points."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lambda_hat.config import (
    LineAndPointBuild,
    MonomialBuild,
    MonomialSumBuild,
    QuadraticBuild,
    RadialBuild,
)
from lambda_hat.targets.base import Arrays, Loss, Made
from lambda_hat.targets.truth import eigenvalues

AnalyticBuild = QuadraticBuild | MonomialBuild | MonomialSumBuild | RadialBuild | LineAndPointBuild

USUAL_BITS = 3
"""Losses whose exponents k are all below 2^3 share their programs."""
USUAL_DIM = 4
"""With at most this many coordinates, all losses of one dimension have arrays of the same shape, and so share their
programs. In higher dimensions the unused terms would cost too much."""


@dataclass(frozen=True)
class PolynomialLoss(Loss):
    """`L(w) = sum_i a_i w_i^2 / 2 + sum_b prod_j phi_j(w)^k_bj`.

    The factors are the squares `phi(w) = (w_1^2, ..., w_dim^2, |w|^2, (w_1 - 1)^2)`. `data` holds "eigenvalues" a of
    shape (dim,) and "exponents" k of shape (terms, dim + 2). A term whose exponents are all 0 counts as absent. Both
    are data, and not constants, so that losses of one dimension share a compiled program.
    """

    bits: int
    """All exponents are below 2^bits."""

    def __call__(self, params: Arrays, data: Arrays) -> Float[Array, ""]:
        squares = params["w"] ** 2
        quadratic = 0.5 * jnp.sum(data["eigenvalues"] * squares)
        exponents = data["exponents"].astype(jnp.int32)
        if len(exponents) == 0:
            return quadratic
        phi = jnp.concatenate([squares, jnp.sum(squares)[None], (params["w"][:1] - 1) ** 2])
        # By repeated squaring: in JAX the derivative of x^k at x = 0 is NaN if k is a traced number.
        factor = jnp.broadcast_to(phi, exponents.shape)
        one = jnp.ones_like(factor)
        powers = one
        for bit in range(self.bits):
            powers = powers * jnp.where((exponents >> bit) & 1 == 1, factor, one)
            # A square that is not needed could overflow, and its derivative would be NaN.
            factor = jnp.where(exponents >> (bit + 1) > 0, factor, one) ** 2
        products = jnp.prod(powers, axis=-1)
        return quadratic + jnp.sum(jnp.where(jnp.any(exponents > 0, axis=-1), products, jnp.zeros_like(products)))


def make_loss(cfg: AnalyticBuild) -> Loss:
    """The loss of an analytic target."""
    largest = max((max(term.values()) for term in _terms(cfg)), default=0)
    return PolynomialLoss(bits=max(largest.bit_length(), USUAL_BITS))


def make(cfg: AnalyticBuild, programs: Path | None = None) -> Made:
    """The parameters `w_star` {"w": (dim,)} and the constants of the loss."""
    terms, (dim,) = _terms(cfg), cfg.param_shapes["w"]
    exponents = np.zeros((dim if dim <= USUAL_DIM else len(terms), dim + 2))
    for row, term in zip(exponents, terms, strict=False):
        row[list(term)] = list(term.values())
    curvatures = eigenvalues(cfg) if isinstance(cfg, QuadraticBuild) else np.zeros(dim)
    point = getattr(cfg.target, "point", None)
    w_star = np.zeros(dim) if point is None else np.array(point, dtype=np.float64)
    return Made({"w": w_star}, {"eigenvalues": curvatures, "exponents": exponents}, {})


def _terms(cfg: AnalyticBuild) -> list[dict[int, int]]:
    """The exponents k of every term, by the place of their square in phi."""
    (radius,) = cfg.param_shapes["w"]
    line = radius + 1
    if isinstance(cfg, RadialBuild):
        return [{radius: cfg.target.k}]
    if isinstance(cfg, LineAndPointBuild):
        return [{radius: 4, line: 1}]
    terms, start = [], 0
    if isinstance(cfg, (MonomialBuild, MonomialSumBuild)):
        for block in cfg.target.blocks:
            terms.append(dict(enumerate(block, start)))
            start += len(block)
    return terms
