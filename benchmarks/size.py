"""Step and memory of a transformer of ten million parameters, by the keys that bound the memory of a run.

    python benchmarks/size.py [--quick] [--out DIR]

On one core, in float32, without a draw recorded meanwhile. The bare loop is jitted and does nothing but the update of
SGLD; batches and noise are of the same sizes. Memory is in units of the parameters in float32: what XLA planned for the
program that samples, arguments and results included; and the most that a process took in `estimate_llc`, its checks
in float64 included, beyond what an estimate of a small network leaves behind; programs are compiled before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import REPEAT, Spread, alternate, cpu_seconds, options, publish, ratio, table  # noqa: E402
from lambda_hat.programs.cores import bind_process  # noqa: E402

ROWS, BATCH, STEP_SIZE, STEPS = 64, 8, 1e-7, 2
BARS = {"step": 1.1, "memory": 6.0}


class Way(NamedTuple):
    chains: int
    keys: dict[str, Any]

    def __str__(self) -> str:
        return ", ".join(
            [f"{self.chains} chain{'s' * (self.chains > 1)}", *(f"{k}: {v}" for k, v in self.keys.items())]
        )


PLAIN: dict[str, Any] = {"gradient": "plain"}
WAYS = (
    Way(1, PLAIN),
    Way(1, {}),
    Way(4, {}),
    Way(4, {"chains_at_once": 1}),
    Way(4, {"chains_at_once": 1, "accumulate": 4}),
    Way(1, {**PLAIN, "compute_dtype": "bfloat16"}),
)
"""Without a word on the gradient it is the default, control variates, with a second gradient at `w_star`."""


def made_of(quick: bool) -> Any:
    from benchmarks import networks

    return networks.transformer(ROWS) if quick else networks.large_transformer(ROWS)


def target_of(made: Any):
    """The target without the checks of its loss, which compute in float64."""
    from lambda_hat.targets.base import Target
    from lambda_hat.targets.custom_loss import CustomLoss
    from lambda_hat.targets.pytrees import ById, split_data, split_params

    loss, params, data = made
    (w_star, structure), (rows, of_rows) = split_params(params), split_data(data)
    return Target(CustomLoss(ById(loss), loss, structure, of_rows, False), w_star, rows, False, ROWS, 3.47, None, None)


def packed(target: Any, way: Way) -> tuple[Callable[[int], None], float]:
    """A function that makes steps of a run, and the memory that XLA planned for it, in units of the parameters."""
    import numpy as np

    from lambda_hat.config import SgldConfig
    from lambda_hat.engine.chunks import Chunks
    from lambda_hat.engine.run import Programs
    from lambda_hat.engine.windows import NO_WINDOW
    from lambda_hat.programs.compiling import compiled
    from lambda_hat.samplers import make_lane, sampler_of

    cfg = SgldConfig(
        num_chains=way.chains, num_draws=4, num_burnin=0, thin=1000, step_size=STEP_SIZE, batch_size=BATCH,
        loss_estimate="paired", precision="float32", slice_rows=BATCH, **way.keys,
    )  # fmt: skip
    programs = Programs(sampler_of(cfg), [make_lane(target, cfg, 0)], Chunks())
    carry = programs.get("begin")()
    advance = programs.loop(carry)
    static, make = programs._identity("advance")
    planned = compiled(static, make, (programs.numbers, carry, NO_WINDOW, np.uint32(0)), False, (1,)).memory

    def call(steps: int) -> None:
        nonlocal carry
        carry = advance(carry._replace(step=np.uint32(0), draw=np.uint32(0)), np.uint32(steps))

    return call, planned / (4 * target.dim)


def bare(target: Any, chains: int, controlled: bool) -> tuple[Callable[[int], None], float]:
    """The same of the bare loop of so many vmapped chains."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.flatten_util import ravel_pytree

    from lambda_hat.engine.model import cast
    from lambda_hat.programs.compiling import bytes_needed

    w_star, unravel = ravel_pytree(cast(target.w_star, "float32"))
    data = jax.device_put(target.data)
    n_beta, step_size = np.float32(ROWS / np.log(ROWS)), np.float32(STEP_SIZE)

    @jax.jit
    def loop(data, w_star, full, keys, steps):
        def one(w, key):
            key, key_batch, key_noise = jax.random.split(key, 3)
            rows = jax.random.randint(key_batch, (BATCH,), 0, ROWS)
            batch = {name: array[rows] for name, array in data.items()}
            of_batch = jax.grad(lambda w: target.loss(unravel(w), batch))
            g = of_batch(w) if full is None else of_batch(w) - of_batch(w_star) + full
            noise = jax.random.normal(key_noise, w.shape, w.dtype)
            return w - step_size / 2 * ((w - w_star) + n_beta * g) + jnp.sqrt(step_size) * noise, key

        start = (jnp.broadcast_to(w_star, (chains, w_star.size)), keys)
        one_or_all = jax.vmap(one) if chains > 1 else lambda w, key: jax.tree.map(lambda x: x[None], one(w[0], key[0]))
        return jax.lax.fori_loop(0, steps, lambda _, carry: one_or_all(*carry), start)

    full = jnp.zeros_like(w_star) if controlled else None
    keys = jax.random.split(jax.random.key(3), chains)
    compiled = loop.lower(data, w_star, full, keys, np.int32(0)).compile()

    def call(steps: int) -> None:
        jax.block_until_ready(compiled(data, w_star, full, keys, np.int32(steps)))

    return call, bytes_needed(compiled) / (4 * target.dim)


