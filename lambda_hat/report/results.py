"""The table of estimates: one typed row per run, finished or not, collected from the store."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from lambda_hat.config import SAMPLE_SCHEMAS, BuildConfig, SampleConfig
from lambda_hat.config.common import flat
from lambda_hat.config.parameter_paths import moving_dim
from lambda_hat.errors import ConfigError, CorruptArtifact, LambdaHatError, StoreError
from lambda_hat.estimate.posterior import posterior_for
from lambda_hat.id_utils import Run, canonical_json, identity_payload, trajectory_id
from lambda_hat.omegaconf_support import load_build_config, load_sample_config
from lambda_hat.store import run_files
from lambda_hat.store.layout import Store, error_line, existing_store, read_record, remove_litter, write_bytes_atomic
from lambda_hat.workflow_config import compose_study

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "SCHEMA",
    "TABLE_NAME",
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
    ("flat_temperature", pa.float64()),
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
    ("site", pa.string()),
    ("rank", pa.int64()),
    ("host", pa.string()),
    ("backend", pa.string()),
    ("device", pa.string()),
    ("cores", pa.int64()),
    ("pack_id", pa.string()),
    ("run_dir", pa.string()),
]


def _config_columns() -> Iterator[tuple[str, pa.DataType]]:
    """Yield a column `cfg.<key>` for every key of every sampler. Keys of a section are joined by dots."""
    arrow = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), list[str]: pa.list_(pa.string())}

    def walk(schema: type, prefix: str) -> Iterator[tuple[str, pa.DataType]]:
        hints = get_type_hints(schema)
        for field in dataclasses.fields(schema):
            hint = hints[field.name]
            if isinstance(hint, type) and dataclasses.is_dataclass(hint):
                yield from walk(hint, f"{prefix}{field.name}.")
            else:
                plain = next(t for t in getattr(hint, "__args__", (hint,)) if t is not type(None))
                # A mapping of sections is written as JSON.
                yield f"{prefix}{field.name}", arrow.get(plain, pa.string())

    seen: dict[str, pa.DataType] = {}
    for schema in SAMPLE_SCHEMAS.values():
        seen |= {name: kind for name, kind in walk(schema, "cfg.") if name not in ("cfg.target_id", "cfg.name")}
    yield from seen.items()


SCHEMA = pa.schema([*_COLUMNS, *_config_columns()])
_TYPES = dict(_COLUMNS)
_LEAST = {"n": 3, "dim": 1}
"""Least values that a configuration admits."""


def runs_in_store(store: Store) -> tuple[list[Run], dict[str, BuildConfig]]:
    """Every run that has a readable configuration in the store, and the configurations of their targets by id."""
    runs, targets = [], {}
    for target_id in store.target_ids():
        try:
            targets[target_id] = load_build_config(store.target_dir(target_id) / "config.yaml")
        except LambdaHatError:
            continue
        for run_id in store.run_ids(target_id):
            with contextlib.suppress(LambdaHatError):
                path = store.run_dir(target_id, run_id) / "config.yaml"
                cfg = load_sample_config(path, run_files.read_bytes)
                runs.append(replace(Run.of(cfg), target_id=target_id, run_id=run_id))
    return runs, targets


def runs_of(store_root: Path, experiments: Path | None) -> tuple[Store, Sequence[Run], dict[str, BuildConfig]]:
    """The store at `store_root`, all of its runs, or only those of the study in `experiments`, and their targets by id.

    Raises:
        StoreError: there is no store.
        ConfigError: the study cannot be composed.
    """
    if experiments is None:
        store = existing_store(store_root)
        return store, *runs_in_store(store)
    study = compose_study(experiments)
    return Store(store_root), study.runs, study.targets


def collect(store: Store, runs: Iterable[Run], targets: Mapping[str, BuildConfig]) -> pa.Table:
    """Collect the table, with one row per run, whatever its state.

    Args:
        store: The store.
        runs: The runs.
        targets: The configurations of their targets by id.
    """
    states: dict[str, _TargetState] = {}
    rows = []
    for run in runs:
        if run.target_id not in states:
            states[run.target_id] = _target_state(store, run.target_id, targets[run.target_id])
        rows.append(_row(store, run, states[run.target_id]))
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_table(table: pa.Table, results_root: Path) -> Path:
    """Write `llc_runs.parquet` atomically. Returns its path."""
    path = results_root / TABLE_NAME
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    remove_litter(results_root)
    write_bytes_atomic(path, buffer.getvalue().to_pybytes())
    return path


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Convert the table to pandas. Whole numbers become nullable integers, since some may be missing."""
    import pandas as pd

    integers = {pa.int64(): pd.Int64Dtype()}
    return table.to_pandas(types_mapper=integers.get)


