"""Ids follow from what decides the numbers, and from nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, fields, replace

import pytest

from lambda_hat.config import (
    BUILD_SCHEMAS,
    SAMPLE_SCHEMAS,
    CustomBuild,
    CustomTarget,
    DlnBuild,
    HmcConfig,
    ObserveConfig,
    QuadraticBuild,
    QuadraticTarget,
    RuntimeConfig,
    SgldConfig,
    StoreConfig,
)
from lambda_hat.id_utils import Run, canonical_json, target_id_for


@pytest.mark.parametrize("schema", BUILD_SCHEMAS.values())
def test_target_id_is_sha256_of_the_canonical_json(schema):
    cfg = schema(target=CustomTarget(factory="package.module:function")) if schema is CustomBuild else schema()
    payload = {key: value for key, value in asdict(cfg).items() if key not in ("runtime", "store")}
    payload["target"].pop("checkpoint", None)
    # A target that does not use a key has the id of the time before it was there.
    for key in ("torch", "step", "trajectory"):
        if payload["target"].get(key, "") is None:
            del payload["target"][key]
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"))
    assert target_id_for(cfg) == "tgt_" + hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize("schema", SAMPLE_SCHEMAS.values())
def test_run_id_is_sha1_of_the_canonical_json(schema):
    cfg = schema(target_id="tgt_0123456789ab")
    # These are younger than the ids, and in them only where they are given.
    younger = ("chains_at_once", "accumulate", "compute_dtype", "observe", "n_beta")
    payload = {key: value for key, value in asdict(cfg).items() if key not in ("runtime", *younger)}
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"))
    assert Run.of(cfg).run_id == f"run_{cfg.name}_{hashlib.sha1(text.encode()).hexdigest()[:8]}"
    assert re.fullmatch(r"run_[a-z_]+_[0-9a-f]{8}", Run.of(cfg).run_id)


def test_store_and_runtime_are_in_no_id():
    build = QuadraticBuild()
    elsewhere = replace(build, store=StoreConfig(root="/elsewhere"), runtime=RuntimeConfig(cores_per_rank=4))
    assert target_id_for(elsewhere) == target_id_for(build)
    run = SgldConfig(target_id="tgt_1")
    assert Run.of(replace(run, runtime=RuntimeConfig(cores_per_rank=4))).run_id == Run.of(run).run_id


@pytest.mark.parametrize("schema", SAMPLE_SCHEMAS.values())
def test_every_number_of_a_run_is_in_its_id(schema):
    base = schema(target_id="tgt_1")
    changes = {
        "target_id": "tgt_2", "precision": "float64", "thin": 3, "num_burnin": 100,
        "beta": 0.5, "n_beta": 99.0, "gamma": 2.0, "prior_radius": 2.0, "step_size": 1e-3, "batch_size": 8,
        "precond": "none",
        "metric": "low_rank", "gradient": "plain", "chains_at_once": 1, "accumulate": 2, "compute_dtype": "bfloat16",
        "adapt": "always", "loss_estimate": "paired", "decay": 0.5, "momentum_decay": 0.5, "target_acceptance": 0.5,
        "restrict": ["layers/0/*"], "friction": 0.5, "observe": {"rows": ObserveConfig(per="row")},
    }  # fmt: skip
    seen = {Run.of(base).run_id}
    for field in fields(schema):
        if field.name in ("name", "format", "runtime", "momentum_in_drift"):
            continue
        value = getattr(base, field.name)
        if field.name in changes:
            other = changes[field.name]
        else:
            other = not value if isinstance(value, bool) else value * 2 + 1
        run_id = Run.of(replace(base, **{field.name: other})).run_id
        assert run_id not in seen, field.name
        seen.add(run_id)


def test_targets_of_different_content_differ():
    ids = {
        target_id_for(cfg)
        for cfg in (QuadraticBuild(), QuadraticBuild(seed=1), QuadraticBuild(target=QuadraticTarget(dim=5)), DlnBuild())
    }
    assert len(ids) == 4


def test_random_numbers_are_set_apart_by_the_whole_configuration():
    one, two = SgldConfig(target_id="tgt_1"), SgldConfig(target_id="tgt_2")
    identities = {Run.of(cfg).identity for cfg in (one, two, replace(one, n_beta=9.0), HmcConfig(target_id="tgt_1"))}
    assert len(identities) == 4
    assert all(0 <= i < 2**31 for i in identities)


def test_what_is_watched_is_in_the_id_and_in_no_random_number():
    run = SgldConfig(target_id="tgt_1")
    watched = [replace(run, observe={"rows": ObserveConfig(rows=rows)}) for rows in (3, 4)]
    assert len({Run.of(cfg).run_id for cfg in (run, *watched)}) == 3
    assert len({Run.of(cfg).identity for cfg in (run, *watched)}) == 1


def test_non_finite_numbers_have_no_canonical_form():
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})
