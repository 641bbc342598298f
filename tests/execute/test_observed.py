"""What a run of a study watched is in its folder, also after an interruption, and can be read back."""

from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import replace
from io import StringIO

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import lambda_hat
from lambda_hat.config import CustomBuild, CustomTarget, ObserveConfig, SgldConfig
from lambda_hat.engine import chunks as chunks_module
from lambda_hat.errors import CorruptArtifact, Paused, TooLarge
from lambda_hat.estimate.convergence import mixing
from lambda_hat.execute import observed_file
from lambda_hat.execute.sampling import sample_into
from lambda_hat.id_utils import Run, target_id_for
from lambda_hat.report.results import collect, runs_in_store
from lambda_hat.status.find_run import find_run
from lambda_hat.status.run_view import view
from lambda_hat.store.drain import Drain
from lambda_hat.store.layout import Store
from lambda_hat.targets import build_target, save_target
from tests.linear_regression import Regression

MODEL = Regression(rows=40, seed=1)
HERE = f"{__name__}:"
OBSERVE = {
    "others": ObserveConfig(data=HERE + "others"),
    "rows": ObserveConfig(rows=8, per="row"),
    "table": ObserveConfig(function=HERE + "table", rows=5),
}


def make():
    return loss, MODEL.w_star, {"x": MODEL.x, "y": MODEL.y}


def loss(w, batch):
    return jnp.mean((batch["y"] - batch["x"] @ w) ** 2) / 2


def others():
    return {"x": MODEL.x[:10] * 2, "y": MODEL.y[:10]}


def table(w, batch):
    return jnp.stack([batch["x"] @ w, batch["y"]], axis=1)


class Stopping(Drain):
    """Asks for the drain at every third border."""

    def __init__(self):
        super().__init__()
        self._borders = 3
        self.listen(self._count)

    def _count(self):
        self._borders -= 1
        return None if self._borders > 0 else "enough for now"


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunks_module, "CHUNK_SECONDS", 1e9)
    monkeypatch.setattr(chunks_module, "MOST_GROWTH", 6)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("runs"))
    build = CustomBuild(target=CustomTarget(factory=HERE + "make"))
    save_target(store.target_dir(target_id_for(build)), *(lambda t, info: (t, build, info))(*build_target(build)))
    return store


@pytest.fixture(scope="module")
def cfg(store):
    (target_id,) = store.target_ids()
    return SgldConfig(target_id=target_id, num_draws=50, num_burnin=20, thin=4, step_size=1e-2, batch_size=None,
                      precond="none", observe=OBSERVE)  # fmt: skip


def sampled(store, cfg):
    run = Run.of(cfg)
    return store.run_dir(*run.key), sample_into(store.run_dir(*run.key), store.target_dir(run.target_id), run)


@pytest.fixture(scope="module")
def finished(store, cfg):
    return sampled(store, cfg)


def test_watching_has_an_id_of_its_own_and_the_same_draws(store, cfg, finished):
    plain, analysis = sampled(store, replace(cfg, observe=None))
    assert plain != finished[0] and not (plain / "observed.nc").exists() and "observed" not in analysis
    one, other = (lambda_hat.load_trace(folder).posterior["loss"].to_numpy() for folder in (plain, finished[0]))
    np.testing.assert_array_equal(one, other)
    assert analysis["llc_mean"] == finished[1]["llc_mean"] and analysis["fge"] == finished[1]["fge"]
    sizes = [note for note in finished[1]["notes"] if note.startswith("observable")]
    assert sizes == [
        "observable rows: 4 chains of 50 draws of 8 values are 6.25 KiB a run",
        "observable table: 4 chains of 50 draws of 10 values are 7.81 KiB a run",
    ]


def test_it_is_read_back(finished):
    folder, analysis = finished
    found = lambda_hat.load_observed(folder)
    assert dict(found.sizes) == {"chain": 4, "draw": 50, "rows_0": 8, "table_0": 5, "table_1": 2}
    assert (found["rows"].dtype, found["others"].dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(found["rows_at_w_star"], MODEL.row_losses(np.zeros(MODEL.dim))[:8], rtol=1e-5, atol=1e-9)
    # The outputs of these rows are linear in w, so that the losses of the rows follow from them.
    residual = found["table"][..., 1] - found["table"][..., 0]
    np.testing.assert_allclose(found["rows"][..., :5], residual**2 / 2, rtol=1e-3, atol=1e-6)
    kept = analysis["observed"]
    assert kept["rows"] == {"shape": [8]} and kept["table"] == {"shape": [5, 2]}
    llc = analysis["n_beta"] * (found["others"].to_numpy() - float(found["others_at_w_star"]))
    assert kept["others"]["llc"] == pytest.approx(llc.mean())
    assert kept["others"]["llc_std_error"] == pytest.approx(mixing(llc).std_error)
    assert found.attrs == {"loss_at_w_star": analysis["loss_at_w_star"], "n_beta": analysis["n_beta"]}


def test_an_interrupted_run_has_the_same_rows(store, cfg, finished, tmp_path, small_chunks):
    whole = lambda_hat.load_observed(finished[0])
    run = Run.of(cfg)
    directory, stops = tmp_path / "run", 0
    while True:
        try:
            sample_into(directory, store.target_dir(run.target_id), run, drain=Stopping())
            break
        except Paused:
            stops += 1
            assert (directory / "checkpoint.npz").is_file() and not (directory / "observed.nc").exists()
    assert stops > 2
    again = lambda_hat.load_observed(directory)
    assert again.equals(whole)
    assert (directory / "observed.nc").read_bytes() == (finished[0] / "observed.nc").read_bytes()


def test_a_damaged_file_is_found(store, cfg, tmp_path, finished):
    run = Run.of(cfg)
    status, damages = store.inspect_run(*run.key, run.digest)
    assert (status, damages) == ("finished", [])
    path = finished[0] / "observed.nc"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(CorruptArtifact, match=r"observed\.nc: damaged: its checksum does not fit"):
            lambda_hat.load_observed(finished[0])
    finally:
        path.write_bytes(content)
    record = json.loads((finished[0] / "analysis.json").read_text())
    assert set(record["files"]) == {"config.yaml", "trace.nc", "observed.nc"}


def test_the_table_and_the_screen_say_what_was_watched(store, cfg, finished):
    table = collect(store, *runs_in_store(store)).to_pylist()
    (row,) = (row for row in table if row["run_dir"] == str(finished[0]))
    assert json.loads(row["cfg.observe"]).keys() == OBSERVE.keys()
    assert json.loads(row["cfg.observe"])["rows"]["rows"] == 8
    console = Console(width=200, file=StringIO())
    console.print(*view(find_run(store.root, [str(finished[0])]), console))
    shown = console.file.getvalue()
    others = finished[1]["observed"]["others"]
    assert f"others: λ̂ {others['llc']:.4g} ± {others['llc_std_error']:.4g}, mean {others['mean']:.4g}" in shown
    assert "rows: [8] values per draw, in observed.nc" in shown
    assert "observe = others, rows, table   (default null)" in shown


def test_rows_for_which_the_disk_has_no_room_are_refused(store, cfg, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(observed_file.shutil, "disk_usage", lambda path: usage(10_000))
    with pytest.raises(
        TooLarge, match=r"observable table: .* 7\.81 KiB a run, and .* has room for 9\.77 KiB, where 14"
    ):
        sample_into(tmp_path / "run", store.target_dir(cfg.target_id), Run.of(cfg))
    assert not list((tmp_path / "run").glob("*.nc"))
