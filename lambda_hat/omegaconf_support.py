"""YAML in, validated dataclasses out. OmegaConf checks types, the dataclasses check values."""

from __future__ import annotations

import contextlib
import copy
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lambda_hat.config import BUILD_SCHEMAS, SAMPLE_SCHEMAS, BuildConfig, SampleConfig, plain_yaml
from lambda_hat.config.dotted_keys import set_key
from lambda_hat.config.entries import Entry
from lambda_hat.config.unknown_keys import hint, nested
from lambda_hat.errors import ConfigError, nearest


class AnyDataclass(Protocol):
    """What every dataclass is to a type checker."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Schema = TypeVar("Schema", bound=AnyDataclass)
Config = TypeVar("Config", BuildConfig, SampleConfig)
NAMED_KINDS = [kind for kind in BUILD_SCHEMAS if kind != "custom"]
"""Kinds of target that an entry may name."""
_ABSENT = object()
_VARIABLE = re.compile(r"\$\{|(\$[A-Za-z_]\w*)(?=/|$)")
_hints = functools.cache(get_type_hints)


def load_yaml(path: Path | str, content_of: Callable[[Path], bytes] = Path.read_bytes) -> dict[str, Any]:
    """The mapping in a YAML file, as `plain_yaml.read` reads it; empty if the file is.

    Raises:
        ConfigError: there is no such mapping. The message names the file, and the line where the parser stopped.
    """
    content = plain_yaml.read(Path(path), content_of)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, got {type(content).__name__}")
    return content


def refuse_interpolation(content: Any, source: str, shell_keys: Sequence[str] = ()) -> None:
    """Refuse `${...}`, and `$NAME` as a part of a path, in what was read from `source`.

    Texts under `shell_keys` may have them, because a shell reads them.

    Raises:
        ConfigError: there is one. The message names `source` and the key.
    """
    if isinstance(content, dict):
        for key, value in content.items():
            if key not in shell_keys:
                refuse_interpolation(value, f"{source}: {key}", shell_keys)
    elif isinstance(content, list):
        for index, value in enumerate(content):
            refuse_interpolation(value, f"{source}[{index}]", shell_keys)
    elif isinstance(content, str) and (found := _VARIABLE.search(content)) is not None:
        key = source.rpartition(": ")[2]
        word = f': {key}="{content}"' if key.isidentifier() else ""
        raise ConfigError(
            f"{source}: got {content!r}, but nothing is filled in for {found[1] or '${...}'}, because an id must not "
            "depend on the environment; write the value itself, or give it on the command line, where the shell fills "
            f"it in{word}"
        )


def build_dataclass(schema: type[Schema], layers: Sequence[tuple[str, dict[str, Any]]]) -> Schema:
    """Merge `layers`, pairs of a source and a mapping, onto the defaults of `schema`, and construct the dataclass.

    Later layers win.

    Raises:
        ConfigError: a key is unknown, or a type or a value is wrong. The message names the source and the key, and the
            nearest valid keys for an unknown one.
    """
    for source, layer in layers:
        _check_shape(schema, layer, source)
    contents = [_literal(layer) for _, layer in layers]
    last = layers[-1][0] if layers else schema.__name__
    try:
        node = OmegaConf.merge(_defaults(schema), *contents)
    except (OmegaConfBaseException, TypeError) as refusal:
        for (source, _), content in zip(layers, contents, strict=True):
            try:
                OmegaConf.merge(_defaults(schema), content)
            except OmegaConfBaseException as error:
                raise ConfigError(f"{source}: {error.full_key}: {_first_line(error)}") from None
        raise ConfigError(f"{last}: {_first_line(refusal)}") from None
    try:
        return cast(Schema, OmegaConf.to_object(node))
    except ConfigError as error:
        raise ConfigError(f"{_source_of(str(error), layers)}: {error}") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{last}: {_first_line(error)}") from None


def with_values(cfg: Schema, values: dict[str, Any]) -> Schema | None:
    """`cfg` with other values under some dotted keys, as if they came in a later layer of `build_dataclass`.

    It takes microseconds, where merging takes milliseconds. Returns None if the values are refused, or if merging might
    read them differently: then ask `build_dataclass`.
    """
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    hints = _hints(type(cfg))
    for key, value in values.items():
        head, dot, rest = key.partition(".")
        if head not in hints:
            return None
        if dot:
            inner.setdefault(head, {})[rest] = value
            continue
        own[head] = _as_merged(hints[head], value)
        if own[head] is _ABSENT:
            return None
    for head, part_values in inner.items():
        part = getattr(cfg, head)
        if head in own or not is_dataclass(part) or isinstance(part, type):
            return None
        own[head] = with_values(part, part_values)
        if own[head] is None:
            return None
    try:
        return replace(cfg, **own)
    except (ValueError, TypeError, ArithmeticError):
        return None


def _as_merged(hint: Any, value: Any) -> Any:
    """The value that merging puts into a field of type `hint`; _ABSENT if OmegaConf might convert or refuse `value`."""
    types = get_args(hint) or (hint,)
    if type(value) is int and int not in types and float in types and abs(value) <= 2**53:
        return float(value)
    if type(value) not in (int, float, bool, str, type(None)) or type(value) not in types:
        return _ABSENT
    # OmegaConf reads these two as a reference and as a missing value.
    return _ABSENT if isinstance(value, str) and ("${" in value or value == MISSING) else value


@functools.cache
def _defaults(schema: type) -> DictConfig:
    """The defaults of `schema` as an OmegaConf node, which merging copies."""
    return OmegaConf.structured(schema)


def _literal(content: Any) -> Any:
    """`content` with `${` escaped in every text, because OmegaConf reads it as a reference."""
    if isinstance(content, dict):
        return {key: _literal(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_literal(value) for value in content]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", content) if isinstance(content, str) and "${" in content else content


def _source_of(message: str, layers: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """The last layer that sets the key with which `message` begins (`key: got ...`).

    If no layer sets it: the last one that sets anything.
    """
    words = message.partition(":")[0].split(".")
    for source, layer in reversed(layers):
        inside: Any = layer
        for word in words:
            inside = inside.get(word, _ABSENT) if isinstance(inside, dict) else _ABSENT
        if inside is not _ABSENT:
            return source
    return next((source for source, layer in reversed(layers) if layer), "configuration")


def _is_single(kind: Any) -> bool:
    """Whether a field of this type holds a single value."""
    options = get_args(kind) if get_origin(kind) is UnionType else (kind,)
    return not any((get_origin(one) or one) in (dict, list) or is_dataclass(one) for one in options)


def _check_shape(expects: Any, value: Any, source: str, path: str = "") -> None:
    """Refuse unknown keys, and a list, a mapping or a single value that stands where another of the three belongs.

    OmegaConf does not list the valid keys, names no key if a list and a mapping are exchanged, and accepts a list as a
    text inside a list.
    """
    if get_origin(expects) is UnionType:
        expects = next(option for option in get_args(expects) if option is not NoneType)
    kind = get_origin(expects) or expects
    if kind is Any or value is None:
        return
    if kind is dict or is_dataclass(kind):
        fits, expected = isinstance(value, dict), "a mapping"
    elif kind is list:
        fits, expected = isinstance(value, (list, tuple)), "a list"
    else:
        fits, expected = not isinstance(value, (list, tuple, dict)), "a single value"
    if not fits:
        raise ConfigError(f"{source}: {path and f'{path}: '}expected {expected}, got {value!r:.80}")
    if kind is list:
        for index, item in enumerate(value):
            _check_shape(get_args(expects)[0], item, source, f"{path}[{index}]")
    elif is_dataclass(kind):
        hints, valid = _hints(kind), [f.name for f in fields(kind)]
        for key, inner in value.items():
            dotted = f"{path}.{key}" if path else key
            if key not in valid:
                head = str(key).partition(".")[0]
                is_section = head != key and head in valid and not _is_single(hints[head])
                said = nested(key, inner) if is_section else hint(key, valid)
                raise ConfigError(f"{source}: unknown key '{dotted}'; {said}")
            _check_shape(hints[key], inner, source, dotted)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def apply_words(content: dict[str, Any], words: Sequence[str], shell_keys: Sequence[str] = ()) -> dict[str, Any]:
    """A copy of `content` with the values of `key=value` words: a dotted key, such as `targets.0.seed`, and YAML.

    The values of `shell_keys` may hold `${...}`.

    Raises:
        ConfigError: a word cannot be applied. The message names it.
    """
    result = copy.deepcopy(content)
    for word in words:
        key, equals, text = word.partition("=")
        where = f"command line: {word!r}"
        if not equals or not key.strip():
            raise ConfigError(f"{where}: expected key=value, for example samplers.0.overrides.thin=5")
        value = plain_yaml.parse(text, where)
        if key.rpartition(".")[2] not in shell_keys:
            refuse_interpolation(value, where, shell_keys)
        set_key(result, key, value, where)
    return result


def to_yaml(cfg: Any) -> str:
    """A configuration dataclass as YAML text, which `load_build_config` and `load_sample_config` read back."""
    return plain_yaml.dump(asdict(cfg))


def load_build_config(path: Path | str) -> BuildConfig:
    """The configuration of a target in a file that `to_yaml` wrote. Raises ConfigError."""
    content = load_yaml(path)
    target = content.get("target")
    if isinstance(target, dict) and "kind" not in target and {"factory", "torch"} & target.keys():
        content["target"] = custom_target(target, str(path))
    return build_dataclass(build_schema(content, str(path)), [(str(path), content)])


def build_schema(content: dict[str, Any], where: str) -> type[BuildConfig]:
    """The schema of a target's configuration, by its `target.kind`. Raises ConfigError if there is none."""
    target = content.get("target")
    kind = target.get("kind") if isinstance(target, dict) else None
    return schema_for(BUILD_SCHEMAS, kind, f"{where}: target.kind")


