"""The functions of users that a configuration names."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from lambda_hat.errors import ConfigError
from lambda_hat.user_folder import refuse_taken


def imported(where: str, name: str) -> Callable[..., Any]:
    """The function that `package.module:function` names.

    Args:
        where: the key that names it, for messages.
        name: its name. Modules are looked for among the installed packages, on PYTHONPATH and in the current folder.

    Raises:
        ConfigError: it cannot be imported, or is no function; or its module's name is taken.
    """
    module_name, _, function_name = name.partition(":")
    refuse_taken(where, name)
    if os.getcwd() not in sys.path:
        # Last, so that no file in that folder shadows an installed package.
        sys.path.append(os.getcwd())
    try:
        function: Any = importlib.import_module(module_name)
        for word in function_name.split("."):
            function = getattr(function, word)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{where}: {name} cannot be imported: {type(error).__name__}: {error}; modules are looked for among the "
            f"installed packages, on PYTHONPATH and in {os.getcwd()}"
        ) from error
    if not callable(function):
        raise ConfigError(f"{where}: {name} is a {type(function).__name__}, expected a function")
    return function
