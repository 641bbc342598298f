"""Models of noisy data whose loss, gradient and Hessian have a closed form, and their minima. No jax.

A model holds its data. Its `loss` takes many points at once, as the quadrature of `exact` needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float

MOST_NEWTON_STEPS, MOST_HALVINGS = 100, 30
"""Most steps of Newton's method, and most halvings of one step. Far more than any model of the suite needs."""
EM_STEPS = 500
"""Steps of expectation maximisation before Newton's method, which alone could end at any stationary point."""


class Model(Protocol):
    """A mean loss L_n over rows of noisy data. k = points, d = parameters."""

    def arrays(self) -> dict[str, np.ndarray]:
        """The data, as the loss of this model in `losses` takes them."""
        ...

    def loss(self, points: Float[np.ndarray, "k d"]) -> Float[np.ndarray, " k"]:
        """L_n at every point."""
        ...

    def gradient(self, w: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
        """The gradient of L_n at one point."""
        ...

    def hessian(self, w: Float[np.ndarray, " d"]) -> Float[np.ndarray, "d d"]:
        """The Hessian of L_n at one point."""
        ...

    def minimum(self) -> Float[np.ndarray, " d"]:
        """The point of least L_n, to rounding."""
        ...


@dataclass(frozen=True, eq=False)
class _Rows:
    """Inputs and an outcome of each."""

    x: np.ndarray
    """(rows, d)."""
    y: np.ndarray
    """(rows,)."""

    def arrays(self) -> dict[str, np.ndarray]:
        return dict(vars(self))


@dataclass(frozen=True, eq=False)
class Squares(_Rows):
    """`L_n(w) = mean(weight (x . w - y)^2)`."""

    weight: np.ndarray
    """(rows,)."""

    def loss(self, points: np.ndarray) -> np.ndarray:
        return np.mean(self.weight * (points @ self.x.T - self.y) ** 2, axis=1)

    def gradient(self, w: np.ndarray) -> np.ndarray:
        return 2 * self.x.T @ (self.weight * (self.x @ w - self.y)) / len(self.y)

    def hessian(self, w: np.ndarray) -> np.ndarray:
        return 2 * self.x.T @ (self.weight[:, None] * self.x) / len(self.y)

    def minimum(self) -> np.ndarray:
        root = np.sqrt(self.weight)
        w = np.linalg.lstsq(root[:, None] * self.x, root * self.y, rcond=None)[0]
        # Solved again for the residual, because a bad condition costs the first solution digits.
        return w + np.linalg.lstsq(root[:, None] * self.x, root * (self.y - self.x @ w), rcond=None)[0]


class Logistic(_Rows):
    """`L_n(w) = mean(log(1 + e^z) - y z)` with `z = x . w` and labels y of 0 and 1."""

    def loss(self, points: np.ndarray) -> np.ndarray:
        z = points @ self.x.T
        # Twice as fast as logaddexp; the quadrature spends its time here.
        return np.mean(np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0), axis=1) - z @ self.y / len(self.y)

    def gradient(self, w: np.ndarray) -> np.ndarray:
        return self.x.T @ (self._chance(w) - self.y) / len(self.y)

    def hessian(self, w: np.ndarray) -> np.ndarray:
        p = self._chance(w)
        return self.x.T @ ((p * (1 - p))[:, None] * self.x) / len(self.y)

    def minimum(self) -> np.ndarray:
        return newton(self, np.zeros(self.x.shape[1]))

    def _chance(self, w: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-self.x @ w))


class Poisson(_Rows):
    """`L_n(w) = mean(e^z - y z)` with `z = x . w` and counts y."""

    def loss(self, points: np.ndarray) -> np.ndarray:
        z = points @ self.x.T
        return np.mean(np.exp(z) - self.y * z, axis=1)

    def gradient(self, w: np.ndarray) -> np.ndarray:
        return self.x.T @ (np.exp(self.x @ w) - self.y) / len(self.y)

    def hessian(self, w: np.ndarray) -> np.ndarray:
        return self.x.T @ (np.exp(self.x @ w)[:, None] * self.x) / len(self.y)

    def minimum(self) -> np.ndarray:
        return newton(self, np.zeros(self.x.shape[1]))


@dataclass(frozen=True, eq=False)
class Mixture:
    """`L_n(w) = -mean(log(exp(-(x - w1)^2 / 2) + exp(-(x - w2)^2 / 2)))`."""

    x: np.ndarray
    """(rows,)."""
    start: tuple[float, float]
    """The point from which the minimum is searched."""

    def arrays(self) -> dict[str, np.ndarray]:
        return {"x": self.x}

    def loss(self, points: np.ndarray) -> np.ndarray:
        first, second = (-((self.x - points[:, k, None]) ** 2) / 2 for k in (0, 1))
        return -np.mean(np.logaddexp(first, second), axis=1)

    def gradient(self, w: np.ndarray) -> np.ndarray:
        return -np.mean(self._shares(w) * (self.x - w[:, None]), axis=1)

    def hessian(self, w: np.ndarray) -> np.ndarray:
        shares, away = self._shares(w), self.x - w[:, None]
        slopes = shares * away
        return np.diag(np.mean(shares * (1 - away**2), axis=1)) + slopes @ slopes.T / len(self.x)

    def minimum(self) -> np.ndarray:
        w = np.array(self.start)
        for _ in range(EM_STEPS):
            shares = self._shares(w)
            w = shares @ self.x / shares.sum(axis=1)
        return newton(self, w)

    def _shares(self, w: np.ndarray) -> np.ndarray:
        """The probability of each component given the row, shape (2, rows)."""
        first = 1 / (1 + np.exp(((self.x - w[0]) ** 2 - (self.x - w[1]) ** 2) / 2))
        return np.stack([first, 1 - first])


def newton(model: Model, start: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    """The minimum near `start` by Newton's method; a step is halved until the loss falls. Rounding ends the search."""

    def size(w: np.ndarray) -> float:
        return float(np.linalg.norm(model.gradient(w)))

    w = start
    for _ in range(MOST_NEWTON_STEPS):
        step = np.linalg.solve(model.hessian(w), model.gradient(w))
        tries = (w - step / 2**halvings for halvings in range(MOST_HALVINGS))
        # Close to the minimum the loss no longer tells two points apart, but the gradient does.
        better = (x for x in tries if model.loss(x[None])[0] < model.loss(w[None])[0] or size(x) < size(w) / 2)
        x = next(better, None)
        if x is None:
            return w
        w = x
    return w
