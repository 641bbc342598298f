"""The shared search: which setting of a grid is taken for all targets, beside rows that are known."""

import io
import math

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from flows.tune import parse_options, starts_of
from lambda_hat.errors import ConfigError
from lambda_hat.tuning.findings import comment_of, print_shared
from lambda_hat.tuning.surface import SharedSearch, by_sampler
from lambda_hat.tuning.surface_picture import draw_shared
from lambda_hat.workflow_config import compose_study

TARGETS = "  - {target: radial, sweep: {target.dim: [2, 3, 4]}}\n"


def search_of(folder, samplers: str) -> SharedSearch:
    path = folder / "study.yaml"
    path.write_text(f"targets:\n{TARGETS}samplers: {samplers}\n")
    (own,) = by_sampler(starts_of(compose_study(path), None, quick=False))
    return SharedSearch(own)


def row_of(run, verdict="ok", pull=0.2, **more):
    """The row of a run on a target of dim parameters in equilibrium."""
    return {
        "status": "finished", "verdict": verdict, "llc_mean": 1.0, "temperature": 1.0, "degree": 2.0,
        "localisation": pull, "growth": 1 - pull, "run_id": run.run_id, "reason": None, **more,
    }  # fmt: skip


def ended(search: SharedSearch, row) -> SharedSearch:
    """The search after its runs, of which `row(run)` gives the rows."""
    known: dict = {}
    pending = {"status": "pending", "reason": "not sampled yet"}
    wanted = search.propose(lambda runs: [known.get(run.key, pending) for run in runs])
    assert len(wanted) == len(search.settings) * len(search.targets)
    known |= {run.key: row(run) for run in wanted}
    assert search.propose(lambda runs: [known[run.key] for run in runs]) == []
    return search


def test_one_setting_is_surrounded_by_a_grid(tmp_path):
    search = search_of(tmp_path, "[{name: sgld, overrides: {step_size: 0.01, gamma: 5.0}}]")
    assert set(search.keys) == {"gamma", "beta", "step_size"} and len(search.settings) == 3 * 5 * 3
    tried = {key: {values[key] for values in search.settings} for key in search.keys}
    assert tried["gamma"] == {5.0, 50.0, 500.0, 5e3, 5e4}
    assert tried["step_size"] == {0.001, 0.01, 0.1}
    assert None in tried["beta"] and len(tried["beta"]) == 3
    assert {run.cfg.gamma for run in search.first_runs()} == tried["gamma"]
    hmc = search_of(tmp_path, "[{name: hmc, overrides: {beta: 0.2, prior_radius: 1.0}}]")
    assert hmc.settings == [{"beta": 0.2, "prior_radius": 1.0}]


def test_several_settings_of_the_study_are_the_ones_tried(tmp_path):
    search = search_of(tmp_path, "[{name: hmc, sweep: {gamma: [1.0, 30.0], beta: [0.1, 0.2]}}]")
    assert [(v["gamma"], v["beta"]) for v in search.settings] == [(1.0, 0.1), (1.0, 0.2), (30.0, 0.1), (30.0, 0.2)]


def test_the_setting_under_which_the_loss_grows_most_where_it_is_ok_is_taken(tmp_path):
    """gamma 1 is ok on one target, 10 on all three with a share of .3, 100 on all with .9; 1000 on two with .1."""
    search = search_of(tmp_path, "[{name: hmc, sweep: {gamma: [1.0, 10.0, 100.0, 1000.0]}}]")
    _, second, third = search.targets
    bad = {1.0: (second, third), 10.0: (), 100.0: (), 1000.0: (third,)}
    pull = {1.0: 0.1, 10.0: 0.3, 100.0: 0.9, 1000.0: 0.1}

    def row(run):
        gamma = run.cfg.gamma
        return row_of(run, "not_local" if run.target_id in bad[gamma] else "ok", pull[gamma])

    ended(search, row)
    assert [search.num_ok(index) for index in range(4)] == [1, 3, 3, 2]
    assert [search.total_growth(index) for index in range(4)] == pytest.approx([0.9, 2.1, 0.3, 1.8])
    assert search.winner == 1 and search.is_within
    assert search.found == {"name": "hmc", "overrides": {"gamma": 10.0}}
    assert search.failures(3) == {"|w|^4 d=4": "not_local"}
    assert comment_of(search) == "hmc, gamma 10: ok on 3 of 3 targets"


