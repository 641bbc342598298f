"""`lambda-hat compact`: put finished runs into one file per target."""

from __future__ import annotations

import argparse
from pathlib import Path

from lambda_hat.errors import EXIT_FAILED, EXIT_OK
from lambda_hat.store.compact import alone, check_room, refuse_older_drivers, survey
from lambda_hat.store.layout import existing_store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lambda-hat compact`."""
    parser.add_argument("--store", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")


def run(args: argparse.Namespace) -> int:
    """Compact the targets one after the other. Returns 0, or 1 if a finished run was found damaged."""
    store = existing_store(args.store)
    refuse_older_drivers(store)
    planned = [survey(store, target_id) for target_id in store.target_ids()]
    check_room(store, planned)
    if not args.dry_run:
        with alone(store):
            # What is planned may have changed before this process was alone.
            planned = [survey(store, target_id) for target_id in store.target_ids()]
            for one in planned:
                if one.loose:
                    one.run()
    runs = [run for one in planned for run in one.loose]
    archives, inodes = sum(bool(one.loose) for one in planned), sum(run.inodes for run in runs)
    there, left = sum(len(one.kept) for one in planned), sum(one.left for one in planned)
    damaged = sum(one.damaged for one in planned)
    goes = "would go" if args.dry_run else "went"
    print(
        f"{store.root}: {len(runs)} finished runs, {inodes} files and folders, {goes} into {archives} archives; "
        f"{there} were there before; {left} are unfinished or being sampled, and stay as they are"
    )
    if not damaged:
        return EXIT_OK
    print(f"damaged finished runs, which stay too: {damaged}; lambda-hat verify says which, and sets them aside")
    return EXIT_FAILED
