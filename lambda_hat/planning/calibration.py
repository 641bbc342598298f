"""How long the finished runs of a store took beside what was expected of them: its `costs.json`.

Every study adds its runs to the file, and later plans follow the medians. Losing it costs accuracy and nothing else.
"""

from __future__ import annotations

import copy
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from lambda_hat.config import BuildConfig
from lambda_hat.errors import StoreError
from lambda_hat.id_utils import Run
from lambda_hat.planning.cost import RUN, CostModel, Shape, expected_seconds, shape_of
from lambda_hat.store.layout import Store, read_record, write_record

if TYPE_CHECKING:
    import pyarrow as pa

COSTS_NAME = "costs.json"
COSTS_FORMAT = 3
"""Raised with every change of what `expected_seconds` returns, since the file holds ratios to it."""
MOST_KEPT = 300
"""Runs of a sampler on a kind of target that are kept of a platform, chosen by the hash of their names."""
COLUMNS = ["status", "verdict", "seconds_total", "seconds_sample", "seconds_compile"]
COLUMNS += ["backend", "device", "cores"]


class Finished(NamedTuple):
    """A finished run, as the file keeps it."""

    ratio: float  # seconds inside compiled programs, in expected ones
    compile: float  # seconds; 0 where the process had its programs
    around: float | None  # all other seconds; None where several attempts were made


Platforms = dict[str, dict[str, dict[str, Finished]]]
"""Finished runs by platform, "sampler/kind of target" and "target_id/run_id"."""


def platform_of(backend: str, device: str, cores: int) -> str:
    """What runs must have in common for their times to be compared."""
    return f"cpu/{cores}" if backend == "cpu" else device


def read_platforms(store_root: Path) -> Platforms:
    """The content of `costs.json`; empty where there is none, or it is damaged or of another format."""
    try:
        record = read_record(Path(store_root).expanduser() / COSTS_NAME)
        platforms = record["platforms"].items() if record["format"] == COSTS_FORMAT else ()
        return {
            platform: {key: {name: Finished(*run) for name, run in runs.items()} for key, runs in found.items()}
            for platform, found in platforms
        }
    except (OSError, StoreError, KeyError, TypeError, AttributeError):
        return {}


def read_costs(store_root: Path, cores_per_rank: int, gpus_per_node: int) -> CostModel:
    """What the store has measured on ranks like these; the defaults where that is nothing."""
    platforms = read_platforms(store_root)
    usable = {name: found for name, found in platforms.items() if name.startswith("cpu/") is (gpus_per_node == 0)}
    if not usable:
        return CostModel()
    # Another number of cores is nearer than the defaults.
    most = max(usable.values(), key=lambda found: sum(map(len, found.values())))
    ratios, compiling, around = defaultdict(list), defaultdict(list), []
    for key, runs in usable.get(platform_of("cpu", "cpu", cores_per_rank), most).items():
        sampler = key.partition("/")[0]
        for whose in (key, sampler, ""):
            ratios[whose] += [run.ratio for run in runs.values()]
        compiling[sampler] += [run.compile for run in runs.values() if run.compile > 0]
        around += [run.around for run in runs.values() if run.around is not None]
    factors, compiled = (
        {key: median(values) for key, values in found.items() if values} for found in (ratios, compiling)
    )
    return CostModel(len(ratios[""]), median(around or [RUN]), factors, compiled)


def update_costs(store: Store, table: pa.Table, runs: Iterable[Run], targets: Mapping[str, BuildConfig]) -> None:
    """Add the finished runs of `table` to the store's `costs.json`.

    runs: those of its rows, in order. targets: the configurations of their targets by id.
    Raises StoreError where the file cannot be written.
    """
    before = read_platforms(store.root)
    after = copy.deepcopy(before)
    shapes: dict[str, Shape] = {}
    for row, run in zip(table.select(COLUMNS).to_pylist(), runs, strict=True):
        status, verdict, total, *known = row.values()
        # Chains that have all died end early.
        if status != "finished" or verdict == "diverged" or None in known:
            continue
        target_id, cfg, build = run.target_id, run.cfg, targets[run.target_id]
        if target_id not in shapes:
            shapes[target_id] = shape_of(build, store.target_dir(target_id))
        seconds, compiling, *where = known
        ratio = seconds / expected_seconds(shapes[target_id], cfg)
        around = None if total is None else max(total - seconds - compiling, 0.0)
        own = after.setdefault(platform_of(*where), {}).setdefault(f"{cfg.name}/{build.kind}", {})
        own["/".join(run.key)] = Finished(ratio, compiling, around)
    for own in (own for found in after.values() for own in found.values()):
        for name in sorted(own, key=lambda name: hashlib.sha1(name.encode()).digest())[MOST_KEPT:]:
            del own[name]
    if after != before:
        write_record(store.root / COSTS_NAME, {"format": COSTS_FORMAT, "platforms": after})
