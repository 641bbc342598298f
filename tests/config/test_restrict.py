"""The LLC of some of the parameters, the others held where they are."""

import numpy as np
import pytest

from lambda_hat.config import DlnBuild, DlnTarget, NutsConfig, QuadraticBuild
from lambda_hat.config.parameter_paths import matching_paths
from lambda_hat.errors import ConfigError
from lambda_hat.execute.build import build_into
from lambda_hat.execute.sampling import sample_into
from lambda_hat.id_utils import Run, target_id_for
from lambda_hat.report.results import collect
from lambda_hat.store.layout import Store
from lambda_hat.workflow_config import compose_study

PATHS = ["layers/0/weight", "layers/0/bias", "layers/1/weight"]


def test_patterns_are_globs_over_paths():
    assert matching_paths(["layers/0/*"], PATHS) == PATHS[:2]
    assert matching_paths(["*/weight", "layers/0/bias"], PATHS) == PATHS
    with pytest.raises(
        ConfigError, match=r"restrict: 'layer/0/\*' matches no parameter; the paths are layers/0/weight,"
    ):
        matching_paths(["*", "layer/0/*"], PATHS)


def test_a_pattern_that_matches_nothing_is_refused_with_the_study(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("targets: [{target: dln}]\nsamplers: [{name: nuts, overrides: {restrict: [layers/7/*]}}]\n")
    with pytest.raises(
        ConfigError, match=r"samplers\[0\]: restrict: .* the paths are layers/0/weight, layers/1/weight"
    ):
        compose_study(path)
    path.write_text("targets: [{target: dln}]\nsamplers: [{name: nuts, overrides: {restrict: []}}]\n")
    with pytest.raises(ConfigError, match=r"restrict: got \[\], expected patterns"):
        compose_study(path)


def test_min_dim_counts_what_moves(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "targets: [{target: dln, overrides: {target: {widths: [1, 1, 3]}}}]\n"
        "samplers: [{name: mclmc, overrides: {restrict: [layers/0/*]}}]\n"
    )
    with pytest.raises(ConfigError, match=r"mclmc needs at least 2 parameters, but target .* has 1"):
        compose_study(path)


@pytest.mark.slow
def test_one_layer_of_a_linear_network_is_a_regular_model(tmp_path):
    """With the other layer held the loss is a quadratic, whose exact answer is the sum of h / (2 (h + gamma))."""
    build = DlnBuild(target=DlnTarget(widths=[3, 2, 4]))
    store = Store(tmp_path)
    target_id = target_id_for(build)
    target, _ = build_into(store.target_dir(target_id), build)
    for layer in (0, 1):
        cfg = NutsConfig(
            target_id=target_id, num_draws=2000, target_acceptance=0.9, restrict=[f"layers/{layer}/*"], prior_radius=2.0
        )
        run, targets = Run.of(cfg), {target_id: build}
        pending = collect(store, [run], targets).to_pylist()[0]
        sample_into(store.run_dir(*run.key), store.target_dir(target_id), run)
        finished = collect(store, [run], targets).to_pylist()[0]
        for row in (pending, finished):
            assert row["dim"] == (6, 8)[layer]
            assert row["gamma"] == row["dim"] / 4
            assert row["true_llc"] is None and row["true_llc_t"] is None and row["true_multiplicity"] is None
        # The expected loss is |W1 W0 - W_star|_F^2 / 2: in W0 its curvature is W1^T W1, in W1 the W0 W0^T.
        first, second = target.w_star["layers/0/weight"], target.w_star["layers/1/weight"]
        curvature, copies = (second.T @ second, 3) if layer == 0 else (first @ first.T, 4)
        h = finished["n_beta"] * np.linalg.eigvalsh(curvature)
        exact = copies * np.sum(h / (2 * (h + finished["gamma"])))
        assert finished["verdict"] == "ok"
        assert abs(finished["llc_mean"] - exact) < 3 * finished["llc_std_error"] < 0.15 * exact


def test_a_restriction_to_everything_is_the_whole():
    from lambda_hat.targets import build_target

    target, _ = build_target(QuadraticBuild())
    assert target.restricted(["*"]) is target