def test_where_it_fails_is_said(tmp_path):
    search = search_of(tmp_path, "[{name: hmc, sweep: {gamma: [1.0, 10.0]}}]")
    last = list(search.targets)[-1]
    unfinished = io.StringIO()
    print_shared([search], Console(file=unfinished, width=120))
    assert unfinished.getvalue() == "", "an interrupted search has no table yet"
    ended(search, lambda run: row_of(run, "not_a_minimum" if run.target_id == last else "ok", llc_mean=run.cfg.gamma))
    stream = io.StringIO()
    print_shared([search], Console(file=stream, width=120))
    told = stream.getvalue()
    assert "it does not hold on |w|^4 d=4: not_a_minimum" in told
    assert "2 of 3" in told
    assert comment_of(search).endswith("ok on 2 of 3 targets; on |w|^4 d=4: not_a_minimum")


def test_nothing_ok_is_no_setting(tmp_path):
    search = ended(search_of(tmp_path, "[{name: hmc}]"), lambda run: row_of(run, "unmixed", degree=math.nan))
    assert search.winner is None and not search.is_within
    assert "no setting has the verdict ok" in search.why_none


def test_failed_and_blocked_runs_count_as_not_ok(tmp_path):
    search = search_of(tmp_path, "[{name: hmc, sweep: {gamma: [1.0, 10.0]}}]")
    first = next(iter(search.targets))
    none = dict.fromkeys(("verdict", "llc_mean", "temperature", "degree", "localisation", "growth"))

    def row(run):
        if run.target_id == first:
            return {"status": "blocked", "reason": "its target could not be built: no", **none}
        return row_of(run) if run.cfg.gamma == 10.0 else {"status": "failed", "reason": "no", **none}

    ended(search, row)
    assert search.lost is None and [search.num_ok(index) for index in (0, 1)] == [0, 2]
    assert search.failures(1) == {"|w|^4 d=2": "blocked"}
    lost = search_of(tmp_path, "[{name: hmc}]")
    lost.propose(lambda runs: [{"status": "blocked", "reason": "its target could not be built: no"} for _ in runs])
    assert lost.lost is not None and "could not be built" in lost.why_none


def test_the_picture_has_three_panels_and_a_frame(tmp_path):
    search = search_of(tmp_path, "[{name: hmc, sweep: {gamma: [1.0, 10.0], beta: [0.1, 0.2, 0.3]}}]")
    assert draw_shared([search], tmp_path / "none.png") is None and not (tmp_path / "none.png").exists()

    def columns_with_a_long_black_line(good: float | None) -> int:
        ended(search, lambda run: row_of(run, "ok" if run.cfg.gamma == good else "heated"))
        path = draw_shared([search], tmp_path / "surface.png")
        image = np.asarray(Image.open(path).convert("RGB"), float)
        assert image.shape[1] > 3 * image.shape[0] / 2
        return np.count_nonzero((image.sum(axis=2) < 60).mean(axis=0) > 0.5)

    # Each of three panels has two frames' sides where the settings of gamma 10 are ok, beside its own border.
    assert columns_with_a_long_black_line(10.0) >= columns_with_a_long_black_line(None) + 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shared", "--quick"], r"--quick and --shared: give one of them"),
        (["--shared", "--trials", "5"], r"--trials: goes without --shared"),
    ],
)
def test_options_that_do_not_go_together(words, message):
    with pytest.raises(ConfigError, match=message):
        parse_options(words)
