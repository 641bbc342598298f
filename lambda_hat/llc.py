"""The estimate of the local learning coefficient."""

from __future__ import annotations

import numpy as np


def llc_from_losses(losses: np.ndarray, loss_at_w_star: float, n_beta: float) -> np.ndarray:
    """`n_beta (L_n(w) - L_n(w_star))` for each draw; its posterior mean is the LLC estimate (Lau et al. 2023, eq. 12).

    losses: any shape, mean losses at draws of the posterior; `loss_at_w_star`: the full-data float64 loss.
    Returns float64 of the same shape. Never clipped: a negative value says that `w_star` is no minimum.
    """
    return n_beta * (np.asarray(losses, dtype=np.float64) - loss_at_w_star)
