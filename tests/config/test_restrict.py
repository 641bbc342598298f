"""The LLC of some of the parameters, the others held where they are."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from lambda_hat import estimate_llc
from lambda_hat.config import DlnBuild, DlnTarget, NutsConfig, QuadraticBuild, SgldConfig
from lambda_hat.config.parameter_paths import moving_parts
from lambda_hat.engine.chunks import Chunks
from lambda_hat.engine.run import target_spec
from lambda_hat.errors import ConfigError
from lambda_hat.execute.build import build_into
from lambda_hat.execute.sampling import sample_into
from lambda_hat.id_utils import Run, target_id_for
from lambda_hat.report.results import collect
from lambda_hat.samplers import lane_key, make_lane, sample, sample_lanes
from lambda_hat.store.layout import Store
from lambda_hat.targets import build_target
from lambda_hat.targets.base import all_parameters
from lambda_hat.targets.custom import target_of
from lambda_hat.workflow_config import compose_study

SHAPES = {"layers/0/weight": (4, 6), "layers/0/bias": (4,), "layers/1/weight": (2, 4), "scale": ()}
PATHS = list(SHAPES)


def parts(*patterns):
    """What moves, as the pairs of start and stop along every axis; None for a whole array."""
    found = moving_parts(patterns, SHAPES)
    return {path: boxes and [list(zip(*box, strict=True)) for box in boxes] for path, boxes in found.items()}


def test_patterns_are_globs_over_paths():
    assert parts("layers/0/*") == dict.fromkeys(PATHS[:2])
    assert parts("*/weight", "layers/0/bias") == dict.fromkeys(PATHS[:3])
    assert list(parts("scale", "layers/[01]/weight", "scale")) == [PATHS[0], *PATHS[2:]]
    assert parts("layers/[01]/*") == dict.fromkeys(PATHS[:3])


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["layers/0/weight[:, 0:2]"], {PATHS[0]: [[(0, 4), (0, 2)]]}),
        (["layers/0/weight[1]"], {PATHS[0]: [[(1, 2), (0, 6)]]}),
        (["layers/0/weight[-2:, -1]"], {PATHS[0]: [[(2, 4), (5, 6)]]}),
        (["layers/*/weight[1:2]"], {PATHS[0]: [[(1, 2), (0, 6)]], PATHS[2]: [[(1, 2), (0, 4)]]}),
        (["layers/0/weight[0]", "layers/0/bias"], {PATHS[0]: [[(0, 1), (0, 6)]], PATHS[1]: None}),
        (["layers/0/bias[0:2]", "layers/0/bias[2:]"], {PATHS[1]: None}),
        (["layers/0/bias[0:2]", "layers/0/*"], {PATHS[0]: None, PATHS[1]: None}),
        (["layers/0/bias[:]"], {PATHS[1]: None}),
    ],
)
def test_an_index_takes_a_part_of_an_array(patterns, expected):
    assert parts(*patterns) == expected


@pytest.mark.parametrize(
    "patterns", [["[0:2, 1:4]", "[1:3, 0:2]"], ["[0]", "[:, 0]"], ["[0:3]", "[1:2]", "[2:4, 5]"], ["[0]", "[3]"]]
)
def test_parts_of_one_array_are_united(patterns):
    """Every entry is in exactly one of the boxes where it is in any pattern."""
    (boxes,) = moving_parts([f"layers/0/weight{index}" for index in patterns], SHAPES).values()
    count, wanted = np.zeros((4, 6), int), np.zeros((4, 6), bool)
    for box in boxes:
        count[box.slices] += 1
    for index in patterns:
        wanted[eval(f"np.s_{index}")] = True
    assert np.array_equal(count, wanted)


@pytest.mark.parametrize(
    ("pattern", "refused"),
    [
        ("layer/0/*", r"matches no parameter; the paths are layers/0/weight, "),
        ("layers/0/weights[0:1]", r"matches no parameter; the paths are layers/0/weight, "),
        ("layers/0/weight[0:5]", r"'0:5' does not fit, because layers/0/weight has the shape \(4, 6\)"),
        ("layers/0/weight[:, -7]", r"'-7' does not fit, because layers/0/weight has the shape \(4, 6\)"),
        ("layers/0/weight[:, 2:2]", r"'2:2' is empty, because layers/0/weight has the shape \(4, 6\)"),
        ("layers/0/weight[::2]", r"got '::2' for an axis, expected start:stop, a number, or : for the whole axis"),
        ("layers/0/*[:, 0]", r"an index of length 2, but layers/0/bias has the shape \(4,\)"),
        ("scale[0]", r"an index of length 1, but scale has the shape \(\)"),
    ],
)
def test_a_pattern_that_takes_nothing_is_refused(pattern, refused):
    with pytest.raises(ConfigError, match=rf"^restrict: {re.escape(repr(pattern))}:? {refused}"):
        moving_parts(["scale", pattern], SHAPES)


def test_a_pattern_that_matches_nothing_is_refused_with_the_study(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("targets: [{target: dln}]\nsamplers: [{name: nuts, overrides: {restrict: [layers/7/*]}}]\n")
    with pytest.raises(
        ConfigError, match=r"samplers\[0\]: restrict: .* the paths are layers/0/weight, layers/1/weight"
    ):
        compose_study(path)
    path.write_text("targets: [{target: dln}]\nsamplers: [{name: nuts, overrides: {restrict: ['*/0/*[9]']}}]\n")
    with pytest.raises(
        ConfigError, match=r"samplers\[0\]: restrict: .*: '9' does not fit, because layers/0/weight has"
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


@pytest.fixture(scope="module")
def regression():
    """Linear regression with noise, whose weight has four columns: loss, weight, data, and the matrix of its inputs."""
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2000, 6)), rng.normal(size=(6, 4))
    y = x @ weight + rng.normal(size=(2000, 4))

    def loss(params, batch):
        return jnp.mean(jnp.sum((batch["x"] @ params["w"] - batch["y"]) ** 2, axis=-1)) / 2

    return loss, {"w": np.linalg.lstsq(x, y, rcond=None)[0]}, {"x": x, "y": y}, x.T @ x / len(x)


@pytest.mark.parametrize(
    ("restrict", "rows_by_column"),
    [("w[0:3, 1]", [[0, 1, 2]]), (["w[:, 0:2]", "w[5]"], [range(6), range(6), [5], [5]])],
    ids=["a part", "a union"],
)
def test_a_part_of_an_array_has_its_exact_llc(regression, restrict, rows_by_column):
    loss, params, data, inputs = regression
    found = estimate_llc(loss, params, data, sampler="hmc", restrict=restrict, num_draws=1500)
    h = [found.n_beta * np.linalg.eigvalsh(inputs[np.ix_(rows, rows)]) for rows in rows_by_column]
    exact = sum(np.sum(part / (2 * (part + found.gamma))) for part in h)
    assert found.dim == sum(map(len, rows_by_column))
    assert found.verdict == "ok"
    assert abs(found.llc - exact) < 3 * found.std_error < 0.1 * exact


def test_what_does_not_move_stays(regression):
    loss, params, data, _ = regression
    target = target_of(loss, params, data, None).restricted(["w[0:3, 1]", "w[5]"])
    moved = {name: jnp.asarray(array) + 1 for name, array in target.w_star.items()}
    difference = all_parameters(moved, target.held, target.starts)["w"] - params["w"]
    expected = np.zeros((6, 4))
    expected[0:3, 1] = expected[5] = 1
    np.testing.assert_allclose(difference, expected, atol=1e-6)


def test_a_part_is_told_from_a_parameter_whose_name_looks_like_one():
    arrays = {name: np.full(3, value) for name, value in [("w", 1.0), ("w#0", 2.0), ("w[0:1]", 3.0)]}
    rows = np.arange(6.0)[:, None]
    whole = target_of(lambda p, b: jnp.mean(b * sum(jnp.sum(w**2) for w in p.values())), arrays, rows, None)
    target = whole.restricted(["w[[]0:1]", "w#0", "w[1:3]"])
    assert target.dim == 3 + 3 + 2
    found = all_parameters(target.w_star, target.held, target.starts)
    assert {name: np.asarray(array).tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in arrays.items()
    }


def test_parts_of_one_shape_share_their_programs(regression):
    loss, params, data, _ = regression
    whole = target_of(loss, params, data, None)
    cfg = SgldConfig(num_draws=20, num_burnin=20, num_chains=2, step_size=1e-3)
    lanes = [make_lane(whole.restricted([f"w[{row}]"]), cfg, 5) for row in range(4)]
    assert len({lane_key(lane) for lane in lanes}) == 1
    assert lane_key(lanes[0]) != lane_key(make_lane(whole.restricted(["w[:, 0]"]), cfg, 5))
    alone = [sample(lane.target, cfg, 5) for lane in lanes]
    assert [draws.programs_compiled for draws in alone[1:]] == [0, 0, 0]
    assert len({draws.growth[0, -1] for draws in alone}) == 4
    for draws, expected in zip(sample_lanes(lanes, Chunks(lanes=4)), alone, strict=True):
        np.testing.assert_allclose(draws.distance, expected.distance, rtol=1e-3)


def test_runs_on_the_same_part_share_its_arrays(regression):
    loss, params, data, _ = regression
    whole = target_of(loss, params, data, None)
    cfg = SgldConfig(num_draws=20, num_chains=2)

    def has_one_target(*patterns):
        return target_spec([make_lane(whole.restricted([pattern]), cfg, 5) for pattern in patterns]).one_target

    assert has_one_target("w[:, 1]", "w[:, 1]")
    assert not has_one_target("w[:, 1]", "w[:, 2]")
    assert not has_one_target("w[0:1]", "w[0:2]")


def test_a_study_sweeps_over_parts(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "targets: [{target: dln, overrides: {target: {widths: [4, 3, 4]}}}]\n"
        "samplers: [{name: hmc, sweep: {restrict: [['layers/0/weight[0]'], ['layers/0/weight[1:3]']]}}]\n"
    )
    study = compose_study(path)
    assert [cfg.restrict for cfg in (run.cfg for run in study.runs)] == [
        ["layers/0/weight[0]"],
        ["layers/0/weight[1:3]"],
    ]


def test_a_restriction_to_everything_is_the_whole():
    target, _ = build_target(QuadraticBuild())
    assert target.restricted(["*"]) is target
