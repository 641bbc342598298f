"""Every key of the configuration as Markdown: name, type, default, and what its schema says of it."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import json
import re
import textwrap
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from docs.hooks.tables import table
from flows.sites.site_schemas import SITE_SCHEMAS, PythonSite
from lambda_hat.config import (
    BUILD_SCHEMAS,
    SAMPLE_SCHEMAS,
    BuildConfig,
    ObserveConfig,
    RegressionBuild,
    SampleConfig,
    StochasticGradientConfig,
    plain_yaml,
)
from lambda_hat.config.entries import SAMPLER_ENTRY_KEYS, TARGET_ENTRY_KEYS
from lambda_hat.config.study_settings import StudySettings
from lambda_hat.workflow_config import CONF_DIR

HEAD = ("key", "type", "default", "meaning")
GROUPS = ("target", "model", "data", "teacher")
NAMES = ("kind", "name")
"""Keys that say which schema is meant."""
SITE_LINE = re.compile(r"^(?P<key>\s*\w+):\s*(?P<value>[^#]*?)\s*(?:#\s*(?P<meaning>.*))?$")
FURTHER_SITES = {
    "parsl_config": "The Python file itself; filled in.",
    "nodes_per_block": "Nodes of one block of the executor for packs.",
}
"""Keys of a Python file's `site`, which no file in `conf/site` has."""

Row = tuple[str, str, str, str]


def keys_in_markdown() -> str:
    """Sections for the experiments file, targets, samplers, sites, and the groups that come with the project."""
    return "\n".join([*_study(), *_targets(), *_samplers(), *_sites(), *_groups()])


def field_meanings(schema: type) -> dict[str, str]:
    """The text under every field of a dataclass, by name; a class that only changes a default inherits the text."""
    found: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _own_meanings(base)
    return found


def rows_of(schema: type, without: type | None = None, prefix: str = "") -> list[Row]:
    """A row per key; sections become dotted keys.

    without: the schema whose keys stand elsewhere; what has another default or text here is listed all the same.
    """
    return list(_rows(schema, without, prefix))


def _rows(schema: type, without: type | None, prefix: str) -> Iterator[Row]:
    hints, meanings = get_type_hints(schema), field_meanings(schema)
    elsewhere = {}
    if without is not None:
        known = field_meanings(without)
        elsewhere = {field.name: (_default(field), known.get(field.name)) for field in dataclasses.fields(without)}
    shown: set[type] = set()
    for field in dataclasses.fields(schema):
        if field.name in NAMES or elsewhere.get(field.name) == (_default(field), meanings.get(field.name)):
            continue
        section = _section_of(hints[field.name])
        name = prefix + field.name
        if section is None:
            yield (
                f"`{name}`",
                type_in_words(hints[field.name]),
                _in_yaml(_default(field)),
                meanings.get(field.name, ""),
            )
            continue
        if field.name in meanings:
            null = ", or null" if _is_optional(hints[field.name]) else ""
            yield f"`{name}`", f"section{null}", "`null`" if _default(field) is None else "", meanings[field.name]
        if section not in shown:
            # A teacher has the keys of a model.
            shown.add(section)
            yield from _rows(section, None, f"{name}.")


def _own_meanings(schema: type) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(_source(schema)))
    assert isinstance(tree.body[0], ast.ClassDef)
    body, found = tree.body[0].body, {}
    for node, after in itertools.pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            assert isinstance(node.target, ast.Name)
            found[node.target.id] = inspect.cleandoc(str(after.value.value))
    return found


_source = functools.cache(inspect.getsource)


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _is_optional(hint: Any) -> bool:
    return type(None) in get_args(hint)


def _section_of(hint: Any) -> type | None:
    options = (hint, *get_args(hint))
    return next((option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)), None)


def type_in_words(hint: Any) -> str:
    """`list[int] | None` as "list of whole numbers, or null"."""
    if isinstance(hint, types.UnionType):
        words = [type_in_words(option) for option in get_args(hint) if option is not type(None)]
        return " or ".join(words) + (", or null" if _is_optional(hint) else "")
    if get_origin(hint) is list:
        (item,) = get_args(hint)
        if item is Any:
            return "list"
        words = type_in_words(item)
        return f"list of {words.replace('list of', 'lists of')}" if get_origin(item) is list else f"list of {words}s"
    if get_origin(hint) is dict:
        return "mapping"
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}.get(hint, "")


