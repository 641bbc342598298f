"""LLC along training: one training, a target at each of its checkpoints."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from lambda_hat.config import CheckpointsConfig, DataConfig, HmcConfig, MlpBuild, ModelConfig, TrainingConfig
from lambda_hat.errors import BuildFailed, ConfigError
from lambda_hat.execute.build import build_into
from lambda_hat.execute.sampling import sample_into
from lambda_hat.id_utils import Run, checkpoint_ids, target_id_for, trajectory_id
from lambda_hat.omegaconf_support import load_build_config
from lambda_hat.report.drawing import DRAWN, setting_labels
from lambda_hat.report.results import collect, runs_in_store
from lambda_hat.report.study_report import draw_pictures
from lambda_hat.report.training import _scale, draw_training
from lambda_hat.store.layout import Store, read_json
from lambda_hat.targets import build_checkpoints, build_target, load_target
from lambda_hat.workflow_config import compose_study
from mpi.pack import builders_of, items_of, pack_of_study

CFG = MlpBuild(
    model=ModelConfig(widths=[2]),
    data=DataConfig(n=60, input_dim=2),
    training=TrainingConfig(steps=50),
    checkpoints=CheckpointsConfig(every=20),
)


def write_study(folder: Path, entry: str, samplers: str = "[{name: hmc}]") -> Path:
    path = folder / "study.yaml"
    path.write_text(f"store_root: {folder}/runs\ntargets:\n  - {entry}\nsamplers: {samplers}\n")
    return path


def test_a_study_has_a_target_for_every_checkpoint(tmp_path):
    entry = "{model: tiny, data: small, checkpoints: {every: 20}, overrides: {training: {steps: 50}}}"
    study = compose_study(write_study(tmp_path, entry))
    assert [cfg.step for cfg in study.targets.values()] == [20, 40, 50]
    assert len(study.runs) == 3
    assert len({trajectory_id(cfg) for cfg in study.targets.values()}) == 1
    assert all(target_id_for(cfg) == target_id for target_id, cfg in study.targets.items())
    assert list(checkpoint_ids(next(iter(study.targets.values())))) == list(study.targets)


def test_only_trained_targets_have_checkpoints(tmp_path):
    with pytest.raises(ConfigError, match=r"checkpoints: only targets of kind mlp are trained, this one is dln"):
        compose_study(write_study(tmp_path, "{target: dln, checkpoints: {every: 5}}"))
    with pytest.raises(ConfigError, match=r"step: got 30, expected one of the steps of checkpoints: \[20, 40, 50\]"):
        replace(CFG, step=30)
    with pytest.raises(ConfigError, match=r"step: got 20, expected .* none are asked for"):
        MlpBuild(step=20)
    with pytest.raises(ConfigError, match=r"step: missing, .* \[20, 40, 50\]"):
        build_target(CFG)


def test_checkpoints_lie_on_one_training():
    """A training of fewer checkpoints passes through the same points; they are no restarts."""
    built = {cfg.step: target for cfg, target, _ in build_checkpoints(CFG)}
    sparse = {
        cfg.step: target for cfg, target, _ in build_checkpoints(replace(CFG, checkpoints=CheckpointsConfig(every=40)))
    }
    assert list(sparse) == [40, 50]
    for step, target in sparse.items():
        for name, w in target.w_star.items():
            np.testing.assert_allclose(built[step].w_star[name], w, rtol=1e-12, atol=1e-14)
    assert built[50].loss_at_w_star < built[40].loss_at_w_star < built[20].loss_at_w_star
    assert built[20].data is not None and all(built[20].data[k] is built[50].data[k] for k in ("x", "y"))


def test_one_build_makes_them_all_and_keeps_the_data_once(tmp_path):
    ids = checkpoint_ids(CFG)
    first, *_, last = ids
    build_into(tmp_path / first, ids[first])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(ids)
    assert [t for t in ids if (tmp_path / t / "data.npz").exists()] == [last]
    targets = {t: load_target(tmp_path / t)[0] for t in ids}
    for target_id, target in targets.items():
        np.testing.assert_array_equal(target.data["x"], targets[last].data["x"])
        assert load_build_config(tmp_path / target_id / "config.yaml") == ids[target_id]
        assert read_json(tmp_path / target_id / "meta.json")["build"]["train_loss"] == pytest.approx(
            target.loss_at_w_star
        )


def test_a_checkpoint_by_hand_stands_alone(tmp_path):
    cfg = replace(CFG, step=40)
    build_into(tmp_path / "mine", cfg)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "data.npz").exists()
    assert load_target(tmp_path / "mine")[0].loss_at_w_star > 0


def test_a_training_that_diverges_fails_for_all(tmp_path):
    cfg = replace(CFG, training=TrainingConfig(steps=50, learning_rate=1e308))
    ids = checkpoint_ids(cfg)
    first, *others = ids
    with pytest.raises(BuildFailed, match=r"training diverged: .* lower training.learning_rate"):
        build_into(tmp_path / first, ids[first])
    for target_id in others:
        assert read_json(tmp_path / target_id / "error.json")["type"] == "BuildFailed"
        assert not (tmp_path / target_id / "meta.json").exists()


def test_a_pack_trains_once(tmp_path):
    entry = "{model: tiny, data: small, checkpoints: {every: 20}, overrides: {training: {steps: 50}}}"
    pack = pack_of_study(compose_study(write_study(tmp_path, entry)), cores_per_rank=1)
    builders = builders_of(pack)
    assert len(builders) == 3 and len(set(builders.values())) == 1
    builds = [item for item in items_of(pack, 1) if item.key in builders]
    assert [item.key for item in builds] == [next(iter(builders))]
    assert all(item.needs == builds[0].key for item in items_of(pack, 1) if item not in builds)


@pytest.mark.slow
def test_the_table_and_the_picture_show_the_training(tmp_path):
    store = Store(tmp_path / "runs")
    ids = checkpoint_ids(CFG)
    first = next(iter(ids))
    build_into(store.target_dir(first), ids[first])
    for target_id in ids:
        cfg = HmcConfig(target_id=target_id, num_draws=50, num_burnin=50, num_chains=2, target_acceptance=0.9)
        run = Run.of(cfg)
        sample_into(store.run_dir(*run.key), store.target_dir(target_id), run)
    table = collect(store, *runs_in_store(store))
    assert sorted(table.column("step").to_pylist()) == [20, 40, 50]
    assert set(table.column("trajectory").to_pylist()) == {trajectory_id(ids[first])}
    pictures = draw_pictures(table)
    assert set(pictures) == {"training"}
    assert pictures["training"].png.startswith(b"\x89PNG")


def test_a_far_estimate_does_not_hide_the_others():
    """Along a training the first checkpoints are often hugely negative, and never ok."""
    steps = np.arange(5)
    frame = pd.DataFrame(
        {
            "status": "finished", "trajectory": "one", "target": "net step 0", "sampler": "sgld", "step": steps,
            "llc_mean": [-400.0, 3.0, 3.2, 3.4, 50.0], "llc_std_error": 0.1, "loss_at_w_star": 1.0 / (1 + steps),
            "verdict": ["not_a_minimum", "ok", "ok", "ok", "heated"],
        }
    )  # fmt: skip
    axis = Figure().subplots()
    _scale(axis, frame)
    low, high = axis.get_ylim()
    assert 2.6 < low < 2.8 and 3.6 < high < 3.8
    arrows = {line.get_marker(): list(line.get_xdata()) for line in axis.lines}
    assert arrows == {"v": [0.0], "^": [4.0]}
    whole = Figure().subplots()
    _scale(whole, frame[1:4])
    assert not whole.lines, "nothing lies far outside"
    blank = {name: 1.0 for name in DRAWN if name not in frame}
    assert draw_training(frame.assign(**blank)).png.startswith(b"\x89PNG")


def test_settings_are_told_apart_by_what_differs():
    frame = pd.DataFrame(
        {
            "sampler": ["hmc", "hmc", "hmc", "sgld"],
            "cfg.restrict": [None, ["layers/0/*"], None, None],
            "cfg.seed": [0, 0, 0, 1],
            "cfg.thin": [2, 2, 2, 5],
        }
    )
    labels = setting_labels(frame)
    assert labels.tolist() == ["hmc, restrict none", "hmc, restrict layers/0/*", "hmc, restrict none", "sgld"]
