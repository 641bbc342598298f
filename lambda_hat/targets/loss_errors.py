"""What a user's loss raises while JAX traces it, in a sentence that says what to write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from lambda_hat.errors import ConfigError
from lambda_hat.targets.custom_loss import CustomLoss
from lambda_hat.targets.training_state import flax_errors, remedy


@contextmanager
def sentences(loss: CustomLoss) -> Iterator[None]:
    """Turn an exception of the user's function while it is traced into a ConfigError with the line to write."""
    try:
        yield
    except ConfigError:
        raise
    except jax.errors.TracerArrayConversionError as error:
        raise ConfigError(
            "loss: it gives traced arrays to NumPy, which cannot be differentiated; write jax.numpy in place of numpy "
            "in it, import jax.numpy as jnp"
        ) from error
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerIntegerConversionError) as error:
        raise ConfigError(
            "loss: it asks for the value of a traced array, by float(), int(), .item() or if; return the array "
            "itself, and write jnp.where(condition, a, b) in place of if"
        ) from error
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise ConfigError(f"loss: JAX cannot trace it: {_first_line(error)}") from error
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        NameError,
        RuntimeError,
        TypeError,
        ValueError,
        *flax_errors(),
    ) as error:
        if (line := remedy(error)) is not None:
            # Flax ends its messages with a link.
            said = _first_line(error).partition(" (http")[0].rstrip(".")
            raise ConfigError(f"loss: a module is in training mode: {type(error).__name__}: {said}; {line}") from error
        if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
            # Such as too little memory: not the loss's mistake.
            raise
        batch = "None" if loss.data is None else str(loss.data.treedef).removeprefix("PyTreeDef(").removesuffix(")")
        raise ConfigError(
            f"loss: it raised {type(error).__name__}: {_first_line(error)}; it was called with params and a batch as "
            f"they were given, batch = {batch:.100} with * for arrays of rows"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:200]
