"""The table of estimates: one typed row per run, finished or not, collected from the store."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from lambda_hat.config import SAMPLE_SCHEMAS, BuildConfig, SampleConfig
from lambda_hat.config.common import flat
from lambda_hat.config.parameter_paths import moving_dim
from lambda_hat.errors import ConfigError, CorruptArtifact, LambdaHatError, StoreError
from lambda_hat.estimate.posterior import posterior_for
from lambda_hat.id_utils import canonical_json, identity_payload, trajectory_id
from lambda_hat.omegaconf_support import load_build_config, load_sample_config
from lambda_hat.store.layout import Store, error_line, existing_store, read_record, remove_litter, write_bytes_atomic
from lambda_hat.workflow_config import compose_study

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "SCHEMA",
    "TABLE_NAME",
    "RunRef",
    "collect",
    "error_line",
    "load_results",
    "runs_in_store",
    "runs_of",
    "to_frame",
    "write_table",
]

TABLE_NAME = "llc_runs.parquet"

_FLOATS = pa.list_(pa.float64())
_COLUMNS: list[tuple[str, pa.DataType]] = [
    ("target_id", pa.string()),
    ("run_id", pa.string()),
    ("target", pa.string()),
    ("target_kind", pa.string()),
    ("target_config", pa.string()),
    ("trajectory", pa.string()),
    ("step", pa.int64()),
    ("sampler", pa.string()),
    ("status", pa.string()),
    ("reason", pa.string()),
    ("llc_mean", pa.float64()),
    ("llc_std_error", pa.float64()),
    ("llc_per_chain", _FLOATS),
    ("rhat_max", pa.float64()),
    ("ess_bulk_min", pa.float64()),
    ("ess_tail_min", pa.float64()),
    ("acceptance", pa.float64()),
    ("mala_acceptance", pa.float64()),
    ("temperature", pa.float64()),
    ("temperature_std_error", pa.float64()),
    ("growth", pa.float64()),
    ("localisation", pa.float64()),
    ("distance", pa.float64()),
    ("degree", pa.float64()),
    ("llc_variance", pa.float64()),
    ("num_divergent", pa.int64()),
    ("loss_at_w_star", pa.float64()),
    ("loss_mean", pa.float64()),
    ("n", pa.int64()),
    ("dim", pa.int64()),
    ("beta", pa.float64()),
    ("gamma", pa.float64()),
    ("n_beta", pa.float64()),
    ("true_llc", pa.float64()),
    ("true_multiplicity", pa.int64()),
    ("true_llc_t", pa.float64()),
    ("rel_error", pa.float64()),
    ("rel_error_llc", pa.float64()),
    ("verdict", pa.string()),
    ("verdict_sentence", pa.string()),
    ("notes", pa.list_(pa.string())),
    ("singular_fluctuation", pa.float64()),
    ("singular_fluctuation_std_error", pa.float64()),
    ("waic", pa.float64()),
    ("step_size", _FLOATS),
    ("num_gradients", pa.int64()),
    ("fge", pa.float64()),
    ("programs_compiled", pa.int64()),
    ("programs_loaded", pa.int64()),
    ("seconds_compile", pa.float64()),
    ("seconds_sample", pa.float64()),
    ("seconds_total", pa.float64()),
    ("lanes", pa.int64()),
    ("rank", pa.int64()),
    ("host", pa.string()),
    ("backend", pa.string()),
    ("device", pa.string()),
    ("cores", pa.int64()),
    ("pack_id", pa.string()),
    ("run_dir", pa.string()),
]


def _config_columns() -> Iterator[tuple[str, pa.DataType]]:
    """`cfg.<key>` for every key that a sampler can have, flattened with dots."""
    arrow = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), list[str]: pa.list_(pa.string())}

    def walk(schema: type, prefix: str) -> Iterator[tuple[str, pa.DataType]]:
        hints = get_type_hints(schema)
        for field in dataclasses.fields(schema):
            hint = hints[field.name]
            if isinstance(hint, type) and dataclasses.is_dataclass(hint):
                yield from walk(hint, f"{prefix}{field.name}.")
            else:
                plain = next(t for t in getattr(hint, "__args__", (hint,)) if t is not type(None))
                yield f"{prefix}{field.name}", arrow[plain]

    seen: dict[str, pa.DataType] = {}
    for schema in SAMPLE_SCHEMAS.values():
        seen |= {name: kind for name, kind in walk(schema, "cfg.") if name not in ("cfg.target_id", "cfg.name")}
    yield from seen.items()


SCHEMA = pa.schema([*_COLUMNS, *_config_columns()])
_TYPES = dict(_COLUMNS)
_LEAST = {"n": 3, "dim": 1}


@dataclass(frozen=True)
class RunRef:
    """A run that a table should have a row for."""

    target_id: str
    run_id: str
    build: BuildConfig
    cfg: SampleConfig


def runs_in_store(store: Store) -> list[RunRef]:
    """Every run that has a readable configuration in the store."""
    refs = []
    for target_id in store.target_ids():
        try:
            build = load_build_config(store.target_dir(target_id) / "config.yaml")
        except LambdaHatError:
            continue
        for run_id in store.run_ids(target_id):
            with contextlib.suppress(LambdaHatError):
                cfg = load_sample_config(store.run_dir(target_id, run_id) / "config.yaml")
                refs.append(RunRef(target_id, run_id, build, cfg))
    return refs


def runs_of(store_root: Path, experiments: Path | None) -> tuple[Store, list[RunRef]]:
    """The store and its runs, or those of the study in the file `experiments`.

    Raises StoreError where there is no store, ConfigError where the study cannot be composed.
    """
    if experiments is None:
        store = existing_store(store_root)
        return store, runs_in_store(store)
    study = compose_study(experiments)
    refs = [RunRef(r.target_id, r.run_id, study.targets[r.target_id], r.cfg) for r in study.runs]
    return Store(store_root), refs


def collect(store: Store, refs: Iterable[RunRef]) -> pa.Table:
    """The table with one row per run of `refs`, whatever its state."""
    targets: dict[str, _TargetState] = {}
    rows = []
    for ref in refs:
        if ref.target_id not in targets:
            targets[ref.target_id] = _target_state(store, ref)
        rows.append(_row(store, ref, targets[ref.target_id]))
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_table(table: pa.Table, results_root: Path) -> Path:
    """Write `llc_runs.parquet` atomically; returns its path."""
    path = results_root / TABLE_NAME
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    remove_litter(results_root)
    write_bytes_atomic(path, buffer.getvalue().to_pybytes())
    return path


def to_frame(table: pa.Table) -> pd.DataFrame:
    """The table as pandas, whole numbers that may be missing as nullable integers."""
    import pandas as pd

    integers = {pa.int64(): pd.Int64Dtype()}
    return table.to_pandas(types_mapper=integers.get)


def load_results(directory: str | os.PathLike[str] = "results") -> pd.DataFrame:
    """The table of a study, `llc_runs.parquet` in its results folder, as pandas: a row per run, finished or not.

    Columns are those of SCHEMA; whole numbers that may be missing are nullable integers.
    Raises StoreError where the folder has no table, CorruptArtifact where it is no such table.
    """
    if not isinstance(directory, (str, os.PathLike)):
        raise ConfigError(f"load_results: got {type(directory).__name__}, expected a results folder, such as 'results'")
    path = Path(directory).expanduser() / TABLE_NAME
    remedy = f"lambda-hat results --store runs --results {shlex.quote(str(directory))} collects it from the store"
    try:
        # Of a buffer, so that a column is not taken for a partition by the name of a folder.
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{path}: no table there; {remedy}") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from None
    except pa.ArrowException as error:
        raise CorruptArtifact(f"{path}: not a Parquet file ({error}); {remedy}") from None
    return to_frame(table)


@dataclass(frozen=True)
class _TargetState:
    columns: dict[str, Any]
    error: str | None


def _target_state(store: Store, ref: RunRef) -> _TargetState:
    directory = store.target_dir(ref.target_id)
    status = store.target_status(ref.target_id)
    columns: dict[str, Any] = {
        "target": ref.build.label,
        "target_kind": ref.build.kind,
        "target_config": canonical_json(identity_payload(ref.build)),
        "trajectory": trajectory_id(ref.build),
        "step": getattr(ref.build, "step", None),
        "n": ref.build.n,
        "dim": ref.build.dim,
    }
    if status == "built":
        with contextlib.suppress(LambdaHatError, OSError):
            meta = read_record(directory / "meta.json")
            keys = ("n", "dim", "loss_at_w_star", "true_llc", "true_multiplicity")
            told = {key: meta[key] for key in keys if key in meta and _fits(meta[key], SCHEMA.field(key).type)}
            # Of fewer data points than any configuration may have, nothing could be said.
            columns |= {key: value for key, value in told.items() if value is None or value >= _LEAST.get(key, value)}
        return _TargetState(columns, None)
    return _TargetState(columns, error_line(directory / "error.json") if status == "failed" else None)


def _row(store: Store, ref: RunRef, target: _TargetState) -> dict[str, Any]:
    directory = store.run_dir(ref.target_id, ref.run_id)
    row: dict[str, Any] = {
        "target_id": ref.target_id,
        "run_id": ref.run_id,
        "sampler": ref.cfg.name,
        "run_dir": str(directory),
        **target.columns,
        **_restricted(ref, target.columns),
    }
    row |= _posterior_columns(ref.cfg, row["n"], row["dim"])
    row |= flat(ref.cfg, "cfg.")
    status = store.run_status(ref.target_id, ref.run_id)
    if status == "finished":
        try:
            analysis = read_record(directory / "analysis.json")
        except (LambdaHatError, OSError) as error:
            return row | {"status": "pending", "reason": f"its result cannot be read: {error}"}
        analysis = {key: value for key, value in analysis.items() if key in _TYPES}
        wrong = next((key for key, value in analysis.items() if not _fits(value, _TYPES[key])), None)
        if wrong is not None:
            reason = f"{directory / 'analysis.json'}: {wrong}: got {analysis[wrong]!r:.80}, expected {_TYPES[wrong]}"
            return row | {"status": "pending", "reason": f"its result cannot be read: {reason}"}
        return row | analysis | {"status": "finished"}
    if status == "failed":
        return row | {"status": "failed", "reason": error_line(directory / "error.json")}
    if target.error is not None:
        return row | {"status": "blocked", "reason": f"its target could not be built: {target.error}"}
    return row | {"status": "pending", "reason": "not sampled yet"}


def _fits(value: Any, kind: pa.DataType) -> bool:
    """Whether a table has room for `value` in a column of this kind."""
    if value is None:
        return True
    if pa.types.is_list(kind):
        return isinstance(value, list) and all(_fits(item, kind.value_type) for item in value)
    if pa.types.is_string(kind):
        return isinstance(value, str)
    if pa.types.is_floating(kind):
        return type(value) is float or (type(value) is int and abs(value) <= 2**53)
    return type(value) is int and -(2**63) <= value < 2**63


def _restricted(ref: RunRef, columns: dict[str, Any]) -> dict[str, Any]:
    """What is other than the whole target's where a run moves a part of the parameters."""
    if ref.cfg.restrict is None:
        return {}
    dim = moving_dim(ref.build, ref.cfg)
    if dim == columns["dim"]:
        return {}
    return {"dim": dim, "true_llc": None, "true_multiplicity": None}


def _posterior_columns(cfg: SampleConfig, n: int | None, dim: int | None) -> dict[str, Any]:
    """Empty where they depend on a target that is not built yet."""
    if n is None or (dim is None and cfg.prior_radius is not None):
        return {}
    # The dimension counts with a prior_radius alone.
    posterior = posterior_for(cfg, n, dim or 0)
    return {"beta": posterior.n_beta / n, "gamma": posterior.gamma, "n_beta": posterior.n_beta}
