"""YAML in, validated dataclasses out: the only place that talks to OmegaConf about schemas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lambda_hat.config import BUILD_SCHEMAS, SAMPLE_SCHEMAS, BuildConfig, SampleConfig
from lambda_hat.errors import ConfigError, nearest

Schema = TypeVar("Schema")
_ABSENT = object()


def load_yaml(path: Path | str) -> dict[str, Any]:
    """Read a YAML mapping, interpolations resolved. Tags that would construct Python objects are refused.

    Raises ConfigError naming the file, and the line where the parser stopped.
    """
    path = Path(path)
    try:
        node = OmegaConf.load(path)
        content = OmegaConf.to_container(node, resolve=True)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{where}: not plain YAML: {problem}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, got {type(content).__name__}")
    return content


def build_dataclass(schema: type[Schema], layers: Sequence[tuple[str, dict[str, Any]]]) -> Schema:
    """Merge `layers` of (source, mapping) onto `schema`, later ones winning, and construct the dataclass.

    Raises ConfigError with the source, the key and the nearest valid keys for a mistyped key or a wrong type,
    and passes on what the dataclass itself refuses.
    """
    node = OmegaConf.structured(schema)
    for source, layer in layers:
        _check_keys(schema, layer, source, "")
        try:
            merged = OmegaConf.merge(node, layer)
        except OmegaConfBaseException as error:
            key = error.full_key or ""
            raise ConfigError(f"{source}: {key}: {_first_line(error)}") from None
        assert isinstance(merged, DictConfig)
        node = merged
    try:
        return OmegaConf.to_object(node)
    except ConfigError as error:
        raise ConfigError(f"{_source_of(str(error), layers)}: {error}") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{layers[-1][0] if layers else schema.__name__}: {_first_line(error)}") from None


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
    hints = get_type_hints(schema)
    valid = [f.name for f in fields(schema)]
    for key, value in layer.items():
        if key not in valid:
            raise ConfigError(f"{source}: unknown key '{prefix}{key}'; {nearest(key, valid)}")
        inner = _dataclass_in(hints[key])
        if inner is not None and value is not None:
            _check_keys(inner, value, source, f"{prefix}{key}.")


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass in `X` or `X | None`."""
    options = getattr(hint, "__args__", (hint,))
    return next((option for option in options if isinstance(option, type) and is_dataclass(option)), None)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def apply_words(content: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """`content` with `key=value` words applied, each value read as YAML; list items are `targets.0.seed=3`.

    Raises ConfigError naming the word.
    """
    node = OmegaConf.create(content)
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"command line: {word!r}: expected key=value, for example samplers.0.overrides.thin=5")
        try:
            OmegaConf.update(node, key, OmegaConf.to_container(OmegaConf.create(f"v: {value}"))["v"], force_add=True)
        except (OmegaConfBaseException, yaml.YAMLError, IndexError, ValueError) as error:
            raise ConfigError(f"command line: {word!r}: {_first_line(error)}") from None
    try:
        result = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"command line: {_first_line(error)}") from None
    assert isinstance(result, dict)
    return {str(key): value for key, value in result.items()}


def to_yaml(cfg: Any) -> str:
    """YAML text of a configuration dataclass; `load_build_config` and `load_sample_config` read it back."""
    return OmegaConf.to_yaml(OmegaConf.structured(cfg))


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
