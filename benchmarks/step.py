"""What a step of SGLD costs beside a bare jitted loop that does nothing but the update, by lanes.

    python benchmarks/step.py [--quick] [--out DIR]

Both draw batches and noise of the same sizes, on one core, in float32. The bare loop is vmapped over as many chains as
the lanes have in all. No draw is recorded meanwhile: what recording costs is a line of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import REPEAT, Spread, alternate, options, publish, ratio, table  # noqa: E402
from lambda_hat.config import SgldConfig  # noqa: E402
from lambda_hat.programs.cores import bind_process  # noqa: E402

CHAINS = 4
LANES = (1, 16, 64)
STEP_SIZE = 1e-6


class Network(NamedTuple):
    sizes: tuple[int, ...]
    n: int
    batch_size: int
    steps: int
    """Of one chain, for about half a second of one."""

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.sizes))}, batch {self.batch_size}"


NETWORKS = (Network((4, 8, 1), 1000, 32, 30_000), Network((32, 72, 72, 1), 20_000, 256, 2000))


def make_target(network: Network):
    """A random network and random data: what they are changes no time."""
    import jax
    import numpy as np

    from lambda_hat.targets import Target
    from lambda_hat.targets.mlp import Architecture, MlpLoss

    def normal(seed: int, width: int):
        return np.asarray(jax.random.normal(jax.random.key(seed), (network.n, width)), np.float64)

    arch = Architecture(network.sizes, "tanh", True)
    w_star = {name: np.asarray(array, np.float64) for name, array in arch.init(jax.random.key(0)).items()}
    data = {"x": normal(1, network.sizes[0]), "y": normal(2, network.sizes[-1])}
    return Target(MlpLoss(arch, "mse", 1.0), w_star, data, False, network.n, 0.5, None, None)


def bare_loop(target, batch_size: int, num_chains: int, impl: str | None = None) -> Callable[[int], None]:
    """A function that makes steps of the bare loop; `impl`: of the random keys, jax's default where None."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.flatten_util import ravel_pytree

    from lambda_hat.engine.model import cast

    w_star, unravel = ravel_pytree(cast(target.w_star, "float32"))
    data = jax.device_put(cast(target.data, "float32"))
    n_beta = np.float32(target.n / np.log(target.n))
    step_size = np.float32(STEP_SIZE)

    @jax.jit
    def loop(data, w_star, keys, steps):
        def one(w, key):
            key, key_batch, key_noise = jax.random.split(key, 3)
            batch = target.loss.batch(key_batch, data, batch_size)
            g = jax.grad(lambda w: target.loss(unravel(w), batch))(w)
            noise = jax.random.normal(key_noise, w.shape, w.dtype)
            return w - step_size / 2 * ((w - w_star) + n_beta * g) + jnp.sqrt(step_size) * noise, key

        start = (jnp.broadcast_to(w_star, (num_chains, w_star.size)), keys)
        return jax.lax.fori_loop(0, steps, lambda _, carry: jax.vmap(one)(*carry), start)

    keys = jax.random.split(jax.random.key(3, impl=impl), num_chains)
    return lambda steps: jax.block_until_ready(loop(data, w_star, keys, np.int32(steps)))


def packed_loop(target, batch_size: int, num_lanes: int, thin: int, gradient: str = "plain") -> Callable[[int], None]:
    """A function that makes steps of `num_lanes` runs, as a rank makes them."""
    import numpy as np

    from lambda_hat.engine.chunks import Chunks
    from lambda_hat.engine.run import Programs
    from lambda_hat.samplers import make_lane, sampler_of

    cfg = SgldConfig(
        batch_size=batch_size,
        num_chains=CHAINS,
        num_draws=50,
        thin=thin,
        num_burnin=0,
        step_size=STEP_SIZE,
        gradient=gradient,
    )
    lanes = [make_lane(target, cfg, identity) for identity in range(num_lanes)]
    programs = Programs(sampler_of(cfg), lanes, Chunks(lanes=num_lanes))
    carry = programs.get("begin")()
    advance = programs.loop(carry)

    def call(steps: int) -> None:
        nonlocal carry
        carry = advance(carry._replace(step=np.uint32(0), draw=np.uint32(0)), np.uint32(steps))

    return call


def timed(call: Callable[[int], None], steps: int) -> Callable[[], float]:
    """Seconds of so many steps; the first call, which compiles, is made now."""
    call(steps)

    def seconds() -> float:
        begun = time.perf_counter()
        call(steps)
        return time.perf_counter() - begun

    return seconds


def main() -> None:
    args = options(__doc__).parse_args()
    bind_process(1)
    repeat = 2 if args.quick else REPEAT
    rows, curves = [], {}
    for network in NETWORKS[: 1 if args.quick else None]:
        target = make_target(network)
        for lanes in LANES[: 2 if args.quick else None]:
            chains = CHAINS * lanes
            steps = max(20, network.steps // (50 if args.quick else 1) // lanes)
            ways = {
                "bare": bare_loop(target, network.batch_size, chains),
                "rbg": bare_loop(target, network.batch_size, chains, "rbg"),
                "packed": packed_loop(target, network.batch_size, lanes, steps + 1),
                "controlled": packed_loop(target, network.batch_size, lanes, steps + 1, "control_variate"),
            }
            figures = alternate({name: timed(call, steps) for name, call in ways.items()}, repeat)
            micro = {
                name: Spread.of([1e6 * second / steps / chains for second in seconds])
                for name, seconds in figures.items()
            }
            packed, rbg = ratio(figures["packed"], figures["bare"]), ratio(figures["rbg"], figures["bare"])
            controlled = ratio(figures["controlled"], figures["packed"])
            rows.append([network, lanes, micro["bare"], micro["packed"], packed, controlled, rbg])
            curves.setdefault(str(network), []).append((lanes, micro["bare"].median, micro["packed"].median))
    head = ["network", "lanes", "bare, µs", "packed, µs", "packed / bare", "control variate / plain"]
    head += ["rbg / threefry, bare"]
    section = f"""## The step beside a bare loop

`python benchmarks/step.py`: microseconds of one step of one chain, {CHAINS} chains a lane, median (least to most) of
{repeat} alternating runs on one core. The bar is 1.15. Both take the plain gradient of a batch; a control variate, the
default, takes a second gradient at `w_star`, and estimates the loss beside it.

{table(head, rows)}

Keys are threefry's. `rbg` draws its bits for all lanes of a vmap from the first lane's key, so that a run's numbers
would depend on its company."""
    publish("step", section, args.out, figure_of(curves))


def figure_of(curves: dict[str, list[tuple[int, float, float]]]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    for ax, (name, points) in zip(axes, curves.items(), strict=True):
        lanes, bare, packed = zip(*points, strict=True)
        ax.plot(lanes, bare, "o--", label="bare loop")
        ax.plot(lanes, packed, "s-", label="packed")
        ax.set(title=name, xlabel="lanes", ylabel="µs per step of a chain", xscale="log", ylim=(0, None))
        ax.set_xticks(lanes, map(str, lanes))
        ax.legend()
    return figure


if __name__ == "__main__":
    main()
