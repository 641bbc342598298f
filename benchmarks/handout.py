"""How fast items are handed out to ranks, and how long a rank waits for one while all of them compute.

    python benchmarks/handout.py [--quick] [--out DIR]

- Rate: items that do nothing, on many ranks of this machine. Rank 0 takes its own without a message and is soon through
  with most of them, so that a second figure counts what the others get while rank 0 is inside one long XLA call.
- Latency: from the send of a claim to the answer, while every rank is inside XLA calls that compute, or that wait, as
  for a GPU. Where more ranks compute than there are cores, the scheduler of the operating system has its share in it.
  The same ranks measure how large that is, beside their claims: the time from the send until a thread of rank 0 that
  does nothing but sleep 5 ms at a time is awake, as the coordinator has to be, and by how much a sleep of half a
  millisecond is too long on a rank after its call.
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

from benchmarks.measure import REPEAT, Spread, alternate, options, publish, table  # noqa: E402
from lambda_hat.programs.cores import tell_xla  # noqa: E402
from mpi.launch import Launch, launch_environment, launch_line  # noqa: E402
from mpi.launchers import LauncherChoice, find_launcher  # noqa: E402

RANKS = 64
FEW_RANKS = 4
NUM_ITEMS = 20_000
CALL_SECONDS = 0.4
"""Of one XLA call that has a core to itself."""
SHORT_SLEEP, LONG_SLEEP = 0.0005, 0.005
"""The pauses between two looks for a message: the first one of a rank, and the longest one of the coordinator."""
WHAT = {"claims": "claim to answer", "of_rank_0": "bare wake, thread of rank 0", "of_rank": "bare wake, rank"}
WIDTH = 200
"""Of the square matrices that are multiplied."""

Case = dict[str, Any]


# --------------------------------------------------------------------------------------------------------------
# On the ranks


class TimedComm:
    """A communicator that keeps the moments of each claim and of its answer."""

    def __init__(self, comm: Any):
        self._comm = comm
        self.sent: list[float] = []
        self.answered: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comm, name)

    def send(self, message: Any, dest: int, tag: int) -> None:
        self.sent.append(time.monotonic())
        self._comm.send(message, dest=dest, tag=tag)

    def recv(self, tag: int, **source: int) -> Any:
        from mpi.dispatch import ANSWER

        message = self._comm.recv(tag=tag, **source)
        if tag == ANSWER:
            self.answered.append(time.monotonic())
        return message


class BareSleeper(threading.Thread):
    """Sleeps, and keeps the moments at which it was awake."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.awake: list[float] = []
        self.over = False

    def run(self) -> None:
        while not self.over:
            time.sleep(LONG_SLEEP)
            self.awake.append(time.monotonic())


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


def wait(seconds: float) -> Callable[[], None]:
    """A call of XLA that waits without computing, compiled already."""
    import jax
    import jax.numpy as jnp

    def sleep(seconds: np.ndarray) -> np.ndarray:
        time.sleep(float(seconds))
        return seconds

    held = jax.jit(lambda seconds: jax.pure_callback(sleep, jax.ShapeDtypeStruct((), jnp.float32), seconds))
    held(0.0).block_until_ready()

    def call() -> None:
        held(seconds).block_until_ready()

    return call


def overslept() -> float:
    """By how much a bare sleep is too long just now."""
    begun = time.monotonic()
    time.sleep(SHORT_SLEEP)
    return time.monotonic() - begun - SHORT_SLEEP


def as_rank(case: Case, report: Path) -> None:
    """This rank's part of one case; rank 0 writes what all of them saw."""
    from mpi.dispatch import World, dispatch, install_abort_hooks, start_mpi
    from mpi.handout import Item

    world = start_mpi(case["ranks"])
    install_abort_hooks(world)
    comm = TimedComm(world.comm)
    call = None
    if case["call"] != "none" and (world.rank == 0 or case["call"] != "hold"):
        call = wait(case["seconds"]) if case["call"] == "wait" else multiply(case["products"])
    wakes: list[float] = []
    ends: list[float] = []

    def do(key: str) -> list[str]:
        if call is not None and (case["call"] != "hold" or key == "hold"):
            call()
            wakes.append(overslept())
        ends.append(time.monotonic())
        return ["finished"]

    items = [Item("hold"), *(Item(f"tgt_0123456789ab/run_hmc_{i:08x}") for i in range(case["items"]))]
    # A plain barrier spins, and takes the cores from the ranks that still import.
    meeting = comm.Ibarrier()
    while not meeting.Test():
        time.sleep(0.01)
    begun = time.monotonic()
    sleeper = BareSleeper()
    if world.rank == 0 and case["call"] in ("compute", "wait"):
        sleeper.start()
    dispatch(World(world.rank, world.size, comm), items if world.rank == 0 else [], do)
    # The last answer comes when every item of every rank has ended.
    claims = [*zip(comm.sent, comm.answered, strict=True)][:-1] if world.rank else []
    seen = comm.gather({"claims": claims, "wakes": wakes, "done": len(ends), "last": max(ends, default=begun)})
    if world.rank == 0:
        others = seen[1:]
        sleeper.over = True
        # Ranks leave the meeting up to half a second before rank 0 does, which is no latency of the hand-out.
        claimed = [claim for rank in others for claim in rank["claims"] if claim[0] >= begun]
        found = {
            "seconds": max(rank["last"] for rank in seen) - begun,
            "seconds_others": max(rank["last"] for rank in others) - begun,
            "by_others": sum(rank["done"] for rank in others),
            "claims": [answered - sent for sent, answered in claimed],
            "of_rank_0": until_awake(sleeper, [sent for sent, _ in claimed]),
            "of_rank": [wake for rank in others for wake in rank["wakes"]],
        }
        report.write_text(json.dumps(found))


