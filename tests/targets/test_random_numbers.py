import jax
import numpy as np
import pytest

from lambda_hat.targets.random_numbers import random_numbers


@pytest.mark.parametrize("below", [1, 2, 3, 1000, 65_537, 10_000_019, 2**31 - 1])
def test_a_number_is_the_upper_word_of_its_bits_times_the_bound(below):
    key = jax.random.key(below)
    bits = np.asarray(jax.random.bits(key, (5000,), np.uint32)).astype(np.uint64)
    found = np.asarray(random_numbers(key, (5000,), below))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, (bits * np.uint64(below) >> np.uint64(32)).astype(np.int32))


def test_all_numbers_are_as_frequent():
    found = np.bincount(np.asarray(random_numbers(jax.random.key(0), (100_000,), 7)), minlength=7)
    expected = 100_000 / 7
    assert np.sum((found - expected) ** 2 / expected) < 25
