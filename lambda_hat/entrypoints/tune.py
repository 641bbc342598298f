"""`lambda-hat tune`: `flows/tune.py` of the checkout that this package is installed from."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lambda_hat.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def hand_over(words: Sequence[str], root: Path = ROOT) -> NoReturn:
    """Become `python flows/tune.py` with the same words. Raises ConfigError if there is no checkout."""
    script = root / "flows" / "tune.py"
    if not script.is_file():
        raise ConfigError(
            f"lambda-hat tune: runs {script}, which is not there: this package was installed without its checkout; "
            "in a checkout write pip install -e '.[mpi]', or python flows/tune.py"
        )
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(script), *words])
