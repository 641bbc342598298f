"""Targets on disk: what is written is what is read, and damage is told."""

import hashlib
import io
import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from lambda_hat.config import (
    DataConfig,
    DlnBuild,
    DlnTarget,
    MlpBuild,
    ModelConfig,
    MonomialBuild,
    MonomialSumBuild,
    QuadraticBuild,
    RuntimeConfig,
    TrainingConfig,
)
from lambda_hat.errors import CorruptArtifact, TargetNotBuilt
from lambda_hat.id_utils import target_id_for
from lambda_hat.omegaconf_support import load_build_config
from lambda_hat.store.checksums import META_FORMAT
from lambda_hat.store.layout import read_record, write_record
from lambda_hat.store.publish import write_config
from lambda_hat.targets import build_target, load_target, save_target

MLP = MlpBuild(
    model=ModelConfig(widths=[2]),
    data=DataConfig(n=200, input_dim=2),
    training=TrainingConfig(steps=20, polish_steps=2),
)
CONFIGS = [
    QuadraticBuild(),
    MonomialBuild(),
    MonomialSumBuild(),
    DlnBuild(loss="mse"),
    DlnBuild(target=DlnTarget(widths=[3, 2, 2], data="empirical", n=50), seed=3),
    MLP,
]


@pytest.fixture
def built(tmp_path):
    cfg = DlnBuild()
    directory = tmp_path / "it's a folder"
    target, info = build_target(cfg)
    save_target(directory, target, cfg, info)
    return directory


@pytest.mark.parametrize("cfg", CONFIGS, ids=[cfg.kind + str(cfg.num_data) for cfg in CONFIGS])
def test_round_trip(cfg, tmp_path):
    target, info = build_target(cfg)
    save_target(tmp_path / "a", target, cfg, info)
    again = load_target(tmp_path / "a")[0]
    assert load_build_config(tmp_path / "a" / "config.yaml") == cfg
    for field in ("loss", "population", "n", "dim", "num_data", "loss_at_w_star", "true_llc", "true_multiplicity"):
        assert getattr(again, field) == getattr(target, field), field
    for stored, made in ((again.w_star, target.w_star), (again.data, target.data)):
        assert stored.keys() == made.keys()
        for name, array in made.items():
            assert stored[name].dtype == array.dtype
            np.testing.assert_array_equal(stored[name], array)
    with jax.enable_x64(True):
        whole = again.loss if again.population else lambda params, data: again.loss.full(params, data, 1000)
        assert float(whole(again.w_star, again.data)) == pytest.approx(target.loss_at_w_star, rel=1e-14)

    save_target(tmp_path / "b", *rebuilt(cfg))
    for name in ("params.npz", "data.npz", "config.yaml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_arrays_are_stored_as_numpy_does_and_may_have_any_name(tmp_path):
    cfg = QuadraticBuild()
    target, info = build_target(cfg)
    save_target(tmp_path / "a", target, cfg, info)
    buffer = io.BytesIO()
    np.savez(buffer, **target.data)
    assert (tmp_path / "a" / "data.npz").read_bytes() == buffer.getvalue()

    # `np.savez` has arguments of these names.
    arrays = {"file": np.arange(2.0), "allow_pickle": np.arange(3.0)}
    save_target(tmp_path / "b", replace(target, w_star=arrays), cfg, info)
    again = load_target(tmp_path / "b")[0].w_star
    assert {name: list(array) for name, array in again.items()} == {"file": [0, 1], "allow_pickle": [0, 1, 2]}


def rebuilt(cfg):
    target, info = build_target(cfg)
    return target, cfg, info


def test_meta(built):
    meta = json.loads((built / "meta.json").read_text())
    assert meta["kind"] == "dln" and meta["dim"] == 4 and meta["num_data"] == 0 and meta["population"]
    assert meta["true_llc"] == 1.5 and meta["true_multiplicity"] == 1
    assert meta["target_id"] == target_id_for(DlnBuild())
    for name in ("params.npz", "data.npz", "config.yaml"):
        content = (built / name).read_bytes()
        assert meta["files"][name] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert meta["build"]["seconds"] > 0 and meta["build"]["warnings"] == []
    assert meta["versions"]["jax"] == jax.__version__


def test_a_missing_target(tmp_path):
    with pytest.raises(TargetNotBuilt, match="lambda-hat-build-target --config-yaml"):
        load_target(tmp_path)


@pytest.mark.parametrize("name", ["params.npz", "data.npz"])
def test_a_changed_file(built, name):
    content = bytearray((built / name).read_bytes())
    content[-40] ^= 1
    (built / name).write_bytes(content)
    with pytest.raises(CorruptArtifact) as caught:
        load_target(built)
    message = str(caught.value)
    assert f"{built / name}: not the file that the build wrote: its sha256 is" in message
    # The folder's name has a space and a quote in it: the line has to survive a paste into a shell.
    quoted = str(built).replace("'", "'\"'\"'")
    assert message.endswith(f"--config-yaml '{quoted}/config.yaml' --target-dir '{quoted}'")


def test_a_missing_file(built):
    (built / "data.npz").unlink()
    with pytest.raises(CorruptArtifact, match=r"data\.npz: .* it is missing"):
        load_target(built)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda meta: meta | {"format": 99}, "its format is 99"),
        (lambda meta: {"format": META_FORMAT}, "its kind is None, which this version does not know"),
        (lambda meta: meta | {"data_of": "../../elsewhere"}, "which is no target"),
    ],
)
def test_a_foreign_meta(built, change, reason):
    path = built / "meta.json"
    write_record(path, change(read_record(path)))
    with pytest.raises(CorruptArtifact, match=reason):
        load_target(built)


def test_an_edited_meta(built):
    path = built / "meta.json"
    path.write_text(path.read_text().replace('"n": 1000', '"n": 1001'))
    with pytest.raises(CorruptArtifact, match=r"meta\.json: .* its checksum does not fit"):
        load_target(built)


@pytest.mark.parametrize("change", ["seed: 1\n", "nonsense: 1\n", "{", "\0"])
def test_a_changed_configuration(built, change):
    """It decides the loss, and with it every number."""
    path = built / "config.yaml"
    path.write_text(path.read_text().replace("seed: 0\n", change))
    with pytest.raises(CorruptArtifact, match=r"config\.yaml: not the file that the build wrote"):
        load_target(built)


def test_other_cores_are_no_other_target(built):
    """A second driver may have written them while the first one built."""
    write_config(built, DlnBuild(runtime=RuntimeConfig(cores_per_rank=12)))
    assert load_target(built)[0].dim == 4


def test_half_a_meta(built):
    (built / "meta.json").write_text('{"format": 1')
    with pytest.raises(CorruptArtifact, match=r"meta\.json"):
        load_target(built)
