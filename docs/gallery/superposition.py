"""The toy model of superposition, x̂ = ReLU(WᵀW x + b), at its critical points and along a training.

It has six features and two hidden units; one feature is active at a time, uniformly in [0, 1] (Chen et al. 2023,
arXiv 2310.06301). The columns of W form regular polygons at critical points of the loss. Where the loss is flat in
exactly as many directions as its Hessian has zeros, λ is half of the rank of the Hessian: 7 at the pentagon, 8.5 at the
hexagon, and at the pentagon that shows the mean of the sixth feature.

`python docs/gallery/superposition.py` trains from random weights and saves checkpoints.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax.flatten_util import ravel_pytree

FEATURES, HIDDEN, LEVELS = 6, 2, 32
_AMOUNTS = (np.arange(LEVELS) + 0.5) / LEVELS
INPUTS = np.concatenate([amount * np.eye(FEATURES) for amount in _AMOUNTS])
"""The midpoint rule for the uniform law of each feature: a population loss without noise."""
STEPS = (100, 250, 500, 750, 1000, 1500, 2000, 3000)
SEED, RATE = 3, 0.05


def loss(params, batch=None):
    """The mean squared distance of x̂ from x, a mean over features and their amounts."""
    del batch
    weights, biases = jnp.asarray(params["W"]), jnp.asarray(params["b"])
    x = jnp.asarray(INPUTS).astype(biases.dtype)
    found = jax.nn.relu(x @ weights.T @ weights + biases)
    return jnp.mean(jnp.sum((x - found) ** 2, axis=-1))


def start(seed: int = SEED):
    """Random weights of standard deviation .3, and no biases."""
    return {"W": 0.3 * np.random.default_rng(seed).normal(size=(HIDDEN, FEATURES)), "b": np.zeros(FEATURES)}


def along_training():
    """The factory of the trajectory: loss, shapes of the parameters, no data."""
    return loss, start(), None


def polygon(corners: int, bias: float = -0.5):
    """The factory of a critical point: a regular polygon, found by BFGS from one.

    Args:
        corners: columns of W that are the corners of the polygon; the others are 0.
        bias: where the biases of the others start. A negative one stays, and these features are never shown. One near
            their mean amount, 1/12, goes to it.
    """
    angles = 2 * np.pi * np.arange(corners) / corners
    near = {"W": np.zeros((HIDDEN, FEATURES)), "b": np.full(FEATURES, bias)}
    near["W"][:, :corners] = 1.2 * np.array([np.cos(angles), np.sin(angles)])
    near["b"][:corners] = -0.3
    with jax.enable_x64(True):
        flat, whole = ravel_pytree(jax.tree.map(jnp.asarray, near))
        value_and_slope = jax.jit(jax.value_and_grad(lambda w: loss(whole(w))))
        found = scipy.optimize.minimize(
            lambda w: tuple(map(np.asarray, value_and_slope(w))), flat, jac=True, method="BFGS", options={"gtol": 1e-10}
        )
        return loss, jax.tree.map(np.asarray, whole(jnp.asarray(found.x))), None


def exact_llc(params) -> float:
    """Half of the rank of the Hessian of the loss at a critical point whose flat directions are all there are."""
    with jax.enable_x64(True):
        flat, whole = ravel_pytree(jax.tree.map(jnp.asarray, params))
        curvatures = np.linalg.eigvalsh(jax.hessian(lambda w: loss(whole(w)))(flat))
    assert curvatures.min() > -1e-6, "a saddle"
    return float(np.count_nonzero(curvatures > 1e-6) / 2)


def main() -> None:
    """Train by gradient descent, and write `step_<t>.npz` files into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=Path("superposition"), help="the folder (default superposition)")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    args.into.mkdir(parents=True, exist_ok=True)
    slope = jax.jit(jax.value_and_grad(loss))
    params = jax.tree.map(jnp.asarray, start(args.seed))
    for step in range(max(STEPS) + 1):
        value, gradient = slope(params)
        if step in STEPS:
            np.savez(args.into / f"step_{step}.npz", **params)
            print(f"step {step}: loss {value:.4f}")
        params = jax.tree.map(lambda w, g: w - RATE * g, params, gradient)


if __name__ == "__main__":
    main()
