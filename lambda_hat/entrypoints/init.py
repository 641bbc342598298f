"""`lambda-hat init`: a small study with a model of its own, to begin with."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from lambda_hat.checkout import ROOT
from lambda_hat.errors import EXIT_OK, ConfigError, StoreError
from lambda_hat.store.files import write_bytes_atomic

STARTER = ROOT / "conf" / "starter"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lambda-hat init`."""
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path(), metavar="FOLDER", help="where to; default: this folder"
    )


def run(args: argparse.Namespace) -> int:
    """Write the files of the starter study, and say what to type next. Raises ConfigError where one is there."""
    folder = args.folder.expanduser()
    files = sorted(path for path in STARTER.iterdir() if path.is_file())
    for path in files:
        if (folder / path.name).exists():
            raise ConfigError(
                f"{folder / path.name}: is there already, and nothing was written; give another folder: "
                "lambda-hat init FOLDER"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be made: {error.strerror or error}; give another folder") from None
    for path in files:
        write_bytes_atomic(folder / path.name, path.read_bytes())
        print(f"wrote {folder / path.name}")
    enter = "" if args.folder == Path() else f"cd {shlex.quote(str(folder))} && "
    print(f"to run it: {enter}lambda-hat run --experiments study.yaml --pack 32")
    return EXIT_OK
