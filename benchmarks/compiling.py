"""CPU-seconds to compile a sampler, beside those of a bare jitted loop over its kernel.

    python benchmarks/compiling.py [--quick] [--out DIR]

The bare loop makes transitions of as many vmapped chains with the kernel's own tuning: no adaptation, no draws, no
counts. Both are traced, lowered and compiled anew at every repetition, for a squared loss of ten parameters on batches.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import REPEAT, Spread, alternate, cpu_seconds, options, publish, ratio, table  # noqa: E402
from lambda_hat.programs.cores import bind_process  # noqa: E402

SAMPLERS = ("sgld", "sghmc", "sgnht", "mala", "hmc", "nuts", "mclmc", "adjusted_mclmc")


def squared_error(w: Any, batch: Any) -> Any:
    """The loss of a linear regression."""
    x, y = batch
    return ((x @ w - y) ** 2).mean() / 2


def ways_of(name: str) -> dict[str, Any]:
    """What compiles the programs of a sampler, and the bare loop over its kernel."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from lambda_hat.config import SAMPLE_SCHEMAS
    from lambda_hat.engine.chain_keys import keys_of
    from lambda_hat.engine.chains import Chains
    from lambda_hat.engine.chunks import Chunks
    from lambda_hat.engine.run import Programs, signature, target_spec
    from lambda_hat.engine.traced_lanes import Lanes
    from lambda_hat.engine.windows import NO_WINDOW
    from lambda_hat.samplers import make_lane, sampler_of
    from lambda_hat.targets.custom import target_of

    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 10))
    y = x @ np.ones(10) + rng.normal(size=1000)
    target = target_of(squared_error, np.linalg.lstsq(x, y, rcond=None)[0], (x, y), None, identity="squared error")
    lane = make_lane(target, SAMPLE_SCHEMAS[name](), 0)
    sampler, cfg = sampler_of(lane.cfg), lane.cfg
    spec, of_target = signature(cfg, sampler.arguments), target_spec([lane])

    def prepared() -> tuple[Chains, Any, Any]:
        chains, programs = Chains(sampler, spec, of_target), Programs(sampler, [lane], Chunks())
        return chains, programs.numbers, programs.result_of("begin")

    def bare(numbers: Any, begun: Any, steps: Any) -> Any:
        (key,) = keys_of(numbers.keys).step

        def of_lane(model: Any, arguments: Any, anchor: Any, state: Any, learned: Any) -> Any:
            from dataclasses import replace

            algorithm = sampler.build(replace(model, anchor=anchor), spec, arguments)

            def transition(index: Any, state: Any) -> Any:
                def one(key: Any, state: Any, learned: Any) -> Any:
                    tuned = algorithm.tuned(index, learned.rule, learned.metric)
                    return algorithm.step(jax.random.fold_in(key, index), state, tuned)[0]

                return jax.vmap(one)(key, state, learned)

            return jax.lax.fori_loop(jnp.uint32(0), steps, transition, state)

        lanes = Lanes(of_target, spec.slice_rows, numbers)
        return lanes.map(of_lane, begun.anchor, begun.state, begun.learned)

    def made(*functions: Any) -> float:
        def compile_all() -> None:
            for function, args in functions:
                jax.clear_caches()
                with jax.numpy_dtype_promotion("strict" if sampler.strict else "standard"):
                    jax.jit(function).lower(*args).compile()

        return cpu_seconds(compile_all)[1]

    def ours() -> float:
        with jax.enable_x64(cfg.precision == "float64"):
            chains, numbers, begun = prepared()
            upto = np.uint32(9)
            return made((chains.begin, (numbers,)), (chains.advance, (numbers, begun, NO_WINDOW, upto)))

    def loop() -> float:
        with jax.enable_x64(cfg.precision == "float64"):
            _, numbers, begun = prepared()
            return made((bare, (numbers, begun, np.uint32(9))))

    return {"ours": ours, "bare": loop}


def main() -> None:
    args = options(__doc__).parse_args()
    bind_process(1)
    from lambda_hat.programs import threefry

    threefry.install()
    rows = []
    for name in SAMPLERS[4:5] if args.quick else SAMPLERS:
        figures = alternate(ways_of(name), 1 if args.quick else REPEAT)
        both = (Spread.of(figures["ours"]), Spread.of(figures["bare"]))
        rows.append([name, *map(str, both), str(ratio(figures["ours"], figures["bare"]))])
    head = ["sampler", "its programs, CPU-seconds", "bare loop, CPU-seconds", "ratio"]
    publish("compiling", f"## Compiling a sampler\n\n{table(head, rows)}", args.out)


if __name__ == "__main__":
    main()
