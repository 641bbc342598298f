"""Wall seconds of an estimate beside those of two versions of devinterp, cold and warm, at equal settings.

    python benchmarks/beside_wall.py --environments DIR [--quick] [--out DIR]

makes an environment of devinterp 1.3.2 and one of the newest in DIR, by PyPI, where they are not there yet; 3 GB. All
estimate at the same point of the same network on the same data with SGLD: the same n_beta, gamma, step size, batch,
chains, burn-in and draws. Ours does so twice: with plain gradients and no jitter, so that the chains follow the same
law, and with all else at its defaults (control variates). Three times are taken:

- new process, nothing compiled: from its start to its first estimate, with an empty compile cache;
- new process: the same with the cache that the first one filled. devinterp has none, and this is its only new process;
- the same process again, with another seed, by the chain-step as well.

Each is taken with all cores of the machine, and bound to one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.devinterp_side import TORCH, ask  # noqa: E402
from benchmarks.measure import REPEAT, Spread, alternate, options, publish, table, with_error  # noqa: E402
from lambda_hat.store.layout import CACHE_VARIABLE  # noqa: E402

VERSIONS = {"1.3.2": "devinterp==1.3.2", "newest": "devinterp"}
NETWORKS = {
    "small": {"sizes": (8, 16, 1), "n": 1000, "batch_size": 64, "step_size": 1e-4},
    "larger": {"sizes": (32, 72, 72, 1), "n": 20_000, "batch_size": 256, "step_size": 1e-5},
}
CHAINS, BURNIN, DRAWS = 4, 250, 500
SAME_LAW = {"gradient": "plain", "jitter": 0.0}
WAYS = {"lambda_hat, the same chains": SAME_LAW, "lambda_hat, its defaults": {}}


def environment(folder: Path, name: str) -> str:
    """The interpreter of an environment with that version of devinterp, which is made where there is none."""
    python = folder / name / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / name], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", TORCH, VERSIONS[name]], check=True)
    return str(python)


def estimates(question: dict[str, Any]) -> dict[str, Any]:
    """Ours, in a process of its own: the answer of `devinterp_side.answer`."""
    import numpy as np

    from benchmarks.networks import mlp_loss
    from lambda_hat import __version__, estimate_llc

    with np.load(question["path"]) as arrays:
        data = {name: arrays[name] for name in ("x", "y")}
        params = {name: arrays[name] for name in arrays if name not in data}
    seconds, ended = [], []
    for seed in range(question["times"]):
        begun = time.time()
        found = estimate_llc(
            mlp_loss, params, data, num_chains=question["chains"], num_draws=question["draws"], thin=1,
            num_burnin=question["burnin"], gamma=question["gamma"], n_beta=question["n_beta"], seed=seed,
            step_size=question["step_size"], batch_size=question["batch_size"], progress=False, **question["more"],
        )  # fmt: skip
        ended.append(time.time())
        seconds.append(ended[-1] - begun)
    return {
        "llc": found.llc, "std_error": found.std_error, "seconds": seconds, "ended": ended, "version": __version__,
        "verdict": f"T = {found.temperature:.2g}, {found.verdict}",
    }  # fmt: skip


def in_new_process(call: Callable[..., dict[str, Any]], question: dict[str, Any]) -> dict[str, Any]:
    """The answer to a question, with the seconds from the start of a process to its first estimate."""
    begun = time.time()
    answer = call(question)
    return answer | {"new": answer["ended"][0] - begun}


def ask_ours(prefix: list[str], question: dict[str, Any], cache: Path) -> dict[str, Any]:
    """Our answer, from a process that keeps its compiled programs in `cache`."""
    line = [*prefix, sys.executable, __file__, "--ours", json.dumps(question)]
    env = os.environ | {CACHE_VARIABLE: str(cache)}
    return json.loads(subprocess.run(line, check=True, capture_output=True, text=True, env=env).stdout)


def ours(prefix: list[str], question: dict[str, Any]) -> dict[str, Any]:
    """All three times of ours, with a compile cache of its own that is empty at first."""
    with tempfile.TemporaryDirectory() as folder:
        call = partial(ask_ours, prefix, cache=Path(folder))
        answer = in_new_process(call, question | {"times": 2})
        again = in_new_process(call, question | {"times": 1})
    return answer | {"empty": answer["new"], "new": again["new"]}


def theirs(python: str, prefix: list[str], question: dict[str, Any]) -> dict[str, Any]:
    """Both times of devinterp."""
    return in_new_process(partial(ask, python, prefix=prefix), question | {"times": 2})


def network_rows(pythons: dict[str, str], question: dict[str, Any], repeat: int) -> Iterator[list[Any]]:
    one = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))]
    steps = question["chains"] * (question["burnin"] + question["draws"])
    ways: dict[tuple[str, str], Callable[[], dict[str, Any]]] = {}
    for cores, prefix in {"all": [], "one": one}.items():
        for name, python in pythons.items():
            ways[f"devinterp {name}", cores] = partial(theirs, python, prefix, question)
        for name, more in WAYS.items():
            ways[name, cores] = partial(ours, prefix, question | {"more": more})
    for (name, cores), answers in alternate(ways, repeat).items():
        last = answers[-1]
        label = f"devinterp {last['version']}" if name.startswith("devinterp") else name
        warm = [answer["seconds"][-1] for answer in answers]
        empty = Spread.of([answer["empty"] for answer in answers]) if "empty" in last else "–"
        yield [
            label, cores, empty, Spread.of([answer["new"] for answer in answers]), Spread.of(warm),
            f"{Spread.of(warm).median / steps * 1e6:.3g}", with_error(last["llc"], last["std_error"]),
            last.get("verdict", "–"),
        ]  # fmt: skip


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--environments", type=Path, metavar="DIR", help="folder of the environments of devinterp")
    parser.add_argument("--ours", metavar="JSON", help="used by this script itself: a question, answered and printed")
    args = parser.parse_args()
    if args.ours:
        print(json.dumps(estimates(json.loads(args.ours))))
        return
    if args.environments is None:
        parser.error("--environments DIR is missing: the folder of the environments of devinterp")
    import numpy as np

    from benchmarks import networks

    pythons = {name: environment(args.environments.absolute(), name) for name in VERSIONS}
    repeat, burnin, draws = (1, 30, 40) if args.quick else (REPEAT, BURNIN, DRAWS)
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder
        for name, network in NETWORKS.items():
            sizes, n = network["sizes"], network["n"]
            _, params, data = networks.mlp(sizes, n)
            path = Path(folder) / f"{name}.npz"
            arrays: dict[str, Any] = params | data
            np.savez(path, **arrays)
            question = {
                "what": "network", "path": str(path), "n": n, "n_beta": n / np.log(n), "gamma": 1.0, "cold": True,
                "batch_size": network["batch_size"], "step_size": network["step_size"], "chains": CHAINS,
                "draws": draws, "burnin": burnin, "threads": None,
            }  # fmt: skip
            # Once unmeasured: what is read from the disk and compiled to bytecode for the first time.
            list(network_rows(pythons, question | {"draws": 4, "burnin": 4}, 1))
            rows = list(network_rows(pythons, question, repeat))
            parts.append(
                f"### {'-'.join(map(str, sizes))}, {networks.size(params):,} parameters\n\n"
                f"n = {n:,}, batches of {network['batch_size']}, ε = {network['step_size']:g}\n\n"
                + table(
                    ["", "cores", "new process, nothing compiled", "new process", "again in it", "µs per chain-step",
                     "estimate", "verdict"],
                    rows,
                )
            )  # fmt: skip
    tables = "\n\n".join(parts)
    section = f"""## Wall seconds beside devinterp

`python benchmarks/beside_wall.py --environments DIR`: SGLD, {CHAINS} chains of {burnin} + {draws} steps, each recorded
after burn-in, γ = 1, nβ = n / log n given to all of them; seconds, median (least to most) of {repeat} alternating runs.

{tables}"""
    publish("beside_wall", section, args.out)


if __name__ == "__main__":
    main()
