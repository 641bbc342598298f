"""YAML in, validated dataclasses out: the only place that talks to OmegaConf about schemas."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lambda_hat import plain_yaml
from lambda_hat.config import BUILD_SCHEMAS, SAMPLE_SCHEMAS, BuildConfig, SampleConfig
from lambda_hat.errors import ConfigError, nearest

Schema = TypeVar("Schema")
_ABSENT = object()
_hints = functools.cache(get_type_hints)


def load_yaml(path: Path | str) -> dict[str, Any]:
    """Read a YAML mapping of plain data. Tags, which would construct Python objects, are refused; `${...}` is text.

    Raises ConfigError naming the file, and the line where the parser stopped.
    """
    content = plain_yaml.read(Path(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, got {type(content).__name__}")
    return content


def refuse_interpolation(content: Any, source: str, shell_keys: Sequence[str] = ()) -> None:
    """ConfigError where a person's file has a `${...}` outside of `shell_keys`: it would be taken for a text."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key not in shell_keys:
                refuse_interpolation(value, f"{source}: {key}", shell_keys)
    elif isinstance(content, list):
        for index, value in enumerate(content):
            refuse_interpolation(value, f"{source}[{index}]", shell_keys)
    elif isinstance(content, str) and "${" in content:
        raise ConfigError(
            f"{source}: got {content!r}, but nothing is filled in for ${{...}}, lest an id depend on the environment; "
            "write the value itself, or give it on the command line, where the shell fills it in"
        )


def build_dataclass(schema: type[Schema], layers: Sequence[tuple[str, dict[str, Any]]]) -> Schema:
    """Merge `layers` of (source, mapping) onto `schema`, later ones winning, and construct the dataclass.

    Raises ConfigError with the source, the key and the nearest valid keys for a mistyped key or a wrong type,
    and passes on what the dataclass itself refuses.
    """
    for source, layer in layers:
        _check_keys(schema, layer, source, "")
    contents = [_literal(layer, source) for source, layer in layers]
    node = _defaults(schema)
    try:
        node = OmegaConf.merge(node, *contents)
    except OmegaConfBaseException:
        for (source, _), content in zip(layers, contents, strict=True):
            try:
                node = OmegaConf.merge(node, content)
            except OmegaConfBaseException as error:
                key = error.full_key or ""
                raise ConfigError(f"{source}: {key}: {_first_line(error)}") from None
    try:
        return OmegaConf.to_object(node)
    except ConfigError as error:
        raise ConfigError(f"{_source_of(str(error), layers)}: {error}") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{layers[-1][0] if layers else schema.__name__}: {_first_line(error)}") from None


def with_values(cfg: Schema, values: dict[str, Any]) -> Schema | None:
    """`cfg` with the values of some dotted keys: what `build_dataclass` makes of them in a later layer, much faster.

    None where that is not certain, or the values are refused: then `build_dataclass` is to be asked.
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
        changed = with_values(part, part_values) if head not in own and is_dataclass(part) else None
        if changed is None:
            return None
        own[head] = changed
    try:
        return replace(cfg, **own)
    except (ValueError, TypeError, ArithmeticError):
        return None


def _as_merged(hint: Any, value: Any) -> Any:
    """What merging puts into a field for a plain value of its own type, or a whole number where it holds fractions;
    _ABSENT for any other value."""
    types = get_args(hint) or (hint,)
    if type(value) is int and int not in types and float in types and abs(value) <= 2**53:
        return float(value)
    if type(value) not in (int, float, bool, str, type(None)) or type(value) not in types:
        return _ABSENT
    # OmegaConf reads meaning into some texts.
    plain = not isinstance(value, str) or (value.isascii() and "$" not in value and value != MISSING)
    return value if plain else _ABSENT


@functools.cache
def _defaults(schema: type) -> DictConfig:
    """What layers are merged onto; merging copies it."""
    return OmegaConf.structured(schema)


def _literal(content: Any, source: str) -> Any:
    """`content` with every text written so that OmegaConf takes it for itself: `${` begins an interpolation there."""
    if isinstance(content, dict):
        return {key: _literal(value, source) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_literal(value, source) for value in content]
    if not isinstance(content, str):
        return content
    try:
        content.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{source}: got {content!r}, which is no text in UTF-8") from None
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", content) if "${" in content else content


def _source_of(message: str, layers: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Where the key that a dataclass complains of (`key: got ...`) was last set; the last layer if nowhere."""
    words = message.partition(":")[0].split(".")
    for source, layer in reversed(layers):
        inside: Any = layer
        for word in words:
            inside = inside.get(word, _ABSENT) if isinstance(inside, dict) else _ABSENT
        if inside is not _ABSENT:
            return source
    return next((source for source, layer in reversed(layers) if layer), "configuration")


