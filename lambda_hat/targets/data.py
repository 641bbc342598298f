"""The inputs of regression data, and the noise on their outputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lambda_hat.config import DataConfig


def draw_inputs(key: Key[Array, ""], cfg: DataConfig) -> Float[Array, "n input_dim"]:
    """Draw inputs from the law `cfg.input_law`.

    - isotropic: standard normal.
    - anisotropic: independent normal coordinates. The variances fall geometrically from the first coordinate to the
      last, by a factor of `anisotropy` in all, and have the mean 1.
    - mixture: `num_components` equally likely normal clusters of unit covariance. Their centres are normal with
      standard deviation `separation`.
    """
    key_normal, key_centres, key_component = jax.random.split(key, 3)
    x = jax.random.normal(key_normal, (cfg.n, cfg.input_dim))
    if cfg.input_law == "anisotropic":
        variances = jnp.geomspace(cfg.anisotropy, 1.0, cfg.input_dim)
        return x * jnp.sqrt(variances / jnp.mean(variances))[None]
    if cfg.input_law == "mixture":
        centres = cfg.separation * jax.random.normal(key_centres, (cfg.num_components, cfg.input_dim))
        return x + centres[jax.random.randint(key_component, (cfg.n,), 0, cfg.num_components)]
    return x


def draw_noise(key: Key[Array, ""], cfg: DataConfig, x: Float[Array, "n input_dim"]) -> Float[Array, "n output_dim"]:
    """Draw noise from the law `cfg.noise`, independent over outputs, of scale `noise_std` (s below).

    - none: zeros.
    - gaussian: variance `s^2`.
    - heteroscedastic: Gaussian of variance `s^2 (1 + |x|^2 / mean|x|^2) / 2`, whose mean over the data is `s^2`.
    - student_t: s times a t variable of `noise_df` (df) degrees of freedom. Its variance is `s^2 df / (df - 2)` for
      df > 2.
    - outliers: Gaussian. A row has `outlier_scale` times the standard deviation with probability `outlier_fraction`.
    """
    shape = (cfg.n, cfg.output_dim)
    if cfg.noise == "none":
        return jnp.zeros(shape)
    if cfg.noise == "student_t":
        return cfg.noise_std * jax.random.t(key, cfg.noise_df, shape)
    key_normal, key_outlier = jax.random.split(key)
    noise = cfg.noise_std * jax.random.normal(key_normal, shape)
    if cfg.noise == "heteroscedastic":
        norm2 = jnp.sum(x**2, axis=1, keepdims=True)
        return noise * jnp.sqrt((1 + norm2 / jnp.mean(norm2)) / 2)
    if cfg.noise == "outliers":
        outlier = jax.random.bernoulli(key_outlier, cfg.outlier_fraction, (cfg.n, 1))
        return jnp.where(outlier, cfg.outlier_scale, 1.0) * noise
    return noise
