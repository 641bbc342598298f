"""Small studies for the tests of both schedulers, and what they left in their stores."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lambda_hat.store.layout import read_events
from tests.cluster.fake_pbs import FakePbs
from tests.cluster.slurm_lab import SlurmLab
from tests.users import USERS_PYTHON

ROOT = Path(__file__).resolve().parents[2]
PACKED = [USERS_PYTHON, str(ROOT / "flows" / "packed.py")]
PATIENCE = 400.0
"""Seconds for a study of half a minute, on a machine that does other things as well."""
QUADRATIC = {"target": "quadratic", "overrides": {"target": {"dim": 3, "rank": 2}}}
BAD_BUILD = {"model": "small", "data": "small", "overrides": {"data": {"n": 20, "noise_std": 1e300}}}
ON_THIS_MACHINE = ["site.address=127.0.0.1", "site.one_machine=true", "site.poll_seconds=2"]
OURS = ("--max_workers_per_node", "-a", "--cert_dir", "--hb_threshold", "--drain_period", "--enable_mpi_mode")
"""Options of Parsl's worker pool that follow from ours; what else it has is between its own releases."""
POOL = "PYTHON -P -m parsl.executors.high_throughput.process_worker_pool"
OWN_TMPDIR = """\
leave() {
over=; [ ! -e "$LAMBDA_HAT_TMPDIR/over" ] || over=yes
for each in $watcher $giver; do kill "$each" 2> /dev/null; done
rm -rf "$LAMBDA_HAT_TMPDIR"
for process in /proc/[0-9]*; do
grep -qsz multiprocessing "$process/cmdline" || continue
grep -qszxF "TMPDIR=$LAMBDA_HAT_TMPDIR" "$process/environ" && kill -9 "${process#/proc/}"
done
[ -z "$over" ] || exit 0
}
base=${TMPDIR:-/tmp}; [ ${#base} -le 64 ] || base=/tmp
LAMBDA_HAT_TMPDIR=$(mktemp -d "$base/lh.XXXXXX") && trap leave EXIT
export LAMBDA_HAT_TMPDIR TMPDIR="${LAMBDA_HAT_TMPDIR:-$base}"
"""
WATCHER = """\
end_without_driver() {
last='' same=0
while [ $same -lt 4 ]; do
sleep 10
now=$(cat LEASE)
[ "$now" = "$last" ] && same=$((same + 1)) || same=0
last=$now
done
for process in /proc/[0-9]*; do
grep -qsz process_worker_pool "$process/cmdline" || continue
grep -qszxF "TMPDIR=$LAMBDA_HAT_TMPDIR" "$process/environ" && kill -9 "${process#/proc/}"
done
}
end_without_driver > /dev/null 2>&1 &
watcher=$!
end_given_back() {
job=${PBS_JOBID:-$SLURM_JOB_ID}
until [ -e "$LAMBDA_HAT_TMPDIR/no-good-node" ] || grep -qsF "\\"end ${job%%.*}\\"" LEASE; do sleep 1; done
: > "$LAMBDA_HAT_TMPDIR/over"
for process in /proc/[0-9]*; do
grep -qsz process_worker_pool "$process/cmdline" || continue
grep -qszxF "TMPDIR=$LAMBDA_HAT_TMPDIR" "$process/environ" && kill -9 "${process#/proc/}"
done
}
end_given_back > /dev/null 2>&1 &
giver=$!
"""
WORKERS = {
    "packs": f"{POOL} --max_workers_per_node=1 -a 127.0.0.1 --cert_dir PARSL/packs/certificates --hb_threshold=20 "
    "--drain_period=3480 --enable_mpi_mode\n",
    "tasks": f"{POOL} --max_workers_per_node=1 -a 127.0.0.1 --cert_dir PARSL/tasks/certificates --hb_threshold=20 "
    "--drain_period=3480\n",
}
"""How a block of each executor starts its workers."""
ELSEWHERE = ("host", "started", "pid", "rank", "pack_id", "site", "programs_compiled", "programs_loaded", "sha256")
"""What an analysis says of the place and time of its run, beside `seconds_*`, and the checksum over all of it."""

Cluster = SlurmLab | FakePbs


def write_study(path: Path, *, seeds: int = 2, thin: int = 1, targets: list | None = None) -> Path:
    """A study of `seeds` runs for each of two targets. A run of `thin=8000` takes about a second once compiled."""
    overrides = {"num_draws": 100, "num_burnin": 50, "num_chains": 2, "step_size": 1e-4, "thin": thin}
    sgld = {"name": "sgld", "overrides": overrides, "sweep": {"seed": list(range(seeds))}}
    targets = [QUADRATIC, {"target": "monomial"}] if targets is None else targets
    path.write_text(yaml.safe_dump({"targets": targets, "samplers": [sgld]}))
    return path


def driver_env(cluster: Cluster) -> dict[str, str]:
    """The environment of a login node, whatever PYTHONPATH the tests run with."""
    return {**cluster.env, "PYTHONPATH": ""}


