"""The estimate of the local learning coefficient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import jaxtyping


def llc_from_losses(
    losses: jaxtyping.Float[np.ndarray, "*shape"], loss_at_w_star: float, n_beta: float
) -> jaxtyping.Float[np.ndarray, "*shape"]:
    """Compute `n_beta (L_n(w) - L_n(w_star))` for each draw w.

    The mean over draws of the posterior is the LLC estimate (Lau et al. 2023, arXiv 2308.12108, eq. 12).

    Args:
        losses: mean losses at draws of the posterior, of any shape.
        loss_at_w_star: the loss at `w_star` on the full data, in float64.
        n_beta: inverse temperature times the number of data points.

    Returns:
        float64 of the shape of `losses`. Values are never clipped: a negative mean shows that `w_star` is no minimum.
    """
    return n_beta * (np.asarray(losses, dtype=np.float64) - loss_at_w_star)