def steps_of(quick: bool, number: int) -> dict[str, Any]:
    """CPU-seconds of a step of one chain by a way, and by the bare loop of as many chains, and the memory of both."""
    way, target = WAYS[number], target_of(made_of(quick))
    ours, planned = packed(target, way)
    beside, least = bare(target, way.chains, "gradient" not in way.keys)
    ways = {"bare": beside, "ours": ours}
    for call in ways.values():
        call(1)

    def seconds(call: Callable[[int], Any]) -> float:
        return cpu_seconds(lambda: call(STEPS))[1] / STEPS / way.chains

    found = alternate({name: lambda call=call: seconds(call) for name, call in ways.items()}, 2 if quick else REPEAT)
    return {**found, "planned": [planned, least]}


def peak_of(quick: bool, number: int) -> float:
    """The most that this process took beyond what a small estimate leaves behind, in units of the parameters."""
    from benchmarks import networks
    from lambda_hat import estimate_llc

    way, made = WAYS[number], made_of(quick)
    estimate_llc(*networks.transformer(ROWS), num_draws=4, num_burnin=0, thin=1, step_size=STEP_SIZE, batch_size=BATCH)
    # Linux forgets the highest mark.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    estimate_llc(
        *made, num_chains=way.chains, num_draws=4, num_burnin=4, thin=1, step_size=STEP_SIZE, batch_size=BATCH,
        slice_rows=BATCH, loss_estimate="paired", precision="float32", **way.keys,
    )  # fmt: skip
    return (_status("VmHWM") - before) / (4 * networks.size(made[1]))


def _status(name: str) -> float:
    """Bytes of this process, from Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * float(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def child(quick: bool, cache: str, *question: Any) -> Any:
    line = [sys.executable, __file__, "--answer", json.dumps(question), *["--quick"] * quick]
    run = subprocess.run(
        line, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"LAMBDA_HAT_CACHE": cache}
    )
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--answer", type=json.loads, metavar="JSON", help="[what, way]: in this process")
    args = parser.parse_args()
    if args.answer:
        bind_process(1)
        what, number = args.answer
        print(json.dumps((steps_of if what == "steps" else peak_of)(args.quick, number)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for number, way in enumerate(WAYS[: 2 if args.quick else None]):
            found = child(args.quick, "off", "steps", number)
            child(args.quick, cache, "peak", number)
            peak = child(args.quick, cache, "peak", number)
            milli = {who: Spread.of([1e3 * second for second in found[who]]) for who in ("bare", "ours")}
            ours = ratio(found["ours"], found["bare"])
            rows.append(
                [way, milli["bare"], milli["ours"], ours, "{:.1f} / {:.1f}".format(*found["planned"]), f"{peak:.1f}"]
            )
            print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    head = ["run", "bare, ms", "ours, ms", "ours / bare", "memory planned, ours / bare", "process"]
    section = f"""## Ten million parameters

`python benchmarks/size.py`: a transformer of 10,670,208 parameters, batches of {BATCH} sequences of 32 tokens, on one
core; CPU-milliseconds of a step of one chain, median (least to most) of {2 if args.quick else REPEAT} alternating runs.
The bare loop vmaps as many chains. Memory is in units of the parameters. Gradients are control variates, two a step,
where nothing else is said. The bars: {BARS["step"]} for the step, {BARS["memory"]:g} for memory with one chain at once.

{table(head, rows)}"""
    publish("size", section, args.out)


if __name__ == "__main__":
    main()
