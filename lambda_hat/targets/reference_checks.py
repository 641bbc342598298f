"""A loss of another framework, such as PyTorch, held against what that framework itself says of it."""

from __future__ import annotations

import numpy as np

from lambda_hat.errors import ConfigError
from lambda_hat.targets.custom_loss import CustomLoss

LEAST = 0.1
"""A smaller loss is compared as if it were of this size. Arbitrary."""


def try_extremes(loss: CustomLoss, params: dict, data: dict[str, np.ndarray]) -> None:
    """Show rows, those with the least and greatest integers among them, to the framework of the loss.

    It refuses what is wrong in its own words, and tokens outside a vocabulary and classes that there are not, of which
    JAX makes other numbers.

    Raises:
        ConfigError: if it refuses them.
    """
    if not data or not hasattr(loss.function, "reference"):
        return
    # Two at least: a loss may squeeze an axis of length 1.
    chosen = {0, len(next(iter(data.values()))) - 1}
    for array in data.values():
        if array.dtype.kind in "iu" and array.size:
            flat = array.reshape(len(array), -1)
            chosen |= {int(np.argmin(flat.min(axis=1))), int(np.argmax(flat.max(axis=1)))}
    rows = sorted(chosen)
    loss.reference(params, {name: array[rows] for name, array in data.items()})


def check_reference(loss: CustomLoss, params: dict, rows: dict, terms: np.ndarray, tolerance: float) -> None:
    """Hold the loss at `w_star` against the one that its framework computes itself.

    Args:
        loss: the loss.
        params: all of its parameters, by path.
        rows: some rows of the data.
        terms: the sum of the losses of these rows and the sum of their weights.
        tolerance: relative, of the precision of the loss.

    Raises:
        ConfigError: if the two differ.
    """
    expected = loss.reference(params, rows)
    if expected is None:
        return
    total, weight = terms
    # Half of the digits: a network adds up the rounding of many operations.
    limit = max(tolerance, float(np.sqrt(expected[1])))
    if not abs(total / weight - expected[0]) <= limit * max(abs(expected[0]), LEAST):
        raise ConfigError(
            f"loss: torch computes {expected[0]:.6g} on {len(next(iter(rows.values())))} rows, and the same code on "
            f"JAX's arrays {total / weight:.6g}: torchax does an operation otherwise, or the code depends on the mode "
            "or on the types of tensors; find the operation by from_torch of parts of the module"
        )
