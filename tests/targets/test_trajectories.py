"""Trajectories of a user's own checkpoints: a pattern, a list or a mapping in a study, and their joint build."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lambda_hat.errors import BuildFailed, ConfigError
from lambda_hat.execute.build import build_into
from lambda_hat.id_utils import Run, target_id_for, trajectory_id
from lambda_hat.omegaconf_support import load_build_config
from lambda_hat.report.results import collect
from lambda_hat.store.layout import Store, read_json
from lambda_hat.store.publish import write_config
from lambda_hat.targets import build_target, load_target
from lambda_hat.workflow_config import compose_study
from mpi.pack import builders_of, items_of, pack_of_study

ROOT = Path(__file__).resolve().parents[2]
MODULE = """
import json
import pathlib
import jax.numpy as jnp
import numpy as np

def loss(params, batch):
    return 0.5 * jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)

def make(noise=0.0):
    with open("calls.txt", "a") as calls:
        calls.write("called\\n")
    x = np.random.default_rng(0).normal(size=(200, 2))
    return loss, {"w": np.zeros(2)}, {"x": x, "y": x @ np.ones(2) + noise}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A module with a factory, and four checkpoints of it, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path(f"{module_of(tmp_path)}.py").write_text(MODULE)
    Path("run").mkdir()
    for step in (0, 5, 100, 1000):
        np.savez(f"run/step_{step}.npz", w=np.ones(2) * (1 - 0.9**step))
    return tmp_path


def module_of(folder: Path) -> str:
    return f"own_{abs(hash(folder.name))}"


def study_of(folder: Path, *checkpoints: str, more: str = "", samplers: str = "[{name: hmc}]"):
    entries = "".join(
        f"  - {{target: {{factory: '{module_of(folder)}:make', checkpoint: {one}}}{more}}}\n" for one in checkpoints
    )
    path = folder / "study.yaml"
    path.write_text(f"store_root: {folder}/runs\ntargets:\n{entries}samplers: {samplers}\n")
    return compose_study(path)


def steps_of(study) -> list[int | None]:
    return [build.step for build in study.targets.values()]


@pytest.mark.parametrize(
    "checkpoint",
    [
        "'run/step_*.npz'",
        "'run/step_*'",
        "'r?n/**/*.npz'",
        "[run/step_1000.npz, run/step_0.npz, run/step_5.npz, run/step_100.npz]",
        "{'0': run/step_0.npz, '5': run/step_5.npz, '100': run/step_100.npz, '1000': run/step_1000.npz}",
    ],
)
def test_a_pattern_a_list_and_a_mapping_are_one_target_per_step(folder, checkpoint):
    study = study_of(folder, checkpoint)
    assert steps_of(study) == [0, 5, 100, 1000]
    assert len({trajectory_id(build) for build in study.targets.values()}) == 1
    assert [build.label for build in study.targets.values()][1] == f"{module_of(folder)}:make() step 5"
    for step, build in zip((0, 5, 100, 1000), study.targets.values(), strict=True):
        assert build.target.checkpoint == str(folder / f"run/step_{step}.npz")
    assert list(study_of(folder, "'run/step_*.npz'").targets) == list(study.targets), "no id depends on how it is said"


def test_the_number_that_varies_is_the_step(folder):
    Path("v2_run7").mkdir()
    for step in (3, 12):
        np.savez(f"v2_run7/at{step:04}.v3.npz", w=np.ones(2) * step)
        Path(f"run/epoch{step}").mkdir()
        np.savez(f"run/epoch{step}/model.npz", w=np.ones(2) * step)
    assert steps_of(study_of(folder, "'v2_run7/at*.v3.npz'")) == [3, 12]
    assert steps_of(study_of(folder, "'run/epoch*/model.npz'")) == [3, 12]
    assert steps_of(study_of(folder, "[run/epoch12/model.npz, run/epoch3/model.npz]")) == [3, 12]


def test_every_point_of_a_sweep_has_its_trajectory(folder):
    study = study_of(folder, "'run/step_*.npz'", more=", sweep: {target.kwargs.noise: [0.0, 0.5]}")
    assert steps_of(study) == [0, 5, 100, 1000] * 2
    assert len({trajectory_id(build) for build in study.targets.values()}) == 2


def test_a_name_tells_trainings_apart(folder):
    np.savez("other.npz", w=np.zeros(2))
    with pytest.raises(ConfigError, match=r"targets\[1\]: .* another file of step 5, .* target.trajectory"):
        study_of(folder, "{'0': run/step_0.npz, '5': run/step_5.npz}", "{'5': other.npz}")
    study = study_of(
        folder, "{'0': run/step_0.npz, '5': run/step_5.npz}", "{'0': run/step_0.npz, '5': other.npz}, trajectory: again"
    )
    assert len(study.targets) == 4
    assert len({trajectory_id(build) for build in study.targets.values()}) == 2
    assert [build.label for build in study.targets.values()][3].endswith("make() again step 5")


def test_one_checkpoint_is_named_by_its_file_and_keeps_its_id(folder):
    study = study_of(folder, "run/step_5.npz")
    (build,) = study.targets.values()
    assert (build.step, trajectory_id(build)) == (None, None)
    assert build.label.endswith("make() at run/step_5.npz")
    Path("copy.npz").write_bytes(Path("run/step_5.npz").read_bytes())
    twice = study_of(folder, "run/step_5.npz", "copy.npz")
    assert len(twice.targets) == 1
    (note,) = [note for note in twice.notes if "copy.npz" in note]
    assert "has the content of" in note and "one target" in note