def until_awake(sleeper: BareSleeper, moments: Sequence[float]) -> list[float]:
    """Seconds from each of these moments until the sleeper was awake again."""
    awake = np.asarray(sleeper.awake)
    if not len(awake):
        return []
    after = np.searchsorted(awake, moments)
    return [float(awake[i] - moment) for i, moment in zip(after, moments, strict=True) if i < len(awake)]


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


def rates(ranks: int, num_items: int, products: int, repeat: int) -> dict[str, list[float]]:
    """Items a second: in all, and those that the others get while rank 0 is inside an XLA call of `products`."""
    case = {"ranks": ranks, "items": num_items, "products": products}

    def in_all() -> float:
        return num_items / launch({**case, "call": "none"})["seconds"]

    def others() -> float:
        seen = launch({**case, "call": "hold"})
        return seen["by_others"] / seen["seconds_others"]

    return alternate({"all ranks": in_all, f"{ranks - 1} ranks, rank 0 being inside one XLA call": others}, repeat)


def per_second(figures: Sequence[float]) -> str:
    spread = Spread.of(figures)
    return f"{spread.median:,.0f} ({spread.least:,.0f} to {spread.most:,.0f})"


def milliseconds(seconds: Sequence[float]) -> list[str]:
    """Median, 99th percentile and largest, and how many there are."""
    if not seconds:
        return ["–", "–", "–", "0"]
    return [f"{1e3 * figure:.1f}" for figure in np.quantile(seconds, [0.5, 0.99, 1.0])] + [f"{len(seconds):,}"]


def picture(seen: dict[str, Case]) -> Any:
    """How often a claim, and a bare wake, takes longer than so many milliseconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(seen), 4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(seen), sharex=True, sharey=True))
    for axes, (title, case) in zip(panels, seen.items(), strict=True):
        for name, label in WHAT.items():
            values = np.sort(case[name])
            axes.step(1e3 * values, 1 - np.arange(len(values)) / max(len(values), 1), label=label)
        axes.axvline(50, color="grey", linestyle=":")
        axes.set(xscale="log", yscale="log", xlabel="milliseconds", title=title)
    panels[0].set_ylabel("share that takes longer")
    panels[0].legend()
    return figure


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--as-rank", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    tell_xla(1)
    if args.as_rank is not None:
        as_rank(json.loads(args.as_rank[0]), Path(args.as_rank[1]))
        return
    ranks, num_items, repeat, seconds = (3, 300, 1, 0.02) if args.quick else (RANKS, NUM_ITEMS, REPEAT, CALL_SECONDS)
    speed = products_of(1.0)
    rate = rates(ranks, num_items, round(speed * (0.3 if args.quick else 4.0)), repeat)
    few = min(FEW_RANKS, ranks - 1)
    cases = {
        f"{few} ranks that compute": {"ranks": few, "call": "compute", "items": few * (5 if args.quick else 80)},
        f"{ranks} ranks that compute": {"ranks": ranks, "call": "compute", "items": ranks * (5 if args.quick else 10)},
        f"{ranks} ranks that wait": {"ranks": ranks, "call": "wait", "items": ranks * (5 if args.quick else 40)},
    }
    common = {"seconds": seconds, "products": round(speed * seconds)}
    seen = {title: launch({**case, **common}) for title, case in cases.items()}
    section = "\n\n".join(
        [
            "## Hand-out",
            f"Written by `python benchmarks/handout.py`, on {os.cpu_count()} cores.",
            f"{ranks} ranks, {num_items:,} items that do nothing, items a second, median (least to most) of {repeat} "
            "alternating launches:",
            table(["who", "items a second"], [[who, per_second(figures)] for who, figures in rate.items()]),
            f"Milliseconds while every rank is inside XLA calls of {seconds} s, on a core of its own:",
            table(
                ["ranks", "what", "median", "99th percentile", "largest", "number"],
                [
                    [title, label, *milliseconds(case[name])]
                    for title, case in seen.items()
                    for name, label in WHAT.items()
                ],
            ),
        ]
    )
    publish("handout", section, args.out, picture(seen))


if __name__ == "__main__":
    main()
