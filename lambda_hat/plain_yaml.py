"""YAML text in, plain data out: mappings with text keys, lists, text, numbers, booleans and null, and nothing else.

A file may come from anyone. Tags are refused, so that a file names no Python object; aliases and nesting are bounded,
so that a small file becomes no large one; and every value is what it says: `${HOME}` is text, since an id must not
depend on the environment.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from lambda_hat.errors import ConfigError

MOST_BYTES = 64 * 1024 * 1024
MOST_NESTED = 40
MOST_FROM_ALIASES = 100_000
"""Nodes that aliases may add to a file in all."""

_FLOAT = re.compile(
    r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
    |\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)

_UNUSUAL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ufeff]")


def _resolvers(base: type) -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """What `base` takes plain words for, but for dates, and with floats that need no dot (1e-6)."""
    found = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float"))]
        for first, resolvers in base.yaml_implicit_resolvers.items()
    }
    for first in "-+0123456789.":
        found.setdefault(first, []).append(("tag:yaml.org,2002:float", _FLOAT))
    return found


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    yaml_implicit_resolvers = _resolvers(yaml.SafeLoader)

    def construct_document(self, node: yaml.Node) -> Any:
        # Before merges (<<) are expanded, which puts keys twice into a mapping.
        _check_keys(node, set())
        return super().construct_document(node)


def _check_keys(node: yaml.Node, done: set[int]) -> None:
    if id(node) in done:
        return
    done.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, done)
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            _check_keys(value, done)
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                what = key.value if isinstance(key, yaml.ScalarNode) else f"a {key.id}"
                raise yaml.MarkedYAMLError(problem=f"key {what!r} is no text; quote it", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"found duplicate key {key.value}", problem_mark=key.start_mark)
            seen.add(key.value)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _resolvers(yaml.SafeDumper)

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # PyYAML writes Unicode's line breaks into plain text, where its reader takes them for spaces.
        style = '"' if _UNUSUAL.search(data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)


def parse(text: str, source: str) -> Any:
    """The one document in `text`; None where it is empty. ConfigError naming `source` and the line for what is not
    plain."""
    try:
        _check(text)
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{where}: not plain YAML: {problem}") from None
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{source}: not plain YAML: {error}") from None
    _check_values(content, source)
    return content


def read(path: Path) -> Any:
    """`parse` of a file. ConfigError also where it cannot be read, or is no text."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{path}: more than {MOST_BYTES // 1024**2} MiB, expected a file that a person wrote")
    try:
        return parse(data.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file; expected YAML in UTF-8") from None


def dump(content: Any) -> str:
    """YAML that `parse` gives back as it was."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)


def dump_line(content: Any) -> str:
    """The same in one line, without its end."""
    text = yaml.dump(
        content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=float("inf")
    )
    return text.removesuffix("...\n").rstrip("\n")


def _check(text: str) -> None:
    """Refuse tags, deep nesting, aliases to themselves, and those that multiply, before anything is made of them."""
    sizes: dict[str, int | None] = {}
    open_nodes: list[tuple[str | None, int]] = []
    total = added = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor, 0)
            if size is None:
                _refuse(f"alias *{event.anchor} stands inside what it names", event)
            added += size
            if added > MOST_FROM_ALIASES:
                _refuse(f"aliases add more than {MOST_FROM_ALIASES} nodes", event)
            total += size
        elif isinstance(event, yaml.NodeEvent):
            if event.tag is not None and event.tag != "!":
                _refuse(f"tag {_short(event.tag)!r}: tags are not read; write the value itself", event)
            total += 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, total))
                if event.anchor is not None:
                    sizes[event.anchor] = None
                if len(open_nodes) > MOST_NESTED:
                    _refuse(f"nested more than {MOST_NESTED} deep", event)
            elif event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = total - before + 1


def _refuse(problem: str, event: yaml.Event) -> None:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _short(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")[:80]


def _check_values(content: Any, source: str) -> None:
    if isinstance(content, dict):
        for key, value in content.items():
            _check_values(value, f"{source}: {key}")
    elif isinstance(content, list):
        for value in content:
            _check_values(value, source)
    elif isinstance(content, int) and not -(2**63) <= content < 2**63:
        raise ConfigError(f"{source}: got an integer of {content.bit_length()} bits, expected one of at most 64")
