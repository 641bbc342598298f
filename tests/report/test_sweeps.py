"""What a sweep puts into a configuration that is composed already, held against merging it anew."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

import pytest
import yaml

from lambda_hat.config import BUILD_SCHEMAS, SAMPLE_SCHEMAS
from lambda_hat.config.dotted_keys import set_key
from lambda_hat.errors import ConfigError
from lambda_hat.omegaconf_support import build_dataclass, with_values
from lambda_hat.workflow_config import compose_study

SCHEMAS = {**SAMPLE_SCHEMAS, **{kind: schema for kind, schema in BUILD_SCHEMAS.items() if kind != "custom"}}
VALUES = [
    None, True, False, 0, 1, 7, -1, 2**53 + 1, 2**70, 0.0, 0.5, 1.5, -0.5, 5e-324, float("inf"), float("nan"),
    "", "1", "1e-5", "none", "adam", "float32", "paired", "nll", "true", "null", "???", "${seed}", "$", "é", "\ud800",
    [], [1], [1.5, 2], ["*"], [[1]], {}, {"a": 1},
]  # fmt: skip


def keys_of(cfg, prefix=""):
    for field in fields(cfg):
        yield f"{prefix}{field.name}"
        value = getattr(cfg, field.name)
        if is_dataclass(value):
            yield from keys_of(value, f"{prefix}{field.name}.")
    yield f"{prefix}nonsense"
    yield f"{prefix}seed.deeper"


def merged(schema, key, value):
    layer = {}
    set_key(layer, key, value, "sweep")
    return build_dataclass(schema, [("sweep", layer)])


@pytest.mark.parametrize("name", SCHEMAS)
def test_as_merging_would_or_not_at_all(name):
    schema = SCHEMAS[name]
    template = build_dataclass(schema, [])
    taken = 0
    for key in keys_of(template):
        for value in VALUES:
            quick = with_values(template, {key: value})
            if quick is not None:
                taken += 1
                assert repr(quick) == repr(merged(schema, key, value)), (key, value)
    assert taken > 10


def test_values_that_go_together_are_put_in_together():
    template = build_dataclass(SAMPLE_SCHEMAS["sgld"], [("entry", {"gamma": 2.0})])
    assert with_values(template, {"prior_radius": 1}) is None
    both = with_values(template, {"prior_radius": 1, "gamma": None})
    assert (both.prior_radius, both.gamma) == (1.0, None)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"step_size": [1e-5, -1e-5]}, r"samplers\[0\]: step_size: got -1e-05, expected a finite number above 0"),
        ({"stepsize": [1, 2]}, r"samplers\[0\]: unknown key 'stepsize'; did you mean 'step_size'"),
        ({"batch_size": [64, "many"]}, r"samplers\[0\]: batch_size: Value 'many' of type 'str' could not be"),
    ],
)
def test_what_a_sweep_gets_wrong_is_told_as_ever(tmp_path, sweep, message):
    path = tmp_path / "study.yaml"
    content = {"targets": [{"target": "quadratic"}], "samplers": [{"name": "sgld", "sweep": sweep}]}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=message):
        compose_study(path)


def test_an_entry_that_is_whole_only_with_its_sweep(tmp_path):
    path = tmp_path / "study.yaml"
    overrides = {"precond": "rmsprop", "num_burnin": 0}
    samplers = [{"name": "sgld", "overrides": overrides, "sweep": {"num_burnin": [50, 60]}}]
    path.write_text(yaml.safe_dump({"targets": [{"target": "quadratic"}], "samplers": samplers}))
    assert [run.cfg.num_burnin for run in compose_study(path).runs] == [50, 60]
