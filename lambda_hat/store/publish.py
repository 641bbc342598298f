"""Publishing a target or a run: the record that makes it built or finished is written last."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from lambda_hat.config import BuildConfig, SampleConfig
from lambda_hat.id_utils import Run, config_digest, target_id_for
from lambda_hat.omegaconf_support import to_yaml
from lambda_hat.store.checksums import ANALYSIS_FORMAT, META_FORMAT, OBSERVED
from lambda_hat.store.files import file_entry, remove_litter, write_bytes_atomic, write_record
from lambda_hat.store.layout import CHECKPOINT, DEATHS


def write_config(directory: Path, cfg: BuildConfig | SampleConfig) -> bytes:
    """Write `config.yaml` into `directory`, which is made where it is missing; returns the content of the file."""
    content = to_yaml(cfg).encode()
    write_bytes_atomic(directory / "config.yaml", content)
    return content


def publish_run(
    run_dir: Path,
    run: Run,
    config: bytes,
    trace: bytes,
    analysis: dict[str, Any],
    observed: bytes | memoryview | None = None,
) -> None:
    """Write `trace.nc` and `observed.nc`, then `analysis.json`, which finishes the run.

    The traces of earlier attempts are removed.

    Args:
        run_dir: The folder of the run.
        run: The run.
        config: The content of `config.yaml`, as `write_config` returned it.
        trace: The content of `trace.nc`.
        analysis: The estimate and what belongs to it.
        observed: The content of `observed.nc`; None: the run watched no arrays.

    Raises:
        StoreUnwritable: The disk is full, for example; the run is then not finished.
    """
    contents = {"trace.nc": trace} | ({} if observed is None else {OBSERVED: observed})
    record = {
        **analysis,
        "format": ANALYSIS_FORMAT,
        "target_id": run.target_id,
        "run_id": run.run_id,
        "config": run.digest,
        "files": {name: file_entry(content) for name, content in {"config.yaml": config, **contents}.items()},
    }
    for name, content in contents.items():
        write_bytes_atomic(run_dir / name, content)
    write_record(run_dir / "analysis.json", record)
    for name in ("error.json", DEATHS, CHECKPOINT):
        with contextlib.suppress(OSError):
            (run_dir / name).unlink()


def publish_target(
    directory: Path, cfg: BuildConfig, meta: dict[str, Any], arrays: dict[str, bytes], data_of: str | None = None
) -> None:
    """Write the files of `arrays` and `config.yaml`, then `meta.json`, by which the target is built.

    Args:
        directory: The folder of the target.
        cfg: Its configuration.
        meta: What `meta.json` says of it.
        arrays: Contents of `.npz` files by name.
        data_of: The folder beside `directory` that already has the same `data.npz`; None: there is none.

    Raises:
        StoreUnwritable: The disk is full, for example; the target is then not built.
    """
    remove_litter(directory)
    for name, content in arrays.items():
        if name != "data.npz" or data_of is None:
            write_bytes_atomic(directory / name, content)
    files = {**arrays, "config.yaml": write_config(directory, cfg)}
    record = {
        **meta,
        "format": META_FORMAT,
        "target_id": target_id_for(cfg),
        "config": config_digest(cfg),
        "data_of": data_of,
        "files": {name: file_entry(content) for name, content in files.items()},
    }
    write_record(directory / "meta.json", record)
