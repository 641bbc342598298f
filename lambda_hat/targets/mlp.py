"""Multilayer perceptrons: a student network, trained on the noisy outputs of a random teacher network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lambda_hat.config import DataConfig, MlpBuild, mlp_widths
from lambda_hat.errors import BuildFailed
from lambda_hat.targets.base import Arrays, Loss, Made, no_likelihood, regression_loss, to_numpy
from lambda_hat.targets.data import draw_inputs, draw_noise
from lambda_hat.targets.train import checkpoints, slope, train

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"relu": jax.nn.relu, "tanh": jnp.tanh, "gelu": jax.nn.gelu}

DATA_STREAM, INIT_STREAM, TRAINING_STREAM = range(3)
"""Folded into a seed, so that data and student are independent even if their seeds are equal."""


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
        """The outputs of one row."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


@dataclass(frozen=True)
class Architecture:
    """Everything about a network except its parameters."""

    sizes: tuple[int, ...]
    """Inputs, hidden widths, outputs."""
    activation: str
    bias: bool

    def init(self, key: Key[Array, ""]) -> dict[str, Array]:
        """Draw Equinox's initial parameters, uniform within 1/sqrt(inputs of the layer), by path: "layers/0/weight"."""
        leaves, _ = jax.tree_util.tree_flatten_with_path(Mlp(self, key))
        return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}

    def module(self, params: Arrays) -> Mlp:
        """The network with the given parameters."""
        names, structure = _skeleton(self)
        return jax.tree.unflatten(structure, [params[name] for name in names])


@lru_cache
def _skeleton(arch: Architecture) -> tuple[list[str], Any]:
    leaves, structure = jax.tree_util.tree_flatten_with_path(eqx.filter_eval_shape(Mlp, arch, jax.random.key(0)))
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves], structure


@dataclass(frozen=True)
class MlpLoss(Loss):
    """The mean loss over rows; `data` holds "x" of shape (rows, inputs) and "y" of shape (rows, outputs)."""

    arch: Architecture
    kind: str
    sigma: float

    @property
    def no_likelihood(self) -> str | None:
        return no_likelihood(self.kind)

    def __call__(self, params: Arrays, data: Arrays) -> Float[Array, ""]:
        outputs = jax.vmap(self.arch.module(params))(jnp.asarray(data["x"]))
        return regression_loss(data["y"] - outputs, self.kind, self.sigma)


def student(cfg: MlpBuild) -> Architecture:
    """The network whose parameters are sampled."""
    sizes = (cfg.data.input_dim, *cfg.widths, cfg.data.output_dim)
    return Architecture(sizes, cfg.model.activation, cfg.model.bias)


def teacher(cfg: MlpBuild) -> Architecture:
    """The network that makes the data; by default one of the student's architecture."""
    if cfg.teacher is None:
        return student(cfg)
    widths = mlp_widths(cfg.teacher, cfg.data.input_dim, cfg.data.output_dim)
    sizes = (cfg.data.input_dim, *widths, cfg.data.output_dim)
    return Architecture(sizes, cfg.teacher.activation, cfg.teacher.bias)


def make_loss(cfg: MlpBuild) -> MlpLoss:
    """The mean loss of the student."""
    return MlpLoss(student(cfg), cfg.loss, cfg.sigma)


def make(cfg: MlpBuild, programs: Path | None = None) -> Made:
    """Draw the data and train the student on them.

    Raises:
        BuildFailed: if the teacher is constant on the data, or training becomes non-finite.
    """
    data, start, key = _prepare(cfg)
    w_star, info = train(make_loss(cfg), start, data, cfg.training, key, programs)
    return Made(to_numpy(w_star), to_numpy(data), info)


def make_checkpoints(cfg: MlpBuild, programs: Path | None = None) -> list[Made]:
    """Train once, and return the points at `cfg.checkpoint_steps`, which share the arrays of their data.

    Raises:
        BuildFailed: as `make`.
    """
    data, start, key = _prepare(cfg)
    loss = make_loss(cfg)
    points = checkpoints(loss, start, data, cfg.training, key, cfg.checkpoint_steps, programs)
    shared = to_numpy(data)
    return [Made(to_numpy(point), shared, {"warnings": [], **slope(loss, point, data, programs)}) for point in points]


def _prepare(cfg: MlpBuild) -> tuple[dict[str, Array], dict[str, Array], Key[Array, ""]]:
    """The data, the initial parameters of the student, and the key of its minibatches."""
    data_seed = cfg.seed if cfg.data.seed is None else cfg.data.seed
    key = jax.random.fold_in(jax.random.key(data_seed), DATA_STREAM)
    data = draw_data(key, replace(cfg.data, seed=None), teacher(cfg))
    if not jnp.all(jnp.isfinite(data["y"])):
        raise BuildFailed(
            "the random teacher has a constant output on its data; give another data.seed, or a wider teacher"
        )
    key = jax.random.key(cfg.seed)
    start = student(cfg).init(jax.random.fold_in(key, INIT_STREAM))
    return data, start, jax.random.fold_in(key, TRAINING_STREAM)


@partial(jax.jit, static_argnames=("cfg", "teacher"))
def draw_data(key: Key[Array, ""], cfg: DataConfig, teacher: Architecture) -> dict[str, Array]:
    """Draw inputs "x" and the noisy outputs "y" of a random teacher.

    Every output is scaled to unit variance before noise. It is not finite if it is constant on the data.
    """
    key_inputs, key_teacher, key_noise = jax.random.split(key, 3)
    x = draw_inputs(key_inputs, cfg)
    outputs = jax.vmap(teacher.module(draw_teacher(key_teacher, teacher)))(x)
    # To scale an output is to scale its row of the last layer, so y is still a network of this architecture.
    return {"x": x, "y": outputs / jnp.std(outputs, axis=0)[None] + draw_noise(key_noise, cfg, x)}


def draw_teacher(key: Key[Array, ""], arch: Architecture) -> dict[str, Array]:
    """Draw normal weights of variance 2 / (inputs of the layer) and standard normal biases. Both are arbitrary."""
    shapes = jax.eval_shape(arch.init, key)
    ends = np.cumsum([shape.size for shape in shapes.values()])
    parts = jnp.split(jax.random.normal(key, (ends[-1],)), ends[:-1])
    params = {}
    for (name, shape), part in zip(shapes.items(), parts, strict=True):
        scale = np.sqrt(2 / shape.shape[1]) if shape.ndim == 2 else 1.0
        params[name] = scale * part.reshape(shape.shape)
    return params
