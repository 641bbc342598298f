"""Runs side by side in one program give what each gives by itself."""

import shutil
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from lambda_hat import samplers
from lambda_hat.config import HmcConfig, MlpBuild, QuadraticBuild, QuadraticTarget, SgldConfig
from lambda_hat.engine import chunks as chunks_module
from lambda_hat.engine import width
from lambda_hat.engine.chains import Chains
from lambda_hat.engine.chunks import Chunks, read_checkpoint
from lambda_hat.engine.run import Programs
from lambda_hat.engine.windows import NO_WINDOW
from lambda_hat.errors import Paused, TooLarge
from lambda_hat.estimate.verdict import summarize
from lambda_hat.programs import compiling as programs
from lambda_hat.samplers import lane_key, make_lane, measured_width, sample, sample_lanes, sampler_of
from lambda_hat.store.drain import Drain
from lambda_hat.targets import build_target
from tests.engine.runs import runs_of_every_kind

SMALL = {"num_chains": 3, "num_draws": 40, "num_burnin": 45, "thin": 5}
RUNS = runs_of_every_kind(**SMALL)
TOLERANCE = 1e-3
"""Of recorded losses, relative to the largest: what rounding grows to on a quadratic, where no chain is chaotic."""


def lanes_of(target, cfgs):
    return [make_lane(target, cfg, identity) for identity, cfg in enumerate(cfgs)]


def assert_like(one, other, tolerance=TOLERANCE):
    """Equal but for rounding."""
    for field in ("loss", "growth", "distance", "acceptance", "mala_acceptance", "step_size"):
        mine, theirs = getattr(one, field), getattr(other, field)
        assert (mine is None) == (theirs is None), field
        if mine is not None:
            scale = np.max(np.abs(theirs[np.isfinite(theirs)]), initial=1e-300)
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance * scale, err_msg=field)
    np.testing.assert_array_equal(one.chain_alive, other.chain_alive)
    for field in ("num_divergent", "num_transitions", "num_gradients", "fge", "notes"):
        assert getattr(one, field) == getattr(other, field), field


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_lane_is_the_run_by_itself(target, name):
    cfgs = [replace(RUNS[name], seed=seed) for seed in range(4)]
    cfgs[2] = replace(cfgs[2], gamma=3.0, beta=0.5, jitter=0.01)
    together = sample_lanes(lanes_of(target("quadratic"), cfgs), Chunks(lanes=4))
    for identity, (cfg, lane) in enumerate(zip(cfgs, together, strict=True)):
        assert_like(lane, sample(target("quadratic"), cfg, identity))
    assert len({draws.loss[0, -1] for draws in together}) == 4


@pytest.mark.parametrize("name", ["sgld, learning", "sghmc", "hmc", "mclmc"])
def test_what_is_done_now_and_then_is_not_done_at_every_transition_of_lanes(target, name):
    """A `lax.cond` whose predicate has an axis of lanes would become a select of both branches."""

    def branches(lanes: int) -> int:
        cfgs = [replace(RUNS[name], step_size=None) if "sg" in name else RUNS[name]] * lanes
        made = Programs(sampler_of(cfgs[0]), lanes_of(target("quadratic"), cfgs), Chunks(lanes=lanes))
        advance = Chains(sampler_of(cfgs[0]), made._spec, made._target).advance
        with jax.enable_x64(cfgs[0].precision == "float64"):
            args = (made.numbers, made.result_of("begin"), NO_WINDOW, np.uint32(9))
            return str(jax.make_jaxpr(advance)(*args)).count(" cond[")

    assert branches(1) == branches(3) > 0