def _check_keys(schema: type, layer: Any, source: str, prefix: str) -> None:
    if not isinstance(layer, dict):
        where = prefix.rstrip(".") or "the whole"
        raise ConfigError(f"{source}: {where}: expected a mapping, got {layer!r}")
    hints = _hints(schema)
    valid = [f.name for f in fields(schema)]
    for key, value in layer.items():
        if key not in valid:
            raise ConfigError(f"{source}: unknown key '{prefix}{key}'; {nearest(key, valid)}")
        _check_container(hints[key], value, f"{source}: {prefix}{key}")
        inner = _dataclass_in(hints[key])
        if inner is not None and value is not None:
            _check_keys(inner, value, source, f"{prefix}{key}.")


def _check_container(hint: Any, value: Any, where: str) -> None:
    """OmegaConf lets some lists within lists of words pass, and says neither which key nor what was got where a list
    and a mapping are taken for each other."""
    for option in (hint, *getattr(hint, "__args__", ())) if get_origin(hint) is not list else (hint,):
        kind = get_origin(option) or option
        if kind is list and isinstance(value, dict):
            raise ConfigError(f"{where}: expected a list, got {value!r:.80}")
        if kind is dict and isinstance(value, list):
            raise ConfigError(f"{where}: expected a mapping, got {value!r:.80}")
        if kind is list and isinstance(value, list) and get_args(option):
            for index, item in enumerate(value):
                _check_item(get_args(option)[0], item, f"{where}[{index}]")


def _check_item(hint: Any, item: Any, where: str) -> None:
    if hint in (str, int, float, bool) and (item is None or isinstance(item, (list, dict))):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {item!r:.80}")
    _check_container(hint, item, where)


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass in `X` or `X | None`."""
    options = getattr(hint, "__args__", (hint,))
    return next((option for option in options if isinstance(option, type) and is_dataclass(option)), None)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def apply_words(content: dict[str, Any], words: Sequence[str], shell_keys: Sequence[str] = ()) -> dict[str, Any]:
    """`content` with `key=value` words applied, each value read as YAML; list items are `targets.0.seed=3`.

    Raises ConfigError naming the word.
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


def set_key(content: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set the dotted `key` of `content`, in place; folders that are missing are made, and mappings merged.

    Raises ConfigError, beginning with `where`, for a key that leads nowhere.
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


def to_yaml(cfg: Any) -> str:
    """YAML text of a configuration dataclass; `load_build_config` and `load_sample_config` read it back."""
    return plain_yaml.dump(asdict(cfg))


def load_build_config(path: Path | str) -> BuildConfig:
    """Read the configuration of a target, as `to_yaml` wrote it."""
    content = load_yaml(path)
    kind = None
    if isinstance(content.get("target"), dict):
        if "kind" not in content["target"] and "factory" in content["target"]:
            content["target"] = custom_target(content["target"], str(path))
        kind = content["target"].get("kind")
    return build_dataclass(schema_for(BUILD_SCHEMAS, kind, f"{path}: target.kind"), [(str(path), content)])


def custom_target(target: dict[str, Any], source: str) -> dict[str, Any]:
    """A target section that names a factory, its kind filled in. Raises ConfigError for any other."""
    if "factory" not in target:
        raise ConfigError(
            f"{source}: target: got {target!r}, expected a name in conf/target, or factory: package.module:function "
            "with kwargs and version"
        )
    return {"kind": "custom", **target}


def load_sample_config(path: Path | str) -> SampleConfig:
    """Read the configuration of a run, as `to_yaml` wrote it."""
    content = load_yaml(path)
    schema = schema_for(SAMPLE_SCHEMAS, content.get("name"), f"{path}: name")
    return build_dataclass(schema, [(str(path), content)])


def schema_for(schemas: dict[str, type[Schema]], name: Any, where: str) -> type[Schema]:
    """The schema called `name`; ConfigError with the nearest valid names if there is none."""
    if not isinstance(name, str) or name not in schemas:
        raise ConfigError(f"{where}: unknown {name!r}; {nearest(str(name), schemas)}")
    return schemas[name]
