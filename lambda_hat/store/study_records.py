"""What a driver records of its study, so that every machine that sees the store can tell how the study stands.

Each start of a driver writes one record, `studies/<name>.json` in the store: its command, plan and site. Beside it
grows a log of events, `studies/<name>.jsonl`, with what nothing else in the store says. What became of each run is in
the ranks' events and the folders of the runs.

Events, each with its `time` in seconds since the epoch: `lease` (the driver's sign of life, a file in `packs/`),
`round`, `pack` (`pack_id`, `runs` by their place in the plan, and of a study on several sites its `site` and what the
jobs are `for` that it waits for), `pack_end`, `job` (`job_id`, and its fields that are
new: the `scheduler`'s name, what it is `for`, `nodes`, `walltime`, and its `state` in the scheduler's own words),
`note` (a sentence), `nodes` (`left_out`, with the reason for each), `next_job` (`job_id` of the job that goes on after
this one) and `end` (exit `status`, and the `reason` where there is one).
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shlex
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from lambda_hat.checkout import SCRIPTS
from lambda_hat.errors import EXIT_FAILED, EXIT_INTERRUPTED, LambdaHatError, StoreError, is_interruption
from lambda_hat.store.events import Key
from lambda_hat.store.files import EventLog, json_object, write_bytes_atomic

STUDY_FORMAT = 1
STUDIES = "studies"
"""The folder of the records in a store."""
TO_SAMPLE, FAILED, BLOCKED, ELSEWHERE = "to_sample", "failed", "blocked", "elsewhere"
GROUPS = (TO_SAMPLE, FAILED, BLOCKED, ELSEWHERE)
"""Groups of the runs of a plan that are not finished: to be sampled; failed earlier; blocked by a target that failed
earlier; sampled by another driver."""
_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")
_ID = re.compile(r"[\w-]+")
"""Ids are names of folders; none may lead out of the store."""


class Planned(NamedTuple):
    """A run of the plan that was not finished when the driver started."""

    target_id: str
    run_id: str
    cost: float
    """Expected seconds, without compilation."""
    group: str
    """One of GROUPS."""

    @property
    def key(self) -> Key:
        """Target and run id."""
        return self.target_id, self.run_id


@dataclass(frozen=True)
class StudyRecord:
    """One start of a driver."""

    name: str
    command: list[str]
    """Interpreter, script and words, as they were typed in `directory`."""
    directory: str
    store: str
    """Where the store was at the start."""
    driver: dict[str, Any]
    """Its process, as `lambda_hat.store.process_identity.whoami` describes it."""
    started: float
    """Seconds since the epoch."""
    site: str
    """Kind of the site."""
    packed: bool
    """In packs; else one process per run."""
    ranks: int | None
    """Ranks of one pack, where they are known beforehand."""
    cached_targets: int
    cached_runs: int
    """Finished before this start."""
    targets: dict[str, str]
    """Label of every target that a run waits for or was planned for."""
    builds: list[str]
    runs: list[Planned]
    job_script: str | None = None
    """The script of the job that the driver runs in, where `--submit` made one."""
    submitted: dict[str, str] | None = None
    """The job that this start has submitted to run the study: its `scheduler`, `job_id`, and the commands that `watch`
    and `end` it."""
    job: dict[str, str] | None = None
    """The job that the driver runs in, likewise without `watch`."""
    written: float = field(default=0.0, compare=False)
    """When the record was written, by the file system's clock."""
    own: bool = field(default=True, compare=False)
    """Only this user can have written it."""

    def again(self, rerun: str | None = None) -> list[str]:
        """The command that goes on with the study. rerun: its `--rerun`, in place of the recorded one."""
        words, kept = iter(self.command[2:]), []
        for word in words:
            if word == "--rerun":
                next(words, None)
            elif not word.startswith("--rerun="):
                kept.append(word)
        return [*self.command[:2], *([] if rerun is None else ["--rerun", rerun]), *kept]

    def typed(self, rerun: str | None = None) -> str:
        """What a person types in the present folder to go on with the study."""
        command = shown(self.again(rerun))
        return command if self.directory == os.getcwd() else f"cd {shlex.quote(self.directory)} && {command}"


def shown(command: Sequence[str]) -> str:
    """A command as a person types it."""
    script, *words = command[1:]
    names = [name for name, path in SCRIPTS.items() if script == str(path)]
    return shlex.join([*(["lambda-hat", *names] if names else ["python", script]), *words])


def new_name() -> str:
    """A name that sorts by time and belongs to no other driver."""
    return f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"


