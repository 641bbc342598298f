"""The schema of what a run watches beside its loss."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from lambda_hat.config.common import choice, positive_int, require
from lambda_hat.errors import ConfigError

PER = ("mean", "row", "token")
OWN_NAMES = ("loss", "llc", "chain", "draw")
"""Names that a trace gives to something else."""
_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)


@dataclass(frozen=True)
class ObserveConfig:
    """One observable: the target's loss, or a function of your own, on some rows, at the recorded draws."""

    data: str | None = None
    """`package.module:function`, called with `kwargs`; it returns data like the target's. Null: the target's own."""
    function: str | None = None
    """`package.module:function`, called with (params, data); it returns an array. It is recorded in place of the
    loss."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function that `data` names."""
    version: int = 1
    """Raise it when a change of the code behind `data` or `function` changes what is recorded."""
    rows: int | None = None
    """Take the first rows only. Null: all."""
    per: str | None = None
    """`mean`, the mean loss over the rows, `row`, the loss of every row, or `token`, the losses of every token as an
    array (rows, tokens), if the loss returns them. Null: mean."""

    def __post_init__(self):
        for key in ("data", "function"):
            require(
                getattr(self, key) is None or is_function(getattr(self, key)),
                f"observe: {key}",
                getattr(self, key),
                "package.module:function",
            )
        positive_int("observe: version", self.version, 0)
        positive_int("observe: rows", self.rows)
        choice("observe: per", self.per, PER)
        if self.function is not None and self.per is not None:
            raise ConfigError(f"observe: per: got {self.per!r} beside a function, which says itself what it returns")
        if self.kwargs and self.data is None:
            raise ConfigError("observe: kwargs: they are those of data, which is missing")


def is_function(text: str) -> bool:
    """Whether a text is of the form `package.module:function`."""
    module, colon, function = text.partition(":")
    return bool(colon) and all(word.isidentifier() for word in (*module.split("."), *function.split(".")))


def check_name(name: Any, source: str) -> None:
    """Refuse a name that an observable cannot have. Raises ConfigError."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None or name in OWN_NAMES:
        taken = ", ".join(OWN_NAMES)
        raise ConfigError(f"{source}: got the name {name!r}, expected letters, digits and _, and none of {taken}")