@pytest.mark.slow
def test_lanes_may_be_of_several_targets_of_one_shape():
    spectra = [[1.0, 2.0, 3.0, 4.0], [4.0, 1.0, 1.0, 0.5], [1.0, 1.0, 1.0, 1.0]]
    targets = [build_target(QuadraticBuild(target=QuadraticTarget(dim=4, eigenvalues=e)))[0] for e in spectra]
    cfg = RUNS["sgld, learning"]
    lanes = [make_lane(target, cfg, 5) for target in targets]
    assert len({lane_key(lane) for lane in lanes}) == 1
    for lane, draws in zip(lanes, sample_lanes(lanes, Chunks(lanes=3)), strict=True):
        assert_like(draws, sample(lane.target, cfg, 5))


@pytest.mark.slow
def test_on_a_network_lanes_agree_within_their_errors():
    """HMC's trajectories there are chaotic: rounding makes other draws of the same law."""
    network, _ = build_target(MlpBuild())
    for cfg, closely in (
        (SgldConfig(num_chains=4, num_draws=100, num_burnin=100, step_size=1e-6, batch_size=32), True),
        (HmcConfig(num_chains=4, num_draws=100, num_burnin=100, target_acceptance=0.9), False),
    ):
        cfgs = [replace(cfg, seed=seed) for seed in range(3)]
        together = sample_lanes(lanes_of(network, cfgs), Chunks(lanes=3))
        for identity, (one, lane) in enumerate(zip(cfgs, together, strict=True)):
            alone = sample(network, one, identity)
            if closely:
                assert_like(lane, alone)
            n_beta = network.n / np.log(network.n)
            mine, theirs = (summarize(d, network.loss_at_w_star, n_beta, 1.0, network.dim) for d in (lane, alone))
            errors = np.hypot(mine.llc_std_error, theirs.llc_std_error)
            assert abs(mine.llc_mean - theirs.llc_mean) < 4 * errors


def test_a_lane_whose_chains_have_died_stays_as_it_is(target):
    dying = {"num_chains": 2, "num_draws": 60, "num_burnin": 30, "thin": 20}
    cfgs = [SgldConfig(**dying, step_size=step, seed=3) for step in (1e-3, 1e3, 2e-3, 1e12)]
    together = sample_lanes(lanes_of(target("w1^2 w2^2"), cfgs), Chunks(lanes=4))
    for identity, (cfg, lane) in enumerate(zip(cfgs, together, strict=True)):
        assert_like(lane, sample(target("w1^2 w2^2"), cfg, identity))
    assert [draws.chain_alive.any() for draws in together] == [True, False, True, False]
    whole = 2 * (30 + 60 * 20)
    assert [draws.num_gradients for draws in together][::2] == [whole, whole]
    assert together[1].num_gradients < whole / 4 and "non-finite" in together[1].notes[-1]


def test_lanes_that_are_left_over_change_nothing(target):
    cfgs = [replace(RUNS["sgld"], seed=seed) for seed in range(3)]
    lanes = lanes_of(target("quadratic"), cfgs)
    padded = sample_lanes([*lanes, lanes[-1]], Chunks(lanes=4))[:3]
    for one, other in zip(padded, sample_lanes(lanes, Chunks(lanes=3)), strict=True):
        assert_like(one, other)


class Stopping(Drain):
    """Asks for the drain at the border of the given number."""

    def __init__(self, border):
        super().__init__()
        self._borders = border
        self.listen(self._count)

    def _count(self):
        self._borders -= 1
        return None if self._borders > 0 else "enough for now"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgld, rmsprop", "hmc"])
def test_lanes_in_pieces_are_the_lanes_in_one_piece_and_each_can_go_on_alone(target, tmp_path, monkeypatch, name):
    monkeypatch.setattr(chunks_module, "CHUNK_SECONDS", 1e9)
    monkeypatch.setattr(chunks_module, "MOST_GROWTH", 7)
    cfgs = [replace(RUNS[name], seed=seed) for seed in range(3)]
    lanes = lanes_of(target("quadratic"), cfgs)
    whole = sample_lanes(lanes, Chunks(lanes=3))
    paths = [tmp_path / f"checkpoint {seed}.npz" for seed in range(3)]
    phases = set()
    for _ in range(100):
        chunks = Chunks(*paths, drain=Stopping(3))
        chunks.load()
        try:
            found = sample_lanes(lanes, chunks)
            break
        except Paused:
            kept = [read_checkpoint(path) for path in paths]
            (step,) = {lane.step for lane in kept}
            phase = "adapt" if step < SMALL["num_burnin"] else "sample"
            if phase not in phases:
                phases.add(phase)
                alone = Chunks(Path(shutil.copy(paths[1], tmp_path / "of one lane.npz")))
                assert alone.load()
                assert_like(sample_lanes(lanes[1:2], alone)[0], whole[1])
    assert phases == {"adapt", "sample"}
    for one, other in zip(found, whole, strict=True):
        np.testing.assert_array_equal(one.loss, other.loss)
        assert one.num_gradients == other.num_gradients and one.fge == other.fge


