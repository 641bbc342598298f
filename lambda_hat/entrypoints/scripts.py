"""`lambda-hat run` and `lambda-hat tune`: the scripts `flows/packed.py` and `flows/tune.py`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from lambda_hat.checkout import SCRIPTS


def hand_over(command: str, words: Sequence[str]) -> NoReturn:
    """Become the script of a command of `lambda-hat`, with the same words."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(SCRIPTS[command]), *words])
