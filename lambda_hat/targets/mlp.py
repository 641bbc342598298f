"""Multilayer perceptrons: a student trained on data that a random teacher and noise have made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lambda_hat.config import MlpBuild, mlp_widths
from lambda_hat.errors import BuildFailed
from lambda_hat.targets.base import Made, regression_loss, to_numpy
from lambda_hat.targets.data import draw_inputs, draw_noise
from lambda_hat.targets.train import train

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"relu": jax.nn.relu, "tanh": jnp.tanh, "gelu": jax.nn.gelu}

DATA_STREAM, INIT_STREAM, TRAINING_STREAM = range(3)
"""Folded into a seed, so that data and student are independent also where their seeds are equal."""


class Mlp(eqx.Module):
    """Linear layers with an activation between them."""

    layers: tuple[eqx.nn.Linear, ...]
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(self, arch: Architecture, key: Key[Array, ""]):
        pairs = list(pairwise(arch.sizes))
        keys = jax.random.split(key, len(pairs))
        self.layers = tuple(
            eqx.nn.Linear(a, b, use_bias=arch.bias, key=k) for (a, b), k in zip(pairs, keys, strict=True)
        )
        self.activation = ACTIVATIONS[arch.activation]

    def __call__(self, x: Float[Array, " input_dim"]) -> Float[Array, " output_dim"]:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


@dataclass(frozen=True)
class Architecture:
    """Everything about a network but its parameters. sizes: inputs, hidden widths, outputs."""

    sizes: tuple[int, ...]
    activation: str
    bias: bool

    def init(self, key: Key[Array, ""]) -> dict[str, Array]:
        """Equinox's initial parameters (uniform within 1/sqrt(inputs of the layer)), by path: "layers/0/weight"."""
        leaves, _ = jax.tree_util.tree_flatten_with_path(Mlp(self, key))
        return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}

    def module(self, params: dict[str, Array]) -> Mlp:
        """The network with the given parameters."""
        names, structure = _skeleton(self)
        return jax.tree.unflatten(structure, [params[name] for name in names])


@lru_cache
def _skeleton(arch: Architecture) -> tuple[list[str], jax.tree_util.PyTreeDef]:
    leaves, structure = jax.tree_util.tree_flatten_with_path(eqx.filter_eval_shape(Mlp, arch, jax.random.key(0)))
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves], structure


@dataclass(frozen=True)
class MlpLoss:
    """Mean loss over rows of `data`: "x" of shape (rows, inputs), "y" of shape (rows, outputs)."""

    arch: Architecture
    kind: str
    sigma: float

    def __call__(self, params: dict[str, Array], data: dict[str, Array]) -> Float[Array, ""]:
        outputs = jax.vmap(self.arch.module(params))(data["x"])
        return regression_loss(data["y"] - outputs, self.kind, self.sigma)


def student(cfg: MlpBuild) -> Architecture:
    """The network whose parameters are sampled."""
    sizes = (cfg.data.input_dim, *cfg.widths, cfg.data.output_dim)
    return Architecture(sizes, cfg.model.activation, cfg.model.bias)


def make_loss(cfg: MlpBuild) -> MlpLoss:
    """The student's mean loss."""
    return MlpLoss(student(cfg), cfg.loss, cfg.sigma)


def make(cfg: MlpBuild) -> Made:
    """Draw the data and train the student on them.

    Raises BuildFailed where the teacher is constant on the data or training becomes non-finite.
    """
    data_seed = cfg.seed if cfg.data.seed is None else cfg.data.seed
    data = draw_data(jax.random.fold_in(jax.random.key(data_seed), DATA_STREAM), cfg)
    key = jax.random.key(cfg.seed)
    start = student(cfg).init(jax.random.fold_in(key, INIT_STREAM))
    w_star, info = train(make_loss(cfg), start, data, cfg.training, jax.random.fold_in(key, TRAINING_STREAM))
    return Made(to_numpy(w_star), to_numpy(data), info)


def draw_data(key: Key[Array, ""], cfg: MlpBuild) -> dict[str, Array]:
    """Inputs "x" and the noisy outputs "y" of a random teacher, each output scaled to unit variance before noise."""
    key_inputs, key_teacher, key_noise = jax.random.split(key, 3)
    x = draw_inputs(key_inputs, cfg.data)
    model = cfg.model if cfg.teacher is None else cfg.teacher
    widths = mlp_widths(model, cfg.data.input_dim, cfg.data.output_dim)
    arch = Architecture((cfg.data.input_dim, *widths, cfg.data.output_dim), model.activation, model.bias)
    params = draw_teacher(key_teacher, arch)
    outputs = jax.vmap(arch.module(params))(x)
    std = jnp.std(outputs, axis=0)
    if not jnp.all(std > 0):
        raise BuildFailed(
            "the random teacher has a constant output on its data; give another data.seed, or a wider teacher"
        )
    # Scaling an output is scaling its row of the last layer: y is a network of the teacher's architecture.
    return {"x": x, "y": outputs / std + draw_noise(key_noise, cfg.data, x)}


def draw_teacher(key: Key[Array, ""], arch: Architecture) -> dict[str, Array]:
    """Normal weights of variance 2 / inputs of the layer and standard normal biases (the scales are arbitrary)."""
    template = arch.init(key)
    keys = jax.random.split(key, len(template))
    params = {}
    for k, (name, array) in zip(keys, template.items(), strict=True):
        scale = jnp.sqrt(2 / array.shape[1]) if array.ndim == 2 else 1.0
        params[name] = scale * jax.random.normal(k, array.shape)
    return params
