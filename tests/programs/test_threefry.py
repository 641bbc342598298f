"""Random numbers are JAX's own to the last bit, in programs and by NumPy."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_hat.engine.chain_keys import Keys, keys_of, words_of_keys
from lambda_hat.programs import threefry

DRAWS = """
import jax
import numpy as np
from lambda_hat.programs import threefry

def draws():
    def draw(key, shape, partitionable):
        with jax.threefry_partitionable(partitionable):
            keys = jax.random.split(jax.random.fold_in(key, 2**32 - 1), 3)
            return jax.random.key_data(keys), *(jax.vmap(lambda k: jax.random.bits(k, shape))(keys) for _ in "x")
    cases = [(shape, way) for shape in [(), (5,), (40, 10)] for way in (True, False)]
    return [np.asarray(x) for case in cases for x in jax.jit(draw, static_argnums=(1, 2))(jax.random.key(7), *case)]

before = draws()
threefry.install()
jax.clear_caches()
after = draws()
assert len(before) == 12 and all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))
text = jax.jit(jax.random.bits).lower(jax.random.key(0)).as_text()
assert ("while" in text) == (jax.__version_info__ >= threefry.WRITTEN_OUT_BEFORE), text
"""


def test_programs_draw_the_bits_of_jax(repo_env):
    done = subprocess.run([sys.executable, "-c", DRAWS], env=repo_env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("repeat", [threefry.written_out, threefry.looped])
@pytest.mark.parametrize(
    ("count", "key", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_a_block_is_the_published_one(repeat, count, key, expected):
    """The known answers of Random123."""
    count, key = ([jnp.full((1,), word, jnp.uint32) for word in pair] for pair in (count, key))
    assert tuple(int(word[0]) for word in threefry.block(tuple(key), tuple(count), repeat)) == expected


def test_the_keys_of_chains_are_folded_from_the_run():
    of_run = jax.random.fold_in(jax.random.fold_in(jax.random.key(2**32 - 1), 3_000_000_000), 0)
    keys = keys_of(jnp.asarray(words_of_keys(2**32 - 1, 3_000_000_000, 3)))
    for place, name in enumerate(Keys._fields):
        of_chain = jax.random.fold_in(jax.random.fold_in(of_run, 2), place)
        found = np.asarray(jax.random.key_data(getattr(keys, name)))
        assert found.shape == (3, 2)
        assert np.array_equal(found[2], jax.random.key_data(of_chain))
