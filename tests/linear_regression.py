"""Linear regression at its least squares solution: the posterior is a normal law, and everything is known exactly."""

from __future__ import annotations

import numpy as np


class Regression:
    """`l_i(w) = (y_i - x_i . w)^2 / 2`, with the posterior `exp(-n_beta L_n(w) - gamma/2 |w - w_star|^2)`.

    With `u = w - w_star` normal of the `covariance` S, and the residuals r at `w_star`,
    `l_i = r_i^2/2 - r_i (x_i . u) + (x_i . u)^2/2`.
    """

    dim, gamma, n_beta = 3, 1.0, 20.0

    def __init__(self, rows: int, seed: int):
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(rows, self.dim))
        self.y = self.x @ np.array([1.0, -2.0, 0.5]) + rng.normal(size=rows)
        self.w_star = np.linalg.lstsq(self.x, self.y, rcond=None)[0]
        self.residuals = self.y - self.x @ self.w_star
        curvature = self.x.T @ self.x / rows
        self.covariance = np.linalg.inv(self.n_beta * curvature + self.gamma * np.eye(self.dim))
        self.llc = self.n_beta * np.trace(self.covariance @ curvature) / 2

    def row_losses(self, offsets: np.ndarray) -> np.ndarray:
        """(..., rows): the losses of all rows at `w_star + offsets`, offsets of shape (..., dim)."""
        return (self.residuals - offsets @ self.x.T) ** 2 / 2

    @property
    def covariance_of_row_losses(self) -> np.ndarray:
        """(rows, rows): `Cov[l_i, l_j] = r_i r_j K_ij + K_ij^2 / 2` with `K = x S x^T`."""
        products = self.x @ self.covariance @ self.x.T
        return np.outer(self.residuals, self.residuals) * products + products**2 / 2

    def refined_llc(self, x: np.ndarray) -> float:
        """The LLC that the loss on other rows `x` sees, if their outputs are `x . w_star` and noise of mean zero.

        It holds for any outputs: the linear term of the loss has the mean zero.
        """
        return self.n_beta * np.trace(self.covariance @ x.T @ x / len(x)) / 2
