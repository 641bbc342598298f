"""YAML text in, plain data out: mappings with text keys, lists, text, numbers, booleans and null.

PyYAML's safe loader reads it, with three differences: `1e-6` is a number, a date is text, and a key stands only once in
a mapping. `${HOME}` is text, because an id must not depend on the environment.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from lambda_hat.errors import ConfigError

_FLOAT = re.compile(
    r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
    |\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
_PLAIN = [f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")]
_CONSTRUCTORS = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (None, *_PLAIN)}
_UNUSUAL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ufeff]")


def _resolvers(base: type) -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """How `base` tells numbers and other plain words from text: no dates, and floats without a dot (1e-6)."""
    found = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float"))]
        for first, resolvers in base.yaml_implicit_resolvers.items()
    }
    for first in "-+0123456789.":
        found.setdefault(first, []).append(("tag:yaml.org,2002:float", _FLOAT))
    return found


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    yaml_implicit_resolvers = _resolvers(yaml.SafeLoader)
    yaml_constructors = _CONSTRUCTORS

    def construct_document(self, node: yaml.Node) -> Any:
        # PyYAML expands merges (<<) while it constructs, and then a mapping may hold a key twice.
        _check_keys(node, set())
        # PyYAML then refuses an alias inside the value that it names.
        self.deep_construct = True
        return super().construct_document(node)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        if not -(2**63) <= value < 2**63:
            problem = f"got an integer of {value.bit_length()} bits, expected at most 64"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _check_keys(node: yaml.Node, done: set[int]) -> None:
    """Refuse keys that are not text, and keys that stand twice in a mapping."""
    if isinstance(node, yaml.ScalarNode) or id(node) in done:
        return
    done.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, done)
        return
    seen = set()
    for key, value in node.value:
        _check_keys(value, done)
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        if key.tag != "tag:yaml.org,2002:str":
            what = key.value if isinstance(key, yaml.ScalarNode) else f"a {key.id}"
            raise yaml.MarkedYAMLError(problem=f"key {what!r} is not text; quote it", problem_mark=key.start_mark)
        if key.value in seen:
            raise yaml.MarkedYAMLError(problem=f"found duplicate key {key.value}", problem_mark=key.start_mark)
        seen.add(key.value)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _resolvers(yaml.SafeDumper)

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # PyYAML writes Unicode's line breaks without quotes, and its reader takes them for spaces.
        style = '"' if _UNUSUAL.search(data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)


def parse(text: str, source: str) -> Any:
    """The one document in `text`; None if `text` is empty.

    Raises:
        ConfigError: `text` is not YAML, or holds something other than plain data. The message names `source` and the
            line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{where}: not plain YAML: {problem}") from None
    except (ValueError, LookupError) as error:
        raise ConfigError(f"{source}: not plain YAML: {error}") from None


def read(path: Path, content_of: Callable[[Path], bytes] = Path.read_bytes) -> Any:
    """`parse` of the file `path`, whose bytes are `content_of(path)`.

    Raises:
        ConfigError: the file cannot be read, or `parse` refuses its text.
    """
    try:
        text = content_of(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file; expected YAML in UTF-8") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return parse(text, str(path))


def dump(content: Any) -> str:
    """YAML text that `parse` reads back as `content`."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)


def dump_line(content: Any) -> str:
    """The same in one line, without a newline at its end."""
    text = yaml.dump(
        content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=float("inf")
    )
    return text.removesuffix("...\n").rstrip("\n")
