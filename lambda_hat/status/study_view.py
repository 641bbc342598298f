"""A study's status on a terminal of eighty columns, or in a file."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lambda_hat.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_UNFINISHED, EXIT_USAGE
from lambda_hat.status.recent_studies import outer_record
from lambda_hat.status.study_state import Driver, Running, StudyStatus
from lambda_hat.status.terminal import duration, moment, printable, run_name, store_word
from lambda_hat.store.layout import Store
from lambda_hat.store.study_records import StudyRecord, shown

MOST_RUNNING = 12
MOST_REASONS = 8
BAR_WIDTH = 40
ENDS = {
    EXIT_OK: "every run is finished",
    EXIT_FAILED: "some runs failed",
    EXIT_USAGE: "it could not go on",
    EXIT_UNFINISHED: "unfinished",
    EXIT_INTERRUPTED: "it was stopped",
}
"""Meaning of a driver's exit statuses."""
COLOURS = {"finished": "green", "built": "green", "failed": "red", "blocked": "red", "running": "cyan"}


def in_place(parts: Iterable[RenderableType]) -> Group:
    """What `views` gives, as one thing that can be drawn again in its place."""
    return Group(*(Text(part) if isinstance(part, str) else part for part in parts))


def views(store: Store, found: list[StudyStatus], bars: bool = False) -> Iterator[RenderableType]:
    """What to print of some studies, one below the other. bars: with a bar of progress."""
    for number, status in enumerate(found):
        if number:
            yield ""
        yield from view(store, status, time.time(), bars)


def view(store: Store, status: StudyStatus, now: float, bars: bool) -> Iterator[RenderableType]:
    """What to print of one study."""
    facts = Table.grid(padding=(0, 1))
    facts.add_column(no_wrap=True, min_width=8, style="bold")
    facts.add_column(overflow="fold")
    for name, text in _facts(store, status, now, bars):
        facts.add_row(name, text)
    yield facts
    for table in (_jobs(status, now), _running(status), _waiting(status), _failures(status)):
        if table is not None:
            yield ""
            yield table
    hints = list(_hints(store, status))
    if hints:
        yield ""
    yield from hints


def _facts(store: Store, status: StudyStatus, now: float, bars: bool) -> Iterator[tuple[str, RenderableType]]:
    record, driver = status.record, status.driver
    yield "store", Text(printable(str(store.root)))
    yield "study", Text(printable(shown(record.command)) if record.command else f"{record.name}, without a driver")
    more = "; its ranks are stopping" if driver.over and status.ranks_at_work else ""
    if driver.state == "alive" and status.total == status.finished + status.failed + status.blocked:
        more = "; it collects the results"
    yield "driver", _driver_words(record, driver, now) + Text(more)
    if record.job is not None and not driver.over:
        job = {key: printable(text) for key, text in record.job.items()}
        yield "job", Text(f"{job['job_id']} of {job['scheduler']}; to end it: {job['end']}")
        outer = outer_record(store, record)
        if outer is not record:
            yield "", Text(f"submitted by {printable(shown(outer.command))}")
    if status.note is not None:
        yield "", Text(printable(status.note), style="yellow")
    for node, why in status.left_out.items():
        yield "", Text(printable(f"node {node} is left out: {why}"), style="yellow")
    if status.next_job is not None:
        yield "", Text(printable(f"job {status.next_job} was submitted to go on"))
    if record.targets or record.cached_targets:
        total = sum(status.targets.values())
        named = {"built": "built", "missing": "to build", "failed": "failed"}
        yield "targets", _counts(total, {named[key]: count for key, count in status.targets.items()})
    for number, (site, counts) in enumerate(status.packs.items()):
        where = Text(f"{printable(site)}: ") if site else Text()
        yield "" if number else "packs", where + _counts(sum(counts.values()), counts)
    if status.ranks:
        yield "ranks", Text(f"{status.ranks_at_work} of {status.ranks} at work")
    counts = {"finished": status.finished, "failed": status.failed, "blocked": status.blocked}
    counts |= {"running": len(status.running), "waiting": sum(status.waiting.values())}
    words = _counts(status.total, counts)
    if record.cached_runs:
        words.append(f" ({record.cached_runs} finished before this start)", style="dim")
    yield "runs", words
    if status.total and bars:
        yield "", ProgressBar(status.total, status.finished + status.failed + status.blocked, width=BAR_WIDTH)
    if status.runs_per_minute is not None:
        pace = status.runs_per_minute
        yield "pace", Text(f"{pace:,.0f} runs per minute" if pace >= 99.5 else f"{pace:.1f} runs per minute")
    if status.seconds_left is not None:
        yield "left", Text(f"about {duration(status.seconds_left)}")


