"""Exact `t (E[L_n(w)] - L_n(w_star))` under `exp(-t L_n(w) - gamma/2 |w - w_star|^2)` for models of noisy data. No jax.

The value is for the same data that the samplers see. So the noise of the data is part of `L_n`, and not an error.
"""

from __future__ import annotations

import math

import numpy as np

from lambda_hat.validate.models import Model, Squares

TAIL = 25.0
"""The grid ends where the density has fallen by this many nats: e^-25 is 1e-11."""
SPACING = 1.0
"""Spacing of the grid, in standard deviations along the direction of largest curvature at `w_star`. For a normal
density the error of the trapezoidal rule is then e^-19. Half the spacing changes no value of the suite by 1e-6."""
MOST_POINTS = 10_000_000
"""Most points of the grid. It bounds the memory and the time."""
POINTS_AT_ONCE = 1000
"""Points at which the loss is evaluated at a time. It bounds the memory, which is this times the rows of the data."""


def exact_llc_t(model: Model, w_star: np.ndarray, t: float, gamma: float) -> float:
    """The exact value: in closed form for a quadratic loss, else by quadrature.

    Args:
        model: the loss with its data.
        w_star: the minimum, shape (d,); the quadrature takes d up to 3.
        t: n_beta.
        gamma: strength of the localisation.

    Returns:
        The value, exact for a quadratic loss, else to 1e-4 or better.

    Raises:
        ValueError: if the posterior is too wide for the quadrature.
    """
    if isinstance(model, Squares):
        return quadratic(model.hessian(w_star), t, gamma)
    return by_quadrature(model, w_star, t, gamma)


def quadratic(hessian: np.ndarray, t: float, gamma: float) -> float:
    """The value `sum_i t h_i / (2 (t h_i + gamma))`, where h_i are the eigenvalues of the Hessian of L_n."""
    scaled = t * np.linalg.eigvalsh(hessian)
    return float(np.sum(scaled / (2 * (scaled + gamma))))


def by_quadrature(model: Model, w_star: np.ndarray, t: float, gamma: float, spacing: float = SPACING) -> float:
    """The value by the trapezoidal rule on an even grid around `w_star`.

    The grid grows on both sides of every axis, until the density has fallen by `TAIL` nats on its whole border. It
    misses a second mode beyond that border.

    Raises:
        ValueError: if the grid would need more than `MOST_POINTS` points.
    """
    dim = len(w_star)
    step = spacing / np.sqrt(t * np.linalg.eigvalsh(model.hessian(w_star))[-1] + gamma)
    base = model.loss(w_star[None])[0]
    # Steps on the lower and on the upper side of every axis.
    reach = np.full((dim, 2), int(np.ceil(4 / spacing)))
    while True:
        places = [np.arange(-low, high + 1) for low, high in reach]
        if math.prod(len(line) for line in places) > MOST_POINTS:
            raise ValueError("the posterior is too wide for this quadrature, given its curvature at w_star")
        points = w_star + step * np.stack(np.meshgrid(*places, indexing="ij"), axis=-1).reshape(-1, dim)
        parts = np.array_split(points, 1 + len(points) // POINTS_AT_ONCE)
        excess = t * (np.concatenate([model.loss(part) for part in parts]) - base)
        potential = excess + gamma / 2 * np.sum((points - w_star) ** 2, axis=1)
        potential = potential - potential.min()
        box = potential.reshape([len(line) for line in places])
        borders = [[box.take(end, axis=axis).min() for end in (0, -1)] for axis in range(dim)]
        if np.min(borders) >= TAIL:
            weights = np.exp(-potential)
            return float(np.sum(weights * excess) / np.sum(weights))
        reach += np.where(np.array(borders) < TAIL, np.maximum(1, reach // 4), 0)