def test_ids_are_what_they_were_before_there_were_steps():
    """The id of a target with a checkpoint, before the keys step and trajectory."""
    from lambda_hat.config import CustomBuild, CustomTarget

    cfg = CustomBuild(target=CustomTarget(factory="m:f", checkpoint="/a/w.npz", checkpoint_sha256="0" * 64))
    assert target_id_for(cfg) == "tgt_265180c1efd3"


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("'run/stp_*.npz'", r"targets\[0\]: target.checkpoint: no file matches run/stp_\*.npz in "),
        ("[run/step_5.npz, run/../run/step_5.npz]", r"step_5.npz and .*step_5.npz both have the step 5; write"),
        ("[final.npz]", r"the name of final.npz has no step; write a mapping from steps to files"),
        ("[]", r"got 0 files, expected 1 to 1000"),
        ("[3]", r"got 3, expected the name of a file"),
        ("{'x': run/step_5.npz}", r"got the step 'x', expected whole numbers"),
        ("{'1': run/none.npz}", r"none.npz cannot be read"),
        ("run/step_5.npz, step: -1", r"target.step: got -1, expected an integer of at least 0"),
        ("null, step: 5", r"target.step: got 5, expected null, because there is no target.checkpoint"),
    ],
)
def test_what_is_no_trajectory_is_refused(folder, checkpoint, message):
    with pytest.raises(ConfigError, match=message):
        study_of(folder, checkpoint)


def built_together(folder: Path, study) -> Store:
    """The targets of `study`, built by one call."""
    store = Store(folder / "runs")
    first, *others = study.targets
    build_into(store.target_dir(first), study.targets[first], {other: study.targets[other] for other in others})
    return store


def test_one_build_calls_the_factory_once_and_keeps_the_data_once(folder):
    study = study_of(folder, "'run/step_*.npz'")
    store = built_together(folder, study)
    assert Path("calls.txt").read_text().split() == ["called"]
    with_data = [path for path in (folder / "runs/targets").glob("*/data.npz")]
    assert len(with_data) == 1
    for target_id, build in study.targets.items():
        target, cfg = load_target(store.target_dir(target_id))
        assert cfg == build
        alone, _ = build_target(build)
        np.testing.assert_array_equal(target.w_star["w"], 1 - 0.9**build.step)
        np.testing.assert_array_equal(target.data["y"], alone.data["y"])
        assert target.loss_at_w_star == alone.loss_at_w_star
    assert store.inspect_target(next(iter(study.targets)), None, thorough=True)[1] == []


def test_a_checkpoint_that_fails_fails_alone(folder):
    np.savez("run/step_5.npz", other=np.ones(2))
    np.savez("run/step_0.npz", w=np.ones(2) * np.nan)
    study = study_of(folder, "'run/step_*.npz'")
    with pytest.raises(BuildFailed, match=r"finite"):
        built_together(folder, study)
    store, by_step = Store(folder / "runs"), {build.step: t for t, build in study.targets.items()}
    status = {step: store.target_status(t) for step, t in by_step.items()}
    assert status == {0: "failed", 5: "failed", 100: "built", 1000: "built"}
    assert re.search("lacks w", read_json(store.target_dir(by_step[5]) / "error.json")["message"])
    np.savez("run/step_0.npz", w=np.ones(2))
    again = study_of(folder, "'run/step_*.npz'")
    mended = next(t for t, build in again.targets.items() if build.step == 0)
    build_into(store.target_dir(mended), again.targets[mended])
    assert store.target_status(mended) == "built"


def test_a_pack_builds_a_trajectory_as_one_item(folder):
    study = study_of(folder, "'run/step_*.npz'", "{'7': run/step_5.npz}, trajectory: other")
    pack = pack_of_study(study, cores_per_rank=1)
    builders = builders_of(pack)
    assert len(builders) == 5 and len(set(builders.values())) == 2
    assert len([item for item in items_of(pack, 1) if item.key in builders]) == 2


def test_the_command_builds_the_others_beside_it(folder):
    study = study_of(folder, "'run/step_*.npz'")
    store = Store(folder / "runs")
    for target_id, build in study.targets.items():
        write_config(store.target_dir(target_id), build)
    first, *others = study.targets
    config = store.target_dir(first) / "config.yaml"
    assert load_build_config(config) == study.targets[first]

    words = [word for other in others for word in ("--other", other)]
    command = [sys.executable, "-m", "lambda_hat.entrypoints.build_target", "--config-yaml", str(config), *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert all(store.target_status(target_id) == "built" for target_id in study.targets)


def test_rows_carry_the_step(folder):
    study = study_of(folder, "'run/step_*.npz'")
    store = built_together(folder, study)
    rows = collect(store, [Run.of(run.cfg) for run in study.runs], study.targets).to_pylist()
    assert [row["step"] for row in rows] == [0, 5, 100, 1000]
    assert len({row["trajectory"] for row in rows}) == 1 and rows[0]["trajectory"] is not None
    assert json.loads(rows[1]["target_config"])["target"]["step"] == 5
