"""Deep linear networks `f(x) = W_L ... W_1 x`, at a teacher of known learning coefficient."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lambda_hat.config import DlnBuild
from lambda_hat.targets.base import Loss, Made, regression_loss, to_numpy
from lambda_hat.targets.train import polish
from lambda_hat.targets.truth import dln_rank, population_scale

TEACHER_STREAM, INPUT_STREAM, NOISE_STREAM, START_STREAM = range(4)

POLISH_STEPS = 2000
GRAD_TOLERANCE = 1e-9
SADDLE_OFFSET = 1e-2
"""Standard deviation, in units of 1/sqrt(H_in), of the step off a rank-deficient teacher before it is polished."""


@dataclass(frozen=True)
class DlnPopulationLoss:
    """`scale * |W_L ... W_1 - W_star|_F^2`: the expected loss for standard normal inputs, without noise.

    `data["W_star"]`: shape (outputs, inputs).
    """

    depth: int
    scale: float

    def __call__(self, params: dict[str, Array], data: dict[str, Array]) -> Float[Array, ""]:
        return self.scale * jnp.sum((product(params, self.depth) - data["W_star"]) ** 2)


@dataclass(frozen=True)
class DlnEmpiricalLoss:
    """Mean loss over rows of `data`: "x" of shape (rows, inputs), "y" of shape (rows, outputs)."""

    depth: int
    kind: str
    sigma: float

    def __call__(self, params: dict[str, Array], data: dict[str, Array]) -> Float[Array, ""]:
        return regression_loss(data["y"] - data["x"] @ product(params, self.depth).T, self.kind, self.sigma)


def product(params: dict[str, Array], depth: int) -> Float[Array, "outputs inputs"]:
    """`W_L ... W_1`."""
    matrix = params["layers/0/weight"]
    for layer in range(1, depth):
        matrix = params[f"layers/{layer}/weight"] @ matrix
    return matrix


def make_loss(cfg: DlnBuild) -> Loss:
    """The closed-form expected loss, or the mean over data."""
    depth = len(cfg.target.widths) - 1
    if cfg.target.data == "population":
        return DlnPopulationLoss(depth, population_scale(cfg))
    return DlnEmpiricalLoss(depth, cfg.loss, cfg.sigma)


def make(cfg: DlnBuild) -> Made:
    """The teacher and its data; where the data are noisy, `w_star` is the minimum of `L_n` found from the teacher.

    Raises BuildFailed where that search becomes non-finite.
    """
    key = jax.random.key(cfg.seed)
    teacher = draw_teacher(jax.random.fold_in(key, TEACHER_STREAM), cfg)
    matrix = product(teacher, len(teacher))
    if cfg.target.data == "population":
        return Made(to_numpy(teacher), to_numpy({"W_star": matrix}), {})
    x = jax.random.normal(jax.random.fold_in(key, INPUT_STREAM), (cfg.target.n, cfg.target.widths[0]))
    y = x @ matrix.T
    if cfg.target.noise_std == 0:
        return Made(to_numpy(teacher), to_numpy({"x": x, "y": y}), {})
    noise = jax.random.normal(jax.random.fold_in(key, NOISE_STREAM), y.shape)
    data = {"x": x, "y": y + cfg.target.noise_std * noise}
    start = teacher
    if dln_rank(cfg) < min(cfg.target.widths):
        # The zero blocks of such a teacher are a saddle of L_n, where the gradient would hold the search for ever.
        start = _offset(jax.random.fold_in(key, START_STREAM), teacher)
    w_star, info = polish(make_loss(cfg), start, data, POLISH_STEPS, GRAD_TOLERANCE)
    return Made(to_numpy(w_star), to_numpy(data), info)


def draw_teacher(key: Key[Array, ""], cfg: DlnBuild) -> dict[str, Array]:
    """Factors of a teacher of the configured rank, by path; `layers/k/weight` has shape (H_{k+1}, H_k).

    Of full rank: normal entries of variance 1/H_k. Below: `diag(A_k, 0)` with A_k random, of condition number at most
    1.6, so that the residual block of every factor sits at the apex of its cone, where Aoyagi's value is local.
    """
    widths, rank = cfg.target.widths, dln_rank(cfg)
    factors = {}
    for layer, (inputs, outputs) in enumerate(pairwise(widths)):
        layer_key = jax.random.fold_in(key, layer)
        if rank == min(widths):
            weight = jax.random.normal(layer_key, (outputs, inputs)) / jnp.sqrt(inputs)
        else:
            weight = jnp.zeros((outputs, inputs))
            if rank > 0:
                weight = weight.at[:rank, :rank].set(_well_conditioned(layer_key, rank))
        factors[f"layers/{layer}/weight"] = weight
    return factors


def _well_conditioned(key: Key[Array, ""], size: int) -> Float[Array, "size size"]:
    """Singular values between .8 and 1.25, singular vectors uniform."""
    key_left, key_right, key_values = jax.random.split(key, 3)
    values = jax.random.uniform(key_values, (size,), minval=0.8, maxval=1.25)
    return jax.random.orthogonal(key_left, size) * values @ jax.random.orthogonal(key_right, size)


def _offset(key: Key[Array, ""], params: dict[str, Array]) -> dict[str, Array]:
    keys = jax.random.split(key, len(params))
    return {
        name: w + SADDLE_OFFSET / jnp.sqrt(w.shape[1]) * jax.random.normal(k, w.shape)
        for k, (name, w) in zip(keys, params.items(), strict=True)
    }
