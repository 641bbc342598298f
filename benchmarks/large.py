"""What an estimate costs on a network of four million parameters, beside a bare jitted loop of the same update.

    python benchmarks/large.py [--quick] [--out DIR]

Every figure is of a process of its own, on one core, in float32. A step: the seconds of a warm `estimate_llc` grow by
so much with each step of burn-in. The fixed costs are what is left beside all steps, those of the four recorded draws
of every chain as well: the loss at `w_star`, with control variates its gradient, the paired losses of the draws, checks
of the arguments, and what calls of programs cost. The bare loop draws batches and noise of the same sizes;
`control_variate` has a second gradient, at `w_star`, in both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import REPEAT, Spread, alternate, known, options, publish, ratio, table  # noqa: E402
from lambda_hat.programs.cores import bind_process  # noqa: E402

CHAINS, DRAWS, BATCH, STEP_SIZE = 4, 4, 64, 1e-7
STEPS = (5, 25)
"""Of burn-in, in the two calls whose difference gives the step."""
GRADIENTS = ("plain", "control_variate")
BARS = {"step": 1.15, "fixed": 1.0, "memory": 1.5}


def make(quick: bool) -> Any:
    from benchmarks import networks

    return networks.mlp((50, 60, 40, 1), 500) if quick else networks.large()


def estimating(made: Any, gradient: str) -> Callable[[int], Any]:
    """A function that estimates with so many steps of burn-in."""
    from lambda_hat import estimate_llc

    settings = known("sgld", gradient=gradient, loss_estimate="paired", step_size=STEP_SIZE, batch_size=BATCH, thin=1)
    settings |= {"num_chains": CHAINS, "num_draws": DRAWS, "gamma": 1.0}
    return lambda steps: estimate_llc(*made, num_burnin=steps, **settings)


def looping(made: Any, gradient: str) -> Callable[[int], Any]:
    """A function that makes so many steps of the bare loop."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.flatten_util import ravel_pytree

    loss, params, data = made
    w_star, unravel = ravel_pytree(jax.tree.map(jnp.asarray, params))
    data = jax.device_put(data)
    n = len(next(iter(data.values())))
    n_beta, step_size = np.float32(n / np.log(n)), np.float32(STEP_SIZE)

    @jax.jit
    def loop(data, w_star, full, keys, steps):
        def one(w, key):
            key, key_batch, key_noise = jax.random.split(key, 3)
            rows = jax.random.randint(key_batch, (BATCH,), 0, n)
            batch = {name: array[rows] for name, array in data.items()}
            of_batch = jax.grad(lambda w: loss(unravel(w), batch))
            g = of_batch(w) if full is None else of_batch(w) - of_batch(w_star) + full
            noise = jax.random.normal(key_noise, w.shape, w.dtype)
            return w - step_size / 2 * ((w - w_star) + n_beta * g) + jnp.sqrt(step_size) * noise, key

        start = (jnp.broadcast_to(w_star, (CHAINS, w_star.size)), keys)
        return jax.lax.fori_loop(0, steps, lambda _, carry: jax.vmap(one)(*carry), start)

    full = None
    if gradient == "control_variate":
        full = jax.jit(jax.grad(lambda w, data: loss(unravel(w), data)))(w_star, data)
    keys = jax.random.split(jax.random.key(3), CHAINS)
    return lambda steps: jax.block_until_ready(loop(data, w_star, full, keys, np.int32(steps)))


def steps_and_fixed(quick: bool, gradient: str) -> dict[str, Any]:
    """Seconds of a step of both, in alternation, and what a call takes beside its steps."""
    made = make(quick)
    ways = {"ours": estimating(made, gradient), "bare": looping(made, gradient)}

    def seconds(call: Callable[[int], Any], steps: int) -> float:
        begun = time.perf_counter()
        call(steps)
        return time.perf_counter() - begun

    def pair(call: Callable[[int], Any]) -> tuple[float, float]:
        few, many = (seconds(call, steps) for steps in STEPS)
        step = (many - few) / (STEPS[1] - STEPS[0])
        return step, few - (STEPS[0] + DRAWS) * step

    for call in ways.values():
        call(STEPS[0])
    found = alternate({name: lambda call=call: pair(call) for name, call in ways.items()}, 2 if quick else REPEAT)
    return {name: list(zip(*pairs, strict=True)) for name, pairs in found.items()}


def peak(quick: bool, who: str, gradient: str) -> float:
    """The MB that this process has taken at most after a few steps."""
    import resource

    (estimating if who == "ours" else looping)(make(quick), gradient)(STEPS[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(quick: bool, *question: Any) -> Any:
    line = [sys.executable, __file__, "--answer", json.dumps(question), *["--quick"] * quick]
    return json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--answer", type=json.loads, metavar="JSON", help="[what, ...]: in this process")
    args = parser.parse_args()
    # The programs of an earlier process would make a call cheaper.
    os.environ["LAMBDA_HAT_CACHE"] = "off"
    if args.answer:
        bind_process(1)
        what, *rest = args.answer
        print(json.dumps((steps_and_fixed if what == "steps" else peak)(args.quick, *rest)))
        return
    rows = []
    for gradient in GRADIENTS if known("sgld", gradient="") and not args.quick else GRADIENTS[:1]:
        found = child(args.quick, "steps", gradient)
        memory = {who: child(args.quick, "peak", who, gradient) for who in ("ours", "bare")}
        step = {who: [second / CHAINS for second in found[who][0]] for who in found}
        fixed = Spread.of(found["ours"][1])
        peaks = f"{memory['ours']:.0f} / {memory['bare']:.0f} = {memory['ours'] / memory['bare']:.2f}"
        milli = {who: Spread.of([1e3 * second for second in seconds]) for who, seconds in step.items()}
        rows.append([gradient, milli["bare"], milli["ours"], ratio(step["ours"], step["bare"]), fixed, peaks])
    head = ["gradient", "bare, ms", "ours, ms", "ours / bare", "fixed costs of a call, s", "peak MB, ours / bare"]
    section = f"""## Four million parameters

`python benchmarks/large.py`: a tanh network of 4,005,601 parameters, 2,000 rows, batches of {BATCH}, {CHAINS} chains,
on one core; a step of one chain, median (least to most) of {2 if args.quick else REPEAT} alternating runs. The bars:
{BARS["step"]} for the step, {BARS["fixed"]:g} s for a single fixed cost (the table has their sum), {BARS["memory"]} for
memory.

{table(head, rows)}"""
    publish("large", section, args.out)


if __name__ == "__main__":
    main()
