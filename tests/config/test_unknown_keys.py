"""Words of other packages, and keys in the wrong place: each is answered with what to write."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from lambda_hat import estimate_llc
from lambda_hat.config import SAMPLE_SCHEMAS
from lambda_hat.config.unknown_keys import WORDS
from lambda_hat.errors import ConfigError
from lambda_hat.workflow_config import compose_study

TARGET = {"target": "quadratic", "overrides": {"target": {"dim": 3, "rank": 2, "n": 1000}}}
ANSWERS = [
    ("nbeta", "n_beta", "the same number if it is given; null: n / log n, where devinterp takes batch / log batch"),
    ("localization", "gamma", "the same number"),
    ("lr", "step_size", "the same number as devinterp's for SGLD"),
    ("num_burnin_steps", "num_burnin", "the same number"),
    ("chains", "num_chains", "the same number"),
    ("temperature", "beta", "1 / temperature"),
]


def compose(tmp_path, samplers, words=(), targets=(TARGET,), **more):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"targets": list(targets), "samplers": samplers, **more}))
    return compose_study(path, words)


def refusal(tmp_path, *args, **more) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(tmp_path, *args, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value).partition(f"{tmp_path}/study.yaml: ")[2] or str(caught.value)


@pytest.mark.parametrize(("word", "ours", "factor"), ANSWERS)
def test_a_word_of_another_package_is_answered_with_ours(tmp_path, word, ours, factor):
    under = refusal(tmp_path, [{"name": "sgld", "overrides": {word: 2}}])
    assert under.startswith(f"samplers[0]: unknown key '{word}'; write {ours}, {factor}")
    beside = refusal(tmp_path, [{"name": "sgld", word: 2}])
    assert beside.startswith(f"samplers[0]: unknown key '{word}'; under overrides write {ours}, {factor}")
    assert under == refusal(tmp_path, [{"name": "sgld", "sweep": {word: [2]}}])
    assert under == refusal(tmp_path, [{"name": "sgld"}], [f"samplers.0.overrides.{word}=2"])
    with pytest.raises(ConfigError, match=f"^{word}: no option of sgld; write {ours}, {factor}"):
        estimate_llc(lambda w, x: jnp.mean((w - x) ** 2), np.zeros(1), np.zeros(9), **{word: 2})


def test_every_word_has_a_key_of_ours():
    for word, ours in WORDS.items():
        assert all(word not in vars(schema()) for schema in SAMPLE_SCHEMAS.values())
        assert any(ours[0].ours in vars(schema()) for schema in SAMPLE_SCHEMAS.values())


def test_a_sampler_without_our_key_gets_its_next_one(tmp_path):
    assert refusal(tmp_path, [{"name": "hmc", "overrides": {"lr": 1e-3}}]) == (
        "samplers[0]: unknown key 'lr'; write initial_step_size, where burn-in starts to learn it"
    )
    assert "; valid: beta," in refusal(tmp_path, [{"name": "mclmc", "overrides": {"lr": 1e-3}}])


def test_a_key_of_a_sampler_beside_its_name(tmp_path):
    assert refusal(tmp_path, [{"name": "sgld", "step_size": 1e-4}]) == (
        "samplers[0]: unknown key 'step_size'; write it under overrides, overrides: {step_size: ...}"
    )


@pytest.mark.parametrize(
    ("target", "sampler", "where", "key", "nested"),
    [
        ({"overrides": {"target.dim": 3}}, {}, "targets[0]", "target.dim", "target: {dim: 3}"),
        ({"overrides.target.dim": 3}, {}, "targets[0]", "overrides.target.dim", "overrides: {target: {dim: 3}}"),
        ({}, {"overrides.thin": 5}, "samplers[0]", "overrides.thin", "overrides: {thin: 5}"),
        ({}, {"sweep.seed": [0, 1]}, "samplers[0]", "sweep.seed", "sweep: {seed: [0, 1]}"),
        ({}, {"overrides": {"observe.a.rows": 5}}, "samplers[0]", "observe.a.rows", "observe: {a: {rows: 5}}"),
    ],
)
def test_a_dotted_key_is_answered_with_its_nested_form(tmp_path, target, sampler, where, key, nested):
    said = refusal(tmp_path, [{"name": "sgld", **sampler}], targets=[{"target": "quadratic", **target}])
    rest = "dotted keys stand under sweep and on the command line"
    assert said == f"{where}: unknown key '{key}'; write it nested, {nested}; {rest}"


def test_a_dotted_key_of_a_single_value_has_no_nested_form(tmp_path):
    assert "write it nested" not in refusal(tmp_path, [{"name": "sgld", "overrides": {"thin.x": 1}}])
    assert "write it nested" not in refusal(tmp_path, [{"name": "sgld"}], **{"site.ranks_per_node": 2})


@pytest.mark.parametrize("path", ["$SCRATCH/runs", "/scratch/$USER", "${SCRATCH}/runs"])
def test_a_variable_in_a_path_is_refused_with_what_to_write(tmp_path, path):
    said = refusal(tmp_path, [{"name": "sgld"}], store_root=path)
    assert said.startswith(f"store_root: got '{path}', but nothing is filled in for {'$' if '{' not in path else ''}")
    assert said.endswith(f'give it on the command line, where the shell fills it in: store_root="{path}"')
    assert "'store_root=$A/b': got '$A/b'" in refusal(tmp_path, [{"name": "sgld"}], ["store_root=$A/b"])


def test_other_dollars_are_text(tmp_path):
    for text in ("cost in $", "$n$ of $N$", "a$(b)", "5$"):
        assert compose(tmp_path, [{"name": "sgld"}], results_root=text).settings.results_root == text


def test_n_beta_is_a_key_of_a_study(tmp_path):
    study = compose(tmp_path, [{"name": "hmc", "sweep": {"n_beta": [50, 100]}}, {"name": "hmc"}])
    given = [run.cfg.n_beta for run in study.runs]
    assert given == [50.0, 100.0, None]
    assert len({run.run_id for run in study.runs}) == 3
    assert len({run.program for run in study.runs}) == 1
    both = refusal(tmp_path, [{"name": "hmc", "overrides": {"beta": 0.1, "n_beta": 100}}])
    assert both == "samplers[0]: beta: got both beta = 0.1 and n_beta = 100.0, which is n times it; give one of them"
    assert "n_beta: got -1.0" in refusal(tmp_path, [{"name": "hmc", "overrides": {"n_beta": -1}}])
