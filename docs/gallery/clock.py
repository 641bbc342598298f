"""Train the transformer of `benchmarks/networks.py`, and save checkpoints of it: `python docs/gallery/clock.py`.

It has two layers and 105,408 parameters. Its 2,000 sequences of 32 tokens go round a clock of 32 hours, each by a
stride of its own, which it learns to read off the tokens before. All random numbers follow from seeds.
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.networks import transformer
from lambda_hat.targets.pytrees import split_params

STEPS = (50, 100, 200, 400, 600, 800, 1200, 1600)
BATCH = 64


def main() -> None:
    """Write `step_<t>.npz` files into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=Path("clock"), help="the folder (default clock)")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help=f"Adam steps to save (default {STEPS})")
    args = parser.parse_args()
    args.into.mkdir(parents=True, exist_ok=True)
    loss, params, data = transformer()
    params, tokens = jax.tree.map(jnp.asarray, params), jnp.asarray(data["tokens"])
    optimiser = optax.adam(optax.cosine_decay_schedule(3e-3, max(args.steps)))

    @jax.jit
    def step(params, state, key):
        rows = jax.random.randint(key, (BATCH,), 0, len(tokens))
        value, gradient = jax.value_and_grad(loss)(params, {"tokens": tokens[rows]})
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimiser.init(params)
    for count, key in enumerate(jax.random.split(jax.random.key(0), max(args.steps)), start=1):
        params, state, value = step(params, state, key)
        if count in args.steps:
            np.savez(args.into / f"step_{count}.npz", **split_params(params)[0])
            print(f"step {count}: loss {value:.3f}", flush=True)


if __name__ == "__main__":
    main()