def load_results(directory: str | os.PathLike[str] = "results") -> pd.DataFrame:
    """Load the table of a study as a DataFrame with one row per run, finished or not.

    Args:
        directory: the results folder of the study, which holds `llc_runs.parquet`. Default: `results`.

    Returns:
        The columns of SCHEMA, which `docs/results.md` explains. Whole numbers are nullable integers, since some may be
        missing.

    Raises:
        ConfigError: `directory` is not a path.
        StoreError: the folder has no table, or the table cannot be read.
        CorruptArtifact: the file is not a Parquet table.
    """
    if not isinstance(directory, (str, os.PathLike)):
        raise ConfigError(f"load_results: got {type(directory).__name__}, expected a results folder, such as 'results'")
    path = Path(directory).expanduser() / TABLE_NAME
    remedy = f"lambda-hat results --store runs --results {shlex.quote(str(directory))} collects it from the store"
    try:
        # From a buffer: given a path, pyarrow takes a folder called key=value for a column.
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
    build: BuildConfig
    columns: dict[str, Any]
    error: str | None


def _target_state(store: Store, target_id: str, build: BuildConfig) -> _TargetState:
    directory = store.target_dir(target_id)
    status = store.target_status(target_id)
    columns: dict[str, Any] = {
        "target": build.label,
        "target_kind": build.kind,
        "target_config": canonical_json(identity_payload(build)),
        "trajectory": trajectory_id(build),
        "step": getattr(build, "step", None),
        "n": build.n,
        "dim": build.dim,
    }
    if status == "built":
        with contextlib.suppress(LambdaHatError, OSError):
            meta = read_record(directory / "meta.json")
            keys = ("n", "dim", "loss_at_w_star", "true_llc", "true_multiplicity")
            told = {key: meta[key] for key in keys if key in meta and _fits(meta[key], SCHEMA.field(key).type)}
            # A smaller value than any configuration admits comes from a damaged record.
            columns |= {key: value for key, value in told.items() if value is None or value >= _LEAST.get(key, value)}
        return _TargetState(build, columns, None)
    return _TargetState(build, columns, error_line(directory / "error.json") if status == "failed" else None)


def _row(store: Store, run: Run, target: _TargetState) -> dict[str, Any]:
    directory = store.run_dir(*run.key)
    row: dict[str, Any] = {
        "target_id": run.target_id,
        "run_id": run.run_id,
        "sampler": run.cfg.name,
        "run_dir": str(directory),
        **target.columns,
        **_restricted(run.cfg, target),
    }
    row |= _posterior_columns(run.cfg, row["n"], row["dim"])
    row |= flat(run.cfg, "cfg.")
    if run.cfg.observe is not None:
        row["cfg.observe"] = canonical_json(identity_payload(run.cfg)["observe"])
    status = store.run_status(*run.key)
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
    """Whether a column of type `kind` can hold `value`."""
    if value is None:
        return True
    if pa.types.is_list(kind):
        return isinstance(value, list) and all(_fits(item, kind.value_type) for item in value)
    if pa.types.is_string(kind):
        return isinstance(value, str)
    if pa.types.is_floating(kind):
        return type(value) is float or (type(value) is int and abs(value) <= 2**53)
    return type(value) is int and -(2**63) <= value < 2**63


def _restricted(cfg: SampleConfig, target: _TargetState) -> dict[str, Any]:
    """The columns that differ from the target's if the run moves only a part of the parameters."""
    if cfg.restrict is None:
        return {}
    dim = moving_dim(target.build, cfg)
    if dim == target.columns["dim"]:
        return {}
    return {"dim": dim, "true_llc": None, "true_multiplicity": None}


def _posterior_columns(cfg: SampleConfig, n: int | None, dim: int | None) -> dict[str, Any]:
    """`beta`, `gamma` and `n_beta`. Empty if they depend on a target that is not built yet."""
    if n is None or (dim is None and cfg.prior_radius is not None):
        return {}
    # The dimension matters only with a prior_radius.
    posterior = posterior_for(cfg, n, dim or 0)
    return {"beta": posterior.n_beta / n, "gamma": posterior.gamma, "n_beta": posterior.n_beta}
