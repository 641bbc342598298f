"""The studies of the gallery at small size: they run, their pictures are drawn, and what is known exactly is found."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from docs.gallery import superposition
from lambda_hat import estimate_llc, load_results
from lambda_hat.config import plain_yaml
from lambda_hat.workflow_config import compose_study

ROOT = Path(__file__).resolve().parents[1]


def run(script: str, *words: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *words],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize(
    ("corners", "bias", "loss", "llc"), [(5, -0.5, 0.068731, 7.0), (5, 0.08, 0.061786, 8.5), (6, -0.5, 0.048144, 8.5)]
)
def test_polygons_are_critical_points_of_known_llc(corners, bias, loss, llc):
    function, params, _ = superposition.polygon(corners, bias)
    assert float(function(params)) == pytest.approx(loss, abs=1e-6)
    assert superposition.exact_llc(params) == llc
    angles = np.sort(np.arctan2(params["W"][1, :corners], params["W"][0, :corners]))
    np.testing.assert_allclose(np.diff(angles), 2 * np.pi / corners, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("corners", "bias", "llc"), [(5, -0.5, 7.0), (5, 0.08, 8.5), (6, -0.5, 8.5)])
def test_the_estimate_at_a_polygon_is_its_llc(corners, bias, llc):
    loss, params, data = superposition.polygon(corners, bias)
    found = estimate_llc(
        loss, params, data, sampler="hmc", n=10**8, num_draws=1000, gamma=100.0, target_acceptance=0.95,
        precision="float64",
    )  # fmt: skip
    assert abs(found.llc - llc) < 4 * found.std_error and found.std_error < 0.2


def test_the_training_of_the_toy_model_has_two_steps(tmp_path, monkeypatch):
    told = run("docs/gallery/superposition.py", folder=tmp_path)
    losses = [float(line.split()[-1]) for line in told.splitlines()]
    # A plateau near the square, which has no local minimum, and the pentagon that shows the mean of the sixth feature.
    assert all(0.097 < loss < 0.099 for loss in losses[2:5]) and losses[-1] == pytest.approx(0.0618, abs=1e-4)
    monkeypatch.chdir(tmp_path)
    study = compose_study(ROOT / "docs" / "gallery" / "superposition.yaml")
    assert [build.step for build in study.targets.values()] == list(superposition.STEPS)
    assert len(compose_study(ROOT / "docs" / "gallery" / "polygons.yaml").targets) == 3


SHORT = {"num_draws": 20, "num_burnin": 100}
"""Of every sampler: enough to see that a study runs and its picture is drawn."""
CHECKPOINTS = {"superposition": [], "clock": ["--steps", "1", "3"]}
"""Scripts that make checkpoints, and their words at small size."""
PICTURES = ("dln", "step_and_gamma")
"""Scripts that draw a finished study."""
STUDIES = sorted(path.stem for path in (ROOT / "docs" / "gallery").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parsl
@pytest.mark.parametrize("study", STUDIES)
def test_a_study_of_the_gallery_runs_at_small_size_and_is_drawn(study, tmp_path):
    for folder in ("docs", "benchmarks"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    if study in CHECKPOINTS:
        run(f"docs/gallery/{study}.py", *CHECKPOINTS[study], folder=tmp_path)
    file = f"docs/gallery/{study}.yaml"
    samplers = range(len(plain_yaml.read(ROOT / file)["samplers"]))
    words = [f"samplers.{i}.overrides.{key}={value}" for i in samplers for key, value in SHORT.items()]
    run("flows/packed.py", "--experiments", file, *words, folder=tmp_path)
    assert set(load_results(tmp_path / "results")["status"]) == {"finished"}
    picture = f"results/{study}.png" if study in PICTURES else "results/llc.png"
    if study in PICTURES:
        assert run(f"docs/gallery/{study}.py", folder=tmp_path).strip() == picture
    assert (tmp_path / (picture if study not in CHECKPOINTS else "results/llc_training.png")).is_file()


def test_the_page_has_a_command_for_every_study_and_every_script():
    page = (ROOT / "docs" / "gallery.md").read_text()
    commands = {f"python docs/gallery/{name}.py" for name in (*CHECKPOINTS, *PICTURES)}
    commands |= {f"python flows/packed.py --experiments docs/gallery/{name}.yaml" for name in STUDIES}
    blocks = re.findall(r"^```sh\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    assert set("".join(blocks).splitlines()) == commands


def test_the_checkpoints_of_the_clock_are_a_trajectory_of_its_network(tmp_path, monkeypatch):
    run("docs/gallery/clock.py", "--steps", "1", "3", folder=tmp_path)
    monkeypatch.chdir(tmp_path)
    study = compose_study(ROOT / "docs" / "gallery" / "clock.yaml")
    assert [build.step for build in study.targets.values()] == [1, 3]
    with np.load("clock/step_3.npz") as arrays:
        assert sum(array.size for array in arrays.values()) == 105_408
