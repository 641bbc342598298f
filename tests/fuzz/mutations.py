"""Strategies: plain data with something wrong somewhere, and bytes with something wrong somewhere."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

from lambda_hat.config.plain_yaml import dump

NASTY_TEXT = [
    "", " ", "-", "-dash", "???", "${x}", "${oc.env:HOME}", "\\${x}", "${", "$(touch pwned)", "`touch pwned`", ";", "&",
    "a\nb", "\0", "é", "\u2028", "\U0001f600", "..", "../../etc/passwd", "/", "a/b", "'", '"', "x" * 300, "null", "nan",
    "1e400", "_null", "mlp", "sgld", "true", "0x10", "12:00:00", "%s", "{}", "[]", "a.b", ".",
]  # fmt: skip
NASTY_NUMBERS = [
    0, -1, 1, 2, 3, 2**31, 2**32, 2**53 + 1, 2**63 - 1, -(2**63), 0.0, -0.0, 0.5, 1e-320, 1e308, float("inf"),
    float("-inf"), float("nan"),
]  # fmt: skip

SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from(NASTY_NUMBERS)
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.sampled_from(NASTY_TEXT)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NASTY_TEXT) | st.text(max_size=5), inner)
    ),
    max_leaves=6,
)


def places(content: Any, path: tuple = ()) -> list[tuple]:
    """The path of every node below `content`."""
    items: Any = ()
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, list):
        items = enumerate(content)
    return [found for key, value in items for found in [(*path, key), *places(value, (*path, key))]]


@st.composite
def mutated(draw: st.DrawFn, originals: st.SearchStrategy[Any], most: int = 3) -> Any:
    """One of `originals` with up to `most` nodes changed, replaced, removed, renamed, wrapped, doubled or exchanged."""
    content = copy.deepcopy(draw(originals))
    for _ in range(draw(st.integers(1, most))):
        paths = places(content)
        if not paths:
            break
        *above, last = draw(st.sampled_from(paths))
        parent = content
        for key in above:
            parent = parent[key]
        how = draw(
            st.sampled_from([*["other"] * 8, "replace", "replace", "remove", "rename", "wrap", "double", "exchange"])
        )
        if how == "other":
            parent[last] = draw(_others(parent[last]))
        elif how == "replace":
            parent[last] = draw(VALUES)
        elif how == "remove":
            del parent[last]
        elif how == "rename" and isinstance(parent, dict):
            parent[draw(st.sampled_from([f"{last}x", str(last)[:-1], *NASTY_TEXT]))] = parent.pop(last)
        elif how == "wrap":
            parent[last] = draw(st.sampled_from([lambda v: [v], lambda v: {"x": v}, lambda v: str(v)]))(parent[last])
        elif how == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[last]))
        else:
            other = content
            for key in draw(st.sampled_from(paths)):
                other = other[key] if _has(other, key) else other
            parent[last] = copy.deepcopy(other)
    return content


def _others(value: Any) -> st.SearchStrategy[Any]:
    """Values of the same kind, which more often pass the first check."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return st.integers(0, 100) | st.integers(0, 2**40)
    if isinstance(value, float):
        return st.floats(1e-9, 100.0)
    return st.just(value) if isinstance(value, (dict, list)) else SCALARS


def _has(node: Any, key: Any) -> bool:
    return (isinstance(node, dict) and key in node) or (
        isinstance(node, list) and isinstance(key, int) and key < len(node)
    )


@st.composite
def damaged(draw: st.DrawFn, originals: st.SearchStrategy[bytes], foreign: st.SearchStrategy[bytes]) -> bytes:
    """One of `originals` with bytes flipped, cut, doubled, or spliced with `foreign`; or that, or nothing, instead."""
    data = bytearray(draw(originals))
    for _ in range(draw(st.integers(1, 3))):
        how = draw(st.sampled_from(["flip", "flip", "byte", "cut", "drop", "double", "splice", "empty", "foreign"]))
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.integers(1, 64))
        if how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "byte" and data:
            data[at] = draw(st.integers(0, 255))
        elif how == "cut":
            del data[at:]
        elif how == "drop":
            del data[at : at + length]
        elif how == "double":
            data[at:at] = data[at : at + length]
        elif how == "splice":
            data[at : at + length] = draw(foreign)[:length]
        elif how == "empty":
            data.clear()
        elif how == "foreign":
            data[:] = draw(foreign)
    return bytes(data)


def as_yaml(content: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """The YAML text of plain data; with surrogates, which no file can hold, left out."""
    return content.map(lambda value: dump(value).encode("utf-8", "replace"))


YAML_WORDS = st.sampled_from(
    ["a", "targets", "samplers", ":", ": ", "- ", "\n", "\n  ", "&a ", "*a", "<<: ", "? ", "[", "]", "{", "}", ",",
     "!!python/name:os", "!!binary ", "!!set ", "|\n", ">\n", "'", '"', "#", "%YAML 1.1\n", "---\n", "...\n", "~", "\t",
     "@", "`", "0x", "1e5", "\\", "!", "=", "\ufeff", "\x85"]
)  # fmt: skip
YAML_NOISE = st.lists(YAML_WORDS, max_size=30).map(lambda words: "".join(words).encode())
