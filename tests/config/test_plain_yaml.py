"""YAML: plain data, or one sentence; and what is written is read back as it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambda_hat.config.plain_yaml import dump, parse, read
from lambda_hat.errors import ConfigError
from lambda_hat.omegaconf_support import apply_words
from lambda_hat.workflow_config import compose_build_cfg

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN)
def test_what_is_written_is_read_back(content):
    assert parse(dump(content), "here") == content


@given(PLAIN)
def test_any_value_survives_a_configuration(content):
    """Text is text to the end, `${...}` and backslashes before it included."""
    cfg = compose_build_cfg({"target": {"factory": "a:b", "kwargs": {"x": [content]}}})
    assert cfg.target.kwargs == {"x": [content]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1e-6", 1e-6), ("1e5", 1e5), (".5", 0.5), ("1_000", 1000), ("12:00:00", 43200), ("on", True), ("~", None)],
        *[("2001-01-01", "2001-01-01"), ("${HOME}", "${HOME}"), ("{a: &x [1], <<: {b: *x}}", {"a": [1], "b": [1]})],
        ("{a: &x {k: 1}, b: {<<: *x, k: 2}, c: {<<: *x, k: 3}}", {"a": {"k": 1}, "b": {"k": 2}, "c": {"k": 3}}),
    ],
)
def test_plain_words(text, value):
    assert parse(text, "here") == value


BAD = [
    ("a: 1\nb: !!python/object/apply:os.system ['touch pwned']", "here:2: not plain YAML: could not determine a const"),
    ("a: !!binary aGVsbG8=", "could not determine a constructor for the tag 'tag:yaml.org,2002:binary'"),
    ("a: !mine 1", "could not determine a constructor for the tag '!mine'"),
    ("a: !!bool 1", "not plain YAML"),
    ("a: &a [*a]", "here:1: not plain YAML: found unconstructable recursive node"),
    ("a: " + "9" * 5000, "not plain YAML"),
    ("a: 1\nb: 0x" + "f" * 17, "here:2: not plain YAML: got an integer of 68 bits, expected at most 64"),
    ("1: x", "key '1' is not text; quote it"),
    ("? [1]\n: x", "key 'a sequence' is not text"),
    ("a: 1\nb: {c: 1, c: 2}", "here:2: not plain YAML: found duplicate key c"),
    ("a: 1\n---\na: 2", "here:2: not plain YAML"),
    ("a: 0x_", "not plain YAML"),
    ("a: =", "not plain YAML"),
    ("a: \0", "not plain YAML: unacceptable character"),
    ("a: \ud800", "not plain YAML: 'utf-8' codec can't encode"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=range(len(BAD)))
def test_refused(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        parse(text, "here")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError):
        apply_words({}, [f"key={text}"])
    assert not list(tmp_path.iterdir())


def test_files_that_are_not_text(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("a: \u00e9".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml: not a text file"):
        read(tmp_path / "latin.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "zero\0byte")
