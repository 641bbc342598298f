"""A run in pieces is the run: stopped at any border and gone on with from its file, to the last bit."""

import random
from dataclasses import replace

import numpy as np
import pytest

from lambda_hat.config import AdjustedMclmcConfig, MlpBuild, QuadraticBuild, QuadraticTarget, SgldConfig
from lambda_hat.engine import chunks as chunks_module
from lambda_hat.engine.chunks import Chunks, Kept, encode, leaves_of, read_checkpoint
from lambda_hat.errors import CorruptArtifact, Paused, TooLarge
from lambda_hat.samplers import sample
from lambda_hat.store.drain import Drain
from lambda_hat.targets import build_target
from tests.engine.runs import runs_of_every_kind

SMALL = {"num_chains": 2, "num_draws": 30, "num_burnin": 45, "thin": 7}
RUNS = runs_of_every_kind(**SMALL) | {
    "sgld, adam always": SgldConfig(**SMALL, precond="adam", adapt="always", step_size=1e-3),
    "adjusted mclmc": AdjustedMclmcConfig(**SMALL),
}


class Stopping(Drain):
    """Asks for the drain at the border of the given number."""

    def __init__(self, border: int):
        super().__init__()
        self._borders = border
        self.listen(self._count)

    def _count(self) -> str | None:
        self._borders -= 1
        return None if self._borders > 0 else "enough for now"


def in_pieces(path, target, cfg, pieces, identity=3):
    """The draws of a run that is stopped at border after border, each time after as many chunks as `pieces` says."""
    phases = []
    for border in pieces:
        kept = Chunks(path, drain=Stopping(border))
        kept.load()
        try:
            return sample(target, cfg, identity, kept), phases
        except Paused as pause:
            assert pause.advanced
            phases.append("adapt" if read_checkpoint(path).step < SMALL["num_burnin"] else "sample")
    raise AssertionError("the run never ended")


def small_chunks(monkeypatch, growth):
    """Chunks of 1, growth, growth^2, ... transitions, whatever the time that they take."""
    monkeypatch.setattr(chunks_module, "CHUNK_SECONDS", 1e9)
    monkeypatch.setattr(chunks_module, "MOST_GROWTH", growth)


def assert_same(one, other):
    for field in ("loss", "growth", "distance", "acceptance", "mala_acceptance", "chain_alive", "step_size"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)
    for field in ("num_divergent", "num_transitions", "num_gradients", "fge", "notes"):
        assert getattr(one, field) == getattr(other, field), field


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_in_pieces_gives_the_bits_of_one_in_one_piece(target, tmp_path, monkeypatch, name):
    whole = sample(target("quadratic"), RUNS[name], identity=3)
    assert np.all(np.isfinite(whole.loss))
    rng = random.Random(name)
    small_chunks(monkeypatch, 7)
    pieces = (rng.randint(2, 3) for _ in range(1000))
    found, phases = in_pieces(tmp_path / "a checkpoint.npz", target("quadratic"), RUNS[name], pieces)
    assert_same(found, whole)
    assert len(phases) > 3
    assert set(phases) == {"adapt", "sample"}


