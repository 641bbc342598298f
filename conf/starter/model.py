"""The model of study.yaml: put a network, a loss and data of your own in the place of these."""

import jax
import jax.numpy as jnp
import optax

NOISE = 0.1


def predict(params, x):
    """The output of a network with one hidden layer."""
    return jnp.tanh(x @ params["hidden"]["weight"] + params["hidden"]["bias"]) @ params["output"]


def loss(params, batch):
    """The mean over the rows of a batch: here the negative log likelihood, up to a constant."""
    x, y = batch
    return jnp.mean((predict(params, x) - y) ** 2) / (2 * NOISE**2)


def small_network(width):
    """A trained network of `width` hidden units. Returns the loss, its parameters at a minimum, and the data."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (500, 2))
    y = jnp.tanh(x[:, 0]) - jnp.tanh(x[:, 1]) + NOISE * jax.random.normal(keys[1], (500,))
    params = {
        "hidden": {"weight": jax.random.normal(keys[2], (2, width)), "bias": jnp.zeros(width)},
        "output": jax.random.normal(keys[3], (width,)),
    }
    optimiser = optax.adam(optax.cosine_decay_schedule(0.01, 20_000))

    def step(carry, _):
        params, state = carry
        updates, state = optimiser.update(jax.grad(loss)(params, (x, y)), state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimiser.init(params)), length=20_000)
    return loss, params, (x, y)
