"""What a driver keeps of its study, for whoever asks later, from whichever machine.

Each start of a driver writes one record, `studies/<name>.json` in the store: its command, its plan, its site. Beside it
grows a log of events, `studies/<name>.jsonl`, with what nothing else in the store tells. What became of each run is not
in it: the ranks' own events and the folders of the runs say that.

Events, each with its time in seconds since the epoch: `lease` (the driver's sign of life, a file in `packs/`), `round`,
`pack` (`pack_id`, and `runs` by their place in the plan), `pack_end`, `job` (`job_id`, and what has changed of it: the
`scheduler`'s name, what it is `for`, `nodes`, `walltime`, and its `state` in the scheduler's own words), `note` (a
sentence), `next_job` (`job_id` of the job that goes on after this one) and `end` (exit `status`, and the `reason` where
there is one).
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shlex
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from lambda_hat.errors import StoreError
from lambda_hat.files import EventLog, json_object, write_bytes_atomic

STUDY_FORMAT = 1
STUDIES = "studies"
"""The folder of the records in a store."""
TO_SAMPLE, FAILED, BLOCKED, ELSEWHERE = "to_sample", "failed", "blocked", "elsewhere"
GROUPS = (TO_SAMPLE, FAILED, BLOCKED, ELSEWHERE)
"""What a plan says of a run that is not finished: it is sampled; it failed earlier, or its target did, and it is left
alone; another driver has it in hand."""
_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")
_ID = re.compile(r"[\w-]+")
"""Ids are names of folders in the store, and lead nowhere else."""

Key = tuple[str, str]
"""Target and run."""


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
        return self.target_id, self.run_id


@dataclass(frozen=True)
class StudyRecord:
    """One start of a driver."""

    name: str
    command: list[str]
    """Interpreter, script and words, as they were typed in `directory`."""
    directory: str
    store: str
    """Where the store was then."""
    driver: dict[str, Any]
    """Its process, as `lambda_hat.lease.whoami` has it."""
    started: float
    """Seconds since the epoch."""
    site: str
    """Kind of the site."""
    packed: bool
    """In packs; else one process per run."""
    ranks: int | None
    """Of one pack, where they are known beforehand."""
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
    """`scheduler`, `job_id` and `watch`, a command that shows it, of the job that this start has submitted to run the
    study."""
    written: float = field(default=0.0, compare=False)
    """When the record was written, by the file system's clock."""
    own: bool = field(default=True, compare=False)
    """Nobody but this user can have written it."""

    def again(self, rerun: str | None = None) -> list[str]:
        """The command that goes on with the study, whatever `--rerun` it had. rerun: the one that it is to have."""
        words, kept = iter(self.command[2:]), []
        for word in words:
            if word == "--rerun":
                next(words, None)
            elif not word.startswith("--rerun="):
                kept.append(word)
        return [*self.command[:2], *([] if rerun is None else ["--rerun", rerun]), *kept]

    def typed(self, rerun: str | None = None) -> str:
        """What a person types to go on with the study, from where they are."""
        command = shown(self.again(rerun))
        return command if self.directory == os.getcwd() else f"cd {shlex.quote(self.directory)} && {command}"


def shown(command: Sequence[str]) -> str:
    """A command as a person types it."""
    return shlex.join(["python", *command[1:]])


def new_name() -> str:
    """A name that sorts by time, and is no other driver's."""
    return f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"


class StudyLog:
    """The event log of one start. Where there is none, for want of room, the study does without."""

    def __init__(self, path: Path | None = None):
        self._log: EventLog | None = None
        if path is not None:
            with contextlib.suppress(StoreError):
                self._log = EventLog(path)

    def append(self, event: str, **fields: Any) -> None:
        """Append one event with the time; where the disk has no room for it, it is lost."""
        if self._log is not None:
            self._log.append(event, **fields)

    def close(self) -> None:
        if self._log is not None:
            self._log.close()


def write_study(root: Path, record: StudyRecord) -> StudyLog:
    """Write a record into the store at `root`; the log beside it. What cannot be written is done without."""
    content = {"format": STUDY_FORMAT, **vars(record), "runs": _grouped(record.runs)}
    del content["written"], content["own"]
    path = root / STUDIES / f"{record.name}.json"
    try:
        write_bytes_atomic(path, json.dumps(content, separators=(",", ":")).encode())
        # `lambda-hat rerun` starts what it says: nobody else is to write it, whatever the umask.
        path.chmod(path.stat().st_mode & ~0o022)
    except (StoreError, OSError):
        return StudyLog()
    return StudyLog(path.with_suffix(".jsonl"))


def _grouped(runs: Sequence[Planned]) -> dict[str, dict[str, list[list[Any]]]]:
    """Runs by group and target, which takes a third of the room."""
    found: dict[str, dict[str, list[list[Any]]]] = {}
    for run in runs:
        found.setdefault(run.group, {}).setdefault(run.target_id, []).append([run.run_id, float(f"{run.cost:.4g}")])
    return found


def in_order(runs: Iterable[Planned]) -> list[Planned]:
    """Runs in the order in which a record gives them their places."""
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
    """One record; None where it is gone or damaged, for nothing but looking depends on it."""
    try:
        with (root / STUDIES / f"{name}.json").open("rb") as file:
            content, found = json_object(file.read()), os.fstat(file.fileno())
    except OSError:
        return None
    try:
        own = found.st_uid == os.geteuid() and not found.st_mode & 0o022
        return replace(_record(name, content), written=found.st_mtime, own=own)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _record(name: str, content: Any) -> StudyRecord:
    """Raises KeyError, TypeError, ValueError or AttributeError where `content` is none."""
    if content["format"] != STUDY_FORMAT:
        raise ValueError("another format")
    ranks, job_script, submitted = (content[key] for key in ("ranks", "job_script", "submitted"))
    command = [_is(word, str) for word in _is(content["command"], list)]
    if len(command) < 2:
        raise ValueError("a command has an interpreter and a script")
    return StudyRecord(
        name=name,
        command=command,
        directory=_is(content["directory"], str),
        store=_is(content["store"], str),
        driver=_is(content["driver"], dict),
        started=float(content["started"]),
        site=_is(content["site"], str),
        packed=_is(content["packed"], bool),
        ranks=None if ranks is None else _is(ranks, int),
        cached_targets=_is(content["cached_targets"], int),
        cached_runs=_is(content["cached_runs"], int),
        targets={_id(key): _is(label, str) for key, label in content["targets"].items()},
        builds=[_id(target_id) for target_id in _is(content["builds"], list)],
        runs=list(_runs(content["runs"])),
        job_script=None if job_script is None else _is(job_script, str),
        submitted=None if submitted is None else {key: _is(submitted[key], str) for key in _SUBMITTED},
    )


_SUBMITTED = ("scheduler", "job_id", "watch")


def _runs(content: Any) -> Iterator[Planned]:
    for group in GROUPS:
        for target_id, runs in _is(content, dict).get(group, {}).items():
            for run_id, cost in runs:
                yield planned(target_id, run_id, cost, group)


def planned(target_id: Any, run_id: Any, cost: Any, group: str) -> Planned:
    """A run as a file tells of it. Raises TypeError or ValueError where that is nonsense."""
    return Planned(_id(target_id), _id(run_id), float(cost), group)


def _is(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"got {value!r:.80}, expected {kind.__name__}")
    return value


def _id(value: Any) -> str:
    if not _ID.fullmatch(_is(value, str)):
        raise ValueError(f"got {value!r:.80}, expected an id")
    return value
