"""What it costs to sample in chunks and to keep checkpoints.

    python benchmarks/checkpoints.py [--targets small] [--seconds 130] [--repeat 5] [--every 60]

For a small and two large targets, or those named: the seconds that a run of about `--seconds` spends on checkpoints,
one every `--every` seconds, as a share of its own; the longest chunk and the longest checkpoint (PBS leaves 10 s after
a signal); and the time of a run in chunks of about a second in units of one that is a single chunk, alternating.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lambda_hat.config import DlnBuild, DlnTarget, HmcConfig, QuadraticBuild, SgldConfig  # noqa: E402
from lambda_hat.programs.cores import bind_process  # noqa: E402

HMC = HmcConfig(num_burnin=20, initial_step_size=1e-4, target_acceptance=0.9)
CASES = {
    "small": (
        "quadratic, 10 parameters, sgld",
        QuadraticBuild(),
        SgldConfig(num_draws=2000, thin=2000, step_size=1e-4),
    ),
    "large": (
        "dln, 100,000 parameters, hmc",
        DlnBuild(target=DlnTarget(widths=[100] * 11, rank=10, data="population", n=10**6)),
        replace(HMC, num_draws=150),
    ),
    "larger": (
        "dln, 4,000,000 parameters, hmc",
        DlnBuild(target=DlnTarget(widths=[630] * 11, rank=10, data="population", n=10**6)),
        replace(HMC, num_draws=20, num_chains=4),
    ),
}
"""Name, build, and a run of about ten seconds on one core; some tens for the largest."""


@contextmanager
def watched_borders() -> Iterator[dict[str, list[float]]]:
    """Seconds of every chunk, and of every border that wrote a checkpoint."""
    from lambda_hat.engine.chunks import Chunks

    seen: dict[str, list[float]] = {"chunks": [], "checkpoints": [], "bytes": []}
    border, ended = Chunks._border, [0.0]

    def timed(self, phase, carry):
        begun = time.perf_counter()
        if ended[0]:
            seen["chunks"].append(begun - ended[0])
        before = self._written
        border(self, phase, carry)
        ended[0] = time.perf_counter()
        if self._written != before:
            seen["checkpoints"].append(ended[0] - begun)
            seen["bytes"].append(self._paths[0].stat().st_size)

    with mock.patch.object(Chunks, "_border", timed):
        yield seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seconds", type=float, default=130.0, help="that a run should take")
    parser.add_argument("--repeat", type=int, default=5, help="pairs of runs that are compared")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two checkpoints")
    args = parser.parse_args()
    bind_process(1)
    from lambda_hat.engine import chunks
    from lambda_hat.samplers import sample
    from lambda_hat.targets import build_target

    for name, build, cfg in (CASES[target] for target in args.targets):
        target, _ = build_target(build)
        sample(target, cfg)
        short = sample(target, replace(cfg, seed=1)).seconds_sample
        longer = replace(cfg, thin=max(1, round(cfg.thin * args.seconds / short)))
        with tempfile.TemporaryDirectory() as folder, watched_borders() as seen:
            path = Path(folder) / "checkpoint.npz"
            begun = time.perf_counter()
            sample(target, longer, chunks=chunks.Chunks(path, every=args.every))
            total = time.perf_counter() - begun
        share = sum(seen["checkpoints"]) / total
        megabytes = max(seen["bytes"], default=0) / 1e6
        print(
            f"{name}: {len(seen['checkpoints'])} checkpoints of {megabytes:.3g} MB in {total:.0f} s cost "
            f"{sum(seen['checkpoints']):.3f} s, {share:.2%}; longest chunk {max(seen['chunks']):.2f} s, "
            f"longest checkpoint {max(seen['checkpoints'], default=0):.2f} s",
            flush=True,
        )
        ratios = []
        for seed in range(args.repeat):
            one = replace(cfg, seed=2 + seed)
            in_chunks = sample(target, one).seconds_sample
            with mock.patch.multiple(chunks, CHUNK_SECONDS=1e9, MOST_GROWTH=10**9):
                whole = sample(target, one).seconds_sample
            ratios.append(in_chunks / whole)
        print(
            f"    in chunks / in one: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}, "
            f"{args.repeat} alternating runs of {short:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