def test_lanes_in_different_places_are_not_mixed(target, tmp_path):
    lanes = lanes_of(target("quadratic"), [RUNS["sgld"]] * 2)
    paths = [tmp_path / "one.npz", tmp_path / "other.npz"]
    with pytest.raises(Paused):
        sample_lanes(lanes[:1], Chunks(paths[0], drain=Stopping(2)))
    with pytest.raises(ValueError, match="same place"):
        Chunks(*paths).load()


def test_only_runs_of_one_program_have_a_key_in_common(target):
    base = RUNS["sgld"]

    def key(cfg, name="quadratic"):
        return lane_key(make_lane(target(name), cfg, 0))

    for same in ({"seed": 7}, {"step_size": 2.0}, {"gamma": 2.0}, {"beta": 0.1}, {"jitter": 0.5}, {"damping": 3.0}):
        assert key(replace(base, **same)) == key(base)
    for other in ({"thin": 6}, {"num_burnin": 50}, {"step_size": None}, {"num_draws": 41}, {"precision": "float64"}):
        assert key(replace(base, **other)) != key(base)
    assert key(base, "w1^2 w2^2") != key(base)
    assert key(RUNS["hmc"]) != key(base)


def test_what_lanes_spend_is_shared_between_them(target, monkeypatch):
    monkeypatch.setattr(programs, "_programs", OrderedDict())
    cfgs = [replace(RUNS["sgld"], seed=seed, num_draws=43) for seed in range(4)]
    together = sample_lanes(lanes_of(target("quadratic"), cfgs), Chunks(lanes=4))
    assert len({draws.seconds_compile for draws in together}) == 1
    assert together[0].seconds_compile > 0 and together[0].seconds_sample > 0


@pytest.mark.parametrize(
    ("seconds", "best"),
    [({1: 1.0, 4: 0.95}, 1), ({1: 1.0, 4: 0.5, 6: 0.46}, 4), ({1: 1.0, 4: 0.5, 6: 0.4}, 6)],
)
def test_a_wider_program_is_taken_where_a_lane_is_worth_it(target, monkeypatch, seconds, best):
    monkeypatch.setattr(samplers, "_widths", {})
    monkeypatch.setattr(width, "seconds_per_transition", lambda sampler, lanes, *_: seconds[len(lanes)])
    cfgs = [replace(RUNS["sgld"], seed=seed) for seed in range(6)]
    assert measured_width(lanes_of(target("quadratic"), cfgs)) == best


def test_the_width_is_within_memory_and_single_where_costs_vary(target):
    cfgs = [replace(RUNS["sgld"], seed=seed, num_draws=47) for seed in range(6)]
    nuts = lanes_of(target("quadratic"), [replace(RUNS["nuts"], seed=seed) for seed in range(6)])
    assert measured_width(nuts) == 1
    # The losses of 2,000 draws of 3 chains are 24 kB a lane.
    large = [replace(cfg, num_draws=2000, thin=1, step_size=None) for cfg in cfgs]
    with pytest.raises(TooLarge):
        sample_lanes(lanes_of(target("quadratic"), large), Chunks(lanes=6, memory=60_000))
    assert measured_width(lanes_of(target("quadratic"), large), memory=60_000) == 1