def _in_yaml(value: Any) -> str:
    """A default as it would be written in a file."""
    if value == MISSING:
        return "none: to be given"
    return f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _about(schema: type) -> str:
    return inspect.getdoc(schema) or ""


def _study() -> Iterator[str]:
    yield "## The experiments file\n"
    yield f"{_about(StudySettings)}\n"
    yield table(HEAD, rows_of(StudySettings))
    for name, keys in (("targets", TARGET_ENTRY_KEYS), ("samplers", SAMPLER_ENTRY_KEYS)):
        yield f"### An entry of `{name}`\n"
        yield table(("key", "meaning"), [(f"`{key}`", meaning) for key, meaning in keys.items()])


def _targets() -> Iterator[str]:
    yield "## Targets\n"
    yield "Every target has these; a study gives them at the top level of an entry's `overrides`.\n"
    yield table(HEAD, rows_of(BuildConfig))
    for kind, schema in BUILD_SCHEMAS.items():
        yield f"### Target `{kind}`\n"
        target = _section_of(get_type_hints(schema)["target"])
        assert target is not None
        yield f"{_about(target)}\n"
        if issubclass(schema, RegressionBuild):
            yield f"{_about(RegressionBuild)}\n"
        yield table(HEAD, rows_of(schema, BuildConfig))


def _samplers() -> Iterator[str]:
    yield "## Samplers\n"
    yield f"{_about(SampleConfig)}\n"
    yield table(HEAD, rows_of(SampleConfig))
    yield "### Sampler key `observe`\n"
    yield f"{_about(ObserveConfig)}\n"
    yield table(HEAD, rows_of(ObserveConfig, prefix="observe.NAME."))
    yield "### The stochastic samplers\n"
    yield f"{_about(StochasticGradientConfig)}\n"
    yield table(HEAD, rows_of(StochasticGradientConfig, SampleConfig))
    for name, schema in SAMPLE_SCHEMAS.items():
        yield f"### Sampler `{name}`\n"
        yield f"{_about(schema)}\n"
        shared = StochasticGradientConfig if issubclass(schema, StochasticGradientConfig) else SampleConfig
        yield table(HEAD, rows_of(schema, shared))


def _sites() -> Iterator[str]:
    yield "## Sites\n"
    yield "A site is a file, `conf/site/<name>.yaml` or your own; on the command line its keys are `site.key=value`.\n"
    meanings = {kind: _site_meanings(CONF_DIR / "site" / f"{kind}.yaml") for kind in SITE_SCHEMAS}
    everywhere: dict[str, str] = {}
    for known in reversed(meanings.values()):
        everywhere |= known
    for kind, schema in {**SITE_SCHEMAS, "python": PythonSite}.items():
        where = "`site` in a Python file" if schema is PythonSite else f"`kind: {kind}`"
        yield f"### Site: {where}\n"
        yield f"{_about(schema)}\n"
        own = FURTHER_SITES if schema is PythonSite else meanings[kind]
        yield table(HEAD, _site_rows(schema, {**everywhere, **own}))


def _site_rows(schema: type, meanings: Mapping[str, str]) -> Iterator[Row]:
    for name, kind, default, _ in rows_of(schema):
        yield name, kind, default, meanings.get(name.strip("`"), "")


def _site_meanings(path: Path) -> dict[str, str]:
    """The comments of a site file by dotted key: a person copies that file, so that is where they stand."""
    found, section = {}, ""
    for line in path.read_text().splitlines():
        match = SITE_LINE.match(line)
        if match is None:
            continue
        key = match["key"]
        section = f"{section}{key.strip()}" if key.startswith(" ") else f"{key}."
        name = section if key.startswith(" ") else key
        section = section[: section.index(".") + 1]
        if match["meaning"]:
            found[name] = match["meaning"]
    return found


def _groups() -> Iterator[str]:
    yield "## Groups\n"
    yield "`model: small` in an entry reads `conf/model/small.yaml`; these come with the project.\n"
    rows = []
    for group in GROUPS:
        for path in sorted((CONF_DIR / group).glob("*.yaml")):
            content = plain_yaml.read(path)
            inner = content["target"] if group == "target" else content
            rows.append((f"`{group}: {path.stem}`", ", ".join(f"`{k}: {_plain(v)}`" for k, v in inner.items())))
    yield table(("entry", "content"), rows)