def group_file(group: str, name: Any, conf_dir: Path) -> str:
    """The file of a group, such as `conf/model/small.yaml`."""
    return str(conf_dir / group / f"{name}.yaml")


def load_group(group: str, name: Any, conf_dir: Path, source: str) -> dict[str, Any]:
    """The content of the file of a group. Raises ConfigError, with the nearest names, if there is no such file."""
    names = {path.stem for path in (conf_dir / group).glob("*.yaml")}
    if group == "target":
        names |= set(NAMED_KINDS)
    if not isinstance(name, str) or name not in names:
        raise ConfigError(f"{source}: {group}: unknown {name!r}; {nearest(str(name), names)}")
    path = group_file(group, name, conf_dir)
    content = load_yaml(path)
    refuse_interpolation(content, path)
    return content


class Composer(Generic[Config]):
    """Composes the points of a sweep.

    It merges an entry once, and puts the values of each point into the result, provided that merging them would give
    the same.
    """

    def __init__(self, compose: Callable[[dict[str, Any], str], Config], merged: Sequence[str]):
        """merged: dotted keys that later layers set too, so that a sweep over them needs `compose`."""
        self._compose, self._merged = compose, merged
        self._bare: dict[str, Any] | None = None
        self._template: Config | None = None

    def __call__(self, entry: Entry) -> Config:
        """The configuration of one point. Raises what `compose` raises."""
        if entry.swept and (template := self._template_for(entry)) is not None:
            cfg = with_values(template, entry.swept)
            if cfg is not None:
                return cfg
        return self.whole(entry.content, entry.where)

    def whole(self, content: dict[str, Any], where: str) -> Config:
        """The configuration of the content of an entry, merged anew. Raises what `compose` raises."""
        return self._compose(content, where)

    def _template_for(self, entry: Entry) -> Config | None:
        if self._bare is not entry.bare:
            self._bare, self._template = entry.bare, None
            if not any(key == word or key.startswith(f"{word}.") for key in entry.swept for word in self._merged):
                # An entry may be valid only together with a value of its sweep.
                with contextlib.suppress(ConfigError):
                    self._template = self._compose(entry.bare, entry.where)
        return self._template


def custom_target(target: dict[str, Any], source: str) -> dict[str, Any]:
    """`target`, which must name a function, with its `kind`. Raises ConfigError if it names none."""
    if not {"factory", "torch"} & target.keys():
        raise ConfigError(
            f"{source}: target: got {target!r}, expected a name in conf/target, or factory: package.module:function "
            "(of PyTorch, torch: package.module:function) with kwargs and version"
        )
    return {"kind": "custom", **target}


def load_sample_config(path: Path | str, content_of: Callable[[Path], bytes] = Path.read_bytes) -> SampleConfig:
    """The configuration of a run in a file that `to_yaml` wrote. Raises ConfigError.

    Args:
        path: the file.
        content_of: reads it.
    """
    content = load_yaml(path, content_of)
    schema = schema_for(SAMPLE_SCHEMAS, content.get("name"), f"{path}: name")
    return build_dataclass(schema, [(str(path), content)])


def schema_for(schemas: dict[str, type[Schema]], name: Any, where: str) -> type[Schema]:
    """The schema called `name`. Raises ConfigError with the nearest valid names if there is none."""
    if not isinstance(name, str) or name not in schemas:
        raise ConfigError(f"{where}: unknown {name!r}; {nearest(str(name), schemas)}")
    return schemas[name]