@pytest.mark.slow
def test_the_rows_moments_are_kept_as_well(tmp_path, monkeypatch):
    trained, _ = build_target(MlpBuild())
    cfg = SgldConfig(**SMALL, step_size=1e-5, batch_size=32, singular_fluctuation=True, loss_estimate="paired")
    whole = sample(trained, cfg, identity=3)
    small_chunks(monkeypatch, 4)
    found, phases = in_pieces(tmp_path / "checkpoint.npz", trained, cfg, (3 for _ in range(1000)))
    assert_same(found, whole)
    for one, other in zip(found.row_moments, whole.row_moments, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(phases) > 3


def test_chunks_grow_to_about_a_second_and_never_by_much(target, monkeypatch):
    """Borders are set by what a transition took, on a clock that the test sets."""
    now, sizes = [0.0], []

    class Clock:
        monotonic = staticmethod(lambda: now[0])
        perf_counter = staticmethod(lambda: now[0])

    class Carry:
        def __init__(self, step):
            self.step = step

    def advance(carry, upto):
        sizes.append(int(upto) - carry.step)
        now[0] += sizes[-1] / 128
        return Carry(int(upto))

    monkeypatch.setattr(chunks_module, "time", Clock)
    monkeypatch.setattr(chunks_module.jax, "block_until_ready", lambda carry: carry)
    told = []
    end = Chunks(progress=lambda *where: told.append(where)).drive("any", advance, Carry(0), 0, 1000)
    assert end.step == 1000
    assert sizes == [1, 8, 64, *[128] * 7, 31]
    assert told == [("any", sum(sizes[: i + 1]), 1000) for i in range(len(sizes))]


def test_the_state_is_written_once_in_a_while(target, tmp_path, monkeypatch):
    small_chunks(monkeypatch, 2)
    path = tmp_path / "checkpoint.npz"
    written = []
    original = chunks_module.write_bytes_atomic
    monkeypatch.setattr(
        chunks_module, "write_bytes_atomic", lambda path, data: (written.append(path), original(path, data))
    )
    cfg = replace(RUNS["sgld"], num_draws=100)
    sample(target("quadratic"), cfg, chunks=Chunks(path, every=1e10))
    assert written == [] and not path.exists()
    sample(target("quadratic"), cfg, chunks=Chunks(path, every=1e-9))
    assert len(written) >= 5 and set(written) == {path}
    # No more than before the last chunk is kept, and going on from there gives the same.
    kept = Chunks(path)
    assert kept.load()
    assert_same(sample(target("quadratic"), cfg, chunks=kept), sample(target("quadratic"), cfg))


def test_a_run_that_has_not_moved_keeps_nothing(target, tmp_path):
    drain = Drain()
    drain.request("at once")
    path = tmp_path / "checkpoint.npz"
    with pytest.raises(Paused, match="at once") as caught:
        sample(target("quadratic"), RUNS["sgld"], chunks=Chunks(path, drain=drain))
    assert not caught.value.advanced and not path.exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign"])
def test_a_damaged_checkpoint_is_told(target, tmp_path, damage):
    path = tmp_path / "checkpoint.npz"
    with pytest.raises(Paused):
        sample(target("quadratic"), RUNS["hmc"], chunks=Chunks(path, drain=Stopping(2)))
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
    kept = {"flip": content, "cut": content[:-9], "empty": b"", "foreign": b"PK\x03\x04 something else" * 9}[damage]
    path.write_bytes(kept)
    with pytest.raises(CorruptArtifact, match=r"checkpoint\.npz"):
        Chunks(path).load()


def test_a_checkpoint_of_another_run_is_told(target, tmp_path):
    path = tmp_path / "checkpoint.npz"
    with pytest.raises(Paused):
        sample(target("quadratic"), RUNS["hmc"], chunks=Chunks(path, drain=Stopping(2)))
    kept = Chunks(path)
    kept.load()
    with pytest.raises(CorruptArtifact, match="other arrays"):
        sample(target("quadratic"), replace(RUNS["hmc"], num_chains=3), chunks=kept)


def test_what_is_kept_holds_no_pickle_and_every_kind_of_number(tmp_path):
    import jax

    carry = {"key": jax.random.key(7), "flags": np.array([True, False]), "w": np.float32([1.5, np.nan])}
    path = tmp_path / "checkpoint.npz"
    path.write_bytes(encode(Kept(7, {"curvature": 2.5}, leaves_of(carry))))
    kept = Chunks(path)
    assert kept.load() and kept.facts == [Chunks().facts[0] | {"curvature": 2.5}]
    found = kept.restore(lambda step: jax.eval_shape(lambda x: x, carry))
    assert jax.random.key_data(found["key"]).tolist() == jax.random.key_data(carry["key"]).tolist()
    np.testing.assert_array_equal(found["w"], carry["w"])


def test_a_run_ends_when_every_chain_has_died(target, tmp_path, monkeypatch):
    cfg = SgldConfig(num_chains=3, num_draws=1000, num_burnin=0, step_size=1e3, thin=50)
    draws = sample(target("w1^2 w2^2"), cfg)
    assert not draws.chain_alive.any() and np.all(np.isnan(draws.loss[:, 2:]))
    # The whole budget would be 3 x 50,000 gradients.
    assert draws.num_gradients <= 3 * 150
    (note,) = [note for note in draws.notes if "non-finite" in note]
    assert "of 1000 draws" in note
    small_chunks(monkeypatch, 3)
    found, _ = in_pieces(tmp_path / "checkpoint.npz", target("w1^2 w2^2"), cfg, (2 for _ in range(100)), identity=0)
    assert_same(found, draws)


def test_dead_in_burn_in_is_dead_at_once(target):
    cfg = SgldConfig(num_chains=2, num_draws=4, num_burnin=100_000, step_size=1e6)
    draws = sample(target("w1^2 w2^2"), cfg)
    assert draws.num_gradients == 2 * 100 and np.all(np.isnan(draws.loss))


def test_a_run_that_cannot_fit_is_refused_with_the_figure(monkeypatch):
    wide, _ = build_target(QuadraticBuild(target=QuadraticTarget(dim=1000, eigenvalues=[1.0] * 1000)))
    cfg = SgldConfig(num_chains=64, num_draws=4000, num_burnin=0, step_size=1e-3)
    started = []
    monkeypatch.setattr(Chunks, "drive", lambda self, *args: started.append(args))
    with pytest.raises(TooLarge, match=r"needs about [\d.e-]+ GiB of memory, and its rank has 0\.000954 GiB"):
        sample(wide, cfg, chunks=Chunks(memory=1_024_000))
    assert started == []
