"""The networks that estimates are timed on: generated data, plain JAX, and nothing to download.

Each function returns `(loss, params, data)`, as `estimate_llc` and a custom target take them, so that a study can name
it as its factory (`benchmarks.networks:mlp`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Made = tuple[Callable[..., Any], dict[str, Any], dict[str, np.ndarray]]

MLP = (32, 72, 72, 1)
LARGE = (500, 1600, 2000, 1)
"""4,005,601 parameters."""
VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS = 32, 32, 64, 4, 2
"""Of the transformer, 105,408 parameters."""
LARGE_WIDTH, LARGE_LAYERS = 384, 6
"""Of the large one, 10,669,440 parameters."""


def mlp(sizes: Sequence[int] = MLP, n: int = 20_000, noise: float = 0.1, seed: int = 0) -> Made:
    """A tanh network at the parameters that made its data, up to Gaussian noise; mean squared error."""
    rng = np.random.default_rng(seed)
    params = {}
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        params[f"w{i}"] = (rng.normal(size=(fan_in, fan_out)) / np.sqrt(fan_in)).astype(np.float32)
        params[f"b{i}"] = (0.1 * rng.normal(size=fan_out)).astype(np.float32)
    x = rng.normal(size=(n, sizes[0])).astype(np.float32)
    y = _outputs(params, x, np.tanh) + noise * rng.normal(size=(n, sizes[-1]))
    return mlp_loss, params, {"x": x, "y": y.astype(np.float32)}


def large(n: int = 2000) -> Made:
    """The same of four million parameters."""
    return mlp(LARGE, n)


def mlp_loss(params: dict[str, Any], batch: dict[str, Any]) -> Any:
    return jnp.mean((_outputs(params, batch["x"], jnp.tanh) - batch["y"]) ** 2)


def _outputs(params: dict[str, Any], x: Any, tanh: Callable[[Any], Any]) -> Any:
    last = len(params) // 2 - 1
    for i in range(last):
        x = tanh(x @ params[f"w{i}"] + params[f"b{i}"])
    return x @ params[f"w{last}"] + params[f"b{last}"]


def transformer(n: int = 2000, seed: int = 0, width: int = WIDTH, layers: int = LAYERS) -> Made:
    """An untrained decoder, and sequences of 32 tokens that go round a clock of 32 hours: each by a
    stride of its own, one step in ten to anywhere. Cross-entropy of the next token: 3.47 for a uniform guess, log 32.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 0.02) -> np.ndarray:
        return (scale * rng.normal(size=shape)).astype(np.float32)

    params: dict[str, Any] = {"tokens": normal(VOCABULARY, width), "places": normal(LENGTH, width)}
    for i in range(layers):
        params[f"layer{i}"] = {
            "norm_attention": np.ones(width, np.float32),
            "qkv": normal(width, 3 * width, scale=width**-0.5),
            "out": normal(width, width, scale=width**-0.5),
            "norm_mlp": np.ones(width, np.float32),
            "up": normal(width, 4 * width, scale=width**-0.5),
            "up_bias": np.zeros(4 * width, np.float32),
            "down": normal(4 * width, width, scale=(4 * width) ** -0.5),
            "down_bias": np.zeros(width, np.float32),
        }
    params |= {"norm": np.ones(width, np.float32), "head": normal(width, VOCABULARY)}
    tokens = np.empty((n, LENGTH), np.int32)
    tokens[:, 0] = rng.integers(VOCABULARY, size=n)
    stride = rng.integers(1, VOCABULARY, size=n)
    for place in range(1, LENGTH):
        elsewhere = rng.integers(VOCABULARY, size=n)
        step = (tokens[:, place - 1] + stride) % VOCABULARY
        tokens[:, place] = np.where(rng.random(n) < 0.1, elsewhere, step)
    return transformer_loss, params, {"tokens": tokens}


def large_transformer(n: int = 2000) -> Made:
    """The same of ten million parameters."""
    return transformer(n, width=LARGE_WIDTH, layers=LARGE_LAYERS)


def transformer_loss(params: dict[str, Any], batch: dict[str, Any]) -> Any:
    tokens = batch["tokens"]
    x = params["tokens"][tokens] + params["places"]
    length = tokens.shape[1]
    mask = jnp.tril(jnp.ones((length, length), bool))
    for i in range(sum(name.startswith("layer") for name in params)):
        layer = params[f"layer{i}"]
        h = _normed(x, layer["norm_attention"]) @ layer["qkv"]
        q, k, v = (part.reshape(*part.shape[:2], HEADS, -1) for part in jnp.split(h, 3, axis=-1))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e9), axis=-1)
        x = x + jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape) @ layer["out"]
        h = jax.nn.gelu(_normed(x, layer["norm_mlp"]) @ layer["up"] + layer["up_bias"])
        x = x + h @ layer["down"] + layer["down_bias"]
    log_p = jax.nn.log_softmax(_normed(x, params["norm"])[:, :-1] @ params["head"])
    return -jnp.mean(jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1))


def _normed(x: Any, scale: Any) -> Any:
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def trained(
    made: Made, steps: int, batch_size: int = 64, rate: float = 3e-3, seed: int = 0
) -> tuple[Made, list[float]]:
    """`made` with its parameters trained by Adam, its rate falling to 0 along a cosine; and the loss of each step."""
    import optax

    loss, params, data = made
    rows = {name: jnp.asarray(array) for name, array in data.items()}
    n = len(next(iter(data.values())))
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def run(params, state, rows):
        def step(carry, key):
            params, state = carry
            chosen = jax.random.randint(key, (batch_size,), 0, n)
            value, gradient = jax.value_and_grad(loss)(params, {name: array[chosen] for name, array in rows.items()})
            updates, state = optimiser.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        (params, _), losses = jax.lax.scan(step, (params, state), jax.random.split(jax.random.key(seed), steps))
        return params, losses

    params = jax.tree.map(jnp.asarray, params)
    params, losses = run(params, optimiser.init(params), rows)
    return (loss, jax.tree.map(np.asarray, params), data), [float(value) for value in losses]


def size(params: Any) -> int:
    """Number of parameters."""
    return sum(array.size for array in jax.tree.leaves(params))
