"""The verdict on a site, from what every rank of `mpi/check_pack.py` reports."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lambda_hat.errors import CorruptArtifact
from lambda_hat.store.layout import read_json

CHECK_KEYS = (
    "pack_id", "store_root", "cores_per_rank", "expected_ranks", "gpus_per_node", "ranks_per_gpu", "gpu_sharing",
    "needs",
)  # fmt: skip
"""Keys of a check file. `expected_ranks` may be null; `expected_nodes` may stand beside them."""

LINE_PREFIX = "lambda_hat check report: "
"""Before the report of a rank that could not write into the store, on its standard output."""

COLUMNS = ("rank", "host", "device", "cores", "memory", "python", "jax", "MPI", "world", "ready", "verdict")

CANNOT = {
    "mpi": "cannot use MPI",
    "binding": "cannot take cores and a GPU as asked",
    "import": "cannot import lambda_hat",
    "device": "cannot compute as asked",
    "store": "cannot write into the store",
}
"""What a part of a report that failed means."""

Report = Mapping[str, Any]


def read_reports(folder: Path, output: str = "") -> list[dict[str, Any]]:
    """Every report in the pack's folder, and those that ranks printed (`output`) as they could not write there."""
    reports = []
    for path in sorted(folder.glob("check-*.json")):
        try:
            reports.append(read_json(path))
        except (OSError, CorruptArtifact):
            continue
    for line in output.splitlines():
        _, found, text = line.partition(LINE_PREFIX)
        if found:
            try:
                reports.append(json.loads(text))
            except ValueError:
                continue
    return reports


def judge(
    reports: Sequence[Report],
    check: Mapping[str, Any],
    *,
    walltime_seconds: float | None = None,
    longest_run_seconds: float | None = None,
) -> list[str]:
    """What is wrong with a site, a sentence each, with what to write instead; nothing where packs can run.

    `check` is what the ranks were given (CHECK_KEYS). The walltime is that of a pack's block, and the longest run the
    expected seconds of the study's longest; None where it is not known.
    """
    if not reports:
        return [
            f"no rank has reported into {check['store_root']}: the launch failed (its output says why), or the nodes "
            "do not share the filesystem of the store"
        ]
    return [
        *_world(reports, check),
        *_nodes(reports, check),
        *_errors(reports, check),
        *_devices(reports, check),
        *_cores(reports, check),
        *_packages(reports),
        *_results(reports),
        *_walltime(reports, walltime_seconds, longest_run_seconds),
    ]


def table(reports: Iterable[Report]) -> list[list[str]]:
    """A row of words for each report, in the order of ranks; the heads are COLUMNS."""
    return [
        [
            str(rank_of(report)),
            report["host"],
            " ".join(filter(None, (report.get("device_kind"), report.get("device")))) or "-",
            ",".join(map(str, report.get("cores", ()))) or "-",
            _memory(report),
            report["python"],
            report["versions"].get("jax") or "-",
            (report.get("mpi_library") or "-").partition(",")[0],
            str(report.get("size", "-")),
            f"{report['seconds_ready']:.1f} s",
            ", ".join(_faults(report)) or "ok",
        ]
        for report in sorted(reports, key=lambda report: (rank_of(report), report["host"], report["pid"]))
    ]


def rank_of(report: Report) -> int:
    """A rank's number; of one that is alone in its world, and so is its 0, the launcher's."""
    return report["rank"] if report.get("size", 1) > 1 else report["launcher_rank"]


# --------------------------------------------------------------------------------------------------------------
# The parts of the verdict