class StudyLog:
    """The event log of one start. Without a path, or without room on the disk, the study does without it.

    `with` writes how the driver ended. runs: the plan, in the order of its record.
    """

    def __init__(self, path: Path | None = None, runs: Sequence[Planned] = ()):
        self.exit_status = EXIT_FAILED
        """Of the driver, where no exception ends it."""
        self._places = {run.key: place for place, run in enumerate(runs)}
        self._log: EventLog | None = None
        if path is not None:
            with contextlib.suppress(StoreError):
                self._log = EventLog(path)

    def append(self, event: str, **fields: Any) -> None:
        """Append one event with the time; it is lost where the disk has no room for it."""
        if self._log is not None:
            self._log.append(event, **fields)

    def pack(self, pack_id: str, keys: Iterable[Key], **more: str) -> None:
        """A pack of these runs was submitted. Runs that were damaged since the start are in no plan."""
        self.append("pack", pack_id=pack_id, runs=[self._places[key] for key in keys if key in self._places], **more)

    def __enter__(self) -> StudyLog:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.append("end", status=self.exit_status)
        elif is_interruption(error):
            self.append("end", status=EXIT_INTERRUPTED)
        elif isinstance(error, LambdaHatError):
            self.append("end", status=error.exit_code, reason=str(error))
        elif isinstance(error, Exception):
            self.append("end", status=EXIT_FAILED, reason=f"{type(error).__name__}: {error}")
        self.close()

    def close(self) -> None:
        """Close the event log."""
        if self._log is not None:
            self._log.close()


def write_study(root: Path, record: StudyRecord) -> StudyLog:
    """Write a record into the store at `root`. Returns the log beside it; what cannot be written is done without."""
    content = {"format": STUDY_FORMAT, **vars(record), "runs": _grouped(record.runs)}
    del content["written"], content["own"]
    path = root / STUDIES / f"{record.name}.json"
    try:
        write_bytes_atomic(path, json.dumps(content, separators=(",", ":")).encode())
        # `lambda-hat rerun` starts the recorded command: nobody else may write it, whatever the umask.
        path.chmod(path.stat().st_mode & ~0o022)
    except (StoreError, OSError):
        return StudyLog()
    return StudyLog(path.with_suffix(".jsonl"), record.runs)


def _grouped(runs: Sequence[Planned]) -> dict[str, dict[str, list[list[Any]]]]:
    """Runs by group and target: a third of the size of a plain list."""
    found: dict[str, dict[str, list[list[Any]]]] = {}
    for run in runs:
        found.setdefault(run.group, {}).setdefault(run.target_id, []).append([run.run_id, float(f"{run.cost:.4g}")])
    return found


def in_order(runs: Iterable[Planned]) -> list[Planned]:
    """Runs in the order that gives them their places in a record."""
    found: dict[tuple[int, str], list[Planned]] = {}
    for run in runs:
        found.setdefault((GROUPS.index(run.group), run.target_id), []).append(run)
    return [run for key in sorted(found, key=itemgetter(0)) for run in found[key]]


def study_names(root: Path) -> list[str]:
    """The records in a store, newest first."""
    try:
        names = os.listdir(root / STUDIES)
    except OSError:
        return []
    found = [name.removesuffix(".json") for name in names if name.endswith(".json")]
    return sorted(filter(_NAME.fullmatch, found), reverse=True)


def read_study(root: Path, name: str) -> StudyRecord | None:
    """One record; None where it is gone or damaged, for only looking depends on it."""
    try:
        with (root / STUDIES / f"{name}.json").open("rb") as file:
            content, found = json_object(file.read()), os.fstat(file.fileno())
    except OSError:
        return None
    try:
        own = found.st_uid == os.geteuid() and not found.st_mode & 0o022
        return replace(_record(name, content), written=found.st_mtime, own=own)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def _record(name: str, content: Any) -> StudyRecord:
    """Raises KeyError, TypeError, ValueError, AttributeError or OverflowError where `content` is no record."""
    if content["format"] != STUDY_FORMAT:
        raise ValueError("another format")
    for key, kinds in _KINDS.items():
        if type(content[key]) not in kinds:
            raise TypeError(f"{key}: got {content[key]!r:.80}")
    if len(content["command"]) < 2 or not all(isinstance(word, str) for word in content["command"]):
        raise ValueError("a command has an interpreter and a script")
    submitted = content["submitted"]
    return StudyRecord(
        **{key: content[key] for key in _KINDS},
        name=name,
        started=float(content["started"]),
        targets={_id(key): str(label) for key, label in content["targets"].items()},
        builds=[_id(target_id) for target_id in content["builds"]],
        runs=[
            planned(target_id, run_id, cost, group)
            for group in GROUPS
            for target_id, runs in content["runs"].get(group, {}).items()
            for run_id, cost in runs
        ],
        submitted=None if submitted is None else _texts(submitted, "scheduler", "job_id", "watch"),
        job=None if content.get("job") is None else _texts(content["job"], "scheduler", "job_id", "end"),
    )


def _texts(found: dict[str, Any], *needed: str) -> dict[str, str]:
    """The texts of a job, with all that are needed."""
    return {key: str(found[key]) for key in [*needed, *(key for key in found if key not in needed)]}


_KINDS: dict[str, tuple[type, ...]] = {
    "command": (list,), "directory": (str,), "store": (str,), "driver": (dict,), "site": (str,), "packed": (bool,),
    "ranks": (int, type(None)), "cached_targets": (int,), "cached_runs": (int,), "job_script": (str, type(None)),
}  # fmt: skip
"""Fields of a record that are taken as they are, and their types in JSON."""


def planned(target_id: Any, run_id: Any, cost: Any, group: str) -> Planned:
    """A run as a file describes it. Raises TypeError or ValueError where that is nonsense."""
    return Planned(_id(target_id), _id(run_id), float(cost), group)


def _id(value: Any) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ValueError(f"got {value!r:.80}, expected an id")
    return value
