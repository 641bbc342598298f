"""`lambda-hat verify`: compare every file of the store with its checksum."""

from __future__ import annotations

import argparse
import os
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lambda_hat.errors import EXIT_FAILED, EXIT_OK, LambdaHatError
from lambda_hat.omegaconf_support import load_build_config, load_sample_config
from lambda_hat.store.checksums import Digests
from lambda_hat.store.claims import holder
from lambda_hat.store.layout import CHECKPOINT, DEATHS, Damage, Store, existing_store, read_json_or_none


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lambda-hat verify`."""
    parser.add_argument("--store", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")


def run(args: argparse.Namespace) -> int:
    """Read every file and set damaged ones aside. Returns 0 if all are whole, else 1."""
    store = existing_store(args.store)
    found = Verification(store)
    for damage in found.look():
        print(f"damaged: {damage}", flush=True)
    print(f"{store.root}: {found.summary()}")
    if not found.damages:
        return EXIT_OK
    again = f"lambda-hat run --experiments FILE --store={shlex.quote(os.path.relpath(store.root))}"
    print(f"damaged or foreign: {found.damages}; what was set aside lies in {store.root / 'damaged'}")
    print(f"to build and sample again what is missing now, run your study: {again}")
    return EXIT_FAILED


@dataclass
class Verification:
    """One walk through a store."""

    store: Store
    counts: Counter[str] = field(default_factory=Counter)
    damages: int = 0
    _digests: Digests = field(default_factory=Digests)

    def look(self) -> Iterator[Damage]:
        """Set each damaged file aside and yield it. Runs that a process is sampling are left out."""
        for damage in self._all():
            self.damages += 1
            yield damage

    def summary(self) -> str:
        """Sum up what was read."""
        c = self.counts
        held = f", {c['held']} being sampled now and left out" if c["held"] else ""
        whole = f"{c['built']} built targets and {c['finished']} finished runs are whole"
        return f"{whole}; {c['pending']} runs are unfinished{held}"

    def _all(self) -> Iterator[Damage]:
        store = self.store
        yield from self._files_for_folders(store.targets_dir, "tgt_")
        for target_id in store.target_ids():
            directory = store.target_dir(target_id)
            status, damages = store.inspect_target(target_id, None, thorough=True, digests=self._digests)
            self.counts[status] += 1
            yield from damages
            if status != "built":
                yield from self._config(directory, load_build_config)
            yield from self._json(directory / "error.json", dict)
            yield from self._files_for_folders(directory, "run_")
            for run_id in store.run_ids(target_id):
                yield from self._run(target_id, run_id)
        for pack_dir in sorted(store.packs_dir.glob("pack_*")):
            yield from self._json(pack_dir / "pack.json", dict)

    def _run(self, target_id: str, run_id: str) -> Iterator[Damage]:
        directory = self.store.run_dir(target_id, run_id)
        if holder(directory) is not None:
            self.counts["held"] += 1
            return
        status, damages = self.store.inspect_run(target_id, run_id, None, thorough=True, digests=Digests())
        self.counts["finished" if status == "finished" else "pending"] += 1
        yield from damages
        if status != "finished":
            yield from self._config(directory, load_sample_config)
            yield from self._checkpoint(directory / CHECKPOINT)
        yield from self._json(directory / "error.json", dict)
        yield from self._json(directory / DEATHS, list)

    def _files_for_folders(self, parent: Path, prefix: str) -> Iterator[Damage]:
        for path in sorted(parent.glob(f"{prefix}*")):
            if not path.is_dir():
                yield self.store.set_aside(path, "a file lies where a folder belongs")

    def _config(self, directory: Path, load: Any) -> Iterator[Damage]:
        path = directory / "config.yaml"
        if path.exists():
            try:
                load(path)
            except LambdaHatError as error:
                yield self.store.set_aside(path, str(error).removeprefix(str(path)).lstrip(": "))

    def _json(self, path: Path, kind: type) -> Iterator[Damage]:
        if path.exists() and not isinstance(read_json_or_none(path), kind):
            yield self.store.set_aside(path, "not the JSON that was written")

    def _checkpoint(self, path: Path) -> Iterator[Damage]:
        if not path.exists():
            return
        # Imported late: it imports jax, which takes a while.
        from lambda_hat.engine.chunks import read_checkpoint

        try:
            read_checkpoint(path)
        except (LambdaHatError, OSError) as error:
            yield self.store.set_aside(path, str(error).removeprefix(str(path)).lstrip(": "))
