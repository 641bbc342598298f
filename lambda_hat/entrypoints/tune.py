"""`lambda-hat tune`: `flows/tune.py` of the checkout that this package is installed from."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lambda_hat.checkout import ROOT, flow_script


def hand_over(words: Sequence[str], root: Path = ROOT) -> NoReturn:
    """Become `python flows/tune.py` with the same words. Raises ConfigError if there is no checkout."""
    script = flow_script("tune.py", "lambda-hat tune", root)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(script), *words])
