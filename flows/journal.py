"""What a driver writes down of its study, for `lambda-hat status` and its like: see `lambda_hat/studies.py`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flows.jobs import SCRIPT_VARIABLE
from flows.plan import Plan
from lambda_hat.errors import EXIT_FAILED, EXIT_INTERRUPTED, LambdaHatError
from lambda_hat.lease import whoami
from lambda_hat.studies import (
    BLOCKED,
    ELSEWHERE,
    FAILED,
    TO_SAMPLE,
    Key,
    Planned,
    StudyLog,
    StudyRecord,
    in_order,
    new_name,
    write_study,
)
from lambda_hat.workflow_config import PlannedRun

if TYPE_CHECKING:
    from flows.study import Flow


class Journal:
    """The events of one start of a driver; without a log it keeps none."""

    def __init__(self, log: StudyLog | None = None, runs: Sequence[Planned] = ()):
        self._log = StudyLog() if log is None else log
        self._runs = runs
        self._places: dict[Key, int] | None = None
        self.exit_status = EXIT_FAILED
        """What `end` says, unless an exception says it."""

    def append(self, event: str, **fields: object) -> None:
        """Write one event; never raises for want of room on the disk."""
        self._log.append(event, **fields)

    def pack(self, pack_id: str, runs: Sequence[PlannedRun]) -> None:
        """A pack of these runs was submitted."""
        if self._places is None:
            self._places = {run.key: place for place, run in enumerate(self._runs)}
        places = (self._places.get((run.target_id, run.run_id)) for run in runs)
        # Only what was damaged since the start is in no plan.
        self.append("pack", pack_id=pack_id, runs=[place for place in places if place is not None])


@contextmanager
def keep_journal(flow: Flow, plan: Plan) -> Iterator[Journal]:
    """Record the start of a study, and, however the block is left, its end."""
    record = record_of(flow, plan)
    log = write_study(flow.store.root, record)
    journal = Journal(log, record.runs)
    try:
        yield journal
    except LambdaHatError as error:
        journal.append("end", status=error.exit_code, reason=str(error))
        raise
    except KeyboardInterrupt:
        journal.append("end", status=EXIT_INTERRUPTED)
        raise
    except Exception as error:
        journal.append("end", status=EXIT_FAILED, reason=f"{type(error).__name__}: {error}")
        raise
    else:
        journal.append("end", status=journal.exit_status)
    finally:
        log.close()


def record_of(flow: Flow, plan: Plan, submitted: dict[str, str] | None = None) -> StudyRecord:
    """What is known of a study when its driver starts. submitted: the job that is to run it in the driver's place."""
    groups = {TO_SAMPLE: plan.runs, FAILED: plan.failed_runs, BLOCKED: plan.blocked_runs, ELSEWHERE: plan.elsewhere}
    runs = in_order(
        Planned(run.target_id, run.run_id, run.cost, group) for group, runs in groups.items() for run in runs
    )
    targets = flow.study.targets
    return StudyRecord(
        name=new_name(),
        command=[sys.executable, *sys.argv],
        directory=os.getcwd(),
        store=str(flow.store.root),
        driver=whoami(),
        started=time.time(),
        site=flow.site.kind,
        packed=flow.packed,
        ranks=flow.num_ranks if flow.packed else None,
        cached_targets=len(plan.cached_targets),
        cached_runs=len(plan.cached_runs),
        targets={target_id: targets[target_id].label for target_id in dict.fromkeys(run.target_id for run in runs)},
        builds=plan.builds,
        runs=runs,
        job_script=os.environ.get(SCRIPT_VARIABLE),
        submitted=submitted,
    )