def _world(reports: Sequence[Report], check: Mapping[str, Any]) -> Iterable[str]:
    expected = check["expected_ranks"]
    sizes = Counter(report["size"] for report in reports if "size" in report)
    started = max([len(reports), *(report["launcher_size"] or 1 for report in reports)])
    if set(sizes) == {1} and max(started, expected or 1) > 1:
        first = reports[0]
        told = f" ({first['launcher_variable']}={first['launcher_size']})" if first["launcher_variable"] else ""
        library = first.get("mpi_library") or "no MPI library"
        yield (
            f"{started} processes were started{told}, and each is alone in an MPI world of size 1 ({library}): each "
            "would do the whole work. Launcher and MPI library do not belong together: write mpi: bundled, or flavour: "
            "srun with the srun_mpi that the library was built for (MPICH: pmi2, Open MPI: pmix)"
        )
    elif expected is not None and set(sizes) - {expected}:
        for size in sorted(set(sizes) - {expected}):
            who = _who(report for report in reports if report.get("size") == size)
            yield f"{who}: an MPI world of {size}, expected {expected}; look at the launch line that --dry-run shows"
    if expected is not None and len(reports) != expected:
        absent = sorted(set(range(expected)) - {rank_of(report) for report in reports})
        silent = f"; nothing from rank {_ranges(absent)}" if absent else ""
        yield (
            f"{len(reports)} ranks have reported, expected {expected}{silent}: they did not start, died (the launch's "
            "output says why), or write to a store that their node does not share"
        )


def _nodes(reports: Sequence[Report], check: Mapping[str, Any]) -> Iterable[str]:
    expected = check.get("expected_nodes")
    if expected is None:
        return
    ranks = Counter(report["host"] for report in reports)
    if len(ranks) != expected:
        yield (
            f"ranks ran on {len(ranks)} nodes ({_names(ranks)}), expected {expected}; nodes_per_pack and the "
            "launcher's flavour decide where they go"
        )
    elif len(set(ranks.values())) > 1:
        uneven = ", ".join(f"{host} {count}" for host, count in sorted(ranks.items()))
        yield f"the ranks are spread unevenly over the nodes ({uneven}); give srun --ntasks-per-node, mpiexec -ppn"


def _errors(reports: Sequence[Report], check: Mapping[str, Any]) -> Iterable[str]:
    for part, cannot in CANNOT.items():
        failed = [report for report in reports if part in report["errors"]]
        if failed:
            first = failed[0]["errors"][part]
            remedy = (
                f" {check['store_root']}; give a folder that every node can write with --store DIR"
                if part == "store"
                else ""
            )
            yield f"{_who(failed)} {cannot}{remedy}: {first}"
    for name in sorted({name for report in reports for name in report["missing"]}):
        lacking = [report for report in reports if name in report["missing"]]
        yield (
            f"{_who(lacking)}: no module {name} for {_names({report['executable'] for report in lacking})}; install it "
            "there, or let worker_init activate the environment that has it"
        )


def _devices(reports: Sequence[Report], check: Mapping[str, Any]) -> Iterable[str]:
    asked = check["gpus_per_node"] > 0
    for backend, group in _grouped(reports, "backend").items():
        if asked and backend != "gpu":
            yield f"{_who(group)}: computes on {backend}, but gpus_per_node is {check['gpus_per_node']}"
        if not asked and backend != "cpu":
            yield (
                f"{_who(group)}: computes on {backend}, but gpus_per_node is 0, so that ranks would meet on one GPU; "
                "unset JAX_PLATFORMS, or write gpus_per_node"
            )
    for name, group in _grouped(reports, "gpu_id").items():
        if len(group) > check["ranks_per_gpu"]:
            called = _names({report["device"] for report in group})
            yield (
                f"{_who(group)} share the GPU {name} ({called}), but ranks_per_gpu is {check['ranks_per_gpu']}; write "
                f"ranks_per_gpu: {len(group)}, or ask the scheduler for {check['gpus_per_node']} GPUs on each node"
            )


def _cores(reports: Sequence[Report], check: Mapping[str, Any]) -> Iterable[str]:
    need = check["cores_per_rank"]
    for host, group in _grouped(reports, "host").items():
        bound = [report for report in group if report.get("cores")]
        ranks = Counter(core for report in bound for core in report["cores"])
        sharing = [report for report in bound if any(ranks[core] > 1 for core in report["cores"])]
        if sharing:
            yield (
                f"{_who(sharing)} share cores: {len(bound)} ranks of {need} on {len(ranks)} cores of {host}; write "
                f"ranks_per_node: {max(1, len(ranks) // need)}, or let the launcher leave the cores to the ranks (srun "
                "--cpu-bind=none, mpiexec -bind-to none)"
            )
        small = [report for report in bound if len(report["cores"]) < need]
        if small:
            fewest = min(len(report["cores"]) for report in small)
            yield (
                f"{_who(small)}: got {fewest} of {need} cores; write cores_per_rank: {fewest}, or ask the scheduler "
                f"for {need} cores for each rank (srun --cpus-per-task={need})"
            )


