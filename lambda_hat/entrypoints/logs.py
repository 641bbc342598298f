"""`lambda-hat logs`: what was printed while one run was sampled, and why it failed."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from lambda_hat.entrypoints.show import add_run_arguments
from lambda_hat.errors import EXIT_OK, ConfigError
from lambda_hat.status.find_run import RunPlace, find_run
from lambda_hat.status.run_facts import state_without_end
from lambda_hat.status.run_log import attempts
from lambda_hat.status.terminal import duration, moment, printable, printable_lines
from lambda_hat.store.events import Attempt
from lambda_hat.store.layout import deaths_of, read_json_or_none
from lambda_hat.store.process_logs import text_of

LINES = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lambda-hat logs`."""
    add_run_arguments(parser)
    parser.add_argument(
        "--lines", type=int, default=LINES, metavar="N", help=f"at most the last N of each log (default {LINES})"
    )


def run(args: argparse.Namespace) -> int:
    """Print what every log has of the run. Returns 0, also if there is nothing."""
    if args.lines < 1:
        raise ConfigError(f"--lines: got {args.lines}, expected an integer of at least 1")
    place = find_run(args.store, args.run_words)
    parts = list(_parts(place, args.lines))
    for number, part in enumerate(parts):
        print(("\n" if number else "") + part)
    if not parts:
        state = state_without_end(place)
        print(f"{place.target_id}/{place.run_id}: nothing was logged{'' if state is None else f'; {state}'}")
    return EXIT_OK


def _parts(place: RunPlace, most: int) -> Iterator[str]:
    tried = [] if place.store is None else attempts(place.store, place.key)
    for attempt, lines in tried:
        yield "\n".join([_heading(attempt), *_tail(lines, most, attempt.life.log.with_suffix(".log"))])
    for name in ("sample.log", "sample.err"):
        path = place.run_dir / name
        lines = text_of(path).splitlines()
        if lines:
            yield "\n".join([f"== {path}", *_tail(lines, most, path)])
    deaths = deaths_of(place.run_dir)
    if deaths:
        yield "\n".join(["== ranks that died while sampling it", *map(_death, deaths)])
    error = read_json_or_none(place.run_dir / "error.json")
    if isinstance(error, dict):
        yield "\n".join([f"== {place.run_dir / 'error.json'}", *_error(error, most, place.run_dir / "error.json")])


def _heading(attempt: Attempt) -> str:
    life = attempt.life
    told = "has not ended" if attempt.status is None else f"{attempt.status} in {duration(attempt.seconds)}"
    reason = f": {printable(attempt.reason)}" if attempt.reason else ""
    where = f"rank {life.rank} on {printable(life.host)}, {life.log.parent.name}"
    return f"== {where}, {moment(attempt.begun, time.time())}: {told}{reason}"


def _tail(lines: list[str], most: int, path: Path) -> list[str]:
    left = len(lines) - most
    return [*([f"... {left} lines before these; see {path}"] if left > 0 else []), *map(printable, lines[-most:])]


def _death(death: dict) -> str:
    when = death.get("time")
    told = moment(when, time.time()) if isinstance(when, (int, float)) else "?"
    return printable(f"{told}: rank {death.get('rank')} on {death.get('host')}: {death.get('how')}; {death.get('log')}")


def _error(error: dict, most: int, path: Path) -> list[str]:
    traceback = error.get("traceback")
    if isinstance(traceback, str) and traceback.strip():
        return _tail(printable_lines(traceback), most, path)
    return [printable(f"{error.get('type')}: {error.get('message')}")]
