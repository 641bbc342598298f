"""The recorded losses of a run."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lambda_hat.errors import ConfigError, CorruptArtifact, StoreError
from lambda_hat.store import run_files
from lambda_hat.store.checksums import OBSERVED
from lambda_hat.store.layout import error_line, file_entry, read_record

if TYPE_CHECKING:
    from xarray import Dataset, DataTree


def load_trace(run: str | os.PathLike[str] | Mapping[str, Any] | Any) -> DataTree:
    """Load the draws of a finished run as an xarray `DataTree`, which ArviZ from version 1 on takes.

    The mean of `n_beta * (loss - loss_at_w_star)` over its draws is the estimate λ̂.

    Args:
        run: the run's folder, or a row of the table that `load_results` returns.

    Returns:
        Its `posterior` has the variable `loss`, shape (chain, draw): the mean loss L_n(w) at the recorded draws, in the
        units of the loss (nats for `nll`). It is NaN from the draw at which a chain became non-finite. `attrs` has
        `loss_at_w_star`, in the same units, and `n_beta`. Observables of one number per draw are variables beside
        `loss`; `load_observed` has them all.

    Raises:
        ConfigError: `run` is neither a folder nor a row.
        StoreError: the run is not finished, or its folder is not there.
        CorruptArtifact: its files differ from those that its record describes.
    """
    folder = _folder_of("load_trace", run)
    return _read(folder, "trace.nc", _files(folder))


def load_observed(run: str | os.PathLike[str] | Mapping[str, Any] | Any) -> Dataset:
    """Load what a finished run watched (`observe`), as an xarray `Dataset`.

    Args:
        run: as for `load_trace`.

    Returns:
        The variable `loss` of `load_trace`, and for every observable `name` a variable (chain, draw, name_0, ...) and
        its value at `w_star`, `name_at_w_star`, of shape (name_0, ...). `attrs` has `loss_at_w_star` and `n_beta`.

    Raises:
        ConfigError, StoreError, CorruptArtifact: as `load_trace`.
    """
    folder = _folder_of("load_observed", run)
    files = _files(folder)
    trace = _read(folder, "trace.nc", files)
    found = trace["posterior"].to_dataset()
    for name, values in found.data_vars.items():
        if "at_w_star" in values.attrs:
            found = found.assign({f"{name}_at_w_star": values.attrs["at_w_star"]})
    if OBSERVED in files:
        found = found.merge(_read(folder, OBSERVED, files)["posterior"].to_dataset())
    return found.assign_attrs({key: trace.attrs[key] for key in ("loss_at_w_star", "n_beta")})


def _files(folder: Path) -> dict[str, Any]:
    """The sizes and checksums of the files of a finished run, by name."""
    try:
        files = read_record(folder / "analysis.json").get("files")
    except FileNotFoundError:
        raise StoreError(f"{folder}: {_why_unfinished(folder)}") from None
    return files if isinstance(files, dict) else {}


def load_losses(row: Mapping[str, Any]) -> tuple[np.ndarray, float, float]:
    """The losses of a finished run, their value at `w_star`, and `n_beta`, without the import of xarray.

    Args:
        row: a row of the table.

    Returns:
        The losses of `load_trace`, shape (chain, draw), `loss_at_w_star` in the same units, and `n_beta`.

    Raises:
        StoreError, CorruptArtifact: as `load_trace`.
    """
    import h5netcdf

    folder = _folder_of("load_losses", row)
    content = _sound(folder, "trace.nc", _files(folder))
    try:
        with h5netcdf.File(io.BytesIO(content), "r") as file:
            losses = np.asarray(file.groups["posterior"].variables["loss"][...], dtype=np.float64)
            at_w_star, n_beta = (float(cast(float, file.attrs[key])) for key in ("loss_at_w_star", "n_beta"))
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise CorruptArtifact(f"{folder / 'trace.nc'} holds no losses ({error}); {_remedy(folder)}") from None
    return losses, at_w_star, n_beta


def _sound(folder: Path, name: str, files: Mapping[str, Any]) -> bytes:
    """The content of a file of a run, whose checksum fits."""
    path = folder / name
    try:
        content = run_files.read_bytes(path)
    except FileNotFoundError:
        raise CorruptArtifact(f"{path}: it is gone, though the run is finished; {_remedy(folder)}") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from None
    if files.get(name) != file_entry(content):
        raise CorruptArtifact(f"{path}: damaged: its checksum does not fit; {_remedy(folder)}")
    return content


def _read(folder: Path, name: str, files: Mapping[str, Any]) -> DataTree:
    content = _sound(folder, name, files)
    import xarray

    try:
        with xarray.open_datatree(io.BytesIO(content), engine="h5netcdf") as tree:
            return tree.load()
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise CorruptArtifact(f"{folder / name}: not a netCDF file with draws ({error}); {_remedy(folder)}") from None


def _folder_of(caller: str, run: Any) -> Path:
    told = run
    if isinstance(run, Mapping):
        told = run.get("run_dir")
    elif not isinstance(run, (str, os.PathLike)):
        told = getattr(run, "run_dir", None)
    if not isinstance(told, (str, os.PathLike)):
        raise ConfigError(
            f"{caller}: got {type(run).__name__}, expected the folder of a run or one row of the table, such as "
            "lambda_hat.load_results().iloc[0]"
        )
    folder = Path(told).expanduser()
    if not run_files.is_there(folder):
        moved = "" if told is run else "; if the store was moved, give the run's folder in it instead"
        raise StoreError(f"{folder}: no folder of a run there, expected runs/targets/tgt_.../run_..._...{moved}")
    return folder


def _why_unfinished(folder: Path) -> str:
    if (folder / "error.json").is_file():
        return f"the run failed: {error_line(folder / 'error.json')}"
    return "no finished run there (analysis.json is missing); run its study again to continue"


def _remedy(folder: Path) -> str:
    parents = folder.absolute().parents
    store = f" --store {parents[2]}" if len(parents) > 2 and parents[1].name == "targets" else ""
    return f"lambda-hat verify{store} sets it aside, and its study makes it again"