def _packages(reports: Sequence[Report]) -> Iterable[str]:
    names = sorted({name for report in reports for name in report["versions"]})
    versions = {"python": _grouped(reports, "python")}
    versions |= {name: _grouped([{**r["versions"], "of": r} for r in reports], name) for name in names}
    for name, groups in versions.items():
        if len(groups) > 1:
            found = "; ".join(
                f"{version} for {_who(r.get('of', r) for r in group)}" for version, group in sorted(groups.items())
            )
            yield f"ranks have different versions of {name}: {found}; let every node use one environment (worker_init)"


def _results(reports: Sequence[Report]) -> Iterable[str]:
    wrong = [report for report in reports if "result" in report and report["result"] != report["expected"]]
    if wrong:
        values = _names({str(report["result"]) for report in wrong})
        kinds = _names({f"{report['device_kind']}, jax {report['versions'].get('jax')}" for report in wrong})
        yield (
            f"{_who(wrong)}: a small sum came out as {values}, which is {wrong[0]['expected']}; this device or this "
            f"jax cannot be trusted ({kinds}): take the node out, or install the jax that pyproject.toml names"
        )


def _walltime(reports: Sequence[Report], walltime: float | None, longest: float | None) -> Iterable[str]:
    if walltime is None:
        return
    ready = max(report["seconds_ready"] for report in reports)
    needed = ready + (longest or 0.0)
    if walltime < needed:
        minutes = math.ceil(needed / 60)
        run = "" if longest is None else f", and the longest run takes about {longest:.0f} s"
        yield (
            f"walltime: {walltime:.0f} s, but a rank is ready after {ready:.0f} s{run}; write at least walltime: "
            f'"{minutes // 60:02d}:{minutes % 60:02d}:00"'
        )


# --------------------------------------------------------------------------------------------------------------
# Words


def _grouped(reports: Iterable[Report], key: str) -> dict[Hashable, list[Report]]:
    """Reports by what they say under `key`, where they say something."""
    groups: dict[Hashable, list[Report]] = defaultdict(list)
    for report in reports:
        if report.get(key) is not None:
            groups[report[key]].append(report)
    return dict(sorted(groups.items(), key=lambda item: str(item[0])))


def _who(reports: Iterable[Report]) -> str:
    found = list(reports)
    ranks = sorted({rank_of(report) for report in found})
    return (
        f"{'rank' if len(ranks) == 1 else 'ranks'} {_ranges(ranks)} on {_names({report['host'] for report in found})}"
    )


def _ranges(numbers: Sequence[int]) -> str:
    """`0-3, 7` for sorted numbers."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _names(names: Collection[str], shown: int = 4) -> str:
    words = sorted(names)
    return ", ".join(words if len(words) <= shown else [*words[: shown - 1], f"{len(words) - shown + 1} more"])


def _memory(report: Report) -> str:
    host = [report[key] for key in ("memory_available", "memory_limit") if report[key] is not None]
    words = [f"{min(host) / 2**30:.1f} GiB"] if host else []
    card = report.get("device_memory") or report.get("gpu_memory")
    return ", ".join(words + ([f"GPU {card / 2**30:.1f} GiB"] if card else [])) or "-"


def _faults(report: Report) -> list[str]:
    """What is wrong with one rank, without its neighbours."""
    faults = [*report["errors"], *(f"no {name}" for name in report["missing"])]
    if report.get("result") != report.get("expected"):
        faults.append("wrong sum")
    if report["launcher_size"] and report.get("size") == 1 < report["launcher_size"]:
        faults.append("alone")
    return faults
