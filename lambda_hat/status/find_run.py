"""The run that a person names by its id, the beginning of it or of its hash, or the path of its folder."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lambda_hat.config import BuildConfig
from lambda_hat.errors import ConfigError, LambdaHatError
from lambda_hat.omegaconf_support import load_build_config
from lambda_hat.status import newest_record
from lambda_hat.status.terminal import printable, run_name
from lambda_hat.store import run_files
from lambda_hat.store.layout import Store, existing_store
from lambda_hat.store.study_records import Key

MOST_CANDIDATES = 12


class RunPlace(NamedTuple):
    """A run, and where it lies."""

    store: Store | None
    """None where its folder is in no store."""
    target_id: str
    run_id: str
    run_dir: Path
    target_dir: Path

    @property
    def key(self) -> Key:
        """Target and run id."""
        return self.target_id, self.run_id


def find_run(root: Path, words: Sequence[str]) -> RunPlace:
    """The run that `words` name in the store at `root`.

    words: `3f05`, `sgld 3f05`, `run_sgld_3f05ab03`, any of them after `tgt_1234/`, or the path of a run's folder,
        which may lie outside of the store.
    Raises ConfigError, with the candidates, where there is no such run or more than one; StoreError where there is no
    store.
    """
    if len(words) == 1:
        place = _by_path(Path(words[0]))
        if place is not None:
            return place
        if os.sep in words[0] and not words[0].startswith("tgt_"):
            raise ConfigError(f"{words[0]}: no folder of a run there; expected one with a config.yaml, or a run's name")
    store = existing_store(root)
    shown, keys = " ".join(words), list(_all_runs(store))
    target, run = _parts(words)
    found = [key for key in keys if _matches(key, target, run)]
    whole = [key for key in found if key[1] in words]
    if len(whole) == 1:
        found = whole
    if len(found) == 1:
        target_id, run_id = found[0]
        return RunPlace(store, target_id, run_id, store.run_dir(target_id, run_id), store.target_dir(target_id))
    if found:
        raise ConfigError(f"{shown}: {len(found)} runs are called so; give more of the name:{_listed(store, found)}")
    names = {_digest(run_id): (target_id, run_id) for target_id, run_id in keys}
    close = [names[name] for name in difflib.get_close_matches(run.rpartition("_")[2], names, n=5, cutoff=0.5)]
    if close:
        raise ConfigError(f"{shown}: no such run in {store.root}; did you mean one of these?{_listed(store, close)}")
    raise ConfigError(
        f"{shown}: no such run in {store.root}; it has {len(keys)} runs; lambda-hat results --store {store.root} "
        "makes a table of them"
    )


def _by_path(path: Path) -> RunPlace | None:
    path = path.expanduser().absolute()
    if not run_files.is_there(path) or not (path.name.startswith("run_") or (path / "config.yaml").is_file()):
        return None
    above = path.parents
    in_store = len(above) > 2 and above[1].name == "targets"
    return RunPlace(Store(above[2]) if in_store else None, path.parent.name, path.name, path, path.parent)


def _all_runs(store: Store) -> Iterator[Key]:
    """Every run that has a folder, then those that the newest study has planned."""
    seen = set()
    for target_id in store.target_ids():
        for name in sorted(store.entries(target_id) or ()):
            if name.startswith("run_"):
                seen.add((target_id, name))
                yield target_id, name
    record = newest_record(store)
    yield from (run.key for run in (record.runs if record else ()) if run.key not in seen)


def _parts(words: Sequence[str]) -> tuple[str, str]:
    """The beginnings of a target's and a run's id that `words` give, without `tgt_` and `run_`."""
    text = "_".join("_".join(words).split()).rstrip("/")
    target, slash, run = text.rpartition("/")
    if not slash and text.startswith("tgt_"):
        # As words of their own: tgt_1234 sgld 3f05.
        parts = text.split("_")
        target, run = "_".join(parts[:2]), "_".join(parts[2:])
    return target.removeprefix("tgt_"), run.removeprefix("run_")


def _matches(key: Key, target: str, run: str) -> bool:
    name = key[1].removeprefix("run_")
    return key[0].removeprefix("tgt_").startswith(target) and (name.startswith(run) or _digest(name).startswith(run))


def _digest(run_id: str) -> str:
    return run_id.rpartition("_")[2]


def _listed(store: Store, keys: Sequence[Key]) -> str:
    shown = keys[:MOST_CANDIDATES]
    lines = [f"\n    {run_name(run_id)} of {target_id}{_label(store, target_id)}" for target_id, run_id in shown]
    more = [f"\n    and {len(keys) - len(shown)} more"] if len(keys) > len(shown) else []
    return "".join([*lines, *more])


def _label(store: Store, target_id: str) -> str:
    build = build_of(store.target_dir(target_id))
    return "" if build is None else f" ({printable(build.label)})"


def build_of(target_dir: Path) -> BuildConfig | None:
    """The configuration of a target; None where it cannot be read."""
    try:
        return load_build_config(target_dir / "config.yaml")
    except (LambdaHatError, OSError):
        return None
