"""How fast items are handed out to ranks, and how long a rank waits for one while all of them compute.

    python benchmarks/handout.py [--quick] [--out DIR]

- Rate: items that do nothing, on many ranks of this machine. Rank 0 takes its own without a message and is soon through
  with most of them, so that a second figure counts what the others get while rank 0 is inside one long XLA call.
- Latency: from the send of a claim to the answer, while every rank is inside XLA calls. Where there are more ranks than
  cores the scheduler of the operating system has its share in it. How large that is, the same ranks measure under the
  same load: by how much a bare sleep of half a millisecond is too long, on a rank between two items and in a thread of
  rank 0 beside its XLA call. A claim waits for one wake of each kind at least.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import REPEAT, Spread, options, publish, table  # noqa: E402
from lambda_hat.cores import tell_xla  # noqa: E402
from mpi.launch import Launch, LauncherChoice, find_launcher, launch_environment, launch_line  # noqa: E402

RANKS = 64
FEW_RANKS = 4
NUM_ITEMS = 20_000
CALL_SECONDS = 0.4
"""Of one XLA call that has a core to itself."""
SMALLEST_SLEEP = 0.0005
WIDTH = 200
"""Of the square matrices that are multiplied."""

Case = dict[str, Any]


# --------------------------------------------------------------------------------------------------------------
# On the ranks


class TimedComm:
    """A communicator that keeps the seconds from each claim to its answer."""

    def __init__(self, comm: Any):
        self._comm = comm
        self._sent = 0.0
        self.waits: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comm, name)

    def send(self, message: Any, dest: int, tag: int) -> None:
        self._sent = time.monotonic()
        self._comm.send(message, dest=dest, tag=tag)

    def recv(self, tag: int, **source: int) -> Any:
        from mpi.dispatch import ANSWER

        message = self._comm.recv(tag=tag, **source)
        if tag == ANSWER:
            self.waits.append(time.monotonic() - self._sent)
        return message


def multiply(num_products: int) -> Callable[[], None]:
    """A call of XLA of `num_products` products of matrices, compiled already."""
    import jax
    import jax.numpy as jnp

    def body(_: int, matrix: jax.Array) -> jax.Array:
        return jnp.tanh(matrix @ matrix)

    loop = jax.jit(lambda count, matrix: jax.lax.fori_loop(0, count, body, matrix))
    matrix = jnp.ones((WIDTH, WIDTH))
    loop(1, matrix).block_until_ready()

    def call() -> None:
        loop(num_products, matrix).block_until_ready()

    return call


def products_of(seconds: float) -> int:
    """How many products take about `seconds` on a core that has nothing else to do."""
    probe = 2000
    call = multiply(probe)
    times = []
    for _ in range(3):
        begun = time.monotonic()
        call()
        times.append(time.monotonic() - begun)
    return max(1, round(probe * seconds / min(times)))


def overslept(into: list[float]) -> None:
    """By how much a bare sleep is too long just now."""
    begun = time.monotonic()
    time.sleep(SMALLEST_SLEEP)
    into.append(time.monotonic() - begun - SMALLEST_SLEEP)


def as_rank(case: Case, report: Path) -> None:
    """This rank's part of one case; rank 0 writes what all of them saw."""
    from mpi.dispatch import World, dispatch, install_abort_hooks, start_mpi
    from mpi.handout import Item

    world = start_mpi(case["ranks"])
    install_abort_hooks(world)
    comm = TimedComm(world.comm)
    hold, compute = case["hold"] and world.rank == 0, case["computes"]
    call = multiply(case["products"]) if hold or compute else None
    wakes: list[float] = []
    ends: list[float] = []

    def do(key: str) -> str:
        if call is not None and (compute or key == "hold"):
            call()
        if compute:
            overslept(wakes)
        ends.append(time.monotonic())
        return "finished"

    items = [Item("hold")] * case["hold"] + [Item(f"tgt_0123456789ab/run_hmc_{i:08x}") for i in range(case["items"])]
    # A plain barrier spins, and takes the cores from the ranks that still import.
    meeting = world.comm.Ibarrier()
    while not meeting.Test():
        time.sleep(0.01)
    begun = time.monotonic()
    beside: list[float] = []
    over = threading.Event()
    if compute and world.rank == 0:

        def sample_wakes() -> None:
            while not over.wait(0.05):
                overslept(beside)

        threading.Thread(target=sample_wakes, daemon=True).start()
    dispatch(World(world.rank, world.size, comm), items if world.rank == 0 else [], do)
    over.set()
    # The last answer of a rank comes when every item has ended.
    seen = world.comm.gather(
        {"waits": comm.waits[:-1], "wakes": wakes, "done": len(ends), "last": max(ends, default=0)}
    )
    if world.rank == 0:
        others = seen[1:]
        found = {
            "by_rank_0": seen[0]["done"],
            "by_others": sum(rank["done"] for rank in others),
            "seconds": max(rank["last"] for rank in seen) - begun,
            "seconds_others": max(rank["last"] for rank in others) - begun,
            "waits": [wait for rank in others for wait in rank["waits"]],
            "wakes": [wake for rank in others for wake in rank["wakes"]],
            "beside": beside,
        }
        report.write_text(json.dumps(found))


