"""How expectations under the posterior respond to its data: Bayesian influence functions and susceptibilities.

Both are covariances between quantities along the chains, with standard errors from the means of blocks of the chains.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lambda_hat.errors import ConfigError

if TYPE_CHECKING:
    import jaxtyping

BLOCKS, IN_ALL = 10, 40
"""A chain is cut into this many blocks, or into so many that there are `IN_ALL` over all chains. Blocks must be long
beside the time in which a chain forgets, and many, because the error of a standard error is about `1 / sqrt(2 blocks)`.
Arbitrary."""
LEAST_DRAWS = 2
"""Least draws of a block."""
DISAGREE = 10.0
"""Ratio of the variance between chains to that between blocks, beyond which only the means of the chains count as
independent. Of four chains that agree one covariance in 16,000 exceeds it."""


class Response(NamedTuple):
    """A response and its standard error, arrays of one shape."""

    value: jaxtyping.Float[np.ndarray, "..."]
    std_error: jaxtyping.Float[np.ndarray, "..."]
    """From blocks of the chains. It does not include the bias of a sampler that accepts every step."""


def influence(
    rows: ArrayLike,
    observable: ArrayLike,
) -> Response:
    """The Bayesian influence of rows of data on an observable (Kreer et al. 2025, arXiv 2509.26544).

    `BIF(z_i, phi) = -Cov[l_i(w), phi(w)]` under the localised posterior, where l_i is the loss of row i. Positive: more
    weight on row i raises the observable. Under `exp(-n_beta L_n(w) - gamma/2 |w - w_star|^2)` the derivative of
    `E[phi]` by the weight of row i in the sum `n L_n = sum_i l_i` is `n_beta / n` times it.

    Args:
        rows: (chains, draws, *R), the losses of rows at the draws, in nats.
        observable: (chains, draws, *O), an observable at the same draws: the losses of other rows, for example.

    Returns:
        Arrays (*R, *O), in nats times the units of the observable.

    Raises:
        ConfigError: a ValueError, if the arrays are not of the same chains and draws, or are too short.
    """
    found = _covariance(_draws("rows", rows), _draws("observable", observable))
    return Response(-found.value, found.std_error)


def susceptibility(
    observable: ArrayLike,
    losses: ArrayLike,
    loss: ArrayLike,
) -> Response:
    """The susceptibility of an observable to shifts of the data (Baker et al. 2025, arXiv 2504.18274).

    `chi = -Cov[phi(w), L'(w) - L_n(w)] = (1 / n_beta) d/dh E_h[phi]` at h = 0, where `E_h` is under the posterior of
    the loss `(1 - h) L_n + h L'`. For a component of a network, phi is the loss along chains in which only the
    component moves (`restrict`). With the losses of rows or tokens as L' it is the susceptibility to each of them.

    Args:
        observable: (chains, draws, *O), the observable at the draws.
        losses: (chains, draws, *R), losses L' on other data, or of single rows or tokens, at the same draws, in nats.
        loss: (chains, draws), the loss L_n at the same draws, in nats.

    Returns:
        Arrays (*O, *R), in nats times the units of the observable.

    Raises:
        ConfigError: a ValueError, if the arrays are not of the same chains and draws, or are too short.
    """
    phi, other, own = _draws("observable", observable), _draws("losses", losses), _draws("loss", loss)
    if own.ndim != 2:
        raise ConfigError(f"loss: got the shape {own.shape}, expected (chains, draws), one mean loss per draw")
    if other.shape[:2] != own.shape:
        raise ConfigError(f"losses: got the shape {other.shape}, expected the chains and draws of loss, {own.shape}")
    found = _covariance(phi, other - own.reshape(*own.shape, *[1] * (other.ndim - 2)))
    return Response(-found.value, found.std_error)


def _draws(name: str, values: object) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim < 2 or array.dtype.kind not in "biuf":
        raise ConfigError(
            f"{name}: got {array.dtype} of shape {array.shape}, expected real numbers of shape (chains, draws, ...)"
        )
    return array


def _covariance(one: np.ndarray, other: np.ndarray) -> Response:
    """`Cov[one, other]` over the draws of all chains that stayed finite, for every pair of their entries."""
    if one.shape[:2] != other.shape[:2]:
        raise ConfigError(
            f"got {one.shape[:2]} and {other.shape[:2]} chains and draws, expected two arrays of the same draws"
        )
    shape = one.shape[2:] + other.shape[2:]
    parts = [array.reshape(*array.shape[:2], -1) for array in (one, other)]
    finite = [np.isfinite(part).all(axis=(1, 2)) for part in parts]
    alive = finite[0] & finite[1]
    left, right = (part[alive] for part in parts)
    if not len(left):
        nothing = np.full(shape, np.nan)
        return Response(nothing, nothing)
    blocks = _blocks(*left.shape[:2])
    mean_left, mean_right = (part.mean(axis=(0, 1), dtype=np.float64) for part in (left, right))
    size = left.shape[0] * left.shape[1]
    total = np.zeros((len(mean_left), len(mean_right)))
    # Sums over blocks and over chains of what is weighted by the number of their draws.
    between_blocks, between_chains = _Spread(total.shape), _Spread(total.shape)
    for mine, theirs in zip(left, right, strict=True):
        of_chain = np.zeros_like(total)
        for block in blocks:
            found = (mine[block] - mean_left).T @ (theirs[block] - mean_right)
            between_blocks.add(found, block.stop - block.start)
            of_chain += found
        between_chains.add(of_chain, len(mine))
        total += of_chain
    value = total / size
    by_blocks, by_chains = between_blocks.variance(value), between_chains.variance(value)
    variance = np.where(by_chains > DISAGREE * by_blocks, by_chains, by_blocks)
    unbiased = size / (size - 1)
    return Response((unbiased * value).reshape(shape), np.sqrt(variance).reshape(shape))


def _blocks(chains: int, draws: int) -> list[slice]:
    """The blocks of a chain, of lengths that differ by one at most."""
    count = min(max(BLOCKS, -(-IN_ALL // chains)), draws // LEAST_DRAWS)
    if chains * count < 2:
        raise ConfigError(f"got {chains} chain of {draws} draws, expected at least {2 * LEAST_DRAWS} draws")
    ends = np.linspace(0, draws, count + 1).astype(int)
    return [slice(int(start), int(stop)) for start, stop in pairwise(ends)]


class _Spread:
    """The variance of a mean from sums over pieces, taken as independent, without keeping the sums."""

    def __init__(self, shape: tuple[int, ...]):
        self._pieces, self._size, self._sizes = 0, 0, 0
        self._squares, self._products = np.zeros(shape), np.zeros(shape)

    def add(self, found: np.ndarray, size: int) -> None:
        """Add the sum over a piece of `size` draws."""
        self._pieces += 1
        self._size += size
        self._sizes += size**2
        self._squares += found**2
        self._products += size * found

    def variance(self, mean: np.ndarray) -> np.ndarray:
        """The variance of `mean`, the sum over all pieces over their size; 0 for a single piece."""
        if self._pieces < 2:
            return np.zeros_like(mean)
        deviations = self._squares - 2 * mean * self._products + mean**2 * self._sizes
        return np.maximum(deviations, 0) / self._size**2 * (self._pieces / (self._pieces - 1))
