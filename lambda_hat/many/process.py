"""The driver of a study in a process of its own."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

from lambda_hat.errors import EXIT_USAGE, ConfigError, LambdaHatError
from lambda_hat.many.bars import Show
from lambda_hat.status import StudyFollower
from lambda_hat.store.layout import Store
from lambda_hat.store.process_identity import is_here
from lambda_hat.store.study_records import read_study, study_names

POLL = 0.5
"""Seconds between two looks at the study."""
MOST_SAID = 2000
"""Characters of the driver's last words in a message."""


def drive(script: Path, words: Sequence[str], store: Store, show: Show) -> None:
    """Run the driver to its end. A Ctrl-C stops it with every run checkpointed, a second one at once.

    Args:
        script: The driver.
        words: Its options.
        store: The store that they name.
        show: Called again and again with how the study stands.

    Raises:
        ConfigError: The driver refused the study before it started anything.
        LambdaHatError: It ended without a table.
    """
    earlier = set(study_names(store.root))
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        # A session of its own: a notebook and a terminal send Ctrl-C to the whole group, and two mean to stop at once.
        driver = subprocess.Popen(
            [sys.executable, str(script), *words],
            stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True,
        )  # fmt: skip
        try:
            follower = _follow(driver, store, earlier, show)
        finally:
            _stop(driver)
        if follower is None or (end := follower.look().driver).state != "ended":
            said.seek(0)
            raise _refusal(driver.returncode, said.read().strip())
        if end.reason is not None:
            raise LambdaHatError(end.reason)


def _follow(driver: subprocess.Popen, store: Store, earlier: Collection[str], show: Show) -> StudyFollower | None:
    """Wait for the driver. Returns the follower of its study; None if it recorded none."""
    follower, over = None, False
    while not over:
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(POLL)
            over = True
        follower = follower or _follower_of(driver.pid, store, earlier)
        if follower is not None:
            show(follower.look())
    return follower


def _follower_of(pid: int, store: Store, earlier: Collection[str]) -> StudyFollower | None:
    for name in study_names(store.root):
        if name in earlier:
            continue
        record = read_study(store.root, name)
        if record is not None and record.driver.get("pid") == pid and is_here(record.driver):
            return StudyFollower(store, record)
    return None


def _stop(driver: subprocess.Popen) -> None:
    """Tell a driver that has not ended to stop, and wait for it. Each further Ctrl-C is passed on."""
    said = False
    while driver.poll() is None:
        with contextlib.suppress(KeyboardInterrupt):
            driver.send_signal(signal.SIGINT)
            if not said:
                said = True
                print("stopping: runs are checkpointed; interrupt again to stop at once", file=sys.stderr)
            driver.wait()


def _refusal(status: int, said: str) -> LambdaHatError:
    """The error of a driver that ended with `status` before its end was recorded."""
    if status == EXIT_USAGE:
        # argparse puts the name of the script before it.
        return ConfigError(re.split(r"^(?:[^:\n]+: )?error: ", said, maxsplit=1, flags=re.MULTILINE)[-1])
    return LambdaHatError(
        f"the driver of the study ended with status {status}; what is finished is kept, the same call goes on from "
        f"there; its last words: {said[-MOST_SAID:]}"
    )
