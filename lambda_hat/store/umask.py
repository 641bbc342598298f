"""The umask of a study: that of who started it holds on every node, so that a group that shares a store can read it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from lambda_hat.errors import ConfigError

UMASK_VARIABLE = "LAMBDA_HAT_UMASK"
"""Environment variable in which a driver hands its umask to the processes that it starts, on whatever node. PBS gives
jobs the umask 077, and ssh that of a new login."""
OWNER = 0o700


def process_umask() -> int:
    """The umask of this process."""
    # os.umask would have to change it, for every thread.
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        status = ""
    found = re.search(r"^Umask:\s*([0-7]+)$", status, re.MULTILINE)
    if found:
        return int(found[1], 8)
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def umask_word() -> str:
    """The umask of this process as a shell writes it, such as 022."""
    return f"{process_umask():03o}"


def keep_umask(environ: Mapping[str, str]) -> None:
    """Take over the umask of the driver that started this process, if one did."""
    word = environ.get(UMASK_VARIABLE, "")
    if re.fullmatch(r"[0-7]{1,4}", word):
        os.umask(int(word, 8))


def check_umask() -> None:
    """Refuse an umask under which a user could not read what the study writes.

    Raises:
        ConfigError: It takes a permission from the user itself.
    """
    umask = process_umask()
    if umask & OWNER:
        raise ConfigError(
            f"umask: got {umask:03o}, which would make the store unreadable to its own user; write umask 077, or 027 "
            "to let the group read it, in this shell"
        )