def packed(cluster: Cluster, *words: Any, cwd: Path, env: dict | None = None) -> subprocess.CompletedProcess[str]:
    """`python flows/packed.py WORDS` as on a login node."""
    return subprocess.run(
        [*PACKED, *map(str, words)], env=driver_env(cluster) if env is None else env, cwd=cwd, timeout=PATIENCE,
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def start_packed(cluster: Cluster, *words: Any, cwd: Path, log: Path) -> subprocess.Popen[bytes]:
    """The same, without waiting for its end."""
    with log.open("wb") as out:
        return subprocess.Popen(
            [*PACKED, *map(str, words)],
            env=driver_env(cluster),
            cwd=cwd,
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
        )


def analyses(store: Path) -> dict[str, dict[str, Any]]:
    """`target/run` to what the run found."""
    paths = sorted(store.glob("targets/*/run_*/analysis.json"))
    return {f"{path.parts[-3]}/{path.parts[-2]}": json.loads(path.read_text()) for path in paths}


def numbers(store: Path) -> dict[str, dict[str, Any]]:
    """The analyses without what depends on place and time."""
    return {
        run: {key: value for key, value in found.items() if not key.startswith("seconds") and key not in ELSEWHERE}
        for run, found in analyses(store).items()
    }


@dataclass
class Pack:
    """What the ranks of one pack wrote."""

    hosts: list[str] = field(default_factory=list)
    """Of each rank."""
    begun: float = float("inf")
    ended: float = 0.0
    first_run: float = float("inf")
    """Seconds since the epoch."""


def packs(store: Path) -> list[Pack]:
    """The packs of a store in the order of their beginning."""
    found = []
    for folder in store.glob("packs/pack_*"):
        pack = Pack()
        for log in sorted(folder.glob("rank-*.jsonl")):
            for event in map(json.loads, log.read_text().splitlines()):
                pack.ended = max(pack.ended, event["time"])
                if event["event"] == "start":
                    pack.hosts.append(event["host"])
                    pack.begun = min(pack.begun, event["time"])
                elif event["event"] == "run_start":
                    pack.first_run = min(pack.first_run, event["time"])
        if pack.hosts:
            found.append(pack)
    return sorted(found, key=lambda pack: pack.begun)


def events(store: Path, kind: str) -> list[dict[str, Any]]:
    """What ranks wrote of this kind, with `rank_log`, the log's path under the packs."""
    found = []
    for log in sorted(store.glob("packs/pack_*/rank-*.jsonl")):
        name = str(log.relative_to(store / "packs"))
        found += [{**event, "rank_log": name} for event in read_events(log)[0] if event["event"] == kind]
    return found


def first_pack(store: Path) -> str:
    """The name of the pack that was begun first."""
    starts = events(store, "start")
    return min(starts, key=lambda event: event["time"])["rank_log"].partition("/")[0]


def job_logs(store: Path) -> dict[str, str]:
    """Job id to the log of each job that --submit has made, in the order of submission."""
    # PBS's own log bears no number.
    logs = {path.name.split(".", 1)[1].removesuffix(".log"): path for path in store.glob("jobs/*.[0-9]*.log")}
    return {job: logs[job].read_text() for job in sorted(logs, key=lambda job: int(job.split(".")[0]))}


def block_script(store: Path, label: str) -> str:
    """What Parsl submitted for the first block of an executor, its varying parts by name."""
    (path,) = (p for p in store.glob(f"parsl/*/000/submit_scripts/parsl.{label}.block-0.*") if not is_output(p))
    text = path.read_text()
    for pattern, name in (
        (re.escape(str(path)), "SCRIPT"),
        (re.escape(str(path.parents[1])), "PARSL"),
        (re.escape(path.name), "NAME"),
        (r"/\S+/driver_\w+\.lease", "LEASE"),
        (re.escape(USERS_PYTHON), "PYTHON"),
        (re.escape(str(ROOT)), "REPOSITORY"),
        (re.escape(str(store.parent)), "FOLDER"),
        (r"umask=\d+", "umask=UMASK"),
    ):
        text = re.sub(pattern, name, text)
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return "".join(f"{_our_options(line) if line.startswith(POOL) else line}\n" for line in lines)


def _our_options(pool: str) -> str:
    options = re.findall(r" (--?\w+)(?:(=| )((?!-)\S+))?", pool.removeprefix(POOL))
    return " ".join([POOL, *(f"{name}{mark}{value}" for name, mark, value in options if name in OURS)])


def is_output(path: Path) -> bool:
    return path.suffix in (".stdout", ".stderr")


def slow_clock(folder: Path, seconds: int) -> str:
    """The word for a site on which the first job of a chain believes it to be `seconds` earlier than it is.

    Its time runs out that much sooner, and only its: how many jobs follow is then no matter of this machine's speed.
    """
    lines = f"""\
if ! [ -e {folder}/begun ]; then
  date() {{ command date -d "-{seconds} seconds" "$@"; }}
  touch {folder}/begun
fi
"""
    (folder / "clock.sh").write_text(lines)
    return f"site.worker_init=. {folder}/clock.sh"


def lose_a_block(cluster: Cluster, words: list[Any], store: Path, cancel: Callable[[], str]) -> tuple[str, str]:
    """Run a study, call `cancel` once two runs are finished, and see to it that the study goes on to its end.

    `cancel` takes the packs' job out of the queue and returns its id. Returns that and what the driver said.
    """
    log = store.parent / "said"
    driver = start_packed(cluster, *words, cwd=store.parent, log=log)
    try:
        cluster.wait_for(lambda: len(analyses(store)) >= 2 or driver.poll() is not None, PATIENCE)
        assert driver.poll() is None, log.read_text()
        job_id = cancel()
        before = analyses(store)
        status = driver.wait(PATIENCE)
    finally:
        driver.kill()
    said = log.read_text()
    assert status == 0, said
    after = analyses(store)
    assert {run: after[run] for run in before} == before
    return job_id, said
