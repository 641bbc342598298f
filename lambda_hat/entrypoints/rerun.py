"""`lambda-hat rerun --failed`: run the newest study's command again, for what failed."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from lambda_hat.errors import EXIT_OK, ConfigError, StoreError
from lambda_hat.status import Studies, newest_record
from lambda_hat.store.layout import Store, existing_store
from lambda_hat.store.study_records import STUDIES, StudyRecord, shown

SEARCH = "tune.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lambda-hat rerun`."""
    parser.add_argument("--store", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    parser.add_argument(
        "--failed", action="store_true", help="try what failed or is unfinished again, runs and targets"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the plan, start nothing")


def run(args: argparse.Namespace) -> int:
    """Become the recorded command with `--rerun failed`. If nothing has failed, start nothing and return 0."""
    if not args.failed:
        raise ConfigError("rerun: nothing to do; write lambda-hat rerun --failed, which tries again what has failed")
    store = existing_store(args.store)
    record = newest_record(store, runnable=True)
    if record is None:
        raise StoreError(
            f"{store.root}: no driver has recorded its command here; write it yourself: "
            f"lambda-hat run --experiments FILE --store {shlex.quote(str(store.root))} --rerun failed"
        )
    for status in Studies(store).look():
        if status.driver.state in ("alive", "silent"):
            host = status.record.driver.get("host")
            raise StoreError(
                f"{store.root}: the driver of this study is still at work on {host} (process "
                f"{status.record.driver.get('pid')}); wait for its end, or stop it, and run the same command again"
            )
        if not status.failed + status.blocked:
            print(f"{store.root}: no run of the newest study has failed; nothing was started")
            return EXIT_OK
    check(store, record)
    command = record.again("failed") + (["--dry-run"] if args.dry_run else [])
    print(f"in {record.directory}: {shown(command)}", flush=True)
    os.chdir(record.directory)
    os.execv(command[0], command)


def check(store: Store, record: StudyRecord) -> None:
    """Raise StoreError, with the remedy, if the command is not this user's or cannot be started."""
    path = store.root / STUDIES / f"{record.name}.json"
    by_hand = f"if it is the right one, type it yourself: {record.typed('failed')}"
    if not record.own:
        raise StoreError(f"{path}: others can write there, so this command is not started from here; {by_hand}")
    if Path(record.store).resolve() != store.root.resolve():
        raise StoreError(
            f"{store.root}: this store was in {record.store} when its command was recorded; type it with the new "
            f"path: {record.typed('failed')} --store {shlex.quote(str(store.root))}"
        )
    script = Path(record.directory, record.command[1])
    if script.name == SEARCH:
        raise StoreError(
            f"{store.root}: the newest study here is a search, in which a failed trial is a result; to go on with it: "
            f"{record.typed()}"
        )
    for what, there, lost in (
        ("folder", os.path.isdir(record.directory), record.directory),
        ("script", script.is_file(), script),
        ("Python", os.access(record.command[0], os.X_OK), record.command[0]),
    ):
        if not there:
            raise StoreError(
                f"{lost}: the {what} that this study was started with is gone; start it with another one: "
                f"{shown(record.again('failed'))}"
            )
