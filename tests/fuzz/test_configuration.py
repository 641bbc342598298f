"""Experiments files, overrides, site files, pack files and stored configurations, with something wrong somewhere."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flows.driver.plan import make_plan
from flows.sites.site_schemas import load_site
from lambda_hat.config import SAMPLE_SCHEMAS
from lambda_hat.id_utils import Run, target_id_for
from lambda_hat.omegaconf_support import load_build_config, load_sample_config, to_yaml
from lambda_hat.store.layout import Store
from lambda_hat.workflow_config import CONF_DIR, compose_build_cfg, compose_sample_cfg, compose_study
from mpi.pack import PACK_DEFAULTS, describe_pack, pack_of_study, pack_record, read_pack
from tests.fuzz.judging import attempt
from tests.fuzz.mutations import NASTY_TEXT, VALUES, YAML_NOISE, as_yaml, damaged, mutated

TARGETS = [
    {"target": "quadratic", "overrides": {"target": {"dim": 3, "rank": 2, "eigenvalues": [1.0, 2.5]}}},
    {"target": "monomial_sum", "overrides": {"target": {"blocks": [[1], [2]], "point": [0.0, 0.0], "n": 50}}},
    {"target": "dln", "overrides": {"target": {"widths": [5, 3, 5], "rank": 1, "data": "empirical", "noise_std": 0.1}}},
    {"target": "line_and_point", "sweep": {"target.point": [[1.0, 1.0], [0.0, 0.0]]}},
    {"target": "radial"},
    {"target": "tanh", "seed": 3},
    {
        "model": "tiny",
        "data": "small",
        "teacher": "tiny",
        "checkpoints": {"every": 20},
        "overrides": {"training": {"steps": 50}},
    },
    {"model": "base", "data": "base", "teacher": "_null", "overrides": {"training": {"steps": 10000, "batch_size": 5}}},
    {
        "target": {"factory": "a.b:c", "kwargs": {"x": [1, "two", 3.0, None]}, "version": 2, "n": 30},
        "overrides": {"runtime": {"cores_per_rank": 2}},
    },
]
SAMPLERS = [
    {"name": "hmc", "overrides": {"num_draws": 100, "num_burnin": 50, "target_acceptance": 0.8}},
    {
        "name": "sgld",
        "overrides": {"batch_size": 64, "precond": "adam"},
        "sweep": {"seed": [0, 1], "step_size": [1e-5]},
    },
    {"name": "mclmc", "overrides": {"thin": 5, "gamma": 1.0, "restrict": ["layers/0/*"]}},
    {"name": "nuts", "overrides": {"max_num_doublings": 3, "prior_radius": 2.0, "beta": 0.1, "precision": "float32"}},
]
SETTINGS = {"store_root": "runs", "results_root": "results", "site": "local", "pack": 4, "retries": 0}
STUDIES = st.builds(
    lambda settings, targets, samplers: settings | {"targets": targets, "samplers": samplers},
    st.sampled_from([{}, SETTINGS, {"jax_enable_x64": False}]),
    st.lists(st.sampled_from(TARGETS), min_size=1, max_size=2),
    st.lists(st.sampled_from(SAMPLERS), min_size=1, max_size=2),
)
SITES = st.sampled_from([yaml.safe_load(path.read_text()) for path in sorted((CONF_DIR / "site").glob("*.yaml"))])
SITES = SITES.filter(lambda site: site["kind"] != "allocation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def plan(path: Path, folder: Path, words: tuple[str, ...] = ()) -> None:
    """What happens to a study before anything is started."""
    study = compose_study(path, words, {"store_root": str(folder / "store")})
    for target_id, build in study.targets.items():
        assert target_id == target_id_for(build)
        assert build.label
    todo = make_plan(Store(study.settings.store_root), study)
    assert sum(map(len, todo.packs(study.settings.pack))) == len(study.runs) > 0
    describe_pack(PACK_DEFAULTS | pack_of_study(study, 1))


@given(data=as_yaml(mutated(STUDIES)))
def test_studies_with_wrong_values(folder, data):
    path = put(folder, "study.yaml", data)
    attempt("experiments files: wrong values", lambda: plan(path, folder))


@given(data=damaged(as_yaml(STUDIES), YAML_NOISE | st.binary(max_size=64)) | YAML_NOISE | st.binary(max_size=200))
def test_studies_with_wrong_bytes(folder, data):
    path = put(folder, "study.yaml", data)
    attempt("experiments files: wrong bytes", lambda: plan(path, folder))


KEYS = st.sampled_from(
    ["pack", "store_root", "targets", "targets.0", "targets.0.seed", "targets.0.overrides.target.dim", "targets.1.seed",
     "samplers.0.overrides.thin", "samplers.0.overrides", "samplers.0.sweep.seed", "samplers.-1", "samplers.x", "a..b",
     "", ".", "targets[0].seed", "samplers.0.name", "jax_enable_x64", "site", "retries", "samplers.0.name.x", "é"]
)  # fmt: skip
ARGUMENTS = (
    st.sampled_from(NASTY_TEXT)
    | VALUES.map(lambda value: json.dumps(value))
    | YAML_NOISE.map(lambda noise: noise.decode())
    | st.binary(max_size=20).map(lambda data: data.decode("utf-8", "surrogateescape"))
)
FINE = st.sampled_from(
    ["pack=3", "targets.0.seed=7", "samplers.0.overrides.thin=5", "samplers.0.sweep.seed=[0, 1]", "retries=2",
     "site=slurm", "targets.0.overrides.target.dim=7", "samplers.0.overrides={num_draws: 50}", "results_root=a b"]
)  # fmt: skip
WORDS = (
    FINE | st.builds("{}{}{}".format, KEYS, st.sampled_from(["=", "=", "=", "", "==", " = "]), ARGUMENTS) | ARGUMENTS
)


@given(words=st.lists(WORDS, min_size=1, max_size=3))
def test_words(folder, words):
    path = put(folder, "study.yaml", b"targets: [{target: quadratic}]\nsamplers: [{name: sgld}]\n")
    attempt("key=value words", lambda: plan(path, folder, tuple(words)))


def site(path: Path | str, words: tuple[str, ...] = ()) -> None:
    """What happens to a site before anything is started."""
    made = load_site(str(path), words)
    made.launch(made.nodes[: made.pack_nodes])
    assert made.packs_per_block >= 1


@given(data=as_yaml(mutated(SITES)) | damaged(as_yaml(SITES), YAML_NOISE | st.binary(max_size=64)))
def test_site_files(folder, data):
    path = put(folder, "site.yaml", data)
    attempt("site files", lambda: site(path))


SITE_KEYS = st.sampled_from(
    ["ranks_per_node", "worker_init", "walltime", "address", "interface", "nodes_per_pack", "mpi", "flavour", "kind",
     "builds.walltime", "builds", "cores_per_rank", "gpus_per_node", "scheduler_options", "account", "partition"]
)  # fmt: skip


@given(name=st.sampled_from(["local", "slurm", "pbs"]), words=st.lists(st.builds("{}={}".format, SITE_KEYS, ARGUMENTS)))
def test_site_words(name, words):
    attempt("site.key=value words", lambda: site(name, tuple(words)))


@pytest.fixture(scope="module")
def pack(folder) -> dict:
    path = put(folder, "study.yaml", json.dumps({"targets": TARGETS[:2], "samplers": SAMPLERS[:2]}).encode())
    return pack_record(pack_of_study(compose_study(path, (), {"store_root": str(folder / "store")}), 1))


@given(data=st.data())
def test_pack_files(folder, pack, data):
    content = json.dumps(data.draw(mutated(st.just(pack)))).encode()
    if data.draw(st.booleans()):
        content = data.draw(damaged(st.just(json.dumps(pack).encode()), st.binary(max_size=64)))
    path = put(folder, "pack.json", content)
    attempt("pack files", lambda: describe_pack(read_pack(path)))


BUILDS = [compose_build_cfg({k: v for k, v in entry.items() if k != "sweep"}) for entry in TARGETS]
SAMPLES = [compose_sample_cfg("tgt_0123456789ab", {"name": name}) for name in SAMPLE_SCHEMAS]


@given(cfg=st.sampled_from(BUILDS), data=st.data())
def test_stored_targets(folder, cfg, data):
    text = to_yaml(cfg).encode()
    path = put(
        folder, "config.yaml", data.draw(damaged(st.just(text), st.binary()) | as_yaml(mutated(st.just(asdict(cfg)))))
    )
    attempt("stored configurations of targets", lambda: target_id_for(load_build_config(path)))


@given(cfg=st.sampled_from(SAMPLES), data=st.data())
def test_stored_runs(folder, cfg, data):
    text = to_yaml(cfg).encode()
    path = put(
        folder, "config.yaml", data.draw(damaged(st.just(text), st.binary()) | as_yaml(mutated(st.just(asdict(cfg)))))
    )
    attempt("stored configurations of runs", lambda: Run.of(load_sample_config(path)).run_id)
