import subprocess
import sys

TWO_TRACES = """
import jax
import jax.numpy as jnp

from lambda_hat.samplers.windows import LowRank

assert not any(name.startswith("blackjax") for name in __import__("sys").modules)
learner = LowRank(2)
kept, metric = learner.init(jnp.zeros(3))
kept = jax.tree.map(lambda x: jnp.stack([x, x]), kept)


def text():
    def refit(ends, kept, metric):
        return jax.lax.fori_loop(0, ends, lambda index, metric: learner.fit(kept, metric), metric)

    return jax.jit(refit).lower(2, kept, metric).as_text()


assert text() == text()
"""


def test_the_program_of_a_fit_is_the_same_before_and_after_blackjax_is_imported():
    subprocess.run([sys.executable, "-c", TWO_TRACES], check=True)
