"""The call: targets and samplers in, the table of estimates out."""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lambda_hat.checkout import SCRIPTS
from lambda_hat.config import plain_yaml
from lambda_hat.errors import ConfigError, require
from lambda_hat.many.grid import grid_of
from lambda_hat.store.layout import Store, check_folder, write_bytes_atomic
from lambda_hat.store.study_records import STUDIES
from lambda_hat.workflow_config import compose_grid

if TYPE_CHECKING:
    import pandas as pd

NAME = "estimate_llcs"
NEEDS = ("mpi4py", "parsl")
"""Packages that only the extra [mpi] installs."""

Entry = Mapping[str, Any] | str


def estimate_llcs(
    targets: Sequence[Entry] | Entry,
    samplers: Sequence[Entry] | Entry,
    *,
    ranks: int | None = None,
    pack: int | None = None,
    store: str | os.PathLike[str] = "runs",
    results: str | os.PathLike[str] = "results",
    rerun: Literal["failed", "all"] | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Estimate the LLC of every target with every sampler, as `lambda-hat run` does on this machine.

    The study runs in packs, in processes of its own. Interrupt the call, and all runs are checkpointed. The same call
    goes on from there. What the store holds is not computed again.

    Args:
        targets: the target entries of a study, one or a list: mappings with the keys of an experiments file, or names
            of targets.
        samplers: the sampler entries likewise: mappings, or names of samplers.
        ranks: number of MPI ranks, processes that sample side by side. Default: one per core.
        pack: at most so many runs in one MPI launch. Default: 32.
        store: the folder that keeps targets and runs. Default: `runs`.
        results: the folder for the table, the pictures and the report. Default: `results`.
        rerun: sample `failed` runs again, or `all`. Default: neither.
        progress: whether to show bars. Default: on a terminal and in a notebook. True prints lines elsewhere.

    Returns:
        One row per run of this study, finished or not, with the columns of `results/llc_runs.parquet`. A warning says
        if some have failed or are unfinished.

    Raises:
        ConfigError: a ValueError, raised before anything starts, if an entry or option is not one that could run.
        MissingExtra: an ImportError, likewise, if the packages of the extra [mpi] are missing.
        StoreError: the store or the results folder cannot be written.
        LambdaHatError: the study could not go on; what is finished is kept.
        KeyboardInterrupt: the call was interrupted; what is finished is kept, the rest is checkpointed.
    """
    content = grid_of(targets, samplers, NAME)
    study = compose_grid(content, Path(NAME))
    require(NAME, NEEDS)
    from lambda_hat.many.bars import showing
    from lambda_hat.many.process import drive

    folder = Store(Path(store))
    check_folder(folder.root, "store", "give another one with store=")
    check_folder(Path(results).expanduser().absolute(), "results folder", "give another one with results=")
    options = {"store": folder.root, "results": results, "ranks": ranks, "pack": pack, "rerun": rerun}
    words = [f"--{option}={value}" for option, value in options.items() if value is not None]
    with _experiments_file(folder, content) as experiments, showing(progress) as show:
        drive(SCRIPTS["run"], [f"--experiments={experiments}", *words, "--quiet"], folder, show)
    # pandas and pyarrow take longer to import than a mistyped key to find.
    from lambda_hat.report.results import collect, to_frame

    table = collect(folder, study.runs, study.targets)
    _warn_of_gaps(*(table.column(name).to_pylist() for name in ("status", "reason")))
    return to_frame(table)


@contextlib.contextmanager
def _experiments_file(store: Store, content: dict[str, Any]) -> Iterator[Path]:
    """The study as a file of the store, so that its recorded command can be given again.

    The same study has the same file. A study that is refused leaves none.
    """
    text = plain_yaml.dump(content).encode()
    path = store.root / STUDIES / f"{NAME}-{hashlib.sha256(text).hexdigest()[:8]}.yaml"
    is_new = not path.exists()
    write_bytes_atomic(path, text)
    try:
        yield path
    except ConfigError:
        if is_new:
            path.unlink()
            with contextlib.suppress(OSError):
                # Neither is removed where anything else lies in it.
                path.parent.rmdir()
                store.root.rmdir()
        raise


def _warn_of_gaps(statuses: list[str], reasons: list[str | None]) -> None:
    """Warn of runs that have failed, and of runs that are unfinished."""
    failed = [reason for status, reason in zip(statuses, reasons, strict=True) if status in ("failed", "blocked")]
    if failed:
        warnings.warn(
            f"{NAME}: {len(failed)} of {len(statuses)} runs failed: {failed[0]}; the columns status and reason tell of "
            "each, and rerun='failed' tries them again",
            stacklevel=3,
        )
    unfinished = statuses.count("pending")
    if unfinished:
        warnings.warn(
            f"{NAME}: {unfinished} of {len(statuses)} runs are unfinished; the same call goes on with them",
            stacklevel=3,
        )
