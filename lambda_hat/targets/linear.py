"""Deep linear networks `f(x) = W_L ... W_1 x`, at a teacher of known learning coefficient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lambda_hat.config import DlnBuild
from lambda_hat.targets.base import Arrays, Loss, Made, no_likelihood, to_numpy
from lambda_hat.targets.random_numbers import random_numbers
from lambda_hat.targets.train import polish
from lambda_hat.targets.truth import dln_rank, population_scale

TEACHER_STREAM, ROW_STREAM, START_STREAM = range(3)
"""Folded into the seed, so that teacher, rows and starting point are independent."""
MOMENT_ROWS = 4096
"""Rows drawn at a time for the second moments. It bounds their memory."""
POLISH_STEPS = 2000
"""Most L-BFGS steps to the minimum of noisy data."""
GRAD_TOLERANCE = 1e-9
"""L-BFGS stops when no entry of the gradient is larger."""
SADDLE_OFFSET = 1e-2
"""Standard deviation of the step off a rank-deficient teacher before L-BFGS, times sqrt(inputs of the layer)."""


@dataclass(frozen=True)
class DlnPopulationLoss(Loss):
    """The expected loss `scale * |W_L ... W_1 - W_star|_F^2` for standard normal inputs without noise.

    `data` holds "W_star" of shape (outputs, inputs).
    """

    depth: int
    """The number of layers L."""
    scale: float

    def __call__(self, params: Arrays, data: Arrays) -> Float[Array, ""]:
        return self.scale * jnp.sum((product(params, self.depth) - data["W_star"]) ** 2)


@dataclass(frozen=True)
class DlnEmpiricalLoss(Loss):
    """The exact mean loss over rows `x`, `y = W_star x + e`, from the second moments of the data.

    With `D = W_L ... W_1 - W_star` it is `scale * (tr(D Sxx D^T) - 2 tr(D Sxe) + See)`, where `Sxx = mean x x^T`,
    `Sxe = mean x e^T` and `See = mean |e|^2`. A full gradient costs no more than that of a batch of H_0 rows.
    Where there are too many rows to keep, a minibatch draws each of its own again, from the key of that row.

    `data` holds "W_star" (outputs, inputs), "Sxx" (inputs, inputs), "Sxe" (inputs, outputs), "See" (), "noise_std" (),
    "rows_key" (2,) uint32, and where they are kept, "normals" (rows, inputs + outputs) float32: the random numbers of
    the rows, those of the noise last and only where there is noise.
    """

    depth: int
    """The number of layers L."""
    scale: float
    noisy: bool
    rows: int
    """The number of rows n."""
    kind: str = "nll"
    """`nll` or `mse`."""

    has_rows = False

    @property
    def no_likelihood(self) -> str | None:
        return no_likelihood(self.kind)

    def __call__(self, params: Arrays, data: Arrays) -> Float[Array, ""]:
        """The mean over a batch, which holds "x" (rows, inputs), "e" (rows, outputs) and "W_star"."""
        residual = data["e"] - data["x"] @ (product(params, self.depth) - data["W_star"]).T
        return self.scale * jnp.mean(jnp.sum(residual**2, axis=-1))

    def num_rows(self, data: Mapping[str, Array | np.ndarray]) -> int:
        return self.rows

    def batch(self, key: Key[Array, ""], data: Arrays, batch_size: int) -> dict[str, Any]:
        indices = random_numbers(key, (batch_size,), self.rows)
        return draw_rows(data, indices, self.noisy) | {"W_star": data["W_star"]}

    def in_slices(self, batch: Arrays, slices: int) -> tuple[dict[str, Any], dict[str, Any]]:
        rows, constants = super().in_slices({name: batch[name] for name in ("x", "e")}, slices)
        return rows, constants | {"W_star": batch["W_star"]}

    def full(self, params: Arrays, data: Arrays, slice_rows: int) -> Float[Array, ""]:
        difference = product(params, self.depth) - data["W_star"]
        square = quadratic_form(difference, data["Sxx"])
        if not self.noisy:
            return self.scale * square
        return self.scale * (square - 2 * jnp.sum(difference * data["Sxe"].T) + data["See"])

    def per_row(self, params: Arrays, data: Arrays, slice_rows: int) -> Float[Array, " rows"]:
        difference = product(params, self.depth) - data["W_star"]

        def of_row(index):
            row = draw_row(data, index, self.noisy)
            return self.scale * jnp.sum((row["e"] - difference @ row["x"]) ** 2)

        indices = jnp.arange(self.num_rows(data), dtype=jnp.int32)
        return jax.lax.map(of_row, indices, batch_size=min(slice_rows, len(indices)))


def draw_row(data: Arrays, index: Array | np.ndarray, noisy: bool) -> dict[str, Any]:
    """Row `index` of the data: "x" (inputs,) and its noise "e" (outputs,), the same in every precision."""
    outputs, inputs = data["W_star"].shape
    dtype = data["W_star"].dtype
    kept = data.get("normals")
    normal = (draw_normals(data, index, noisy) if kept is None else jnp.asarray(kept)[index]).astype(dtype)
    return {"x": normal[:inputs], "e": data["noise_std"] * normal[inputs:] if noisy else jnp.zeros(outputs, dtype)}


def draw_normals(data: Arrays, index: Array | np.ndarray, noisy: bool) -> Float[Array, " numbers"]:
    """Draw the random numbers of row `index`."""
    outputs, inputs = data["W_star"].shape
    key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(data["rows_key"])), index)
    return jax.random.normal(key, (inputs + outputs * noisy,), jnp.float32)


def draw_rows(data: Arrays, indices: Int[Array | np.ndarray, " rows"], noisy: bool) -> dict[str, Array]:
    """Several rows of the data: "x" (rows, inputs) and "e" (rows, outputs)."""
    return jax.vmap(partial(draw_row, data, noisy=noisy))(indices)


@partial(jax.jit, static_argnames="noisy")
def second_moments(data: Arrays, n: Int[Array, ""], noisy: bool) -> dict[str, Array]:
    """Compute "Sxx", "Sxe" and "See" over all n rows, slice by slice, in the precision of "W_star"."""
    outputs, inputs = data["W_star"].shape
    dtype = data["W_star"].dtype
    zero = jnp.zeros((inputs, inputs), dtype), jnp.zeros((inputs, outputs), dtype), jnp.zeros((), dtype)

    def add(i, total):
        indices = i * MOMENT_ROWS + jnp.arange(MOMENT_ROWS, dtype=n.dtype)
        rows = draw_rows(data, indices, noisy)
        # The rows are float32, but float32 products would lose half of the digits of the moments.
        x, e = (jnp.where((indices < n)[:, None], rows[name], 0) for name in ("x", "e"))
        xx, xe, ee = total
        if not noisy:
            return xx + x.T @ x, xe, ee
        return xx + x.T @ x, xe + x.T @ e, ee + jnp.sum(e**2)

    xx, xe, ee = jax.lax.fori_loop(0, -(-n // MOMENT_ROWS), add, zero)
    return {"Sxx": xx / n, "Sxe": xe / n, "See": ee / n}


@jax.custom_jvp
def quadratic_form(
    matrix: Float[Array | np.ndarray, "outputs inputs"], moments: Float[Array | np.ndarray, "inputs inputs"]
) -> Float[Array, ""]:
    """Compute `tr(D S D^T)` for a symmetric S that is not differentiated.

    The value and its gradient share the one product `D S`. Automatic differentiation would compute three products.
    """
    return jnp.sum((matrix @ moments) * matrix)


@quadratic_form.defjvp
def _(primals, tangents):
    (matrix, moments), (tangent, _) = primals, tangents
    scaled = matrix @ moments
    return jnp.sum(scaled * matrix), 2 * jnp.sum(scaled * tangent)


def product(params: Arrays, depth: int) -> Float[Array | np.ndarray, "outputs inputs"]:
    """Multiply `W_L ... W_1` in the order of fewest operations. The gradient takes twice as many in addition."""
    factors = [params[f"layers/{layer}/weight"] for layer in range(depth)]
    widths = (factors[0].shape[1], *(w.shape[0] for w in factors))

    def multiply(tree) -> Array | np.ndarray:
        return factors[tree] if isinstance(tree, int) else multiply(tree[1]) @ multiply(tree[0])

    return multiply(cheapest_order(widths))


@lru_cache
def cheapest_order(widths: tuple[int, ...]) -> Any:
    """The order in which to multiply matrices of shapes (H_{k+1}, H_k) with the fewest operations.

    This is the matrix chain problem, solved by dynamic programming.

    Returns:
        A nested pair (layers below, layers above), whose leaves are the numbers of layers.
    """
    best: dict[tuple[int, int], tuple[int, Any]] = {(k, k + 1): (0, k) for k in range(len(widths) - 1)}
    for length in range(2, len(widths)):
        for low in range(len(widths) - length):
            high = low + length
            best[low, high] = min(
                (
                    (
                        best[low, mid][0] + best[mid, high][0] + widths[low] * widths[mid] * widths[high],
                        (best[low, mid][1], best[mid, high][1]),
                    )
                    for mid in range(low + 1, high)
                ),
                key=lambda found: found[0],
            )
    return best[0, len(widths) - 1][1]


def make_loss(cfg: DlnBuild) -> Loss:
    """The expected loss in closed form, or the mean loss over data."""
    depth = len(cfg.target.widths) - 1
    if cfg.target.data == "population":
        return DlnPopulationLoss(depth, population_scale(cfg))
    return DlnEmpiricalLoss(depth, population_scale(cfg), cfg.target.noise_std > 0, cfg.target.n, cfg.loss)


def make(cfg: DlnBuild, programs: Path | None = None) -> Made:
    """Draw the teacher and its data. With noise, `w_star` is the minimum of `L_n` that L-BFGS finds from the teacher.

    Raises:
        BuildFailed: if that search becomes non-finite.
    """
    key = jax.random.key(cfg.seed)
    teacher = draw_teacher(jax.random.fold_in(key, TEACHER_STREAM), cfg)
    matrix = product(teacher, len(teacher))
    if cfg.target.data == "population":
        return Made(to_numpy(teacher), to_numpy({"W_star": matrix}), {})
    noisy = cfg.target.noise_std > 0
    data = {
        "W_star": matrix,
        "noise_std": jnp.asarray(cfg.target.noise_std, matrix.dtype),
        "rows_key": jax.random.key_data(jax.random.fold_in(key, ROW_STREAM)),
    }
    data |= second_moments(data, jnp.asarray(cfg.target.n, jnp.int32), noisy)
    if cfg.target.keeps_rows:
        every = jnp.arange(cfg.target.n, dtype=jnp.int32)
        data["normals"] = jax.jit(jax.vmap(partial(draw_normals, data, noisy=noisy)))(every)
    arrays = {name: np.asarray(array) for name, array in data.items()}
    if not noisy:
        return Made(to_numpy(teacher), arrays, {})
    start = teacher
    if dln_rank(cfg) < min(cfg.target.widths):
        # The zero blocks of such a teacher are a saddle point of L_n, which the gradient would never leave.
        start = _offset(jax.random.fold_in(key, START_STREAM), teacher)
    w_star, info = polish(make_loss(cfg), start, data, POLISH_STEPS, GRAD_TOLERANCE, programs)
    return Made(to_numpy(w_star), arrays, info)


def draw_teacher(key: Key[Array, ""], cfg: DlnBuild) -> dict[str, Array]:
    """Draw the factors of a teacher of the configured rank: `layers/k/weight` of shape (H_{k+1}, H_k).

    A teacher of full rank has normal entries of variance 1/H_k. A teacher of lower rank has the factors `diag(A_k, 0)`
    with random A_k of condition number at most 1.6. The rest of every factor is then exactly zero, the most singular
    true parameter, at which Aoyagi's value holds locally.
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
    """A matrix with singular values between .8 and 1.25 and uniform singular vectors."""
    key_left, key_right, key_values = jax.random.split(key, 3)
    values = jax.random.uniform(key_values, (size,), minval=0.8, maxval=1.25)
    return jax.random.orthogonal(key_left, size) * values[None] @ jax.random.orthogonal(key_right, size)


def _offset(key: Key[Array, ""], params: Arrays) -> dict[str, Any]:
    keys = jax.random.split(key, len(params))
    return {
        name: w + SADDLE_OFFSET / jnp.sqrt(w.shape[1]) * jax.random.normal(k, w.shape)
        for k, (name, w) in zip(keys, params.items(), strict=True)
    }