def _driver_words(record: StudyRecord, driver: Driver, now: float) -> Text:
    where = printable(f"{record.driver.get('host', '?')} (process {record.driver.get('pid', '?')})")
    began = f"started {moment(record.started, now)}"
    if driver.state == "alive":
        return Text(f"at work on {where}, {began}, {duration(max(0.0, now - record.started))} ago")
    if driver.state == "none":
        return Text(f"none; its ranks {'are at work' if driver.at_work else 'have ended'}")
    if driver.state == "silent":
        return Text(f"no sign of life for {driver.silent_for:.0f} s from {where}, {began}", style="yellow")
    if driver.state == "died":
        return Text(f"died on {where}, {began}", style="red")
    if driver.state == "submitted":
        assert record.submitted is not None
        job = {key: printable(text) for key, text in record.submitted.items()}
        return Text(
            f"job {job['job_id']} of {job['scheduler']} is to run this study, and has not begun; {job['watch']}"
            + (f"; to end it: {job['end']}" if "end" in job else "")
        )
    assert driver.ended is not None
    words = ENDS.get(driver.status or 0, f"exit status {driver.status}")
    reason = f": {printable(driver.reason)}" if driver.reason else ""
    style = "green" if driver.status == EXIT_OK else "yellow"
    return Text(f"ended {moment(driver.ended, now)}, {began}: {words}{reason}", style=style)


def _counts(total: int, counts: dict[str, int]) -> Text:
    text = Text(f"{total}: ")
    parts = [Text(f"{count} {word}", style=COLOURS.get(word, "")) for word, count in counts.items() if count]
    return text + Text(", ").join(parts) if parts else text + Text("none yet")


def _jobs(status: StudyStatus, now: float) -> RenderableType | None:
    if not status.jobs:
        return None
    said = "what the scheduler says"
    table = _table("job", "kind", "nodes", "walltime", said, "for", folds=said)
    for job in status.jobs:
        style = "cyan" if job.runs else "yellow"
        table.add_row(
            Text(printable(job.job_id)),
            Text(printable(job.label)),
            "" if job.nodes is None else str(job.nodes),
            Text(printable(job.walltime)),
            Text(printable(job.state), style=style),
            duration(max(0.0, now - job.since)),
        )
    return table


def _running(status: StudyStatus) -> RenderableType | None:
    if not status.running:
        return None
    ranked = any(run.rank is not None for run in status.running)
    table = _table("running", "target", *(["rank"] if ranked else []), "host", "for", "expected", folds="target")
    for run in status.running[:MOST_RUNNING]:
        late = run.expected > 0 and run.seconds > 3 * run.expected and run.seconds > 60
        table.add_row(
            run_name(run.key[1]),
            Text(_target(status, run)),
            *([str(run.rank)] if ranked else []),
            Text(printable(run.host)),
            Text(duration(run.seconds), style="yellow" if late else ""),
            duration(run.expected),
        )
    if len(status.running) > MOST_RUNNING:
        table.add_row(f"and {len(status.running) - MOST_RUNNING} more", *[""] * (len(table.columns) - 1))
    return table


def _target(status: StudyStatus, run: Running) -> str:
    target_id = run.key[0]
    return printable(f"{target_id} {status.record.targets.get(target_id, '')}".rstrip())


def _waiting(status: StudyStatus) -> RenderableType | None:
    if not status.waiting:
        return None
    table = _table("waiting", "why", folds="why")
    shown = list(status.waiting.items())[:MOST_REASONS]
    for why, count in shown:
        table.add_row(str(count), Text(printable(why)))
    if len(status.waiting) > MOST_REASONS:
        rest = sum(status.waiting.values()) - sum(count for _, count in shown)
        table.add_row(str(rest), "for other reasons")
    return table


def _failures(status: StudyStatus) -> RenderableType | None:
    if not status.failures:
        return None
    table = _table("failed", "why", folds="why")
    for failure in status.failures:
        target_id, run_id = failure.key
        table.add_row(run_name(run_id) if run_id else target_id, Text(printable(failure.reason)))
    shown = sum(failure.key[1] != "" for failure in status.failures)
    if status.failed > shown:
        table.add_row("", f"and {status.failed - shown} more runs; the table of results has every reason")
    return table


def _table(*names: str, folds: str):
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold" if name == folds else "ellipsis", no_wrap=name != folds)
    return table


def _hints(store: Store, status: StudyStatus) -> Iterator[str]:
    """Lines to copy: strings, which are not wrapped."""
    record, driver = status.record, status.driver
    goes_on = driver.over and record.command and (driver.state == "died" or driver.status not in (EXIT_OK, EXIT_FAILED))
    if goes_on and status.next_job is None:
        who = f"the driver on {printable(str(record.driver.get('host', '?')))} died" if driver.state == "died" else ""
        yield f"{who or 'there is more to do'}; run the same command again to continue:"
        yield f"    {printable(outer_record(store, record).typed())}"
    if status.failed or status.blocked:
        runs = [failure.key[1] for failure in status.failures if failure.key[1]]
        if runs:
            name = run_name(runs[0])
            yield f"what a failed run wrote:     lambda-hat logs {name}{store_word(store.root)}"
        if driver.over and record.command:
            yield f"to try the failed ones again: lambda-hat rerun --failed{store_word(store.root)}"
