"""What NumPy does at the end of a window is what blackjax would do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.adaptation.mass_matrix import mass_matrix_adaptation
from blackjax.adaptation.step_size import DualAveragingAdaptationState, dual_averaging_adaptation

from lambda_hat.config import HmcConfig
from lambda_hat.engine.algorithm import Learned
from lambda_hat.samplers import hamiltonian
from lambda_hat.samplers.own_metric import own_metric

DRAWS = np.random.default_rng(0).normal(size=(2, 30, 3)) * [1.0, 5.0, 0.1]
"""Of two chains."""


@pytest.mark.parametrize("name", ["diagonal", "dense"])
def test_dual_averaging_and_covariances_start_anew_as_blackjax_lets_them(name):
    cfg = HmcConfig(num_chains=2, metric=name)
    begin, average, averaged = dual_averaging_adaptation(0.8)
    first, add, final = mass_matrix_adaptation(is_diagonal_matrix=name == "diagonal")
    own = own_metric(name)
    with jax.enable_x64(True):
        rules, theirs, metrics, kept, expected = [], [], [], [], []
        for chain, draws in enumerate(DRAWS):
            rule = begin(0.1 * (chain + 1))
            metric, moments = own.init(jnp.zeros(3))
            state = first(3)
            for index, draw in enumerate(draws):
                rule = average(rule, 0.5 + 0.01 * index)
                moments = own.keep(moments, jnp.uint32(index), jnp.asarray(draw), jnp.zeros(3))
                state = add(state, jnp.asarray(draw))
            rules.append(rule)
            metrics.append(metric)
            kept.append(moments)
            theirs.append(begin(averaged(rule)))
            expected.append(final(state).inverse_mass_matrix)

        def together(trees):
            return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)

        found = hamiltonian.new_window(cfg, Learned(*map(together, (rules, metrics, kept))))
        anew = together(theirs)
    for field in DualAveragingAdaptationState._fields:
        np.testing.assert_allclose(getattr(found.rule, field), getattr(anew, field), rtol=1e-12, err_msg=field)
    np.testing.assert_allclose(found.metric, np.stack(expected), rtol=1e-10)
    assert not any(np.any(part) for part in found.kept)
