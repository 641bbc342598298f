"""Values set under dotted keys of nested mappings and lists."""

from __future__ import annotations

from typing import Any

from lambda_hat.errors import ConfigError


def set_key(content: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set the dotted `key` of `content` in place. Missing mappings on the way are made; a mapping is merged into one.

    Raises:
        ConfigError: `key` leads nowhere. The message begins with `where`.
    """
    words = key.split(".")
    place: Any = content
    for depth, word in enumerate(words):
        above = ".".join(words[:depth])
        if not word:
            raise ConfigError(f"{where}: {key!r} has an empty part, expected words with dots between them")
        last = depth + 1 == len(words)
        if isinstance(place, list):
            if not word.isascii() or not word.isdecimal() or int(word) >= len(place):
                raise ConfigError(
                    f"{where}: {above} is a list of {len(place)}; expected a number below that, got {word!r}"
                )
            index: Any = int(word)
        elif isinstance(place, dict):
            index = word
            if not last and place.get(word) is None:
                place[word] = {}
        else:
            raise ConfigError(f"{where}: {above} is {place!r}, which has no {word!r}")
        if last:
            _set(place, index, value)
        else:
            place = place[index]


def _set(place: Any, index: Any, value: Any) -> None:
    there = place.get(index) if isinstance(place, dict) else place[index]
    if isinstance(there, dict) and isinstance(value, dict):
        for key, inner in value.items():
            _set(there, key, inner)
    else:
        place[index] = value