# --------------------------------------------------------------------------------------------------------------
# Outside of them


def launch(case: Case) -> Case:
    """Run one case under mpiexec."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "seen.json"
        launcher, where = find_launcher(LauncherChoice()), Launch(("localhost",), case["ranks"])
        env = {**os.environ, "JAX_PLATFORMS": "cpu"}
        env |= launch_environment(launcher, where, env)
        words = [sys.executable, str(Path(__file__).resolve()), "--as-rank", json.dumps(case), str(report)]
        subprocess.run(launch_line(launcher, where, words, env), env=env, check=True, timeout=1800)
        return json.loads(report.read_text())


def rates(ranks: int, num_items: int, products: int, repeat: int) -> tuple[list[float], list[float]]:
    """Items a second: in all, and those that the others get while rank 0 is inside an XLA call."""
    case = {"ranks": ranks, "items": num_items, "computes": False, "products": products}
    in_all, others = [], []
    for _ in range(repeat):
        seen = launch({**case, "hold": False})
        in_all.append(num_items / seen["seconds"])
        seen = launch({**case, "hold": True})
        others.append(seen["by_others"] / seen["seconds_others"])
    return in_all, others


def per_second(figures: Sequence[float]) -> str:
    spread = Spread.of(figures)
    return f"{spread.median:,.0f} ({spread.least:,.0f} to {spread.most:,.0f})"


def milliseconds(seconds: Sequence[float]) -> list[str]:
    """Median, 99th percentile and largest, and how many there are."""
    if not seconds:
        return ["–", "–", "–", "0"]
    return [f"{1e3 * figure:.1f}" for figure in np.quantile(seconds, [0.5, 0.99, 1.0])] + [f"{len(seconds):,}"]


def picture(seen: dict[int, Case]) -> Any:
    """How often a claim, and a bare wake, takes longer than so many milliseconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(seen), 4), layout="constrained")
    for axes, (ranks, case) in zip(
        np.atleast_1d(figure.subplots(1, len(seen), sharey=True)), seen.items(), strict=True
    ):
        for name, label in (("waits", "claim"), ("wakes", "bare wake of a rank"), ("beside", "of a thread of rank 0")):
            values = np.sort(case[name])
            axes.plot(1e3 * values, 1 - np.arange(len(values)) / max(len(values), 1), label=label)
        axes.axvline(50, color="grey", linestyle=":")
        axes.set(xscale="log", yscale="log", xlabel="milliseconds", title=f"{ranks} ranks in XLA calls")
        axes.legend()
    figure.axes[0].set_ylabel("share that takes longer")
    return figure


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--as-rank", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    tell_xla(1)
    if args.as_rank is not None:
        as_rank(json.loads(args.as_rank[0]), Path(args.as_rank[1]))
        return
    quick = args.quick
    ranks, num_items, repeat = (3, 300, 1) if quick else (RANKS, NUM_ITEMS, REPEAT)
    seconds = 0.02 if quick else CALL_SECONDS
    speed = products_of(1.0)
    in_all, others = rates(ranks, num_items, round(speed * (0.5 if quick else 5)), repeat)
    computing = {}
    for number, per_rank in [(2, 5)] if quick else [(FEW_RANKS, 60), (RANKS, 8)]:
        case = {"ranks": number, "items": number * per_rank, "computes": True, "hold": False}
        computing[number] = launch({**case, "products": round(speed * seconds)})
    rows = [
        [number, name, *milliseconds(case[key])]
        for number, case in computing.items()
        for key, name in (
            ("waits", "claim to answer"),
            ("wakes", "bare wake of a rank"),
            ("beside", "bare wake of a thread of rank 0"),
        )
    ]
    section = "\n\n".join(
        [
            "## Hand-out",
            f"Written by `python benchmarks/handout.py`, on {os.cpu_count()} cores.",
            f"{ranks} ranks, {num_items:,} items that do nothing, items a second, {repeat} launches each:",
            table(
                ["", "median (least to most)"],
                [
                    ["all ranks", per_second(in_all)],
                    [f"{ranks - 1} ranks, rank 0 being inside an XLA call", per_second(others)],
                ],
            ),
            f"Every rank in XLA calls that take {seconds} s on a core of their own, milliseconds:",
            table(["ranks", "what", "median", "99th percentile", "largest", "number"], rows),
        ]
    )
    publish("handout", section, args.out, picture(computing))


if __name__ == "__main__":
    main()
